"""What one worker does at a time, and which of it waits for other work."""

from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace

from distconv.humanize import pluralise
from distconv.layout.files import File, OutputTensor, Section
from distconv.layout.stripes import Stripe, group_runs


@dataclass(frozen=True, slots=True)
class Checksum:
    """Digests that take the bytes of a file of the output in their order: one unit of work."""

    file: str
    size_bytes: int
    after: tuple[str, ...]
    """Names of the units that make the file."""
    md5: bool = True
    """Whether the MD5 of the whole file is made."""
    whole: bool = False
    """Whether the digest of the whole file is."""
    tensors: tuple[tuple[int, int], ...] = ()
    """Where tensors begin and end whose digests are made, as nobody wrote them from end to end."""

    @property
    def is_open(self) -> bool:
        """Whether the file is committed after this, with digests that only this tells."""
        return self.whole or bool(self.tensors)

    @property
    def name(self) -> str:
        """Name it for people, and for the scheduler."""
        return f"{'digests' if self.is_open else 'MD5'} of {self.file}"


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


@dataclass(frozen=True, slots=True)
class Gap:
    """Bytes of a file that are no tensor's, from ``first`` to before ``end``."""

    path: str
    first: int
    end: int

    @property
    def size_bytes(self) -> int:
        """How many there are."""
        return self.end - self.first


@dataclass(frozen=True, slots=True)
class Examination:
    """Runs of bytes that are looked at, each once: one unit of work.

    Of each tensor its odd values are told, and its digest and what else is asked for.
    """

    name: str
    runs: tuple[OutputTensor | Gap, ...]
    digests: bool = True
    """Whether the digest of each tensor is made."""
    whole: bool = False
    """Whether the digest of all runs is made, one behind the other."""
    md5: bool = False
    """Whether their MD5 is."""
    checksums: bool = False
    """Whether the CRC32 of each tensor's bytes is."""
    is_part: bool = False
    """Whether it is one of several that a file was split into."""

    @property
    def size_bytes(self) -> int:
        """How much there is to look at."""
        return sum(run.size_bytes for run in self.runs)

    @property
    def tensors(self) -> tuple[OutputTensor, ...]:
        """The tensors among the runs."""
        return tuple(run for run in self.runs if isinstance(run, OutputTensor))


Unit = File | Stripe | Checksum | Question | Examination


def split_question(question: Question, limit_bytes: int = QUESTION_BYTES) -> tuple[Question, ...]:
    """Split it into several of at most so many bytes, larger pairs alone."""
    runs = group_runs([left.size_bytes + right.size_bytes for left, right in question.pairs], limit_bytes)
    return tuple(
        Question(f"{question.name}, part {number} of {len(runs)}", question.pairs[run.start : run.stop])
        for number, run in enumerate(runs, 1)
    )


def split_examination(unit: Examination, limit_bytes: int = QUESTION_BYTES) -> tuple[Examination, ...]:
    """Split it into several of at most so many bytes, larger tensors alone, where nothing of the whole is asked."""
    runs = group_runs([run.size_bytes for run in unit.runs], limit_bytes)
    if unit.whole or unit.md5 or len(runs) == 1:
        return (unit,)
    return tuple(
        replace(
            unit,
            name=f"{unit.name}, part {number} of {len(runs)}",
            runs=unit.runs[run.start : run.stop],
            is_part=True,
        )
        for number, run in enumerate(runs, 1)
    )


def find_order(units: Iterable[Unit]) -> dict[str, tuple[str, ...]]:
    """Give, by the names of units that wait for others, the names of these."""
    return {unit.name: unit.after for unit in units if isinstance(unit, Checksum)}


def find_chains(units: Iterable[Unit]) -> dict[str, str]:
    """Give, by the names of units that take the bytes of a file behind others of it, the names of these.

    Those are the parts of files whose digests take all bytes in their order, and the digests themselves.
    """
    found: dict[str, str] = {}
    last: dict[str, str] = {}
    for unit in units:
        file = None
        if isinstance(unit, Stripe) and len(unit.parts) == 1 and not unit.parts[0].trailers:
            file = unit.parts[0].file
        elif isinstance(unit, Checksum) and unit.whole:
            file = unit.file
        if file is not None:
            if file in last:
                found[unit.name] = last[file]
            last[file] = unit.name
    return found


def name_units(units: Collection[Unit]) -> str:
    """Name units of work for people: one in the singular, others in the plural."""
    kinds = {pluralise(len(units), _name_kind(unit)): None for unit in units}
    return " and ".join(kinds) or "chunks"


def _name_kind(unit: Unit) -> str:
    if isinstance(unit, Checksum):
        return "digest" if unit.is_open else "MD5"
    if isinstance(unit, Question):
        return "comparison"
    if isinstance(unit, Examination):
        return "part" if unit.is_part else "file"
    return "part" if isinstance(unit, Stripe) or unit.is_sealed else "chunk"


def file_of(unit: Section) -> str:
    """Name the file that is written, or part of it."""
    return unit.name if isinstance(unit, File) else unit.file
