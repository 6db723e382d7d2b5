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
import re
import sys
import traceback
import warnings
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

import click

from distconv.errors import escape, escape_lines
from distconv.verbs.reports import Report
from distconv.verbs.tables import Table

if TYPE_CHECKING:
    from distconv.moving.progress import Progress


def show(report: Report, *, as_json: bool, notes_shown: bool = False) -> None:
    """Print a report: notes to standard error, the rest to standard output."""
    for note in () if notes_shown else report.notes:
        click.echo(f"{paint('note:', 'yellow')} {_plain(note)}", err=True)
    if as_json:
        # JSON leaves DEL alone, of all characters that ASCII has.
        click.echo(json.dumps(_name_in_messages(report.to_json()), indent=2).replace("\x7f", "\\u007f"))
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
    for line in name_options(message).split("\n"):
        click.echo(f"{paint('error:', 'red')} {escape(line)}", err=True)


def show_usage_error(error: click.ClickException) -> None:
    """Print what click has to say about a command line as errors are, with where its help is."""
    if isinstance(error, click.exceptions.NoArgsIsHelpError):
        # All of it is our own help, which is no error's text.
        error.show()
        return
    # What it suggests stands behind the end of its sentence, and choices on lines of their own.
    message = error.format_message().replace(". (", " (").replace("\n\t", " ")
    message = _SUGGESTION.sub(r" (\1)", message)
    context = error.ctx if isinstance(error, click.UsageError) else None
    command = "distconv" if context is None else context.command_path
    told = f"{message[:1].lower()}{message[1:].removesuffix('.')}; see `{command} --help`"
    click.echo(f"{paint('error:', 'red')} {escape_lines(told)}", err=True)


_SUGGESTION = re.compile(r"\. (Did you mean .*\?)$")


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
            record.msg, record.args = escape_lines(record.getMessage()), None
        return record

    def show_one(message: Warning | str, category: type[Warning], *_place: object, **_file: object) -> None:
        click.echo(f"{paint('note:', 'yellow')} {category.__name__}: {escape_lines(str(message))}", err=True)

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


_OPTION = re.compile(r"`([a-z_]+)=(True|'[^'`]*'|[A-Z]*|[0-9]+)`")


def name_options(text: str) -> str:
    """Name options as one types them: messages have them as Python does, in backquotes, as ``family='llama-2'``."""
    return _OPTION.sub(_name_option, text)


def _name_option(match: re.Match[str]) -> str:
    option, value = f"--{match[1].replace('_', '-')}", match[2].strip("'")
    return option if value in {"", "True"} else f"{option} {value}"


_MESSAGES = frozenset({"notes", "findings", "differences", "evidence", "assumptions"})
"""Keys of ``--json`` whose values distconv says; all others are names and numbers."""


def _name_in_messages(value: object, *, said: bool = False) -> object:
    """Name options as one types them in what a report says, and leave alone what it was told."""
    if isinstance(value, dict):
        return {key: _name_in_messages(held, said=key in _MESSAGES) for key, held in value.items()}
    if isinstance(value, list):
        return [_name_in_messages(held, said=said) for held in value]
    return name_options(value) if said and isinstance(value, str) else value


def _plain(text: str) -> str:
    return escape_lines(name_options(text))


def _plain_table(table: Table) -> Table:
    rows = [[escape(name_options(cell)) for cell in row] for row in table.rows]
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
    """Give a bar to a terminal and plain lines to a log; who wants quiet is told of notes alone, what was assumed."""
    from distconv.moving.progress import SilentProgress
    from distconv.moving.progress_bar import BarProgress
    from distconv.moving.progress_lines import LineProgress

    class Bar(BarProgress):
        def note(self, message: str) -> None:
            super().note(name_options(message))

    class Notes(SilentProgress):
        def note(self, message: str) -> None:
            if message.startswith("note: "):
                click.echo(_plain(message), err=True)

    if quiet:
        return Notes()
    if sys.stderr.isatty():
        return Bar(sys.stderr)
    return LineProgress(lambda line: click.echo(name_options(line), err=True))


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
