"""INPUT that goes away, has another in its place for a while, and is back when anybody looks again.

Folders that are moved take nothing of their files' names, numbers and times with them.
"""

import itertools
import json
import shutil
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

import distconv
from distconv.errors import InputError
from distconv.storage import places
from distconv.storage.base import Entry
from distconv.storage.local import LocalStorage
from distconv.storage.local_files import LocalReader
from distconv.verbs import making, sources
from tests.checkpoints import Spec, write_checkpoint
from tests.faults import digest_folder, looks_whole
from tests.test_input_changes import A_CHUNK, LIMIT, SPEC, act_before

Write = Callable[[Spec], Path]


@pytest.fixture
def source(checkpoint: Write, tmp_path: Path) -> Path:
    """Give a checkpoint that may be moved."""
    folder = shutil.copytree(checkpoint(SPEC), tmp_path / "source")
    (folder / "LICENSE").write_text("LLAMA 2 COMMUNITY LICENSE AGREEMENT\n")
    return folder


@pytest.fixture
def other(tmp_path: Path, sentencepiece_file: Path) -> Path:
    """Give one of the same sizes with other data and another epsilon."""
    folder = write_checkpoint(tmp_path / "other", replace(SPEC, seed=7), sentencepiece_file)
    params = json.loads((folder / "params.json").read_text())
    (folder / "params.json").write_text(json.dumps(params | {"norm_eps": 1e-3}))
    (folder / "LICENSE").write_text("LLAMA 2 COMMUNITY LICENSE AGREEMENT, another\n")
    return folder


def exchange(source: Path, other: Path) -> None:
    """Let two folders have each other's names."""
    source.rename(source.with_name("away"))
    other.rename(source)
    source.with_name("away").rename(other)


@pytest.fixture
def expected(source: Path, tmp_path: Path) -> dict[str, str]:
    """Give the digests of what is made of an INPUT that stays."""
    distconv.convert(source, tmp_path / "expected", max_shard_size=LIMIT)
    return digest_folder(tmp_path / "expected")


@pytest.mark.parametrize("workers", [None, pytest.param(2, marks=pytest.mark.slow)])
def test_chunks_are_made_only_of_the_input_that_was_there_at_the_beginning(
    source: Path,
    other: Path,
    expected: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    workers: int | None,
) -> None:
    output = tmp_path / "out"
    move = making.run_units

    def moved(*arguments: object) -> object:
        exchange(source, other)
        try:
            return move(*arguments)  # type: ignore[arg-type]
        finally:
            exchange(source, other)

    monkeypatch.setattr(making, "run_units", moved)
    with pytest.raises(InputError, match="consolidated"):
        distconv.convert(source, output, max_shard_size=LIMIT, workers=workers)
    monkeypatch.undo()
    assert not looks_whole(output)
    distconv.convert(source, output, max_shard_size=LIMIT)
    assert digest_folder(output) == expected


def test_where_another_input_comes_and_goes_only_chunks_of_the_first_are_kept(
    source: Path, other: Path, expected: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "out"
    act_before(monkeypatch, A_CHUNK, lambda: exchange(source, other))
    move = making.run_units

    def moved(*arguments: object) -> object:
        try:
            return move(*arguments)  # type: ignore[arg-type]
        finally:
            exchange(source, other)

    monkeypatch.setattr(making, "run_units", moved)
    with pytest.raises(InputError, match="consolidated"):
        distconv.convert(source, output, max_shard_size=LIMIT)
    monkeypatch.undo()
    distconv.convert(source, output, max_shard_size=LIMIT)
    assert digest_folder(output) == expected


@pytest.mark.parametrize("phase", ["read_found", "make_files"])
def test_a_conversion_is_planned_only_of_the_input_that_was_there_at_the_beginning(
    source: Path, other: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, phase: str
) -> None:
    output = tmp_path / "out"
    plan = getattr(sources, phase)

    def planned(*arguments: object, **options: object) -> object:
        exchange(source, other)
        try:
            return plan(*arguments, **options)
        finally:
            exchange(source, other)

    monkeypatch.setattr(sources, phase, planned)
    with pytest.raises(InputError, match="while it was converted"):
        distconv.convert(source, output, max_shard_size=LIMIT)
    assert not output.exists()


class NumberedReader(LocalReader):
    """A file with a number that its file system makes up, and forgets when nobody has it open."""

    numbers: "Numbers"

    def close(self) -> None:
        """Let go of the file, and perhaps of its number."""
        super().close()
        self.numbers.close(self.path)


@dataclass
class Numbers:
    """The numbers of files that are open, and how often each is."""

    following: Iterator[int] = field(default_factory=itertools.count)
    held: dict[str, tuple[int, int]] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def look(self, path: str) -> int:
        """Give the number of a file, a new one where nobody has it open."""
        with self.lock:
            return self.held[path][0] if path in self.held else next(self.following)

    def open(self, path: str) -> int:
        """Give the number of a file that somebody opens."""
        with self.lock:
            number, count = self.held.get(path) or (next(self.following), 0)
            self.held[path] = number, count + 1
            return number

    def close(self, path: str) -> None:
        """Forget a number that nobody needs."""
        with self.lock:
            number, count = self.held.pop(path)
            if count > 1:
                self.held[path] = number, count - 1


@dataclass(frozen=True, slots=True)
class NumberedStorage(LocalStorage):
    """Local files with numbers as a file system in user space makes them up."""

    numbers: Numbers

    def find(self, path: str) -> Entry | None:
        """Look at a file."""
        entry = LocalStorage.find(self, path)
        return entry and replace(entry, stamp=f"{self.numbers.look(path)}")

    def open(self, path: str) -> LocalReader:
        """Open a file."""
        reader = NumberedReader(path)
        reader.numbers = self.numbers
        reader.stamp = f"{self.numbers.open(path)}"
        if self.pins is not None and self.pins.tell_apart(path, reader.stamp):
            reader.close()
            raise InputError(f"{path}: another number")
        return reader


def test_numbers_that_a_file_system_makes_up_are_taken_for_no_change(
    source: Path, expected: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    numbers = Numbers()
    monkeypatch.setattr(places, "LocalStorage", lambda: NumberedStorage(numbers))
    distconv.convert(source, tmp_path / "out", max_shard_size=LIMIT)
    assert digest_folder(tmp_path / "out") == expected
    assert numbers.held == {}
