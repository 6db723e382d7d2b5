"""What those that work tell of how far along they are."""

import time
from typing import Protocol


class Progress(Protocol):
    """Who is told while bytes move; every method may be called from any thread, and should be quick.

    ``begin`` to ``end`` may come several times in one call: what moves, is verified or compared, one after another.
    """

    def begin(self, total_bytes: int, units: int, kind: str = "chunks") -> None:
        """Say how much there is to do, in bytes and in so many units of a kind; what was told of before is over."""

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


class Stopwatch:
    """Passes everything on, and remembers when moving, and all work, began and ended, in seconds of one clock."""

    def __init__(self, progress: Progress) -> None:
        """Take whom to tell."""
        self.begun: float | None = None
        self.first: float | None = None
        self.moved: float | None = None
        self.ended: float | None = None
        self._progress = progress

    def begin(self, total_bytes: int, units: int, kind: str = "chunks") -> None:
        """Start the clock."""
        self.begun, self.first = time.monotonic(), None
        self._progress.begin(total_bytes, units, kind)

    def take(self, worker: str, unit: str, size_bytes: int) -> None:
        """Pass it on."""
        self._progress.take(worker, unit, size_bytes)

    def advance(self, size_bytes: int, worker: str = "") -> None:
        """Pass it on, and take the time of the first byte."""
        self.first = self.first or time.monotonic()
        self._progress.advance(size_bytes, worker)

    def has_moved(self) -> None:
        """Take the time at which a unit that wrote tensors ended: the last one ends the moving."""
        self.moved = time.monotonic()

    def unit_done(self, name: str) -> None:
        """Pass it on, and take the time: the last one to end ends the work."""
        self.ended = time.monotonic()
        self._progress.unit_done(name)

    def note(self, message: str) -> None:
        """Pass it on."""
        self._progress.note(message)

    def end(self) -> None:
        """Pass it on."""
        self._progress.end()
