"""Whether Meta's shards hold INPUT's tensors, on another path than the worker's.

Whole rows of INPUT are read, brought into Meta's order by an index of rows, and the slice that each rank
should have of them is compared with what the shards' own headers say is where.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from distconv.formats.meta.shards import shard_name
from distconv.formats.written import Headers, Written, view_written
from distconv.layout.dtypes import DType
from distconv.layout.units import Examination
from distconv.moving.progress import Progress
from distconv.output.findings import Finding
from distconv.storage.base import Storage
from distconv.verbs.expected import Expected
from distconv.verbs.rows import cast_rows, choose_dtype, find_difference, read_bytes, read_rows
from distconv.verbs.side_by_side import Compare, Reading, ask_for, compare_side_by_side

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
    groups: dict[str, list[Expected]] = {}
    for whole in expected:
        groups.setdefault(whole.held_as, []).append(whole)
    found = {name: _find_targets(name, names, headers) for name in groups}
    dtype = choose_dtype(
        (whole.stored_dtype, part) for whole in expected for part in found[whole.held_as].values()
    )
    asked: list[tuple[Examination, Compare]] = []
    for name, targets in found.items():
        written = {names[rank]: part for rank, part in targets.items()}
        compare = partial(_compare_group, groups[name], ranks, dtype, targets)
        asked.append((ask_for(name, written, is_part=True), compare))
    return findings + compare_side_by_side(storage, asked, progress)


def _find_targets(tensor: str, names: Sequence[str], headers: Headers) -> Targets:
    return {
        rank: headers[name][tensor]
        for rank, name in enumerate(names)
        if name in headers and tensor in headers[name]
    }


def _find_strangers(
    expected: Sequence[Expected], names: Sequence[str], headers: Headers
) -> Iterator[Finding]:
    wanted = {whole.held_as for whole in expected}
    for name in names:
        # What could not be read has been told of.
        held = headers.get(name)
        if held is None:
            continue
        for tensor in sorted(wanted - held.keys()):
            yield Finding(f"{tensor}: missing in {name}", name)
        for tensor in sorted(held.keys() - wanted):
            yield Finding(f"{tensor} in {held[tensor].path}: not a tensor of the source", name)


@dataclass(frozen=True, slots=True)
class _Slice:
    """What one rank holds of a whole tensor, in rows and columns, and in which of its rows that begins."""

    first_row: int
    end_row: int
    first_column: int
    end_column: int
    at: int = 0


@dataclass(frozen=True, slots=True)
class _Shared:
    """A whole tensor that so many ranks share, in a type of OUTPUT's, and its rows in each of their files."""

    whole: Expected
    ranks: int
    dtype: DType
    at: int = 0
    """How many rows lie before it, of tensors that are stored with it."""

    def shape(self, rank: int) -> tuple[int, ...]:
        """Give the shape of what a rank holds of it."""
        parts, axis = self.slices(rank), self.whole.cut.axis
        rows = sum(part.end_row - part.first_row for part in parts)
        if axis == 1:
            return rows, parts[0].end_column - parts[0].first_column
        return (rows, *self.whole.shape[1:])

    def slices(self, rank: int) -> list[_Slice]:
        """Give what a rank holds: even parts of rows or columns, of each expert, or of heads one at least."""
        whole, ranks, cut = self.whole, self.ranks, self.whole.cut
        rows, columns = whole.shape[0], math.prod(whole.shape[1:])
        if cut.axis is None:
            return [_Slice(0, rows, 0, columns, self.at)]
        if cut.axis == 1:
            return [_Slice(0, rows, rank * columns // ranks, (rank + 1) * columns // ranks, self.at)]
        heads = rows // whole.head_dim
        if cut.heads == "key" and ranks > heads:
            first = rank * heads // ranks * whole.head_dim
            return [_Slice(first, first + whole.head_dim, 0, columns, self.at)]
        size = rows // cut.groups
        low, high = rank * size // ranks, (rank + 1) * size // ranks
        return [
            _Slice(group * size + low, group * size + high, 0, columns, self.at + group * (high - low))
            for group in range(cut.groups)
        ]


def _compare_group(
    wholes: Sequence[Expected], ranks: int, dtype: DType | None, targets: Targets, reading: Reading
) -> list[Finding]:
    """Compare tensors that each rank has one behind the other, all of its rows."""
    shared: list[_Shared] = []
    for whole in wholes:
        counted = whole.as_in(tuple(targets.values()), ranks)
        at = sum(before.shape(0)[0] for before in shared) if len(wholes) > 1 else 0
        shared.append(_Shared(counted, ranks, dtype or whole.dtype, at))
    wrong = {}
    for rank, target in targets.items():
        rows = sum(one.shape(rank)[0] for one in shared)
        words = _find_misfit(shared[0], (rows, *shared[0].shape(rank)[1:]), target)
        if words is not None:
            wrong[rank] = words
    for one in shared:
        wrong = _compare(one, targets, wrong, reading)
    return [Finding(words, shard_name(rank)) for rank, words in sorted(wrong.items())]


def _find_misfit(shared: _Shared, shape: tuple[int, ...], target: Written) -> str | None:
    """Tell where a rank's part is of another shape or type."""
    name = shared.whole.held_as
    if target.shape != shape:
        return f"{name} in {target.path}: shape {target.shape}, expected {shape}"
    if target.dtype != shared.dtype:
        return f"{name} in {target.path}: stored as {target.dtype}, expected {shared.dtype}"
    return None


def _compare(shared: _Shared, targets: Targets, wrong: Mapping[int, str], reading: Reading) -> dict[int, str]:
    """Go through the rows once, and compare each with every rank that holds some of it; add what differs."""
    found = dict(wrong)
    slices = [(rank, part) for rank in targets if rank not in wrong for part in shared.slices(rank)]
    if not slices:
        return found
    for first, rows in shared.whole.read(reading.sources):
        reading.advance(0)
        if found.keys() >= targets.keys():
            break
        for rank, part in slices:
            low, high = max(first, part.first_row), min(first + len(rows), part.end_row)
            if rank in found or low >= high:
                continue
            wanted = rows[low - first : high - first, part.first_column : part.end_column]
            words = _differ(reading, shared.whole, targets[rank], part, low, wanted)
            reading.advance(wanted.size * shared.dtype.size_bytes)
            if words is not None:
                found[rank] = words
    return found


def _differ(
    reading: Reading, whole: Expected, target: Written, part: _Slice, row: int, wanted: "Rows"
) -> str | None:
    """Compare rows from ``row`` on of the whole with a rank's; tell where they differ."""
    import numpy as np

    row_bytes = wanted.shape[1] * target.dtype.size_bytes
    skipped = part.at + row - part.first_row
    expected = cast_rows(np.ascontiguousarray(wanted), whole.dtype, target.dtype)
    if target.strides is None:
        found = read_bytes(reading.open(target), target.offset_bytes + skipped * row_bytes, expected.nbytes)
    else:
        found = read_rows(view_written(whole.held_as, target), skipped, len(wanted), reading.sources)
    at = find_difference(expected, found, row_bytes, target.dtype)
    if at is None:
        return None
    return (
        f"{whole.held_as} in {target.path}: row {skipped + at[0]}, column {at[1]} differs from {whole.source}"
    )
