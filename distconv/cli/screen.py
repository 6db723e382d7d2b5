"""What a person sees and is asked."""

import json
import os
import sys
from typing import TYPE_CHECKING, Protocol

import click

if TYPE_CHECKING:
    from distconv.progress import Progress


class Report(Protocol):
    """What every verb returns."""

    @property
    def notes(self) -> tuple[str, ...]:
        """What was assumed, and what looks odd."""

    def to_json(self) -> dict[str, object]:
        """Give it as plain values."""

    def lines(self) -> tuple[str, ...]:
        """Give it for people."""


def show(report: Report, *, as_json: bool, notes_shown: bool = False) -> None:
    """Print a report: notes to standard error, the rest to standard output."""
    for note in () if notes_shown else report.notes:
        click.echo(f"note: {note}", err=True)
    click.echo(json.dumps(report.to_json(), indent=2) if as_json else "\n".join(report.lines()))


def choose_progress(*, quiet: bool) -> "Progress":
    """Give a bar to a terminal, plain lines to a log, and nothing to who wants quiet."""
    from distconv.progress import BarProgress, LineProgress, SilentProgress

    if quiet:
        return SilentProgress()
    if sys.stderr.isatty():
        return BarProgress(sys.stderr)
    return LineProgress(lambda line: click.echo(line, err=True))


def read_url() -> str:
    """Take the URL from where no other process and no history sees it."""
    # Taken out, so that no child of this process inherits it.
    given = os.environ.pop("DISTCONV_URL", None)
    if given is not None:
        return given
    if sys.stdin.isatty():
        answer: str = click.prompt("URL from Meta's e-mail (not shown)", hide_input=True, err=True)
        return answer
    return sys.stdin.readline()
