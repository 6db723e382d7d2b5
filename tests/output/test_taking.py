"""What is in the way of a conversion, whether there is room, and what is said of it."""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import pytest

from distconv.errors import OutputError
from distconv.output.descriptions import describe_difference
from distconv.output.identity import InputFiles, refuse_overlap
from distconv.output.loading import find_detours, find_legal, find_obstacles, read_recorded
from distconv.output.resuming import _check
from distconv.output.state import (
    Found,
)
from distconv.output.targets import META, TRANSFORMERS
from distconv.storage.fencing import make_attempt
from distconv.storage.local import LocalStorage
from distconv.version import VERSION
from tests.output.records import IDENTITY, JOURNAL, RECEIPT, SHA256, SOURCE, STORAGE, write_receipt


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
        (found_with(JOURNAL, conversion=IDENTITY | {"dtype": "float16", "family": "x"}), "another conversion (`family='x'` before, `family='llama-2'` now; `dtype='float16'` before, `dtype='bfloat16'` now)"),
        (found_with(JOURNAL, conversion=IDENTITY | {"to": "meta"}), "another conversion (`to='meta'` before, `to='transformers'` now)"),
        (found_with(JOURNAL, conversion={key: value for key, value in IDENTITY.items() if key != "dtype"}), "another conversion (no `dtype=` before, `dtype='bfloat16'` now)"),
        (found_with(JOURNAL, conversion=IDENTITY | {"instruct": True, "distconv": "0.1", "tied": False, "kv_replication": None}), f"another conversion (version 0.1 before, {VERSION} now; `instruct=True` before, no `instruct=True` now; output layer tied no before, yes now; copies of each key head unknown before, 2 now)"),
        (found_with(JOURNAL, conversion=IDENTITY | {"dtype": "`\n", "max_shard_size": [], "family": 1}), "another conversion (`family=1` before, `family='llama-2'` now; `dtype=` '`\\n' before, `dtype='bfloat16'` now; `max_shard_size=` a list before, `max_shard_size='5B'` now)"),
        (found_with(JOURNAL, conversion=IDENTITY | {"distconv": "'v'"}), f"another conversion (version \"'v'\" before, {VERSION} now)"),
        (found_with(JOURNAL, conversion=IDENTITY | {"max_shard_size": 1}), "another conversion (`max_shard_size='1B'` before, `max_shard_size='5B'` now)"),
        (found_with(JOURNAL, conversion=IDENTITY | {"max_shard_size": 0}), "another conversion (`max_shard_size=0` before, `max_shard_size='5B'` now)"),
        (found_with(JOURNAL, conversion=IDENTITY | {"source": None}), "another conversion (INPUT is another, or changed since: params.json)"),
        (found_with(JOURNAL, conversion=IDENTITY | {"source": {"params.json": 1}}), "another conversion (INPUT is another, or changed since: params.json)"),
        (found_with(JOURNAL, conversion=IDENTITY | {"source": SOURCE | dict.fromkeys("dcb", 1)}), "another conversion (INPUT is another, or changed since: b, c, d)"),
        (found_with(JOURNAL, conversion=IDENTITY | {"source": SOURCE | dict.fromkeys("edcb", 1)}), "another conversion (INPUT is another, or changed since: b, c, d, e)"),
        (found_with(JOURNAL, conversion=IDENTITY | {"source": SOURCE | dict.fromkeys("fedcb", 1)}), "another conversion (INPUT is another, or changed since: b, c, d, e, …)"),
    ],
)  # fmt: skip
def test_what_stands_in_the_way_is_told_by_its_difference(found: Found, words: str) -> None:
    assert describe_difference(found, IDENTITY) == words


def test_what_has_no_name_for_people_is_told_by_its_own() -> None:
    found = found_with(JOURNAL, conversion={"to": "transformers", "kind": "a", "files": {"b": 1}})
    assert describe_difference(found, {"kind": "c", "files": {"b": 2}}) == (
        "another conversion (kind a before, c now; files is another, or changed since: b)"
    )


@dataclass(frozen=True, slots=True)
class SmallStorage(LocalStorage):
    """Local files, with little room for more."""

    free: int = 0

    def free_bytes(self, path: str) -> int | None:
        """Give what is said to be free."""
        return None if self.free < 0 else self.free


def check(
    folder: Path, free: int, obstacles: Iterable[str] = (), *, overwrite: bool = False, ignore_free_space: bool = False
) -> Found:  # fmt: skip
    """Look whether a conversion of two files, 3 and 4 MB, may have a folder; ``obstacles`` stay in any case."""
    files = [SimpleNamespace(name=f"model-0000{place}-of-00002.safetensors", size_bytes=size, head=b"", plain_head=b"")
             for place, size in ((1, 3_000_000), (2, 4_000_000))]  # fmt: skip
    plan = SimpleNamespace(files=tuple(files))
    return _check(
        SmallStorage(free), str(folder), plan, IDENTITY, lambda *, overwrite: [*obstacles, *["w: is removed"][overwrite or not obstacles :]], TRANSFORMERS,
        overwrite=overwrite, ignore_free_space=ignore_free_space,
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
        "out: 40.6 MB needed (33.6 MB of it for small files), 40.6 MB free; free 2.0 kB or give a folder elsewhere; "
        "where the file system takes more than it has free, as one that compresses may, add `ignore_free_space=True`"
    )
    Path(make_attempt(str(tmp_path / "config.json"))).write_bytes(bytes(2000))
    check(tmp_path, ROOM - 2000)
    check(tmp_path, 0, ignore_free_space=True)
    assert "free 1 B or" in refused(tmp_path, ROOM - 2001)


def test_what_will_be_replaced_makes_room_if_it_may_be(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(bytes(5000))
    (tmp_path / "diary.txt").write_bytes(bytes(5000))
    check(tmp_path, ROOM - 5000, overwrite=True)
    assert "free 1 B or" in refused(tmp_path, ROOM - 5001, overwrite=True)


def test_a_chunk_that_is_there_needs_no_room_unless_it_is_made_again(tmp_path: Path) -> None:
    (tmp_path / JOURNAL).write_text(json.dumps({"conversion": IDENTITY, "chunks": []}))
    (tmp_path / "model-00001-of-00002.safetensors").write_bytes(bytes(3_000_000))
    check(tmp_path, ROOM - 3_000_000)
    assert "free 1 B or" in refused(tmp_path, ROOM - 3_000_001)
    # Made again it takes the room of the one that is removed.
    journal_bytes = (tmp_path / JOURNAL).stat().st_size
    check(tmp_path, ROOM - 3_000_000 - journal_bytes, overwrite=True)
    assert "free 1 B or" in refused(tmp_path, ROOM - 3_000_001 - journal_bytes, overwrite=True)


def test_what_overwriting_leaves_is_named_with_what_is_in_the_way(tmp_path: Path) -> None:
    (tmp_path / "diary.txt").touch()
    holds = "out: holds other files (diary.txt); give an empty folder, or "
    assert refused(tmp_path, -1) == f"{holds}`overwrite=True` to replace the model in it"
    assert refused(tmp_path, -1, ["x: stays", "y: stays"]) == (
        f"{holds}move away what `overwrite=True` does not replace\nx: stays\ny: stays"
    )
    assert refused(tmp_path / "absent", -1, ["x: stays"]) == "x: stays\nw: is removed"
    assert refused(tmp_path, -1, ["x: stays", "y: stays"], overwrite=True) == "x: stays\ny: stays"
    assert check(tmp_path, -1, overwrite=True).entries == {"diary.txt": 0}


def test_what_leads_a_loader_elsewhere_is_told_key_by_key(tmp_path: Path) -> None:
    assert find_detours(STORAGE, str(tmp_path), TRANSFORMERS, recorded=True) == ([], [])
    (tmp_path / "config.json").write_text(
        '{"auto_map": {}, "transformers_weights": "x", "quantization_config": null}'
    )
    (tmp_path / "tokenizer_config.json").write_text("[")
    (config, *others), notes = find_detours(STORAGE, str(tmp_path), TRANSFORMERS, recorded=True)
    assert notes == []
    rest = "which no conversion writes and which changes what is loaded"
    assert config == f"{tmp_path / 'config.json'}: has transformers_weights, {rest}"
    assert others[0] == f"{tmp_path / 'config.json'}: has auto_map, {rest}"
    assert others[1].startswith(f"{tmp_path / 'tokenizer_config.json'}: not JSON (")
    (tmp_path / "tokenizer_config.json").write_text('{"fast_tokenizer_files": [], "auto_map": {}}')
    assert len(find_detours(STORAGE, str(tmp_path), TRANSFORMERS, recorded=True)[0]) == 4
    findings, notes = find_detours(STORAGE, str(tmp_path), TRANSFORMERS, recorded=False)
    assert (len(findings), len(notes)) == (2, 2)
    assert notes[0] == f"{tmp_path / 'config.json'}: has auto_map; the code that it names is never run here"
    assert find_detours(STORAGE, str(tmp_path), META, recorded=True) == ([], [])


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
    # What belongs to a tokenizer is replaced with the model.
    assert sorted(find(overwrite=True)) == sorted([folder, *strangers[:2]])
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
    for output, where in (
        ("in/shards", "equal to"),
        ("link/shards", "equal to"),
        ("in/shards/out", "inside"),
        ("in", "above"),
        ("", "above"),
        ("link", "above"),
    ):
        assert (
            refuse(output) == f"{output or tmp_path}: {where} INPUT's folder in/shards; give another folder"
        )
    assert refuse("in/out", folder="in") == "in/out: inside INPUT's folder in; give another folder"
    assert refuse("tokenizer") == "tokenizer: holds tokenizer/t, which is INPUT's; give another folder"
    assert refuse("tokenizer/out") is None
