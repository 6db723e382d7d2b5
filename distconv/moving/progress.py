"""What those that work tell of how far along they are."""

import threading
import time
from typing import Protocol


class Progress(Protocol):
    """Who is told while bytes move; every method may be called from any thread, and should be quick.

    ``begin`` to ``end`` may come several times in one call: what moves, is verified or compared, one after another.
    """

    def begin(self, total_bytes: int, units: int, kind: str = "chunks") -> None:
        """Say how much there is to do, in bytes and in so many units of a kind; what was told of before is over.

        ``kind`` is in the number that they have: "chunk" where there is one.
        """

    def take(self, worker: str, unit: str, size_bytes: int) -> None:
        """Say that a worker begins a unit of so many bytes; what it did before is over."""

    def advance(self, size_bytes: int, worker: str = "") -> None:
        """Count bytes that moved, of ``begin``'s; negative where an attempt failed and its bytes move again."""

    def unit_done(self, name: str) -> None:
        """Count one unit as done."""

    def note(self, message: str) -> None:
        """Show a message that a person should see, also before ``begin``: what is assumed, a retry.

        It may hold names that somebody else chose, and lines; options are named as ``family='llama-2'``.
        """

    def end(self) -> None:
        """Say that nothing more comes, whether all was done or not."""


class SilentProgress:
    """Shows nothing."""

    def begin(self, total_bytes: int, units: int, kind: str = "chunks") -> None:
        """Show nothing."""

    def take(self, worker: str, unit: str, size_bytes: int) -> None:
        """Show nothing."""

    def advance(self, size_bytes: int, worker: str = "") -> None:
        """Show nothing."""

    def unit_done(self, name: str) -> None:
        """Show nothing."""

    def note(self, message: str) -> None:
        """Show nothing."""

    def end(self) -> None:
        """Show nothing."""


class RelayedProgress:
    """Passes everything on."""

    def __init__(self, progress: Progress) -> None:
        """Take whom to tell."""
        self._progress = progress

    def begin(self, total_bytes: int, units: int, kind: str = "chunks") -> None:
        """Pass it on."""
        self._progress.begin(total_bytes, units, kind)

    def take(self, worker: str, unit: str, size_bytes: int) -> None:
        """Pass it on."""
        self._progress.take(worker, unit, size_bytes)

    def advance(self, size_bytes: int, worker: str = "") -> None:
        """Pass it on."""
        self._progress.advance(size_bytes, worker)

    def unit_done(self, name: str) -> None:
        """Pass it on."""
        self._progress.unit_done(name)

    def note(self, message: str) -> None:
        """Pass it on."""
        self._progress.note(message)

    def end(self) -> None:
        """Pass it on."""
        self._progress.end()


class Stopwatch(RelayedProgress):
    """Passes everything on, and remembers when moving, and all work, began and ended, in seconds of one clock."""

    def __init__(self, progress: Progress) -> None:
        """Take whom to tell."""
        super().__init__(progress)
        self.begun: float | None = None
        self.first: float | None = None
        self.moved: float | None = None
        self.ended: float | None = None

    def begin(self, total_bytes: int, units: int, kind: str = "chunks") -> None:
        """Start the clock."""
        self.begun, self.first = time.monotonic(), None
        super().begin(total_bytes, units, kind)

    def advance(self, size_bytes: int, worker: str = "") -> None:
        """Pass it on, and take the time of the first byte."""
        self.first = self.first or time.monotonic()
        super().advance(size_bytes, worker)

    def has_moved(self) -> None:
        """Take the time at which a unit that wrote tensors ended: the last one ends the moving."""
        self.moved = time.monotonic()

    def unit_done(self, name: str) -> None:
        """Pass it on, and take the time: the last one to end ends the work."""
        self.ended = time.monotonic()
        super().unit_done(name)


class OutputProgress(RelayedProgress):
    """Counts each byte of OUTPUT once, though it is written and then read for digests: the share of all that work."""

    def __init__(self, progress: Progress, output_bytes: int) -> None:
        """Take whom to tell, and how many bytes are written."""
        super().__init__(progress)
        self._output_bytes = output_bytes
        self._work_bytes = output_bytes
        self._done_bytes = self._told_bytes = 0
        self._lock = threading.Lock()

    def begin(self, total_bytes: int, units: int, kind: str = "chunks") -> None:
        """Say how much is written; ``total_bytes`` are written and read."""
        self._work_bytes = total_bytes
        super().begin(self._output_bytes, units, kind)

    def take(self, worker: str, unit: str, size_bytes: int) -> None:
        """Pass on which share of the output the unit is."""
        super().take(worker, unit, self._scale(size_bytes))

    def advance(self, size_bytes: int, worker: str = "") -> None:
        """Pass on by how much the share of the output grew; of all work it is all of the output."""
        with self._lock:
            self._done_bytes += size_bytes
            told, self._told_bytes = self._told_bytes, self._scale(self._done_bytes)
            grown = self._told_bytes - told
        super().advance(grown, worker)

    def _scale(self, work_bytes: int) -> int:
        return work_bytes * self._output_bytes // max(1, self._work_bytes)
