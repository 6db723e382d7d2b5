"""What OUTPUT's own records tell: what is finished, what was begun, and of which conversion."""

import os
from pathlib import Path

import pytest

from distconv.errors import OutputError
from distconv.families.translate import Decisions
from distconv.moving.digests import ChunkDigests, PartDigests
from distconv.moving.shared import UnfinishedFile
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
from tests.output.records import (
    DIGEST,
    IDENTITY,
    JOURNAL,
    MD5,
    RECEIPT,
    ROW,
    SOURCE,
    STORAGE,
    Json,
    write_journal,
    write_receipt,
)


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
    # Killed as it gave the folder back: what is left goes with the next run.
    (tmp_path / ".distconv.owner.00000001").rename(make_attempt(str(tmp_path / ".distconv.owner.00000001")))
    assert not is_recorded(STORAGE, str(tmp_path), IDENTITY)
    next(tmp_path.glob("*.partial")).unlink()
    assert is_recorded(STORAGE, str(tmp_path), IDENTITY)
    (tmp_path / RECEIPT).write_text("{}")
    assert not is_recorded(STORAGE, str(tmp_path), IDENTITY)


def test_only_the_very_same_conversion_goes_on_with_files_that_were_begun(tmp_path: Path) -> None:
    assert find_attempts(STORAGE, str(tmp_path), IDENTITY) == frozenset()
    attempt = make_attempt("model.safetensors")
    write_journal(tmp_path, unfinished=make_unfinished({"model.safetensors": (attempt, {})}))
    assert find_attempts(STORAGE, str(tmp_path), IDENTITY) == {os.path.basename(attempt)}
    assert find_attempts(STORAGE, str(tmp_path), IDENTITY | {"dtype": "float16"}) == frozenset()
