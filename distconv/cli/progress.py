"""How far along is it: what a person or a job log sees while bytes move."""

import threading
import time
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, TextIO

from distconv.humanize import format_duration, format_size

if TYPE_CHECKING:
    import rich.progress

INTERVAL_SECONDS = 5.0
LINES = 8
"""So many workers have a line of their own: with more, a terminal shows nothing else."""
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
    """Writes a plain line every few seconds, for logs and pipes.

    ``write`` is given lines without their ends; ``clock`` counts seconds from any moment.
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
            self._write(message)

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


class BarProgress:
    """Draws a bar for all and one for each worker on a terminal, with GB, GB/s and the time left."""

    def __init__(self, file: TextIO, *, clock: Callable[[], float] = time.monotonic) -> None:
        """Remember the terminal; rich is imported only when the bar begins."""
        self._file = file
        self._clock = clock
        self._bar: rich.progress.Progress | None = None
        self._task: rich.progress.TaskID | None = None
        self._workers: dict[str, rich.progress.TaskID] = {}
        self._lock = threading.Lock()
        self._units = 0
        self._kind = "chunks"
        self._units_done = 0

    def begin(self, total_bytes: int, units: int, kind: str = "chunks") -> None:
        """Draw the empty bar."""
        import rich.console
        import rich.progress as columns
        from rich.table import Column

        self._units, self._units_done, self._kind = units, 0, kind
        self._workers = {}
        self._bar = columns.Progress(
            columns.TextColumn(
                "{task.description}", markup=False, table_column=Column(no_wrap=True, overflow="ellipsis")
            ),
            columns.BarColumn(bar_width=None, table_column=Column(ratio=1, min_width=8)),
            columns.TaskProgressColumn(table_column=Column(no_wrap=True)),
            columns.DownloadColumn(table_column=Column(no_wrap=True)),
            columns.TransferSpeedColumn(table_column=Column(no_wrap=True)),
            _make_time_left_column(),
            console=rich.console.Console(file=self._file),
            transient=False,
            expand=True,
            speed_estimate_period=WINDOW_SECONDS,
            get_time=self._clock,
        )
        self._task = self._bar.add_task(self._description(), total=total_bytes)
        self._bar.start()

    def take(self, worker: str, unit: str, size_bytes: int) -> None:
        """Give the worker a line of its own, as long as there are few of them."""
        if self._bar is None:
            return
        description = f"  {worker} {unit.removesuffix('.safetensors')}"
        with self._lock:
            task = self._workers.get(worker)
            if task is not None:
                # A new line for each unit: its speed and time left are its own.
                self._bar.remove_task(task)
            shown = task is not None or len(self._workers) < LINES
            if shown:
                self._workers[worker] = self._bar.add_task(description, total=size_bytes)

    def advance(self, size_bytes: int, worker: str = "") -> None:
        """Move the bars."""
        if self._bar is None or self._task is None:
            return
        self._bar.advance(self._task, size_bytes)
        with self._lock:
            task = self._workers.get(worker)
            if task is not None:
                self._bar.advance(task, size_bytes)

    def unit_done(self, name: str) -> None:
        """Count one unit beside the bar."""
        with self._lock:
            self._units_done += 1
            description = self._description()
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, description=description)

    def note(self, message: str) -> None:
        """Print the message, above the bar while there is one."""
        if self._bar is not None:
            self._bar.console.print(message, markup=False, highlight=False)
        else:
            self._file.write(message + "\n")

    def end(self) -> None:
        """Leave the bar for all as it stands; those of the workers go."""
        if self._bar is not None:
            with self._lock:
                for task in self._workers.values():
                    self._bar.remove_task(task)
                self._workers = {}
            self._bar.stop()
            self._bar = None

    def _description(self) -> str:
        return f"{self._units_done} of {self._units} {self._kind}"


def _make_time_left_column() -> "rich.progress.ProgressColumn":
    """Make the column of the time left, which is empty as long as too little has moved to tell."""
    from rich.progress import Task, TimeRemainingColumn
    from rich.table import Column
    from rich.text import Text

    class TimeLeft(TimeRemainingColumn):
        def render(self, task: Task) -> Text:
            settled = is_settled(task.elapsed or 0.0, int(task.completed), int(task.total or 0))
            return (
                super().render(task)
                if settled or task.finished
                else Text("-:--:--", style="progress.remaining")
            )

    return TimeLeft(table_column=Column(no_wrap=True))
