"""Whether Transformers' chunks hold the tensors of a checkpoint of Meta's, on another path than the worker's.

The worker copies by strides that the plan computed. Here rows are read whole, concatenated shard by
shard and permuted by an index of rows, and compared with what the chunks' own headers say is where.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from distconv.families.llama import EMBEDDING, OUTPUT
from distconv.families.rules import Match
from distconv.formats.written import Headers, Written
from distconv.layout.dtypes import BFLOAT16, DType
from distconv.layout.reshape import zeros
from distconv.layout.tensors import Tensor
from distconv.moving.progress import Progress
from distconv.moving.sources import Sources
from distconv.output.findings import Finding
from distconv.storage.base import Storage
from distconv.verbs.checkpoint import Checkpoint
from distconv.verbs.rows import (
    cast_rows,
    choose_dtype,
    count_copies,
    find_difference,
    group_copies,
    join_shapes,
    read_bands,
    read_bytes,
)
from distconv.verbs.side_by_side import Reading, compare_files
from distconv.verbs.turning import list_head_rows, turn

if TYPE_CHECKING:
    from distconv.verbs.rows import Rows


@dataclass(frozen=True, slots=True)
class _Comparison:
    """What all tensors are compared with."""

    checkpoint: Checkpoint
    reading: Reading
    dtype: DType | None
    """What all were cast to; None where each is as INPUT has it."""


def compare_chunks(
    storage: Storage, checkpoint: Checkpoint, headers: Headers, progress: Progress
) -> list[Finding]:
    """List every tensor of these chunks that is missing, foreign, or differs from the source."""
    missing: dict[str, list[Match]] = {}
    for match in checkpoint.matches:
        missing.setdefault(match.target, []).append(match)
    dtype = choose_dtype(
        (missing[tensor][0].views[0].dtype, target)
        for written in headers.values()
        for tensor, target in written.items()
        if tensor in missing
    )
    findings = compare_files(
        storage,
        headers,
        lambda name: missing.pop(name, []),
        lambda reading, *wanted: _compare_tensor(_Comparison(checkpoint, reading, dtype), *wanted),
        progress,
    )
    with Sources(storage) as sources:
        words = [_explain_missing(matches[0], checkpoint, sources) for matches in missing.values()]
    return findings + [Finding(one, absent=True) for one in words if one is not None]


def _explain_missing(match: Match, checkpoint: Checkpoint, sources: Sources) -> str | None:
    """A missing output layer is right where the source's equals the embedding."""
    embedding = checkpoint.match(EMBEDDING)
    if match.source == OUTPUT and checkpoint.choice.may_tie and embedding is not None:
        bands = (_bands(found, 1, checkpoint, sources) for found in (match, embedding))
        if all((left == right).all() for (_, left), (_, right) in zip(*bands, strict=True)):
            return None
        return f"{match.target}: missing, though {OUTPUT} differs from the embedding"
    return f"{match.target}: missing"


def _compare_tensor(
    comparison: _Comparison, matches: Sequence[Match], name: str, target: Written
) -> str | None:
    """Compare one tensor, which may be made of several; tell what is wrong with it."""
    if not matches:
        return f"{name} in {target.path}: not a tensor of the source, or there twice"
    stored = matches[0].views[0].dtype
    head_dim, copies = comparison.checkpoint.dimensions.head_dim, _count_copies(matches[0], target)
    shape = _target_shape(matches, copies, head_dim)
    if target.shape != shape:
        return f"{name} in {target.path}: shape {target.shape}, expected {shape}"
    if target.dtype != (comparison.dtype or stored):
        return f"{name} in {target.path}: stored as {target.dtype}, expected {comparison.dtype or stored}"
    before = 0
    for match in matches:
        made = _apply(match, copies, head_dim).shape
        # Beside others each row is a part of a longer one; otherwise all of it is one run.
        place = _Place(before, shape[-1]) if match.axis else _Place(before * math.prod(made[1:]), None)
        words = _compare_match(comparison, match, copies, place, target)
        if words is not None:
            return f"{name} in {target.path}: {words}"
        before += made[match.axis]
    return None


@dataclass(frozen=True, slots=True)
class _Place:
    """Where in the target what is made of one of the source's tensors begins, and how far apart its rows are.

    In elements; ``width`` is None where they lie one behind the other.
    """

    first: int
    width: int | None


def _compare_match(
    comparison: _Comparison, match: Match, copies: int, place: _Place, target: Written
) -> str | None:
    import numpy as np

    stored, unit, reading = match.views[0].value, target.dtype.size_bytes, comparison.reading
    reader = reading.open(target)
    for first, rows in _bands(match, copies, comparison.checkpoint, reading.sources):
        count, columns = rows.shape
        width = place.width or columns
        behind, before = divmod(place.first, width)
        begin = target.offset_bytes + (behind + first) * width * unit
        lines = read_bytes(reader, begin, count * width * unit).reshape(count, -1)
        found = np.ascontiguousarray(lines[:, before * unit : (before + columns) * unit])
        reading.advance(found.nbytes)
        expected = cast_rows(np.ascontiguousarray(rows), stored, target.dtype)
        at = find_difference(expected, found, columns * unit, target.dtype)
        if at is not None:
            return f"row {behind + first + at[0]}, column {before + at[1]} differs from {match.source}"
    return None


def _count_copies(match: Match, target: Written) -> int:
    """Tell how often key heads are stored; doubled ones may be written once."""
    if match.cut.heads != "key" or not target.shape:
        return 1
    return count_copies(match.views, target.shape[0])


def _target_shape(matches: Sequence[Match], copies: int, head_dim: int) -> tuple[int, ...]:
    """The shape that the shards give together."""
    shapes, axis = [_apply(match, copies, head_dim).shape for match in matches], matches[0].axis
    return (*shapes[0][:axis], sum(shape[axis] for shape in shapes), *shapes[0][axis + 1 :])


def _apply(match: Match, copies: int, head_dim: int) -> Tensor:
    """Give what a match becomes, for its shape."""
    return match.operation.apply(zeros(match.source, BFLOAT16, _whole_shape(match, copies)), head_dim)


def _whole_shape(match: Match, copies: int) -> tuple[int, ...]:
    rows, *others = join_shapes(match.views, match.cut.axis)
    return (rows // copies, *others)


def _bands(
    match: Match, copies: int, checkpoint: Checkpoint, sources: Sources
) -> Iterator[tuple[int, "Rows"]]:
    """Give the whole tensor as (first row, rows), as Transformers wants it."""
    head_dim, shape = checkpoint.dimensions.head_dim, _whole_shape(match, copies)
    parts = group_copies(match.views, match.cut, copies)
    bands = read_bands(match.cut, parts, shape, sources, list_head_rows(match.operation, head_dim))
    return turn(match.operation, bands, shape, head_dim)
