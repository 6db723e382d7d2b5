"""What a person sees and is asked."""

import json
import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

import click

from distconv.tables import Table

if TYPE_CHECKING:
    from distconv.progress import Progress


class Report(Protocol):
    """What every verb returns."""

    @property
    def notes(self) -> tuple[str, ...]:
        """What was assumed, and what looks odd."""

    def to_json(self) -> dict[str, object]:
        """Give it as plain values."""

    def lines(self) -> Sequence[str | Table]:
        """Give it for people."""


def show(report: Report, *, as_json: bool, notes_shown: bool = False) -> None:
    """Print a report: notes to standard error, the rest to standard output."""
    for note in () if notes_shown else report.notes:
        click.echo(f"{paint('note:', 'yellow')} {note}", err=True)
    if as_json:
        click.echo(json.dumps(report.to_json(), indent=2))
        return
    for line in report.lines():
        if isinstance(line, Table) and sys.stdout.isatty():
            _draw(line)
        else:
            click.echo(str(line))


def paint(word: str, colour: str) -> str:
    """Colour a word; click takes colours out where they do not go to a terminal."""
    return word if os.environ.get("NO_COLOR") else click.style(word, fg=colour, bold=True)


def defuse(text: str) -> str:
    """Replace what a terminal would obey instead of showing: a model may say anything."""
    return "".join(
        sign if sign.isprintable() or sign in "\n\t" else "\N{REPLACEMENT CHARACTER}" for sign in text
    )


def _draw(table: Table) -> None:
    """Draw a table as wide as the terminal wants it."""
    import rich.box
    import rich.console
    import rich.table
    import rich.text

    drawn = rich.table.Table(box=rich.box.SIMPLE_HEAD, show_header=any(table.headers), pad_edge=False)
    for header, is_number in zip(table.headers, table.numbers, strict=True):
        # Whoever reads a path wants all of it.
        drawn.add_column(header, justify="right" if is_number else "left", overflow="fold", style=None)
    if drawn.columns and not any(table.headers):
        drawn.columns[0].style = "bold"
    for row in table.rows:
        drawn.add_row(*map(rich.text.Text, row))
    rich.console.Console(file=sys.stdout, highlight=False).print(drawn)


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
