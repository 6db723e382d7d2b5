"""Owners, stops, takeovers and crashes in any order: nothing lands in a successor's folder.

The real protocol runs against a storage in memory, each process in a thread that makes one
call of storage when it is told to and otherwise stands still. Time is a number.
"""

import itertools
import threading
import uuid
from dataclasses import dataclass, field

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    invariant,
    multiple,
    rule,
    run_state_machine_as_test,
)

from distconv.errors import OutputError
from distconv.output import acquisition, ownership
from distconv.output.acquisition import owned
from distconv.output.holders import Holder
from distconv.output.ownership import Ownership
from distconv.storage.fencing import PARTIAL_SUFFIX, is_attempt

FOLDER = "/out"
CACHE_SECONDS = 20.0
"""So long a host remembers what a folder held, unless it changes the folder itself."""
HOSTS = ("one", "two")


class GoneError(BaseException):
    """Ends a thread whose process is not there any more."""


class World:
    """Files, the clock, and who may go on; all of it is touched by one thread at a time."""

    def __init__(self) -> None:
        self.files: dict[str, bytearray] = {}
        self.now = 0.0
        self.processes: list[Process] = []
        self.current: Process | None = None
        """Who was the last to look at the folder as its owner."""
        self.listed: dict[str, tuple[float, tuple[str, ...]]] = {}
        self.violations: list[str] = []
        self.attempts = itertools.count()


@dataclass(eq=False)
class Process:
    """A conversion on some host: owns the folder, writes and removes, and gives it back."""

    world: World
    host: str
    pid: int
    work: tuple[tuple[str, bytes | None], ...]
    frozen: bool = False
    crashed: bool = False
    ended: bool = False
    mine: Ownership | None = None
    """While it believes to own the folder."""
    beat_at: float = 0.0
    starved: bool = False
    refused: str = ""
    next_call: str = ""
    go: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    stands: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    beats: "itertools.count[int]" = field(default_factory=lambda: itertools.count(1))

    def __post_init__(self) -> None:
        self.me = Holder(self.host, "", self.pid, "", uuid.uuid4().hex)
        self.thread = threading.Thread(target=self.run, daemon=True)
        _OF_THREAD[self.thread] = self
        self.thread.start()
        self.stands.acquire()

    def run(self) -> None:
        """Convert, as far as storage is concerned."""
        storage = MemoryStorage(self.world)
        try:
            self.wait()
            with owned(storage, FOLDER, lambda _message: None, is_attempt) as mine:  # type: ignore[arg-type]
                self.mine, self.beat_at, self.world.current = mine, self.world.now, self
                try:
                    for name, content in self.work:
                        if content is None:
                            mine.remove(storage, name)  # type: ignore[arg-type]
                        else:
                            mine.write(storage, name, content)  # type: ignore[arg-type]
                finally:
                    self.mine = None
        except OutputError as error:
            self.refused = str(error)
        except GoneError:
            pass
        finally:
            self.ended = True
            self.stands.release()

    def wait(self, call: str = "") -> None:
        """Stand still before a call until it is told to go on."""
        self.next_call = call
        self.stands.release()
        self.go.acquire()
        if self.crashed:
            raise GoneError

    def step(self) -> None:
        """Let it make one call."""
        if not self.ended:
            self.go.release()
            self.stands.acquire()

    def beat(self) -> None:
        """Beat, as a thread of the real one does."""
        if self.mine is not None and not self.frozen and not self.crashed:
            content = self.world.files.get(self.mine.path)
            if content is not None and self.mine.token.encode() in content:
                content[:] = self.me.to_bytes(next(self.beats))
            self.beat_at = self.world.now


_OF_THREAD: dict[threading.Thread, Process] = {}


def running() -> Process:
    """Give the process whose code this is."""
    return _OF_THREAD[threading.current_thread()]


class MemoryStorage:
    """One host's view of the files; every step of a call that others may come between is waited before."""

    def __init__(self, world: World) -> None:
        self.world = world

    def wait(self, call: str) -> None:
        running().wait(call)

    def changed(self) -> None:
        """Forget what this host knew of the folder; a host sees what it did itself."""
        self.world.listed.pop(running().host, None)

    def land(self, what: str) -> None:
        """Note a change of what the folder holds, and whether whose it is may make it."""
        if running() is not self.world.current:
            self.world.violations.append(f"{what} by {running().me.token}, not the one who looked last")

    def list_names(self, folder: str) -> tuple[str, ...]:
        self.wait("list_names")
        host = running().host
        at, names = self.world.listed.get(host, (-CACHE_SECONDS, ()))
        if self.world.now - at >= CACHE_SECONDS:
            names = tuple(sorted(path.removeprefix(folder + "/") for path in self.world.files))
            self.world.listed[host] = (self.world.now, names)
        return names

    def read_now(self, path: str, limit_bytes: int) -> bytes:
        self.wait("read_now")
        if path not in self.world.files:
            raise FileNotFoundError(path)
        return bytes(self.world.files[path][:limit_bytes])

    def create(self, path: str, content: bytes) -> bool:
        self.wait("create")
        if path in self.world.files:
            return False
        self.changed()
        made = self.world.files[path] = bytearray()
        self.wait("create")
        made[:] = content
        return True

    def probe(self, folder: str) -> None:
        pass

    def begin(self, path: str, size_bytes: int) -> "MemoryWriter":
        self.wait("begin")
        return MemoryWriter(self, path)

    def begin_removal(self, path: str) -> "MemoryWriter":
        self.wait("begin_removal")
        return MemoryRemoval(self, path)

    def drop_attempt(self, path: str) -> None:
        self.wait("drop_attempt")
        self.world.files.pop(path, None)


class MemoryWriter:
    """A file that is being written."""

    def __init__(self, storage: MemoryStorage, path: str) -> None:
        self.storage, self.path = storage, path
        name = f".{path.rpartition('/')[2]}.host-1-{next(storage.world.attempts):08x}{PARTIAL_SUFFIX}"
        self.attempt = f"{FOLDER}/{name}"
        self.content = b""
        storage.world.files[self.attempt] = bytearray()
        storage.changed()

    def write_at(self, offset_bytes: int, content: bytes) -> None:
        self.content = content

    def take_attempt(self) -> None:
        self.storage.wait("commit")
        if self.storage.world.files.pop(self.attempt, None) is None:
            raise FileNotFoundError(self.attempt)

    def commit(self, *, replace: bool = False) -> bool:
        self.take_attempt()
        self.storage.land(f"{self.path} was written")
        self.storage.world.files[self.path] = bytearray(self.content)
        self.storage.changed()
        return True

    def abort(self) -> None:
        self.storage.wait("abort")
        self.storage.world.files.pop(self.attempt, None)


class MemoryRemoval(MemoryWriter):
    """A file that is going to be removed."""

    def commit(self) -> None:  # type: ignore[override]
        self.take_attempt()
        if ownership.OWNER_PREFIX not in self.path:
            self.storage.land(f"{self.path} was removed")
        self.storage.world.files.pop(self.path, None)
        self.storage.changed()


class Clock:
    """The time of the world of whoever asks."""

    def monotonic(self) -> float:
        return running().world.now

    def sleep(self, _seconds: float) -> None:
        running().wait("sleep")


def lives_here(self: Holder) -> bool | None:
    """Ask as a real process would: who is on another host cannot be asked."""
    asking = running()
    if self.host != asking.host:
        return None
    return any(other.me == self and not other.crashed and not other.ended for other in asking.world.processes)


WORK = st.lists(
    st.tuples(st.sampled_from(["chunk", "index"]), st.sampled_from([b"a", b"b", None])), max_size=3
).map(tuple)


CALLS = st.sampled_from(
    ["create", "read_now", "begin", "begin_removal", "commit", "drop_attempt", "abort", "end"]
)


class Owners(RuleBasedStateMachine):
    """Processes that come, are stopped for as long as you like, go on, and die."""

    processes = Bundle("processes")

    def __init__(self) -> None:
        super().__init__()
        self.world = World()

    @rule(target=processes, host=st.sampled_from(HOSTS), work=WORK, call=CALLS, frozen=st.booleans())
    def start(self, host: str, work: tuple[tuple[str, bytes | None], ...], call: str, frozen: bool) -> object:
        """Let a process begin, up to right before a call."""
        if len(self.world.processes) >= 6:
            return multiple()
        process = Process(self.world, host, len(self.world.processes) + 1, work)
        self.world.processes.append(process)
        self.go_on(process, call, frozen)
        return process

    @rule(process=processes, call=CALLS, frozen=st.booleans())
    def go_on(self, process: Process, call: str, frozen: bool) -> None:
        """Let it go on up to right before a call, and be slow there, or stopped altogether."""
        process.frozen = False
        while not process.crashed and not process.ended:
            process.step()
            self.tick(1.0)
            if process.next_call == call:
                break
        process.frozen = frozen

    @rule(process=processes)
    def crash(self, process: Process) -> None:
        if not process.ended:
            process.crashed = True

    @rule(beats=st.sampled_from([1, 8]))
    def pass_time(self, beats: int) -> None:
        """Let time pass in which nobody does anything but beat."""
        for _ in range(beats):
            self.tick(acquisition.BEAT_SECONDS)

    def tick(self, seconds: float) -> None:
        """Let a moment pass; who is stopped does not beat."""
        self.world.now += seconds
        for process in self.world.processes:
            process.beat()
            # Whoever did not beat for long may be taken for dead. It is not wrong to lose then.
            silent = self.world.now - process.beat_at >= acquisition.PATIENCE_SECONDS
            process.starved |= process.mine is not None and silent

    @invariant()
    def nothing_lands_after_a_successor_has_looked(self) -> None:
        assert self.world.violations == []

    @invariant()
    def who_lives_keeps_the_folder(self) -> None:
        for process in self.world.processes:
            if process.mine is not None and not process.starved and not process.crashed:
                content = self.world.files.get(process.mine.path, b"")
                assert process.mine.token.encode() in content, "robbed, though it beats"

    def teardown(self) -> None:
        """Nobody who is left alone waits for ever, and the last one leaves no owner."""
        for process in self.world.processes:
            process.crashed |= not process.ended
            while not process.ended:
                process.step()
        last = Process(self.world, "one", len(self.world.processes) + 1, (("index", b"last"),))
        self.world.processes.append(last)
        for _ in range(400):
            last.step()
            self.tick(1.0)
        assert last.ended, "still waits for somebody who is dead"
        assert not last.refused
        assert [path for path in self.world.files if path.startswith(f"{FOLDER}/.")] == []
        assert self.world.files[f"{FOLDER}/index"] == b"last"
        for process in self.world.processes:
            _OF_THREAD.pop(process.thread)


@pytest.fixture(autouse=True)
def _world(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(acquisition, "time", Clock())
    monkeypatch.setattr(acquisition, "_beat", lambda *_arguments: None)
    monkeypatch.setattr(Holder, "here", staticmethod(lambda: running().me))
    monkeypatch.setattr(Holder, "lives_here", lives_here)


def explore(examples: int) -> None:
    """Go through so many random stories."""
    run_state_machine_as_test(
        Owners,
        settings=settings(
            max_examples=examples,
            stateful_step_count=40,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )


def test_nothing_lands_in_a_successors_folder_and_who_beats_keeps_its_own() -> None:
    explore(100)
