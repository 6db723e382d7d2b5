"""Rows and columns as plain text; a terminal may draw them better."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Table:
    """Cells under headers; ``numbers`` says which columns are set to the right."""

    headers: Sequence[str]
    rows: Sequence[Sequence[str]]
    numbers: Sequence[bool]

    def __str__(self) -> str:
        """Set it with spaces alone; headers that are all empty are left out."""
        lines = [self.headers, *self.rows] if any(self.headers) else list(self.rows)
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        return "\n".join(
            "  ".join(
                cell.rjust(width) if is_number else cell.ljust(width)
                for cell, width, is_number in zip(line, widths, self.numbers, strict=True)
            ).rstrip()
            for line in lines
        )
