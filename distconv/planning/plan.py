"""The whole conversion, decided before a byte moves: chunks, tensors, copies, offsets."""

import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from distconv.errors import ConversionError, InputError
from distconv.families.llama import OUTPUT
from distconv.families.rules import Match
from distconv.formats.safetensors.chunks import (
    INDEX_NAME,
    chunk_name,
    default_chunk_bytes,
    file_order,
    group_tensors,
    make_header,
    make_index,
)
from distconv.humanize import format_size
from distconv.layout.copies import Copy
from distconv.layout.dtypes import DType
from distconv.layout.tiling import find_untiled


@dataclass(frozen=True, slots=True)
class Decisions:
    """What only data can tell: whether embedding and output are equal, how often key heads are stored."""

    tied: bool
    kv_replication: int


@dataclass(frozen=True, slots=True)
class TargetTensor:
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
class Chunk:
    """One output file, one unit of work: header, then the tensors at their offsets in the file."""

    name: str
    header: bytes
    tensors: tuple[TargetTensor, ...]
    offsets_bytes: tuple[int, ...]

    def __post_init__(self) -> None:
        """Refuse a file with a hole, or where tensors overlap: that plan is wrong, not INPUT."""
        end = len(self.header)
        for tensor, start in zip(self.tensors, self.offsets_bytes, strict=True):
            if start != end:
                raise ConversionError(
                    f"{self.name}: {tensor.name} is planned at byte {start:,}, expected {end:,}"
                )
            end += tensor.size_bytes

    @property
    def size_bytes(self) -> int:
        """Size of the file."""
        return len(self.header) + sum(tensor.size_bytes for tensor in self.tensors)

    @property
    def layers(self) -> str:
        """The layers in it, for people: ``3-5``, with ``+`` for what lies outside the layers."""
        numbers = sorted({int(match[1]) for tensor in self.tensors if (match := _LAYER.match(tensor.name))})
        outside = "+" if any(not _LAYER.match(tensor.name) for tensor in self.tensors) else ""
        if not numbers:
            return ", ".join(tensor.name.split(".")[-2] for tensor in self.tensors)
        first, last = numbers[0], numbers[-1]
        return (f"{first}" if first == last else f"{first}-{last}") + outside


_LAYER = re.compile(r"model\.layers\.(\d+)\.")


@dataclass(frozen=True, slots=True)
class Plan:
    """All chunks, in the order of their names."""

    chunks: tuple[Chunk, ...]
    decisions: Decisions
    chunk_limit_bytes: int

    @property
    def tensors(self) -> tuple[TargetTensor, ...]:
        """All target tensors, chunk by chunk."""
        return tuple(tensor for chunk in self.chunks for tensor in chunk.tensors)

    @property
    def size_bytes(self) -> int:
        """Size of all chunk files."""
        return sum(chunk.size_bytes for chunk in self.chunks)

    @property
    def large_tensors(self) -> tuple[TargetTensor, ...]:
        """The tensors above a chunk's limit, each in a chunk of its own, the largest first."""
        found = (tensor for tensor in self.tensors if tensor.size_bytes > self.chunk_limit_bytes)
        return tuple(sorted(found, key=lambda tensor: -tensor.size_bytes))

    @property
    def dtype(self) -> DType:
        """The type of most elements, which the config names."""
        counts: Counter[DType] = Counter()
        for tensor in self.tensors:
            counts[tensor.dtype] += tensor.elements
        return max(counts, key=lambda dtype: (counts[dtype], dtype.rank))

    def make_index(self) -> tuple[str, bytes] | None:
        """Give the index's name and content; None where a single chunk needs none."""
        if len(self.chunks) == 1:
            return None
        weight_map = {tensor.name: chunk.name for chunk in self.chunks for tensor in chunk.tensors}
        parameters = sum(tensor.elements for tensor in self.tensors)
        size_bytes = sum(tensor.size_bytes for tensor in self.tensors)
        return INDEX_NAME, make_index(weight_map, parameters, size_bytes)


_NAMED = 3


def describe_large_tensors(plan: Plan) -> tuple[str, ...]:
    """Say which chunks are larger than they should be, and why, in at most one note."""
    found = plan.large_tensors
    if not found:
        return ()
    names = ", ".join(f"{tensor.name} ({format_size(tensor.size_bytes)})" for tensor in found[:_NAMED])
    more = f" and {len(found) - _NAMED} more" if len(found) > _NAMED else ""
    chunks = "1 chunk is" if len(found) == 1 else f"{len(found)} chunks are"
    limit = format_size(plan.chunk_limit_bytes)
    return (f"{chunks} larger than {limit}, as a tensor is never cut: {names}{more}",)


def make_targets(
    matches: Sequence[Match], head_dim: int, decisions: Decisions, dtype: DType | None = None
) -> tuple[TargetTensor, ...]:
    """Turn matched rules into target tensors; ``dtype`` None keeps each tensor's own type.

    All tensors that their parts do not fill are collected and raised as one InputError.
    """
    targets, findings = [], []
    for match in matches:
        if match.source == OUTPUT and decisions.tied:
            continue
        stored = match.views[0].dtype
        try:
            joined = match.cut.join(match.views, decisions.kv_replication)
            tensor = match.operation.apply(joined, head_dim)
            targets.append(
                TargetTensor(match.target, match.source, tensor.shape, stored, dtype or stored, tensor.copies)
            )
        except InputError as error:
            findings.append(str(error))
    if findings:
        raise InputError.of(findings)
    return tuple(targets)


def make_plan(
    targets: Sequence[TargetTensor], decisions: Decisions, chunk_limit_bytes: int | None = None
) -> Plan:
    """Group targets into chunks and lay each one out to the byte."""
    by_name = {target.name: target for target in targets}
    sizes = {name: target.size_bytes for name, target in by_name.items()}
    limit = chunk_limit_bytes or default_chunk_bytes(sum(sizes.values()))
    groups = group_tensors(sizes, limit)
    chunks = []
    for number, names in enumerate(groups, 1):
        ordered = [by_name[name] for name in file_order((name, by_name[name].dtype) for name in names)]
        header, offsets = make_header([(target.name, target.dtype, target.shape) for target in ordered])
        chunks.append(Chunk(chunk_name(number, len(groups)), header, tuple(ordered), offsets))
    return Plan(tuple(chunks), decisions, limit)
