"""What one worker does at a time, and which of it waits for other work."""

from collections.abc import Iterable
from dataclasses import dataclass

from distconv.layout.files import File, Part, Section


@dataclass(frozen=True, slots=True)
class Checksum:
    """The MD5 of a whole file of the output, which takes its bytes in their order: one unit of work."""

    file: str
    size_bytes: int
    after: tuple[str, ...]
    """Names of the units that make the file."""

    @property
    def name(self) -> str:
        """Name it for people, and for the scheduler."""
        return f"MD5 of {self.file}"


Unit = Section | Checksum


def find_order(units: Iterable[Unit]) -> dict[str, tuple[str, ...]]:
    """Give, by the names of units that wait for others, the names of these."""
    return {unit.name: unit.after for unit in units if isinstance(unit, Checksum)}


def name_units(units: Iterable[Unit]) -> str:
    """Name units of work for people, in the plural."""
    kinds = {_name_kind(unit): None for unit in units}
    return " and ".join(kinds) or "chunks"


def _name_kind(unit: Unit) -> str:
    if isinstance(unit, Checksum):
        return "MD5s"
    return "parts" if isinstance(unit, Part) or unit.is_sealed else "chunks"


def file_of(unit: Unit) -> str:
    """Name the file that a unit belongs to."""
    return unit.name if isinstance(unit, File) else unit.file
