"""What every verb gives back, as words, for a terminal and for a notebook."""

import html
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import TYPE_CHECKING

from distconv.errors import escape, escape_lines
from distconv.verbs.tables import Table

_REPR_SIGNS = 160


class Report(ABC):
    """What a verb found or did: ``str`` gives it for people, ``to_json`` as plain values.

    In a notebook the last line of a cell shows it, its tables as tables.
    """

    __slots__ = ()

    if TYPE_CHECKING:
        # A dataclass would take what is really here for the default of its field.
        @property
        def notes(self) -> tuple[str, ...]:
            """What was assumed, and what looks odd."""

    @abstractmethod
    def to_json(self) -> dict[str, object]:
        """Give it as plain values, as ``--json`` prints them; their schema is in distconv/output/schemas/commands."""

    @abstractmethod
    def lines(self) -> Sequence[str | Table]:
        """Give it for people, without its notes."""

    def __str__(self) -> str:
        """Give notes and lines as the command prints them, what a terminal would obey as escapes."""
        notes = (f"note: {note}" for note in self.notes)
        return "\n".join((*map(escape_lines, notes), *map(_make_text, self.lines())))

    def __repr__(self) -> str:
        """Give the first line, or first row, shortened: what a verb found may be long."""
        lines = self.lines()
        words = [line for line in lines if line and not isinstance(line, Table)]
        words += [" ".join(row) for line in lines if isinstance(line, Table) for row in line.rows]
        first = escape(" ".join((words or [""])[0].split()))
        shown = first if len(first) <= _REPR_SIGNS else f"{first[: _REPR_SIGNS - 1]}…"
        return f"<{type(self).__name__}: {shown}>"

    def _repr_html_(self) -> str:
        """Give notes and lines for a notebook."""
        notes = [f"<div><b>note:</b> {_make_html(note)}</div>" for note in self.notes]
        blocks = groupby(self.lines(), lambda line: isinstance(line, Table))
        return "\n".join((*notes, *(made for _, block in blocks for made in _make_html_block(list(block)))))


def _make_text(line: str | Table) -> str:
    return "\n".join(map(escape, str(line).split("\n"))) if isinstance(line, Table) else escape_lines(line)


def _make_html_block(block: Sequence[str | Table]) -> Iterator[str]:
    words = "\n".join(_make_html(line) for line in block if not isinstance(line, Table)).strip("\n")
    if words:
        yield f"<pre>{words}</pre>"
    yield from (_make_html_table(line) for line in block if isinstance(line, Table))


def _make_html(text: str) -> str:
    return html.escape(escape_lines(text))


def _make_html_table(table: Table) -> str:
    styles = ["text-align:right" if is_number else "text-align:left" for is_number in table.numbers]

    def make_row(cells: Sequence[str], tag: str) -> str:
        made = (
            f'<{tag} style="{style}">{_make_html(cell)}</{tag}>'
            for cell, style in zip(cells, styles, strict=True)
        )
        return f"<tr>{''.join(made)}</tr>"

    head = f"<thead>{make_row(table.headers, 'th')}</thead>" if any(table.headers) else ""
    body = "\n".join(make_row(row, "td") for row in table.rows)
    return f"<table>{head}<tbody>\n{body}\n</tbody></table>"
