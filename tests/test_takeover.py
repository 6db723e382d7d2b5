"""A conversion that is held up anywhere while a successor takes over, finishes and releases: nothing of it lands."""

import itertools
import os
import shutil
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

import distconv
from distconv.errors import DistconvError, OutputError
from distconv.output.holders import Holder
from distconv.storage import places
from distconv.storage.fencing import LocalRemoval
from distconv.storage.local import LocalStorage
from distconv.storage.local_files import LocalReader, LocalWriter
from tests.checkpoints import Spec
from tests.faults import digest_folder

Write = Callable[[Spec], Path]
SPEC = Spec("llama-2", heads=8, kv_heads=4, shards=2)
LIMIT = 200_000


class Hold:
    """Stops whoever makes the n-th change of a folder right before it, and its heart, until it may go on."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.count = 0
        self.held, self.may_go_on = threading.Event(), threading.Event()
        self._lock = threading.Lock()

    def call(self) -> None:
        """Count a call, and hold it if it is its turn or comes later."""
        with self._lock:
            self.count += 1
            if self.count == self.number:
                self.held.set()
        if self.held.is_set():
            self.may_go_on.wait()


class HeldWriter(LocalWriter):
    """A file whose commit may be held, when it has been decided."""

    hold: Hold

    def commit(self, *, replace: bool = False) -> bool:
        """Commit, perhaps late."""
        self.hold.call()
        return super().commit(replace=replace)


class HeldRemoval(LocalRemoval):
    """A removal that may be held, when it has been decided."""

    hold: Hold

    def commit(self) -> None:
        """Remove, perhaps late."""
        self.hold.call()
        super().commit()


@dataclass(frozen=True, slots=True)
class HeldStorage(LocalStorage):
    """Local files, of which one change comes late."""

    hold: Hold

    def list_names(self, folder: str) -> tuple[str, ...]:
        """List, perhaps late."""
        self.hold.call()
        return LocalStorage.list_names(self, folder)

    def read_now(self, path: str, limit_bytes: int) -> bytes:
        """Read, perhaps late."""
        self.hold.call()
        return LocalStorage.read_now(self, path, limit_bytes)

    def create(self, path: str, content: bytes) -> bool:
        """Create, perhaps late."""
        self.hold.call()
        return LocalStorage.create(self, path, content)

    def begin(self, path: str, size_bytes: int) -> LocalWriter:
        """Begin a file, perhaps late, and perhaps commit it late."""
        self.hold.call()
        writer = HeldWriter(path, size_bytes)
        writer.hold = self.hold
        return writer

    def begin_removal(self, path: str) -> LocalRemoval:
        """Begin to remove a file, perhaps late, and perhaps remove it late."""
        self.hold.call()
        removal = HeldRemoval(path)
        removal.hold = self.hold
        return removal

    def drop_attempt(self, path: str) -> None:
        """Drop an attempt, perhaps late."""
        self.hold.call()
        LocalStorage.drop_attempt(self, path)


@dataclass(frozen=True, slots=True)
class Stage:
    """Two conversions of one checkpoint into one folder, each of which takes the other for dead."""

    source: Path
    expected: dict[str, str]
    threads: dict[threading.Thread, LocalStorage]

    def convert(self, output: Path, *, overwrite: bool = False) -> None:
        """Convert with the storage of this thread."""
        distconv.convert(self.source, output, max_shard_size=LIMIT, overwrite=overwrite)

    def hold_and_overtake(self, output: Path, hold: Hold, *, overwrite: bool) -> BaseException | None:
        """Hold one, let the other run to its end, let the first go on; gives what the first raised."""
        raised: list[BaseException] = []

        def run() -> None:
            self.threads[threading.current_thread()] = HeldStorage(hold)
            try:
                self.convert(output, overwrite=overwrite)
            except (DistconvError, OSError) as error:
                raised.append(error)
            finally:
                hold.held.set()

        thread = threading.Thread(target=run)
        thread.start()
        try:
            hold.held.wait()
            self.convert(output, overwrite=overwrite)
            assert digest_folder(output) == self.expected, "of the successor"
        finally:
            hold.may_go_on.set()
            thread.join()
        return raised[0] if raised else None


@pytest.fixture
def stage(checkpoint: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Stage:
    """Give a checkpoint and what an undisturbed conversion makes of it."""
    threads: dict[threading.Thread, LocalStorage] = {}
    monkeypatch.setattr(
        places, "LocalStorage", lambda: threads.get(threading.current_thread(), LocalStorage())
    )
    made = Stage(checkpoint(SPEC), {}, threads)
    made.convert(tmp_path / "expected")
    monkeypatch.setattr(Holder, "lives_here", lambda _self: False)
    return replace(made, expected=digest_folder(tmp_path / "expected"))


def prepare(output: Path, whole: Path, kind: str) -> None:
    """Give the first conversion a folder to begin with."""
    if kind != "empty":
        shutil.copytree(whole, output)
    if kind == "a chunk is missing":
        min(output.glob("*.safetensors")).unlink()


@pytest.mark.first(1)
@pytest.mark.parametrize("kind", ["a chunk is missing", "empty", "overwritten"])
@pytest.mark.parametrize("stride", [5, pytest.param(1, marks=[pytest.mark.slow, pytest.mark.timeout(1200)])])
def test_who_is_held_up_before_any_change_touches_nothing_of_its_successor(
    stage: Stage, tmp_path: Path, kind: str, stride: int
) -> None:
    lost = 0
    for number in itertools.count(1 + os.getpid() % stride, stride):
        output, hold = tmp_path / str(number), Hold(number)
        prepare(output, tmp_path / "expected", kind)
        raised = stage.hold_and_overtake(output, hold, overwrite=kind == "overwritten")
        assert digest_folder(output) == stage.expected, number
        assert raised is None or isinstance(raised, OutputError), number
        lost += raised is not None and "took it over" in str(raised)
        shutil.rmtree(output)
        if hold.count < number:
            break
    assert lost * stride > 30


@dataclass(frozen=True, slots=True)
class LateStorage(LocalStorage):
    """Local files, where the journal has gone before it is opened."""

    def open(self, path: str) -> LocalReader:
        """Open a file."""
        if os.path.basename(path) == ".distconv.journal":
            os.unlink(path)
        return LocalStorage.open(self, path)


def test_who_looks_while_another_finishes_sees_it_finished(
    checkpoint: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "out"
    distconv.convert(checkpoint(SPEC), output, max_shard_size=LIMIT)
    expected = digest_folder(output)
    (output / ".distconv.journal").write_text("{}")
    monkeypatch.setattr(places, "LocalStorage", LateStorage)
    distconv.convert(checkpoint(SPEC), output, max_shard_size=LIMIT)
    assert digest_folder(output) == expected
