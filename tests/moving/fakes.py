"""Fakes for the executors: chunks without tensors, and ways to convert them that go wrong."""

import errno
import os
import signal
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from distconv.errors import InputError, Interrupted
from distconv.layout.files import File, Literal
from distconv.moving.digests import ChunkDigests
from distconv.moving.job import Job, Receipt
from distconv.moving.worker import write_file
from distconv.storage.base import join
from distconv.storage.local import LocalStorage

BLOCKS = 20
TOLD_NAME = "told"


def make_job(output: Path) -> Job:
    """A job that writes to this folder with the CPU."""
    return Job(LocalStorage(), str(output), "cpu")


def make_chunks(names: Sequence[str], size_bytes: int = 1000) -> tuple[File, ...]:
    """Chunks of a header alone, which is what the fakes write."""
    return tuple(
        File(name, (Literal(0, (name * size_bytes)[:size_bytes].encode()),), tensors=(), offsets_bytes=())
        for name in names
    )


class RecordingProgress:
    """Remembers all it is told."""

    def __init__(self) -> None:
        """Begin with nothing."""
        self.calls: list[str] = []
        self.notes: list[str] = []
        self.units: list[str] = []
        self.taken: list[tuple[str, str, int]] = []
        self.moved_bytes = 0
        self.taken_back_bytes = 0
        self.total_bytes = 0
        self._lock = threading.Lock()

    def begin(self, total_bytes: int, units: int, kind: str = "chunks") -> None:
        """Remember the total."""
        self.calls.append("begin")
        self.total_bytes = total_bytes

    def take(self, worker: str, unit: str, size_bytes: int) -> None:
        """Remember who began what."""
        self.taken.append((worker, unit, size_bytes))

    def advance(self, size_bytes: int, worker: str = "") -> None:
        """Add up; what is taken back is added up too."""
        with self._lock:
            self.moved_bytes += size_bytes
            self.taken_back_bytes -= min(0, size_bytes)

    def unit_done(self, name: str) -> None:
        """Remember the unit."""
        self.units.append(name)

    def note(self, message: str) -> None:
        """Remember the message."""
        self.notes.append(message)

    def end(self) -> None:
        """Remember the end."""
        self.calls.append("end")


def write_slowly(
    job: Job, chunk: File, advance: Callable[[int], None], stopped: Callable[[], bool]
) -> Receipt:
    """Write a chunk in blocks, waiting a little at each; what its name says happens half way.

    Every attempt leaves a line in the file ``<name>.attempts``, so that tests can count them.
    """
    attempts = Path(job.output, f"{chunk.name}.attempts")
    with attempts.open("a") as file:
        file.write(f"{os.getpid()}\n")
    first = len(attempts.read_text().splitlines()) == 1
    size_bytes = len(chunk.head) // BLOCKS
    writer = job.storage.begin(join(job.output, chunk.name), len(chunk.head))
    try:
        for block in range(BLOCKS):
            if stopped():
                raise Interrupted("stopped")
            if block == BLOCKS // 2:
                if chunk.name.startswith("stays"):
                    wait_until(stopped)
                    raise Interrupted("stopped")
                if "told" in chunk.name and first:
                    wait_until(Path(job.output, TOLD_NAME).exists)
                go_wrong(chunk.name, first)
            content = chunk.head[block * size_bytes : (block + 1) * size_bytes]
            writer.write_at(block * size_bytes, content)
            advance(len(content))
            time.sleep(0.14 if "slow" in chunk.name else 0.005)
        writer.commit()
    finally:
        writer.abort()
    return Receipt(chunk.name, ChunkDigests("", ()), 0, len(chunk.head))


def wait_until(reached: Callable[[], bool]) -> None:
    """Wait for what somebody else does; a test that waits in vain is ended by its time limit."""
    while not reached():
        time.sleep(0.01)


def write_together(
    job: Job, chunk: File, advance: Callable[[int], None], stopped: Callable[[], bool]
) -> Receipt:
    """Write a chunk once three have been begun, which takes three workers."""
    mark = Path(job.output, f"{chunk.name}.attempts")
    if not mark.exists():
        mark.write_text(f"{os.getpid()}\n")
    while len(list(mark.parent.glob("*.attempts"))) < 3:
        if stopped():
            raise Interrupted("stopped")
        time.sleep(0.01)
    return write_file(job, chunk, advance, stopped)


def be_overtaken(
    job: Job, chunk: File, advance: Callable[[int], None], stopped: Callable[[], bool]
) -> Receipt:
    """Write a chunk while another attempt begins and ends, and note which file that committed."""
    path = Path(job.output, chunk.name)

    def overtake(size_bytes: int) -> None:
        if not path.exists():
            write_file(job, chunk, lambda _size_bytes: None, stopped)
            path.with_suffix(".inode").write_text(str(path.stat().st_ino))
        advance(size_bytes)

    return write_file(job, chunk, overtake, stopped)


def is_committed_once(output: Path, chunk: File) -> bool:
    """Whether the file is the one that the attempt which ended first has committed."""
    path = output / chunk.name
    return path.with_suffix(".inode").read_text() == str(path.stat().st_ino)


STANDING_SECONDS = 5.0


def stand_together(
    job: Job, chunk: File, advance: Callable[[int], None], stopped: Callable[[], bool]
) -> Receipt:
    """Write a chunk after a time in which nothing moves, which begins when two have been begun."""
    mark = Path(job.output, f"{chunk.name}.attempts")
    with mark.open("a") as file:
        file.write(f"{os.getpid()}\n")
    while len(list(mark.parent.glob("*.attempts"))) < 2:
        advance(1)
        time.sleep(0.05)
    time.sleep(STANDING_SECONDS)
    return write_file(job, chunk, advance, stopped)


def go_wrong(name: str, first: bool) -> None:
    """Do what the name asks for."""
    if name.startswith("bad input"):
        raise InputError(f"{name}: not a checkpoint")
    if name.startswith("surprise"):
        raise KeyError(name)
    if name.startswith("full disk"):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    if name.startswith("always eio") or (first and name.startswith("eio once")):
        raise OSError(errno.EIO, os.strerror(errno.EIO))
    if name.startswith("always killed") or (first and name.startswith("killed once")):
        os.kill(os.getpid(), signal.SIGKILL)
    if first and name.startswith("hangs once"):
        time.sleep(3600)


def count_attempts(output: Path, name: str) -> int:
    """How often the chunk was begun."""
    attempts = output / f"{name}.attempts"
    return len(attempts.read_text().splitlines()) if attempts.exists() else 0


def read_pids(output: Path) -> set[int]:
    """Which processes began a chunk."""
    return {int(line) for path in output.glob("*.attempts") for line in path.read_text().splitlines()}


def is_whole(output: Path, chunk: File) -> bool:
    """Whether the chunk is there with all its bytes."""
    return (output / chunk.name).read_bytes() == chunk.head


def find_partials(output: Path) -> list[str]:
    """Partial files that were left."""
    return sorted(path.name for path in output.iterdir() if path.name.endswith(".partial"))
