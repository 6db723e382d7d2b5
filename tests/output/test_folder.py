"""While a conversion has OUTPUT its journal says what is done, and nothing of an INPUT that has changed stays."""

import hashlib
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

import pytest

from distconv.errors import InputError, OutputError
from distconv.moving.digests import ChunkDigests, PartDigests
from distconv.moving.job import Receipt
from distconv.moving.shared import UnfinishedFile
from distconv.output import folder as folders
from distconv.output.acquisition import owned
from distconv.output.folder import Folder
from distconv.output.identity import find_libraries
from distconv.output.receipt import read_receipt
from distconv.output.state import RecordedDigests, look_at_output
from distconv.storage.fencing import make_attempt
from tests.output.records import DIGEST, IDENTITY, JOURNAL, MD5, RECEIPT, SHA256, STORAGE

FIRST, SECOND = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
OTHER = "3" * 32
FILES = {"model.safetensors.index.json": b"index", "config.json": b"{}"}
PLAN = SimpleNamespace(
    files=tuple(
        SimpleNamespace(name=name, size_bytes=size, tensors=tuple(SimpleNamespace(name=tensor) for tensor in names))
        for name, size, names in ((FIRST, 3, "ab"), (SECOND, 4, "c"))
    )
)  # fmt: skip


@dataclass(slots=True)
class Input:
    """An INPUT that may have changed, and what was asked of it."""

    changed: bool = False
    asked: list[object] = field(default_factory=list)

    def check(self) -> None:
        self.asked.append("check")
        self._refuse()

    def prove(self, identity: object) -> None:
        self.asked.append(identity)
        self._refuse()

    def _refuse(self) -> None:
        if self.changed:
            raise InputError("changed")


Begin = Callable[..., Folder]


@pytest.fixture(autouse=True)
def _hold(monkeypatch: pytest.MonkeyPatch) -> None:
    # The journal is written when these tests say so.
    monkeypatch.setattr(folders, "JOURNAL_SECONDS", 3600.0)


@pytest.fixture
def begin(tmp_path: Path) -> Iterator[Begin]:
    """Give a function that begins in the folder; arguments are what an earlier run left."""
    with owned(STORAGE, str(tmp_path), print) as owner:
        begun: list[Folder] = []

        def make(source: Input, **left: object) -> Folder:
            earlier = [left.get(name, {}) for name in ("recorded", "md5s", "unfinished", "versions")]
            begun.append(Folder(STORAGE, owner, source, PLAN, dict(IDENTITY), *earlier))  # type: ignore[arg-type]
            return begun[-1]

        yield make
        for made in begun:
            made.close()


def journal(folder: Path) -> dict[str, object]:
    """Read the journal."""
    return json.loads((folder / JOURNAL).read_text())


def done(name: str, digests: ChunkDigests, **more: object) -> Receipt:
    """Say that a chunk is finished."""
    return Receipt(name, digests, 0, 0, **more)  # type: ignore[arg-type]


BOTH, ONE = ChunkDigests(DIGEST, (DIGEST, OTHER)), ChunkDigests(None, (DIGEST,))


def test_a_journal_stands_from_the_beginning_and_says_what_an_earlier_run_left(
    tmp_path: Path, begin: Begin
) -> None:
    attempt = make_attempt(str(tmp_path / SECOND))
    unfinished = {SECOND: UnfinishedFile(attempt, {1: PartDigests((DIGEST,))})}
    begun = begin(
        Input(), recorded={FIRST: BOTH}, md5s={FIRST: MD5}, unfinished=unfinished, versions={FIRST: "7"}
    )
    assert journal(tmp_path) == {
        "conversion": IDENTITY,
        "chunks": [
            {"name": FIRST, "size_bytes": 3, "xxh3_128": DIGEST, "md5": MD5, "tensors": {"a": DIGEST, "b": OTHER}, "version": "7"}
        ],
        "unfinished": {SECOND: {"attempt": os.path.basename(attempt), "parts": {"1": {"tensors": [DIGEST]}}}},
    }  # fmt: skip
    found = look_at_output(STORAGE, str(tmp_path))
    assert found.digests == {FIRST: RecordedDigests(DIGEST, {"a": DIGEST, "b": OTHER}, MD5, "7")}
    assert (found.unfinished, begun.unfinished) == (unfinished, unfinished)
    assert (begun.recorded, begun.md5s, begun.versions) == ({FIRST: BOTH}, {FIRST: MD5}, {FIRST: "7"})


def test_what_is_finished_is_recorded_with_all_that_is_known_of_it(tmp_path: Path, begin: Begin) -> None:
    source = Input()
    begun = begin(source, recorded={FIRST: BOTH}, md5s={FIRST: MD5}, versions={FIRST: "7"})
    begun.keep(done(FIRST, BOTH, kept=True))
    begun._flush()
    assert source.asked == []  # nothing is new
    begun.keep(done(SECOND, ONE, version="8"))
    begun.keep_md5(SECOND, OTHER)
    assert len(journal(tmp_path)["chunks"]) == 1  # type: ignore[arg-type]
    begun._flush()
    assert source.asked == ["check"]
    assert look_at_output(STORAGE, str(tmp_path)).digests == {
        FIRST: RecordedDigests(DIGEST, {"a": DIGEST, "b": OTHER}, MD5, "7"),
        SECOND: RecordedDigests(None, {"c": DIGEST}, OTHER, "8"),
    }
    begun._flush()
    assert source.asked == ["check"]


def test_a_chunk_that_was_made_again_loses_what_was_said_of_the_other_bytes(
    tmp_path: Path, begin: Begin
) -> None:
    begun = begin(Input(), recorded={FIRST: BOTH}, md5s={FIRST: MD5}, versions={FIRST: "7"})
    again = ChunkDigests(OTHER, (OTHER, DIGEST))
    begun.keep(done(FIRST, again))
    begun._flush()
    expected = RecordedDigests(OTHER, {"a": OTHER, "b": DIGEST}, None, None)
    assert look_at_output(STORAGE, str(tmp_path)).digests == {FIRST: expected}


def test_parts_are_recorded_by_what_their_file_is_open_as_until_it_is_finished(
    tmp_path: Path, begin: Begin
) -> None:
    old, new = (make_attempt(str(tmp_path / SECOND)) for _ in range(2))
    part = SimpleNamespace(file=SECOND, number=2)
    begun = begin(Input(), unfinished={SECOND: UnfinishedFile(old, {1: PartDigests((DIGEST,))})})
    begun.keep_part(part, old, PartDigests((OTHER,)))  # type: ignore[arg-type]
    begun._flush()
    parts = {1: PartDigests((DIGEST,)), 2: PartDigests((OTHER,))}
    assert look_at_output(STORAGE, str(tmp_path)).unfinished == {SECOND: UnfinishedFile(old, parts)}
    begun._pending = False
    begun.keep_part(part, old, PartDigests((OTHER,)))  # type: ignore[arg-type]
    assert not begun._pending
    begun.keep_part(part, new, PartDigests((OTHER,)))  # type: ignore[arg-type]
    begun._flush()
    assert look_at_output(STORAGE, str(tmp_path)).unfinished == {SECOND: UnfinishedFile(new, {2: parts[2]})}
    begun.keep(done(SECOND, ONE))
    begun._flush()
    assert "unfinished" not in journal(tmp_path)
    first = make_attempt(str(tmp_path / FIRST))
    begun.keep_part(SimpleNamespace(file=FIRST, number=1), first, parts[1])  # type: ignore[arg-type]
    begun._flush()
    assert look_at_output(STORAGE, str(tmp_path)).unfinished == {FIRST: UnfinishedFile(first, {1: parts[1]})}


def test_a_file_of_parts_is_recorded_beside_them_before_it_is_committed(tmp_path: Path, begin: Begin) -> None:
    attempt = make_attempt(str(tmp_path / SECOND))
    begun = begin(Input(), unfinished={SECOND: UnfinishedFile(attempt, {1: PartDigests((DIGEST,))})})
    begun.expect(done(SECOND, ONE))
    found = look_at_output(STORAGE, str(tmp_path))
    assert found.digests == {SECOND: RecordedDigests(None, {"c": DIGEST}, None, None)}
    assert found.unfinished == begun.unfinished


def test_what_a_file_was_open_as_is_dropped_once_what_it_is_open_as_is_recorded(
    tmp_path: Path, begin: Begin
) -> None:
    old, new = (make_attempt(str(tmp_path / SECOND)) for _ in range(2))
    for attempt in (old, new):
        Path(attempt).touch()
    parts = {1: PartDigests((DIGEST,))}
    begun = begin(Input(), unfinished={SECOND: UnfinishedFile(old, parts)})
    begun.go_on({SECOND: UnfinishedFile(new, parts)})
    assert (Path(old).exists(), Path(new).exists()) == (False, True)
    assert look_at_output(STORAGE, str(tmp_path)).unfinished == {SECOND: UnfinishedFile(new, parts)}
    begun.close()
    assert Path(new).exists()  # a later run goes on with it
    begun.go_on({})
    assert not Path(new).exists()


def test_files_that_are_removed_are_gone(tmp_path: Path, begin: Begin) -> None:
    (tmp_path / FIRST).touch()
    begin(Input()).remove([FIRST, "absent"])
    assert not (tmp_path / FIRST).exists()


def test_the_receipt_takes_the_journals_place_and_the_mark_comes_after_input_was_proved(
    tmp_path: Path, begin: Begin
) -> None:
    stood: list[set[str]] = []

    class Watched(Input):
        def prove(self, identity: object) -> None:
            stood.append({path.name for path in tmp_path.iterdir()})
            super().prove(identity)

    source = Watched()
    begun = begin(source, recorded={FIRST: BOTH})
    left = Path(make_attempt(str(tmp_path / FIRST)))
    left.touch()
    begun.keep(done(SECOND, ONE))
    begun.finish(FILES)
    assert source.asked == ["check", IDENTITY]
    owner = os.path.basename(begun.owner.path)
    assert stood == [{JOURNAL, RECEIPT, "model.safetensors.index.json", owner}]
    assert {path.name for path in tmp_path.iterdir()} == {RECEIPT, *FILES, owner}
    assert {name: (tmp_path / name).read_bytes() for name in FILES} == FILES
    content = json.loads((tmp_path / RECEIPT).read_text())
    assert content["conversion"] == IDENTITY
    assert content["files"] == {name: hashlib.sha256(file).hexdigest() for name, file in FILES.items()}
    assert content["libraries"] == find_libraries()
    assert [row["name"] for row in content["chunks"]] == [FIRST, SECOND]
    begun.close()
    assert source.asked == ["check", IDENTITY]


def test_of_an_input_that_changed_the_chunks_of_this_run_do_not_stay(tmp_path: Path, begin: Begin) -> None:
    source = Input()
    begun = begin(source, recorded={FIRST: BOTH})
    for name in (FIRST, SECOND):
        (tmp_path / name).touch()
    begun.keep(done(SECOND, ONE))
    source.changed = True
    begun.close()
    assert {path.name for path in tmp_path.iterdir()} == {FIRST, JOURNAL, os.path.basename(begun.owner.path)}
    assert [row["name"] for row in journal(tmp_path)["chunks"]] == [FIRST]  # type: ignore[attr-defined]


def test_an_input_that_changed_before_the_mark_leaves_the_folder_as_it_was(
    tmp_path: Path, begin: Begin
) -> None:
    source = Input()
    begun = begin(source)
    for name in (FIRST, SECOND, "diary.txt"):
        (tmp_path / name).touch()
    begun.keep(done(FIRST, BOTH))
    begun._flush()
    source.changed = True
    with pytest.raises(InputError, match="changed"):
        begun.finish(FILES)
    begun.close()
    assert {path.name for path in tmp_path.iterdir()} == {"diary.txt", os.path.basename(begun.owner.path)}


def test_what_kept_the_journal_from_being_written_is_told_to_whoever_goes_on(
    tmp_path: Path, begin: Begin, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(folders, "JOURNAL_SECONDS", 0.01)
    source = Input()
    begun = begin(source)
    source.changed = True
    begun.keep(done(FIRST, BOTH))
    begun._thread.join(60)
    part = SimpleNamespace(file=SECOND, number=1)
    for act in (
        lambda: begun.keep(done(SECOND, ONE)),
        lambda: begun.keep_md5(SECOND, MD5),
        lambda: begun.keep_part(part, "attempt", PartDigests((DIGEST,))),  # type: ignore[arg-type]
        lambda: begun.finish(FILES),
    ):
        with pytest.raises(InputError, match="changed"):
            act()
    assert journal(tmp_path)["chunks"] == []


def test_a_receipt_of_finished_chunks_is_a_good_one(tmp_path: Path, begin: Begin) -> None:
    begun = begin(Input(), recorded={FIRST: BOTH, SECOND: ChunkDigests(OTHER, (DIGEST,))})
    begun.finish(FILES)
    found = read_receipt(STORAGE, str(tmp_path / RECEIPT))
    assert [chunk.name for chunk in found.chunks] == [FIRST, SECOND]
    assert [source.sha256 for source in found.conversion.sources] == [SHA256]
    with pytest.raises(OutputError):
        read_receipt(STORAGE, str(tmp_path / "config.json"))
