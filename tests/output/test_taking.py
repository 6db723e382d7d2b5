"""What OUTPUT holds before it is taken: what is gone on with, what is in the way, and what is said of it."""

import hashlib
import json
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import pytest

from distconv.errors import OutputError
from distconv.families.translate import Decisions
from distconv.moving.digests import ChunkDigests, PartDigests
from distconv.moving.shared import UnfinishedFile
from distconv.output.identity import InputFiles, refuse_overlap
from distconv.output.loading import find_detours, find_legal, find_obstacles, read_recorded
from distconv.output.receipt import RecordedChunk, make_receipt
from distconv.output.resuming import _check, _difference
from distconv.output.state import (
    Found,
    RecordedDigests,
    find_attempts,
    find_decisions,
    is_recorded,
    look_at_output,
)
from distconv.output.targets import META, TRANSFORMERS
from distconv.output.unfinished import make_unfinished
from distconv.storage.fencing import make_attempt
from distconv.storage.local import LocalStorage
from distconv.version import VERSION

Json = dict[str, object]
STORAGE = LocalStorage()
JOURNAL, RECEIPT = ".distconv.journal", "distconv.json"
DIGEST, MD5, SHA256 = "0" * 32, "1" * 32, "2" * 64
SOURCE: Json = {"params.json": {"sha256": SHA256}}
IDENTITY: Json = {
    "distconv": VERSION, "family": "llama-2", "instruct": False, "dtype": "bfloat16", "max_shard_size": 5,
    "tied": True, "kv_replication": 2, "source": SOURCE, "plan_sha256": SHA256,
}  # fmt: skip
ROW: Json = {
    "name": "model.safetensors",
    "xxh3_128": DIGEST,
    "md5": MD5,
    "version": "7",
    "tensors": {"a": DIGEST},
}


def write_journal(folder: Path, **changes: object) -> None:
    """Write a journal of a conversion that has finished one chunk."""
    content = {"conversion": IDENTITY, "chunks": [ROW]} | changes
    (folder / JOURNAL).write_text(json.dumps(content))


def write_receipt(folder: Path, files: dict[str, str], identity: Json = IDENTITY) -> None:
    """Write the receipt of a conversion of one chunk."""
    chunk = RecordedChunk("model.safetensors", 1, DIGEST, {"a": DIGEST})
    files = {"config.json": SHA256} | files
    (folder / RECEIPT).write_bytes(make_receipt(identity, [chunk.to_row()], files, {}))


def test_a_folder_that_nobody_wrote_into_tells_nothing(tmp_path: Path) -> None:
    assert look_at_output(STORAGE, str(tmp_path / "absent")) == Found({}, 0, None, {}, {})
    for name, content in (("a", b"12"), (".distconv.owner.00000001", b""), (".distconv.lock", b"")):
        (tmp_path / name).write_bytes(content)
    for name in ("config.json", "model.safetensors"):
        Path(make_attempt(str(tmp_path / name))).write_bytes(b"123")
    assert look_at_output(STORAGE, str(tmp_path)) == Found({"a": 2}, 6, None, {}, {})
    with pytest.raises(OutputError) as raised:
        look_at_output(STORAGE, str(tmp_path / "a"))
    assert str(raised.value) == f"{tmp_path / 'a'}: a file, expected a folder"


def test_a_journal_tells_what_is_finished_and_what_was_begun_and_counts_more_than_a_receipt(
    tmp_path: Path,
) -> None:
    attempt = make_attempt(str(tmp_path / "model.safetensors"))
    parts = {3: PartDigests((DIGEST,))}
    write_journal(tmp_path, unfinished=make_unfinished({"model.safetensors": (attempt, parts)}))
    write_receipt(tmp_path, {}, IDENTITY | {"family": "llama-3"})
    found = look_at_output(STORAGE, str(tmp_path))
    assert (set(found.entries), found.conversion) == ({JOURNAL, RECEIPT}, IDENTITY)
    assert found.digests == {"model.safetensors": RecordedDigests(DIGEST, {"a": DIGEST}, MD5, "7")}
    assert found.unfinished == {"model.safetensors": UnfinishedFile(attempt, parts)}
    (tmp_path / JOURNAL).unlink()
    found = look_at_output(STORAGE, str(tmp_path))
    assert found.conversion == IDENTITY | {"family": "llama-3"}
    assert found.digests == {"model.safetensors": RecordedDigests(DIGEST, {"a": DIGEST}, None, None)}
    assert found.unfinished == {}


@pytest.mark.parametrize(
    "changes",
    [
        {"chunks": None}, {"chunks": [1]}, {"chunks": [{}]}, {"chunks": [ROW | {"tensors": []}]},
        {"chunks": [{key: value for key, value in ROW.items() if key != "tensors"}]},
    ],
)  # fmt: skip
def test_of_a_damaged_journal_nothing_is_believed(tmp_path: Path, changes: Json) -> None:
    write_journal(tmp_path, **changes)
    found = look_at_output(STORAGE, str(tmp_path))
    assert (found.conversion, found.digests, found.unfinished) == (None, {}, {})


@pytest.mark.parametrize("md5", [None, 1, "1" * 31, "g" * 32, "1" * 33])
def test_what_is_no_md5_is_none(tmp_path: Path, md5: object) -> None:
    write_journal(tmp_path, chunks=[ROW | {"md5": md5}])
    assert look_at_output(STORAGE, str(tmp_path)).digests["model.safetensors"].md5 is None


def test_a_finished_file_is_vouched_for_by_the_version_that_was_recorded(tmp_path: Path) -> None:
    for name in "abc":
        (tmp_path / name).touch()
    version = {entry.name: entry.version for entry in STORAGE.list_folder(str(tmp_path))}
    digests = {
        "a": RecordedDigests(DIGEST, {}, MD5, version["a"]),
        "b": RecordedDigests(DIGEST, {}, None, "0"),
        "c": RecordedDigests(DIGEST, {}),
        "d": RecordedDigests(DIGEST, {}, MD5, "0"),
    }
    found = Found({}, 0, None, digests, {})
    assert found.find_vouched(STORAGE, str(tmp_path)) == {"a": version["a"]}
    assert Found({}, 0, None, {}, {}).find_vouched(STORAGE, "nowhere") == {}
    assert found.list_md5s("abd") == {"a": MD5, "d": MD5}


def test_digests_are_given_in_the_order_of_the_file_or_not_at_all() -> None:
    recorded = RecordedDigests("whole", {"a": "1", "b": "2"})
    assert recorded.in_order(iter("ba")) == ChunkDigests("whole", ("2", "1"))
    assert recorded.in_order("a") is None
    assert recorded.in_order("abc") is None


@pytest.mark.parametrize("name", [JOURNAL, RECEIPT])
def test_decisions_are_those_of_the_same_input_format_family_and_version(tmp_path: Path, name: str) -> None:
    def find(
        changes: Json, *, to: object = TRANSFORMERS, family: str = "llama-2", source: Json = SOURCE
    ) -> object:
        write_journal(tmp_path, conversion=IDENTITY | changes)
        os.replace(tmp_path / JOURNAL, tmp_path / name)
        return find_decisions(STORAGE, str(tmp_path), to, family, source)  # type: ignore[arg-type]

    assert find_decisions(STORAGE, str(tmp_path), TRANSFORMERS, "llama-2", SOURCE) is None
    assert find({}) == Decisions(tied=True, kv_replication=2)
    assert find({"tied": False, "kv_replication": 1}) == Decisions(tied=False, kv_replication=1)
    assert find({"to": "meta"}, to=META) == Decisions(tied=True, kv_replication=2)
    for changes in (
        {"to": "meta"}, {"distconv": "0.0"}, {"family": "llama-3"}, {"source": {}}, {"tied": None}, {"tied": 1},
        {"kv_replication": 0}, {"kv_replication": True}, {"kv_replication": "2"},
    ):  # fmt: skip
        assert find(changes) is None
    assert find({}, to=META) is None
    assert find({}, family="llama-3") is None
    assert find({}, source={}) is None
    (tmp_path / name).write_text("{")
    assert find_decisions(STORAGE, str(tmp_path), TRANSFORMERS, "llama-2", SOURCE) is None


def test_a_damaged_journal_leaves_the_decision_to_the_receipt(tmp_path: Path) -> None:
    write_journal(tmp_path, conversion=None)
    write_receipt(tmp_path, {})
    assert find_decisions(STORAGE, str(tmp_path), TRANSFORMERS, "llama-2", SOURCE) == Decisions(
        tied=True, kv_replication=2
    )


def test_a_conversion_is_recorded_once_its_receipt_stands_and_nobody_has_the_folder(tmp_path: Path) -> None:
    assert not is_recorded(STORAGE, str(tmp_path), IDENTITY)
    write_receipt(tmp_path, {})
    assert is_recorded(STORAGE, str(tmp_path), IDENTITY)
    assert not is_recorded(STORAGE, str(tmp_path), IDENTITY | {"family": "llama-3"})
    (tmp_path / ".distconv.owner.00000001").touch()
    assert not is_recorded(STORAGE, str(tmp_path), IDENTITY)
    (tmp_path / ".distconv.owner.00000001").unlink()
    (tmp_path / RECEIPT).write_text("{}")
    assert not is_recorded(STORAGE, str(tmp_path), IDENTITY)


def test_only_the_very_same_conversion_goes_on_with_files_that_were_begun(tmp_path: Path) -> None:
    assert find_attempts(STORAGE, str(tmp_path), IDENTITY) == frozenset()
    attempt = make_attempt("model.safetensors")
    write_journal(tmp_path, unfinished=make_unfinished({"model.safetensors": (attempt, {})}))
    assert find_attempts(STORAGE, str(tmp_path), IDENTITY) == {os.path.basename(attempt)}
    assert find_attempts(STORAGE, str(tmp_path), IDENTITY | {"dtype": "float16"}) == frozenset()


def found_with(*names: str, conversion: object = None) -> Found:
    """Give an OUTPUT that holds such names."""
    return Found(dict.fromkeys(names, 1), 0, conversion, {}, {})


@pytest.mark.parametrize(
    ("found", "words"),
    [
        (found_with("d", "c", "b", "a"), "other files (a, b, c, d)"),
        (found_with("e", "d", "c", "b", "a"), "other files (a, b, c, d, …)"),
        (found_with(JOURNAL, RECEIPT), f"an unreadable {JOURNAL}"),
        (found_with("a", RECEIPT, conversion=[]), f"an unreadable {RECEIPT}"),
        (found_with(JOURNAL, conversion=IDENTITY | {"plan_sha256": ""}), "another conversion (another plan)"),
        (found_with(JOURNAL, conversion=IDENTITY | {"dtype": "float16", "family": "x"}), "another conversion (family was x, is llama-2; dtype was float16, is bfloat16)"),
        (found_with(JOURNAL, conversion=IDENTITY | {"to": "meta"}), "another conversion (to was meta, is transformers)"),
        (found_with(JOURNAL, conversion={key: value for key, value in IDENTITY.items() if key != "dtype"}), "another conversion (dtype was not given, is bfloat16)"),
        (found_with(JOURNAL, conversion=IDENTITY | {"source": None}), f"another conversion (source was not given, is {SOURCE})"),
        (found_with(JOURNAL, conversion=IDENTITY | {"source": {"params.json": 1}}), "another conversion (changed since: params.json)"),
        (found_with(JOURNAL, conversion=IDENTITY | {"source": SOURCE | dict.fromkeys("dcb", 1)}), "another conversion (changed since: b, c, d)"),
        (found_with(JOURNAL, conversion=IDENTITY | {"source": SOURCE | dict.fromkeys("edcb", 1)}), "another conversion (changed since: b, c, d, e)"),
        (found_with(JOURNAL, conversion=IDENTITY | {"source": SOURCE | dict.fromkeys("fedcb", 1)}), "another conversion (changed since: b, c, d, e, …)"),
    ],
)  # fmt: skip
def test_what_stands_in_the_way_is_told_by_its_difference(found: Found, words: str) -> None:
    assert _difference(found, IDENTITY) == words


@dataclass(frozen=True, slots=True)
class SmallStorage(LocalStorage):
    """Local files, with little room for more."""

    free: int = 0

    def free_bytes(self, path: str) -> int | None:
        """Give what is said to be free."""
        return None if self.free < 0 else self.free


def check(folder: Path, free: int, obstacles: Iterable[str] = (), *, overwrite: bool = False) -> Found:
    """Look whether a conversion of two files, 3 and 4 MB, may have a folder; ``obstacles`` stay in any case."""
    files = [SimpleNamespace(name=f"model-0000{place}-of-00002.safetensors", size_bytes=size, head=b"", plain_head=b"")
             for place, size in ((1, 3_000_000), (2, 4_000_000))]  # fmt: skip
    plan = SimpleNamespace(files=tuple(files))
    return _check(
        SmallStorage(free), str(folder), plan, IDENTITY, lambda *, overwrite: obstacles, TRANSFORMERS,
        overwrite=overwrite,
    )  # fmt: skip


def refused(folder: Path, free: int, obstacles: Iterable[str] = (), *, overwrite: bool = False) -> str:
    """Give what is said where it may not."""
    with pytest.raises(OutputError) as raised:
        check(folder, free, obstacles, overwrite=overwrite)
    return str(raised.value).replace(str(folder), "out")


ROOM = (32 << 20) + 7_000_000


def test_a_folder_needs_room_for_what_is_not_there_yet_and_for_small_files(tmp_path: Path) -> None:
    assert check(tmp_path, ROOM) == check(tmp_path, -1) == Found({}, 0, None, {}, {})
    assert refused(tmp_path, ROOM - 2000) == (
        "out: 40.6 MB needed, 40.6 MB free; free 2.0 kB or give a folder elsewhere"
    )
    Path(make_attempt(str(tmp_path / "config.json"))).write_bytes(bytes(2000))
    check(tmp_path, ROOM - 2000)
    assert "free 1 B or" in refused(tmp_path, ROOM - 2001)


def test_what_will_be_replaced_makes_room_if_it_may_be(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(bytes(5000))
    (tmp_path / "diary.txt").write_bytes(bytes(5000))
    check(tmp_path, ROOM - 5000, overwrite=True)
    assert "free 1 B or" in refused(tmp_path, ROOM - 5001, overwrite=True)


def test_what_overwriting_leaves_is_named_with_what_is_in_the_way(tmp_path: Path) -> None:
    (tmp_path / "diary.txt").touch()
    holds = "out: holds other files (diary.txt); give an empty folder, or "
    assert refused(tmp_path, -1) == f"{holds}--overwrite to replace the model in it"
    assert refused(tmp_path, -1, ["x: stays", "y: stays"]) == (
        f"{holds}move away what --overwrite does not replace\nx: stays\ny: stays"
    )
    assert refused(tmp_path, -1, ["x: stays", "y: stays"], overwrite=True) == "x: stays\ny: stays"
    assert check(tmp_path, -1, overwrite=True).entries == {"diary.txt": 0}


def test_what_leads_a_loader_elsewhere_is_told_key_by_key(tmp_path: Path) -> None:
    assert list(find_detours(STORAGE, str(tmp_path), TRANSFORMERS)) == []
    (tmp_path / "config.json").write_text(
        '{"auto_map": {}, "transformers_weights": "x", "quantization_config": null}'
    )
    (tmp_path / "tokenizer_config.json").write_text("[")
    config, *others = find_detours(STORAGE, str(tmp_path), TRANSFORMERS)
    rest = "which no conversion writes and which changes what is loaded"
    assert config == f"{tmp_path / 'config.json'}: has transformers_weights, {rest}"
    assert others[0] == f"{tmp_path / 'config.json'}: has auto_map, {rest}"
    assert others[1].startswith(f"{tmp_path / 'tokenizer_config.json'}: not JSON (")
    (tmp_path / "tokenizer_config.json").write_text('{"fast_tokenizer_files": [], "auto_map": {}}')
    assert len(list(find_detours(STORAGE, str(tmp_path), TRANSFORMERS))) == 4
    assert list(find_detours(STORAGE, str(tmp_path), META)) == []


def test_what_a_conversion_may_not_replace_is_told_file_by_file(tmp_path: Path) -> None:
    names = [
        "LICENSE",
        "USE_POLICY.md",
        "diary.txt",
        "other.safetensors",
        "model.safetensors",
        "vocab.json",
        "my.model",
    ]
    for name in names:
        (tmp_path / name).write_text(name)
    (tmp_path / "config.json").mkdir()

    def find(*digests: str, overwrite: bool = False) -> list[str]:
        files = {"config.json": b"", "LICENSE": b"another", "USE_POLICY.md": b"USE_POLICY.md"}
        found = find_obstacles(
            STORAGE, str(tmp_path), ["model.safetensors"], files, [SHA256, *digests], overwrite=overwrite
        )
        return [words.replace(f"{tmp_path}/", "") for words in found]

    mine = hashlib.sha256(b"my.model").hexdigest()
    licence = "LICENSE: not the one that belongs to this model; move it away"
    folder = "config.json: a folder, where a file will be written; move it away"
    loaded = "not of this model, and may be loaded in its place; move it away"
    strangers = [f"{name}: {loaded}" for name in ("my.model", "other.safetensors", "vocab.json")]
    assert sorted(find()) == sorted([licence, folder, *strangers])
    assert sorted(find(mine)) == sorted([licence, folder, *strangers[1:]])
    write_receipt(tmp_path, {"LICENSE": hashlib.sha256(b"LICENSE").hexdigest(), "USE_POLICY.md": SHA256})
    assert sorted(find(overwrite=True)) == sorted([folder, *strangers])
    assert find_legal(STORAGE, str(tmp_path)) == {"LICENSE"}
    assert set(read_recorded(STORAGE, str(tmp_path))) == {"config.json", "LICENSE", "USE_POLICY.md"}
    (tmp_path / RECEIPT).write_text("{}")
    assert read_recorded(STORAGE, str(tmp_path)) == {}


def test_output_is_no_folder_of_inputs(tmp_path: Path) -> None:
    for name in ("in/shards", "in/out", "elsewhere", "tokenizer"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "in/shards/w").touch()
    (tmp_path / "tokenizer/t").touch()
    (tmp_path / "link").symlink_to("in")

    def refuse(output: str, folder: str = "in/shards") -> str | None:
        files = InputFiles(
            str(tmp_path / folder),
            (str(tmp_path / "in/shards/w"),),
            (str(tmp_path / "tokenizer/t"),),
            lambda _s: (),
        )
        try:
            refuse_overlap(STORAGE, files, str(tmp_path / output))
        except OutputError as error:
            return str(error).replace(f"{tmp_path}/", "")
        return None

    for output in ("elsewhere", "in/shards.out", "in/shard", "in/out"):
        assert refuse(output) is None
    for output in ("in/shards", "in/shards/out", "in", "", "link", "link/shards"):
        words = (
            f"{output or tmp_path}: equal to, inside or above INPUT's folder in/shards; give another folder"
        )
        assert refuse(output) == words
    assert (
        refuse("in/out", folder="in")
        == "in/out: equal to, inside or above INPUT's folder in; give another folder"
    )
    assert refuse("tokenizer") == "tokenizer: holds tokenizer/t, which is INPUT's; give another folder"
    assert refuse("tokenizer/out") is None
