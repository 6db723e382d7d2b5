"""Whether Meta's shards hold INPUT's tensors, on another path than the worker's.

Whole rows of INPUT are read, brought into Meta's order by an index of rows, and the slice that each rank
should have of them is compared with what the shards' own headers say is where.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from distconv.families.operations import ROTARY
from distconv.formats.meta.shards import shard_name
from distconv.formats.written import Headers, Written
from distconv.layout.dtypes import DType
from distconv.moving.progress import Progress
from distconv.moving.sources import Sources
from distconv.output.findings import Finding
from distconv.storage.base import Storage, opened, read_range
from distconv.verbs.expected import Expected
from distconv.verbs.rows import band_rows, cast_rows, choose_dtype, find_difference, read_whole_rows

if TYPE_CHECKING:
    from distconv.verbs.rows import Rows

Targets = Mapping[int, Written]
"""One tensor's part in each rank that has it."""


def compare_shards(
    storage: Storage, expected: Sequence[Expected], ranks: int, headers: Headers, progress: Progress
) -> list[Finding]:
    """List every tensor of the shards that is missing, foreign, or differs from INPUT's."""
    names = [shard_name(rank) for rank in range(ranks)]
    findings = [*_find_strangers(expected, names, headers)]
    found = {whole.name: _find_targets(whole.name, names, headers) for whole in expected}
    sizes = (part.elements * part.dtype.size_bytes for targets in found.values() for part in targets.values())
    progress.begin(sum(sizes), len(found), "tensors")
    try:
        dtype = choose_dtype(
            (whole.stored, part) for whole in expected for part in found[whole.name].values()
        )
        with Sources(storage) as sources:
            for whole in expected:
                targets = found[whole.name]
                counted = whole.as_in(tuple(targets.values()), ranks)
                shared = _Shared(counted, ranks, dtype or whole.stored)
                findings += _compare(storage, shared, targets, sources, progress)
                progress.unit_done(whole.name)
    finally:
        progress.end()
    return findings


def _find_targets(tensor: str, names: Sequence[str], headers: Headers) -> Targets:
    return {
        rank: headers[name][tensor]
        for rank, name in enumerate(names)
        if name in headers and tensor in headers[name]
    }


def _find_strangers(
    expected: Sequence[Expected], names: Sequence[str], headers: Headers
) -> Iterator[Finding]:
    wanted = {whole.name for whole in expected}
    for name in names:
        if name not in headers:
            yield Finding(f"{name}: missing or damaged, none of its tensors can be compared", name)
            continue
        held = headers[name]
        for tensor in sorted(wanted - held.keys()):
            yield Finding(f"{tensor}: missing in {name}", name)
        for tensor in sorted(held.keys() - wanted):
            yield Finding(f"{tensor} in {held[tensor].path}: not a tensor of the source", name)


@dataclass(frozen=True, slots=True)
class _Slice:
    """What one rank holds of a whole tensor, in rows and columns."""

    first_row: int
    end_row: int
    first_column: int
    end_column: int

    @property
    def shape(self) -> tuple[int, int]:
        return self.end_row - self.first_row, self.end_column - self.first_column


@dataclass(frozen=True, slots=True)
class _Shared:
    """A whole tensor that so many ranks share, in a type of OUTPUT's."""

    whole: Expected
    ranks: int
    dtype: DType

    def slice(self, rank: int) -> _Slice:
        """Give what a rank holds: even parts of rows or columns, or of heads one at least."""
        whole, ranks = self.whole, self.ranks
        rows, *others = whole.shape
        columns = math.prod(others)
        if whole.cut.axis is None:
            return _Slice(0, rows, 0, columns)
        if whole.cut.axis == 1:
            return _Slice(0, rows, rank * columns // ranks, (rank + 1) * columns // ranks)
        heads = rows // whole.head_dim
        if whole.cut.heads == "key" and ranks > heads:
            first = rank * heads // ranks * whole.head_dim
            return _Slice(first, first + whole.head_dim, 0, columns)
        return _Slice(rank * rows // ranks, (rank + 1) * rows // ranks, 0, columns)

    def misfit(self, part: _Slice, target: Written) -> str | None:
        """Tell where a rank's part is of another shape or type."""
        shape = part.shape[: len(self.whole.shape)]
        if target.shape != shape:
            return f"{self.whole.name} in {target.path}: shape {target.shape}, expected {shape}"
        if target.dtype != self.dtype:
            return f"{self.whole.name} in {target.path}: stored as {target.dtype}, expected {self.dtype}"
        return None


def _compare(
    storage: Storage, shared: _Shared, targets: Targets, sources: Sources, progress: Progress
) -> Iterator[Finding]:
    """Go through the rows once, and compare each with every rank that holds some of it."""
    slices = {rank: shared.slice(rank) for rank in targets}
    misfits = {rank: shared.misfit(slices[rank], target) for rank, target in targets.items()}
    wrong = {rank: words for rank, words in misfits.items() if words is not None}
    for first, rows in _bands(shared.whole, sources):
        for rank, part in slices.items():
            low, high = max(first, part.first_row), min(first + len(rows), part.end_row)
            if rank in wrong or low >= high:
                continue
            wanted = rows[low - first : high - first, part.first_column : part.end_column]
            words = _differ(storage, shared.whole, targets[rank], part, low, wanted)
            progress.advance(wanted.size * shared.dtype.size_bytes)
            if words is not None:
                wrong[rank] = words
    for rank, words in sorted(wrong.items()):
        yield Finding(words, shard_name(rank))


def _differ(
    storage: Storage, whole: Expected, target: Written, part: _Slice, row: int, wanted: "Rows"
) -> str | None:
    """Compare rows from ``row`` on of the whole with a rank's; tell where they differ."""
    import numpy as np

    row_bytes = part.shape[1] * target.dtype.size_bytes
    skipped = row - part.first_row
    expected = cast_rows(np.ascontiguousarray(wanted), whole.stored, target.dtype)
    with opened(storage, target.path) as reader:
        found = read_range(reader, target.offset_bytes + skipped * row_bytes, len(expected))
    at = find_difference(expected, found, row_bytes, target.dtype)
    if at is None:
        return None
    return f"{whole.name} in {target.path}: row {skipped + at[0]}, column {at[1]} differs from {whole.source}"


def _bands(whole: Expected, sources: Sources) -> Iterator[tuple[int, "Rows"]]:
    """Give the whole tensor as (first row, rows of all columns), in Meta's order."""
    rows, *others = whole.shape
    columns = math.prod(others)
    head = whole.head_dim if whole.operation is ROTARY else 1
    band = band_rows(columns, whole.stored, head)
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
