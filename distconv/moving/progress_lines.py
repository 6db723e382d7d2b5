"""How far along it is, in lines: what a job log sees while bytes move."""

import threading
import time
from collections import deque
from collections.abc import Callable

from distconv.errors import escape_lines
from distconv.humanize import format_duration, format_size

INTERVAL_SECONDS = 5.0
WINDOW_SECONDS = 30.0
"""Speed is that of the last seconds: chunks kept from an earlier run count in no time at all."""
LEAD_SECONDS = 1.0
"""So much of the wait for the first byte counts as moving: what comes before is somebody's start."""
SETTLED_SECONDS = 5.0
"""For so long after the first byte nothing is said of the time left."""
SETTLED_BYTES = 64_000_000


def is_settled(seconds: float, moved_bytes: int, total_bytes: int) -> bool:
    """Whether so much has moved, in so many seconds since the first byte, that it tells how long the rest takes."""
    return seconds >= SETTLED_SECONDS and moved_bytes >= min(total_bytes / 1000, SETTLED_BYTES)


class LineProgress:
    """Writes a plain line every few seconds, for logs and pipes: ``LineProgress(print)``.

    ``write`` is given lines without their ends; ``clock`` counts seconds from any moment. What a terminal
    would obey, in names and notes, is written as escapes.
    """

    def __init__(
        self,
        write: Callable[[str], None],
        *,
        interval_seconds: float = INTERVAL_SECONDS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Remember where to write."""
        self._write = write
        self._interval_seconds = interval_seconds
        self._clock = clock
        self._lock = threading.Lock()
        self._begun = False
        self._total_bytes = 0
        self._units = 0
        self._kind = "chunks"
        self._moved_bytes = 0
        self._units_done = 0
        self._written_at = 0.0
        self._written: tuple[int, int] | None = None
        self._first: float | None = None
        self._samples: deque[tuple[float, int]] = deque()

    def begin(self, total_bytes: int, units: int, kind: str = "chunks") -> None:
        """Start the clock; the first line comes an interval later."""
        with self._lock:
            now = self._clock()
            self._begun = True
            self._total_bytes, self._units, self._kind = total_bytes, units, kind
            self._moved_bytes = self._units_done = 0
            self._written_at, self._written = now, None
            self._first = None
            self._samples = deque([(now, 0)])

    def take(self, worker: str, unit: str, size_bytes: int) -> None:
        """Show nothing: a log has a line for all of them."""

    def advance(self, size_bytes: int, worker: str = "") -> None:
        """Count bytes, and write a line when one is due."""
        with self._lock:
            self._moved_bytes += size_bytes
            now = self._clock()
            if self._first is None:
                self._first = now
                self._samples = deque([(max(self._samples[0][0], now - LEAD_SECONDS), 0)])
            if now - self._written_at >= self._interval_seconds:
                self._write_line(now)

    def unit_done(self, name: str) -> None:
        """Count one unit."""
        with self._lock:
            self._units_done += 1

    def note(self, message: str) -> None:
        """Write the message as a line."""
        with self._lock:
            self._write(escape_lines(message))

    def end(self) -> None:
        """Write where it ended, unless nothing began or the last line says so already."""
        with self._lock:
            if self._begun and self._written != (self._moved_bytes, self._units_done):
                self._write_line(self._clock(), last=True)

    def _write_line(self, now: float, *, last: bool = False) -> None:
        while len(self._samples) > 1 and now - self._samples[0][0] > WINDOW_SECONDS:
            self._samples.popleft()
        then, moved_then = self._samples[0]
        self._samples.append((now, self._moved_bytes))
        elapsed = now - then
        speed = max((self._moved_bytes - moved_then) / elapsed, 0.0) if elapsed > 0 else 0.0
        settled = self._first is not None and is_settled(
            now - self._first, self._moved_bytes, self._total_bytes
        )
        self._written_at = now
        self._written = (self._moved_bytes, self._units_done)
        self._write(self._line(speed if settled or last else None, has_estimate=settled))

    def _line(self, bytes_per_second: float | None, *, has_estimate: bool) -> str:
        left_bytes = self._total_bytes - self._moved_bytes
        # What an attempt that failed takes back may be more than what moved.
        moved_bytes = max(self._moved_bytes, 0)
        share = moved_bytes / self._total_bytes if self._total_bytes else 1.0
        parts = [
            f"{share:6.1%}",
            f"{format_size(moved_bytes)} of {format_size(self._total_bytes)}",
            f"{self._units_done} of {self._units} {self._kind}",
        ]
        if bytes_per_second is not None:
            parts.append(f"{format_size(bytes_per_second)}/s")
        if bytes_per_second and has_estimate and left_bytes > 0:
            parts.append(f"{format_duration(left_bytes / bytes_per_second)} left")
        return ", ".join(parts)
