"""Whether Meta's shards hold INPUT's tensors, on another path than the worker's.

Whole rows of INPUT are read, brought into Meta's order by an index of rows, and the slice that each rank
should have of them is compared with what the shards' own headers say is where.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from distconv.families.cuts import ROWS, Cut
from distconv.families.llama import EMBEDDING, OUTPUT
from distconv.families.operations import ROTARY, SAME, Operation
from distconv.families.rules import Match
from distconv.families.translate import MetaTensor
from distconv.formats.meta.shards import shard_name
from distconv.formats.views import TensorView
from distconv.formats.written import Headers, Written
from distconv.layout.dtypes import DType
from distconv.moving.progress import Progress
from distconv.moving.worker import Sources
from distconv.output.findings import Finding
from distconv.storage.base import Reader, Storage, opened, read_range
from distconv.verbs.verify import BAND_BYTES, cast_rows, distinct_parts, join_shapes, read_whole_rows

if TYPE_CHECKING:
    from distconv.verbs.verify import Rows


@dataclass(frozen=True, slots=True)
class Expected:
    """A whole tensor as Meta's code has it: what INPUT holds of it, and how ranks share it.

    ``rows`` is how many of INPUT's rows are kept; ``operation`` is what was applied to it in INPUT.
    """

    name: str
    source: str
    parts: tuple[tuple[TensorView, ...], ...]
    """In order along the cut that INPUT has, each with others that hold the same."""
    joined: Cut
    operation: Operation
    cut: Cut
    rows: int
    head_dim: int

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the whole."""
        _rows, *others = join_shapes([part for part, *_twins in self.parts], self.joined.axis)
        return (self.rows, *others)

    @property
    def stored(self) -> DType:
        """The type that INPUT has it in."""
        return self.parts[0][0].dtype


def expect_match(match: Match, replication: int, whole: MetaTensor, head_dim: int) -> Expected:
    """Expect a tensor of Meta's own shards."""
    parts = tuple(distinct_parts(match, replication))
    return Expected(
        whole.tensor.name, match.source, parts, match.cut, SAME, whole.cut, whole.tensor.shape[0], head_dim
    )


def expect_view(view: TensorView, whole: MetaTensor, operation: Operation, head_dim: int) -> Expected:
    """Expect a tensor that Transformers' files have whole."""
    return Expected(
        whole.tensor.name, view.name, ((view,),), ROWS, operation, whole.cut, whole.tensor.shape[0], head_dim
    )


def compare_shards(
    storage: Storage, expected: Sequence[Expected], ranks: int, headers: Headers, progress: Progress
) -> list[Finding]:
    """List every tensor of the shards that is missing, foreign, or differs from INPUT's."""
    names = [shard_name(rank) for rank in range(ranks)]
    findings = [*_find_strangers(expected, names, headers)]
    progress.begin(
        sum(written.elements * written.dtype.size_bytes for _n, _t, written in _all(headers)), ranks
    )
    try:
        with Sources(storage) as sources:
            for whole in expected:
                targets = [headers.get(name, {}).get(whole.name) for name in names]
                if all(target is not None for target in targets):
                    found = [target for target in targets if target is not None]
                    findings += _compare(storage, whole, found, sources, progress)
    finally:
        progress.end()
    return findings


def _all(headers: Headers) -> Iterator[tuple[str, str, Written]]:
    return ((name, tensor, written) for name, found in headers.items() for tensor, written in found.items())


def _find_strangers(
    expected: Sequence[Expected], names: Sequence[str], headers: Headers
) -> Iterator[Finding]:
    wanted = {whole.name for whole in expected}
    for name in names:
        held = headers.get(name, {})
        for tensor in sorted(wanted - held.keys()):
            yield Finding(f"{tensor} is missing in {name}", name)
        # The output is in nobody's way where it is the embedding: as one it is compared.
        shared = {
            tensor for tensor, written in held.items() if (tensor, written.shares) == (OUTPUT, EMBEDDING)
        }
        for tensor in sorted(held.keys() - wanted - shared):
            yield Finding(f"{tensor} in {held[tensor].path}: not a tensor of the source", name)


@dataclass(frozen=True, slots=True)
class _Slice:
    """What one rank holds of a whole tensor, in rows and columns."""

    first_row: int
    end_row: int
    first_column: int
    end_column: int


def _slice(whole: Expected, rank: int, ranks: int) -> _Slice:
    rows, *others = whole.shape
    columns = math.prod(others)
    if whole.cut.axis == 1:
        return _Slice(0, rows, rank * columns // ranks, (rank + 1) * columns // ranks)
    if whole.cut.axis is None:
        return _Slice(0, rows, 0, columns)
    heads = rows // whole.head_dim
    if whole.cut.heads == "key" and ranks > heads:
        head = rank // (ranks // heads)
        return _Slice(head * whole.head_dim, (head + 1) * whole.head_dim, 0, columns)
    return _Slice(rank * rows // ranks, (rank + 1) * rows // ranks, 0, columns)


def _compare(
    storage: Storage, whole: Expected, targets: Sequence[Written], sources: Sources, progress: Progress
) -> Iterator[Finding]:
    """Go through the rows once, and compare each with every rank that holds some of it."""
    slices = [_slice(whole, rank, len(targets)) for rank in range(len(targets))]
    wrong: dict[int, str] = {}
    for rank, (target, part) in enumerate(zip(targets, slices, strict=True)):
        shape = (part.end_row - part.first_row, part.end_column - part.first_column)
        if target.shape != shape[: len(whole.shape)]:
            wrong[rank] = (
                f"{whole.name} in {target.path}: shape {target.shape}, expected {shape[: len(whole.shape)]}"
            )
    for first, rows in _bands(whole, sources):
        for rank, (target, part) in enumerate(zip(targets, slices, strict=True)):
            low, high = max(first, part.first_row), min(first + len(rows), part.end_row)
            if rank in wrong or low >= high:
                continue
            wanted = rows[low - first : high - first, part.first_column : part.end_column]
            with opened(storage, target.path) as reader:
                words = _differ(whole, target, part, low, wanted, reader)
            progress.advance(wanted.size * target.dtype.size_bytes)
            if words is not None:
                wrong[rank] = words
    for rank, words in sorted(wrong.items()):
        yield Finding(words, shard_name(rank))


def _differ(
    whole: Expected, target: Written, part: _Slice, row: int, wanted: "Rows", reader: Reader
) -> str | None:
    """Compare rows from ``row`` on of the whole with a rank's; tell where they differ."""
    import numpy as np

    row_bytes = (part.end_column - part.first_column) * target.dtype.size_bytes
    start = target.offset_bytes + (row - part.first_row) * row_bytes
    expected = cast_rows(np.ascontiguousarray(wanted), whole.stored, target.dtype)
    found = read_range(reader, start, len(expected))
    if found == expected:
        return None
    at = next(i for i, (one, other) in enumerate(zip(expected, found, strict=True)) if one != other)
    return (
        f"{whole.name} in {target.path}: row {row - part.first_row + at // row_bytes}, column "
        f"{at % row_bytes // target.dtype.size_bytes} differs from {whole.source}"
    )


def _bands(whole: Expected, sources: Sources) -> Iterator[tuple[int, "Rows"]]:
    """Give the whole tensor as (first row, rows of all columns), in Meta's order."""
    rows, *others = whole.shape
    columns = math.prod(others)
    head = whole.head_dim if whole.operation is ROTARY else 1
    band = max(1, BAND_BYTES // max(1, columns * whole.stored.size_bytes * head)) * head
    for first in range(0, rows, band):
        found = read_whole_rows(whole.joined, whole.parts, first, min(band, rows - first), sources)
        found = found.reshape(len(found), columns)
        yield first, found[_interleave(len(found), head)] if whole.operation is ROTARY else found


def _interleave(rows: int, head: int) -> list[int]:
    """Transformers' row for each of Meta's: row h, 2 i + p is Transformers' row h, p, i."""
    return [
        start + place % 2 * (head // 2) + place // 2
        for start in range(0, rows, head)
        for place in range(head)
    ]
