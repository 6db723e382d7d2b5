"""What a person sees and is asked.

Nearly every word may come from a file that somebody made: names of tensors, files, tokens and
settings. What a terminal would obey is shown as escapes, and nothing of it begins a line
that could be taken for one of ours.
"""

import contextlib
import io
import json
import logging
import os
import sys
import traceback
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Protocol

import click

from distconv.errors import escape
from distconv.verbs.tables import Table

if TYPE_CHECKING:
    from distconv.moving.progress import Progress


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
        click.echo(f"{paint('note:', 'yellow')} {_plain(note)}", err=True)
    if as_json:
        # JSON leaves DEL alone, of all characters that ASCII has.
        click.echo(json.dumps(report.to_json(), indent=2).replace("\x7f", "\\u007f"))
        return
    for line in report.lines():
        if not isinstance(line, Table):
            click.echo(_plain(line))
        elif sys.stdout.isatty():
            _draw(_plain_table(line))
        else:
            click.echo(str(_plain_table(line)))


def show_error(error: BaseException, message: str, *, debug: bool) -> None:
    """Print an error, a line for each finding; with its traceback for whoever debugs."""
    if debug:
        click.echo(defuse("".join(traceback.format_exception(error))), err=True)
    for line in message.split("\n"):
        click.echo(f"{paint('error:', 'red')} {escape(line)}", err=True)


def show_usage_error(error: click.ClickException) -> None:
    """Print what click has to say about a command line."""
    if isinstance(error, click.exceptions.NoArgsIsHelpError):
        # All of it is our own help, which is no error's text.
        error.show()
        return
    message = _plain(error.format_message())
    shown = click.UsageError(message, error.ctx) if isinstance(error, click.UsageError) else None
    (shown or click.ClickException(message)).show()


@contextlib.contextmanager
def defused() -> Iterator[None]:
    """Defuse also what libraries print of their own accord during the block: log lines and warnings.

    A stream that cannot show a character shows its code.
    """
    make_record, show_warning = logging.getLogRecordFactory(), warnings.showwarning

    def make(*arguments: object, **named: object) -> logging.LogRecord:
        record: logging.LogRecord = make_record(*arguments, **named)
        # What cannot be formatted is logging's own to tell of.
        with contextlib.suppress(TypeError, ValueError, KeyError):
            record.msg, record.args = _plain(record.getMessage()), None
        return record

    def show_one(message: Warning | str, category: type[Warning], *_place: object, **_file: object) -> None:
        click.echo(f"{paint('note:', 'yellow')} {category.__name__}: {_plain(str(message))}", err=True)

    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    logging.setLogRecordFactory(make)
    warnings.showwarning = show_one
    try:
        yield
    finally:
        logging.setLogRecordFactory(make_record)
        warnings.showwarning = show_warning


def _plain(text: str) -> str:
    """Make text harmless; its lines after the first are set in."""
    return "\n  ".join(map(escape, text.split("\n")))


def _plain_table(table: Table) -> Table:
    rows = [[escape(cell) for cell in row] for row in table.rows]
    return replace(table, rows=rows)


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
    from distconv.cli.progress import BarProgress, LineProgress
    from distconv.moving.progress import SilentProgress

    if quiet:
        return SilentProgress()
    if sys.stderr.isatty():
        return _PlainProgress(BarProgress(sys.stderr))
    return _PlainProgress(LineProgress(lambda line: click.echo(line, err=True)))


class _PlainProgress:
    """Passes everything on, names and notes defused."""

    def __init__(self, progress: "Progress") -> None:
        self._progress = progress

    def begin(self, total_bytes: int, units: int, kind: str = "chunks") -> None:
        self._progress.begin(total_bytes, units, kind)

    def take(self, worker: str, unit: str, size_bytes: int) -> None:
        # The worker may be a file that is downloaded.
        self._progress.take(escape(worker), escape(unit), size_bytes)

    def advance(self, size_bytes: int, worker: str = "") -> None:
        self._progress.advance(size_bytes, escape(worker))

    def unit_done(self, name: str) -> None:
        self._progress.unit_done(escape(name))

    def note(self, message: str) -> None:
        self._progress.note(_plain(message))

    def end(self) -> None:
        self._progress.end()


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
