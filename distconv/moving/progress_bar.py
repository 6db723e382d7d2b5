"""How far along it is, as bars: what a person sees while bytes move, on a terminal or in a notebook."""

import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, TextIO

from distconv.errors import escape, escape_lines
from distconv.moving.progress_lines import WINDOW_SECONDS, is_settled

if TYPE_CHECKING:
    import rich.console
    import rich.progress

LINES = 8
"""So many workers have a line of their own: with more, a terminal shows nothing else."""
_ECHO_COLUMNS = len("^C^C")


class BarProgress:
    """Draws a bar for all and one for each worker, with GB, GB/s and the time left: ``BarProgress(sys.stderr)``.

    For a terminal; in a notebook, which needs ipywidgets for it, the cell shows it, whatever ``file`` is. What a
    terminal would obey, in names and notes, is shown as escapes.
    """

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
        console = rich.console.Console(file=self._file)
        self._bar = _choose_bars(console)(
            columns.TextColumn(
                "{task.description}", markup=False, table_column=Column(no_wrap=True, overflow="ellipsis")
            ),
            columns.BarColumn(bar_width=None, table_column=Column(ratio=1, min_width=8)),
            columns.TaskProgressColumn(table_column=Column(no_wrap=True)),
            columns.DownloadColumn(table_column=Column(no_wrap=True)),
            _make_speed_column(),
            _make_time_left_column(),
            console=console,
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
        description = f"  {escape(worker)} {escape(unit.removesuffix('.safetensors'))}"
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
        shown = escape_lines(message)
        if self._bar is not None:
            self._bar.console.print(shown, markup=False, highlight=False)
        else:
            self._file.write(shown + "\n")

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


def _choose_bars(console: "rich.console.Console") -> "type[rich.progress.Progress]":
    """Give bars that leave the end of their lines free.

    A terminal echoes ``^C`` where the cursor is, behind the last line: were that full, the echo would begin another one,
    and the next drawing stand below the last instead of in its place.
    """
    from rich.console import RenderableType
    from rich.constrain import Constrain
    from rich.progress import Progress

    class Bars(Progress):
        def get_renderable(self) -> RenderableType:
            return Constrain(super().get_renderable(), max(1, console.width - _ECHO_COLUMNS))

    return Bars


def _make_speed_column() -> "rich.progress.ProgressColumn":
    """Make the column of the speed: in the end the mean; empty while none is known, or more was taken back than moved."""
    from rich.filesize import decimal
    from rich.progress import ProgressColumn, Task
    from rich.table import Column
    from rich.text import Text

    class Speed(ProgressColumn):
        def render(self, task: Task) -> Text:
            speed = task.completed / task.finished_time if task.finished_time else task.speed
            told = "" if speed is None or speed < 1 else f"{decimal(int(speed))}/s"
            return Text(told, style="progress.data.speed")

    return Speed(table_column=Column(no_wrap=True))


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
