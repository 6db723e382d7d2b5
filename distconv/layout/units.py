"""What one worker does at a time, and which of it waits for other work."""

from collections.abc import Iterable
from dataclasses import dataclass

from distconv.layout.files import File, OutputTensor, Section
from distconv.layout.stripes import Stripe, group_runs


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


Pair = tuple[OutputTensor, OutputTensor]

QUESTION_BYTES = 1 << 28
"""Of the tensors of one question: less than a second's reading, so that many workers share it."""


@dataclass(frozen=True, slots=True)
class Question:
    """Whether the tensors of each of some pairs hold the same bytes in INPUT: one unit of work."""

    name: str
    pairs: tuple[Pair, ...]

    @property
    def size_bytes(self) -> int:
        """How much there is to read."""
        return sum(tensor.size_bytes for pair in self.pairs for tensor in pair)


Unit = File | Stripe | Checksum | Question


def split_question(question: Question, limit_bytes: int = QUESTION_BYTES) -> tuple[Question, ...]:
    """Split it into several of at most so many bytes, larger pairs alone."""
    runs = group_runs([left.size_bytes + right.size_bytes for left, right in question.pairs], limit_bytes)
    return tuple(
        Question(f"{question.name}, part {number} of {len(runs)}", question.pairs[run.start : run.stop])
        for number, run in enumerate(runs, 1)
    )


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
    if isinstance(unit, Question):
        return "comparisons"
    return "parts" if isinstance(unit, Stripe) or unit.is_sealed else "chunks"


def file_of(unit: Section) -> str:
    """Name the file that is written, or part of it."""
    return unit.name if isinstance(unit, File) else unit.file
