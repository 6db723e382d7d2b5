"""Files of the output to the byte: tensors at their places, and all that stands around them."""

import math
import re
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from distconv.errors import ConversionError, InputError
from distconv.layout.copies import Copy
from distconv.layout.dtypes import DType
from distconv.layout.tensors import Tensor
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
    stacked: int = 1
    """Along axis 1 lie so many tensors, of as many files; see ``stripes.stack``."""
    scale: Tensor | None = None
    """What each element is multiplied by before it is cast, see ``Tensor``; it is cast to another type then."""

    def __post_init__(self) -> None:
        """Prove that the copies fill the tensor, each element once, from what is stored."""
        wrong = find_untiled(self.shape, self.copies, self.stored.size_bytes)
        if wrong is not None:
            raise InputError(
                f"{self.source}: its parts in the shards do not fill {self.name} of shape {self.shape}: {wrong}"
            )
        if self.scale is not None:
            self._prove_scale(self.scale)

    def _prove_scale(self, scale: Tensor) -> None:
        if scale.shape != self.shape or self.dtype == self.stored or self.stacked > 1:
            raise ValueError(
                f"{self.name}: a scale of shape {scale.shape}, from {self.stored} to {self.dtype}"
            )
        wrong = find_untiled(scale.shape, scale.copies, scale.dtype.size_bytes)
        if wrong is not None:
            raise InputError(
                f"{scale.name}: does not give {self.name} of shape {self.shape} its scale: {wrong}"
            )

    @property
    def whole(self) -> Tensor:
        """What is stored of it, as a tensor that can be cut."""
        return Tensor(self.name, self.stored, self.shape, self.copies, self.scale)

    def of(self, part: Tensor) -> "OutputTensor":
        """Give the same of a part of it."""
        return replace(self, shape=part.shape, copies=part.copies, scale=part.scale)

    @property
    def unit_bytes(self) -> int:
        """The most that an element takes on its way."""
        scale = 0 if self.scale is None else self.scale.dtype.size_bytes
        return max(self.stored.size_bytes, self.dtype.size_bytes, scale)

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


class Trailer(Protocol):
    """What stands behind a tensor's data, and is made of its CRC32."""

    @property
    def size_bytes(self) -> int:
        """Its size."""

    def make(self, checksum: int) -> bytes:
        """Make it."""


class Seal(Protocol):
    """The end of a file, which can only be made when all its tensors have been."""

    @property
    def offset_bytes(self) -> int:
        """Where it begins."""

    @property
    def size_bytes(self) -> int:
        """Its size."""

    def make(self, checksums: Sequence[int]) -> bytes:
        """Make it of the CRC32 of each tensor's data, in the order of the file."""


@dataclass(frozen=True, slots=True)
class File:
    """One file of the output: one unit of work, or written in parts.

    Literals, tensors at their offsets, each with its trailer where there are any, and the seal fill it:
    to plan a file with a hole, or where anything overlaps, is a ConversionError, as that plan is wrong,
    not INPUT.
    """

    name: str
    literals: tuple[Literal, ...]
    tensors: tuple[OutputTensor, ...]
    offsets_bytes: tuple[int, ...]
    trailers: tuple[Trailer, ...] = ()
    seal: Seal | None = None

    def __post_init__(self) -> None:
        """Prove that each byte is planned once; what has none is nowhere."""
        end = 0
        for start, size, what in sorted(run for run in self._runs() if run[1]):
            if start != end:
                raise ConversionError(f"{self.name}: {what} is planned at byte {start:,}, expected {end:,}")
            end += size

    def _runs(self) -> Iterator[tuple[int, int, str]]:
        for literal in self.literals:
            yield literal.offset_bytes, len(literal.content), "what is no tensor's"
        for tensor, start in zip(self.tensors, self.offsets_bytes, strict=True):
            yield start, tensor.size_bytes, tensor.name
        for start, trailer in list_trailers(self):
            yield start, trailer.size_bytes, "a trailer"
        if self.seal is not None:
            yield self.seal.offset_bytes, self.seal.size_bytes, "the seal"

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
    """A run of bytes of a file that several workers write, each in a ``stripes.Stripe``.

    The parts of a file fill it, one behind the other, but for its seal and the trailers of tensors that
    lie in several of them.
    """

    file: str
    file_bytes: int
    """Size of the whole file."""
    number: int
    """From 1."""
    count: int
    places: tuple[int, ...]
    """Which of the file's tensors each of its own is, or is some rows of."""
    literals: tuple[Literal, ...]
    tensors: tuple[OutputTensor, ...]
    offsets_bytes: tuple[int, ...]
    trailers: tuple[Trailer | None, ...]
    """None behind rows of a tensor of which other parts have others."""

    @property
    def plain_head(self) -> None:
        """It has no head of its own."""
        return

    @property
    def first_byte(self) -> int:
        """Where in the file it begins."""
        return min((self.offsets_bytes[0], *(literal.offset_bytes for literal in self.literals[:1])))

    @property
    def name(self) -> str:
        """Name it for people, and for the journal."""
        return f"{self.file}, part {self.number} of {self.count}"

    @property
    def size_bytes(self) -> int:
        """Size of all that is in it."""
        return (
            sum(len(literal.content) for literal in self.literals)
            + sum(tensor.size_bytes for tensor in self.tensors)
            + sum(trailer.size_bytes for trailer in self.trailers if trailer is not None)
        )


Section = File | Part
"""What is written as one: a file, or a part of one."""


def list_trailers(unit: Section) -> Iterator[tuple[int, Trailer]]:
    """Give each trailer that a unit has, and where in the file it stands."""
    for start, trailer in _list_places(unit):
        if trailer is not None:
            yield start, trailer


def _list_places(unit: Section) -> Iterator[tuple[int, Trailer | None]]:
    """Give for each tensor where it ends, and its trailer; nothing where a unit can have none."""
    if unit.trailers:
        for tensor, start, trailer in zip(unit.tensors, unit.offsets_bytes, unit.trailers, strict=True):
            yield start + tensor.size_bytes, trailer


def list_around(unit: Section, checksums: Sequence[int]) -> Iterator[Literal]:
    """Give all of a unit that is no tensor's data, whose CRC32s these are."""
    yield from unit.literals
    for (start, trailer), checksum in zip(_list_places(unit), checksums, strict=True):
        if trailer is not None:
            yield Literal(start, trailer.make(checksum))
    if isinstance(unit, File) and unit.seal is not None:
        yield Literal(unit.seal.offset_bytes, unit.seal.make(checksums))


def list_in_order(unit: Section) -> Iterator[Literal | int]:
    """Give a unit's literals, and by its place each of its tensors, as they stand in the file."""
    literals = deque(unit.literals)
    for place, start in enumerate(unit.offsets_bytes):
        # One of no elements may be said to be anywhere.
        while unit.tensors[place].size_bytes and literals and literals[0].offset_bytes < start:
            yield literals.popleft()
        yield place
    yield from literals


def describe_layers(names: Iterable[str]) -> str:
    """Say which layers tensors of these names are of, an image encoder's after the text model's."""
    names = list(names)
    found: dict[str, list[int]] = {}
    for name in names:
        if match := _LAYER.match(name):
            kind = "vision " if match["vision"] else "cross-attention " if match["cross"] else ""
            found.setdefault(kind, []).append(int(match["layer"]))
    if not found:
        return ", ".join(dict.fromkeys(name.split(".")[-2] for name in names))
    runs = [f"{kind}{_describe_run(numbers)}" for kind, numbers in sorted(found.items())]
    outside = "+" if any(not _LAYER.match(name) for name in names) else ""
    return ", ".join(runs) + outside


def _describe_run(numbers: Sequence[int]) -> str:
    first, last = min(numbers), max(numbers)
    return f"{first}" if first == last else f"{first}-{last}"


_LAYER = re.compile(
    r"(?P<vision>vision_)?(?:\w+\.)*?(?:(?P<cross>cross_attention_)?layers|resblocks)\.(?P<layer>\d+)\."
)
