"""Files of the output to the byte: tensors at their places, and all that stands around them."""

import math
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol

from distconv.errors import ConversionError, InputError
from distconv.layout.copies import Copy
from distconv.layout.dtypes import DType
from distconv.layout.tiling import find_untiled


@dataclass(frozen=True, slots=True)
class OutputTensor:
    """One tensor of the output and the copies that fill it; ``stored`` is the source's type.

    There is none whose copies miss an element, fill one twice or read outside their storage:
    to make one is an InputError.
    """

    name: str
    source: str
    shape: tuple[int, ...]
    stored: DType
    dtype: DType
    copies: tuple[Copy, ...]

    def __post_init__(self) -> None:
        """Prove that the copies fill the tensor, each element once, from what is stored."""
        wrong = find_untiled(self.shape, self.copies, self.stored.size_bytes)
        if wrong is not None:
            raise InputError(
                f"{self.source}: its parts in the shards do not fill {self.name} of shape {self.shape}: {wrong}"
            )

    @property
    def elements(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def size_bytes(self) -> int:
        """Size in the output."""
        return self.elements * self.dtype.size_bytes


@dataclass(frozen=True, slots=True)
class Literal:
    """Bytes of a file that are no tensor's."""

    offset_bytes: int
    content: bytes


class Seal(Protocol):
    """What of a file can only be made when all its tensors have been."""

    @property
    def ranges(self) -> tuple[tuple[int, int], ...]:
        """Where it goes: offset and size in bytes of each run."""

    def make(self, checksums: Sequence[int]) -> tuple[Literal, ...]:
        """Make it of the CRC32 of each tensor's data, in the order of the file."""


@dataclass(frozen=True, slots=True)
class File:
    """One file of the output; without a seal it is one unit of work.

    Literals, tensors at their offsets, and the seal fill it: to plan a file with a hole, or where
    anything overlaps, is a ConversionError, as that plan is wrong, not INPUT.
    """

    name: str
    literals: tuple[Literal, ...]
    tensors: tuple[OutputTensor, ...]
    offsets_bytes: tuple[int, ...]
    seal: Seal | None = None

    def __post_init__(self) -> None:
        """Prove that each byte is planned once."""
        end = 0
        for start, size, what in sorted(self._runs()):
            if start != end:
                raise ConversionError(f"{self.name}: {what} is planned at byte {start:,}, expected {end:,}")
            end += size

    def _runs(self) -> Iterator[tuple[int, int, str]]:
        for literal in self.literals:
            yield literal.offset_bytes, len(literal.content), "what is no tensor's"
        for tensor, start in zip(self.tensors, self.offsets_bytes, strict=True):
            yield start, tensor.size_bytes, tensor.name
        for start, size in self.seal.ranges if self.seal is not None else ():
            yield start, size, "the seal"

    @property
    def head(self) -> bytes:
        """What it begins with, before the first tensor."""
        return self.literals[0].content

    @property
    def is_sealed(self) -> bool:
        """Whether something stands between or behind the tensors, which is made of their CRC32s."""
        return self.seal is not None

    @property
    def plain_head(self) -> bytes | None:
        """What stands before the tensors where nothing stands between or behind them."""
        return None if self.is_sealed else self.head

    @property
    def size_bytes(self) -> int:
        """Size of the file."""
        return sum(size for _start, size, _what in self._runs())

    @property
    def layers(self) -> str:
        """The layers in it, for people: ``3-5``, with ``+`` for what lies outside the layers."""
        return describe_layers(tensor.name for tensor in self.tensors)


@dataclass(frozen=True, slots=True)
class Part:
    """Some tensors of a file that several workers write: one unit of work."""

    file: str
    number: int
    """From 1."""
    count: int
    first: int
    """Which of the file's tensors is the first one."""
    tensors: tuple[OutputTensor, ...]
    offsets_bytes: tuple[int, ...]

    @property
    def is_sealed(self) -> bool:
        """Only sealed files have parts."""
        return True

    @property
    def plain_head(self) -> None:
        """It has no head of its own."""
        return

    @property
    def name(self) -> str:
        """Name it for people, and for the scheduler."""
        return self.file if self.count == 1 else f"{self.file}, part {self.number} of {self.count}"

    @property
    def size_bytes(self) -> int:
        """Size of its tensors."""
        return sum(tensor.size_bytes for tensor in self.tensors)


Section = File | Part
"""What is written as one: a file, or a part of one."""


def split_file(file: File, limit_bytes: int) -> tuple[Section, ...]:
    """Split a sealed file into parts of at most so many bytes of tensors, larger tensors alone."""
    if file.seal is None:
        return (file,)
    runs = group_runs([tensor.size_bytes for tensor in file.tensors], limit_bytes)
    return tuple(
        Part(
            file.name,
            number,
            len(runs),
            run.start,
            file.tensors[run.start : run.stop],
            file.offsets_bytes[run.start : run.stop],
        )
        for number, run in enumerate(runs, 1)
    )


def group_runs(sizes_bytes: Sequence[int], limit_bytes: int) -> tuple[range, ...]:
    """Group neighbours into runs of at most so many bytes, larger ones alone."""
    edges, held = [0], 0
    for place, size in enumerate(sizes_bytes):
        if held and held + size > limit_bytes:
            edges.append(place)
            held = 0
        held += size
    return tuple(range(first, end) for first, end in pairwise([*edges, len(sizes_bytes)]))


def describe_layers(names: Iterable[str]) -> str:
    """Say which layers tensors of these names are of."""
    names = list(names)
    numbers = sorted({int(match[1]) for name in names if (match := _LAYER.match(name))})
    outside = "+" if any(not _LAYER.match(name) for name in names) else ""
    if not numbers:
        return ", ".join(name.split(".")[-2] for name in names)
    first, last = numbers[0], numbers[-1]
    return (f"{first}" if first == last else f"{first}-{last}") + outside


_LAYER = re.compile(r"(?:model\.)?layers\.(\d+)\.")
