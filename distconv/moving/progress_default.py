"""What shows how far along it is where nobody said what should: a bar in a notebook, nothing elsewhere."""

import importlib.util
import sys

from distconv.errors import UsageError
from distconv.moving.progress import Progress, SilentProgress


def take_progress(given: Progress | None) -> Progress:
    """Give what was given, or a bar to a notebook, lines where it lacks ipywidgets; scripts and shells stay silent.

    UsageError for what cannot be told anything.
    """
    if given is not None:
        lacking = [name for name in dir(SilentProgress) if name[0] != "_" and not hasattr(given, name)]
        if lacking:
            raise UsageError(
                f"progress: {given!r:.60} has no {', '.join(lacking)}; give an object as distconv.Progress is, "
                "LineProgress(print) for one"
            )
        return given
    if not _is_notebook():
        return SilentProgress()
    if importlib.util.find_spec("ipywidgets") is None:
        from distconv.moving.progress_lines import LineProgress

        return LineProgress(_write_line)
    from distconv.moving.progress_bar import BarProgress

    return BarProgress(sys.stdout)


def _is_notebook() -> bool:
    """Whether an IPython kernel runs this; where IPython was never imported, none does."""
    if "IPython" not in sys.modules:
        return False
    from rich.console import Console

    return Console().is_jupyter


def _write_line(line: str) -> None:
    sys.stdout.write(f"{line}\n")
