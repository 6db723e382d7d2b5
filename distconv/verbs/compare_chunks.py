"""Whether Transformers' chunks hold the tensors of a checkpoint of Meta's, on another path than the worker's.

The worker copies by strides that the plan computed. Here rows are read whole, concatenated shard by
shard and permuted by an index of rows, and compared with what the chunks' own headers say is where.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from distconv.families.llama import EMBEDDING, OUTPUT
from distconv.families.operations import ROTARY
from distconv.families.rules import Match
from distconv.formats.written import Headers, Written
from distconv.layout.dtypes import DType
from distconv.moving.progress import Progress
from distconv.moving.sources import Sources
from distconv.output.findings import Finding
from distconv.storage.base import Storage, opened, read_range
from distconv.verbs.checkpoint import Checkpoint
from distconv.verbs.rows import (
    band_rows,
    cast_rows,
    choose_dtype,
    count_copies,
    find_difference,
    group_copies,
    join_shapes,
    read_whole_rows,
)

if TYPE_CHECKING:
    from distconv.verbs.rows import Rows


@dataclass(frozen=True, slots=True)
class _Comparison:
    """What all tensors are compared with."""

    storage: Storage
    checkpoint: Checkpoint
    sources: Sources
    progress: Progress
    dtype: DType | None
    """What all were cast to; None where each is as INPUT has it."""


def compare_chunks(
    storage: Storage, checkpoint: Checkpoint, headers: Headers, progress: Progress
) -> list[Finding]:
    """List every tensor of these chunks that is missing, foreign, or differs from the source."""
    missing = {match.target: match for match in checkpoint.matches}
    findings: list[Finding] = []
    sizes = [entry.size_bytes for path in _paths(headers) if (entry := storage.find(path)) is not None]
    progress.begin(sum(sizes), len(headers))
    try:
        with Sources(storage) as sources:
            dtype = choose_dtype(
                (missing[tensor].views[0].dtype, target)
                for written in headers.values()
                for tensor, target in written.items()
                if tensor in missing
            )
            comparison = _Comparison(storage, checkpoint, sources, progress, dtype)
            for name, written in headers.items():
                progress.advance(min((target.offset_bytes for target in written.values()), default=0))
                for tensor, target in written.items():
                    words = _compare_tensor(comparison, missing.pop(tensor, None), tensor, target)
                    if words is not None:
                        findings.append(Finding(words, name))
                progress.unit_done(name)
            words_of_missing = [_explain_missing(match, checkpoint, sources) for match in missing.values()]
    finally:
        progress.end()
    return findings + [Finding(words) for words in words_of_missing if words is not None]


def _paths(headers: Headers) -> set[str]:
    return {target.path for written in headers.values() for target in written.values()}


def _explain_missing(match: Match, checkpoint: Checkpoint, sources: Sources) -> str | None:
    """A missing output layer is right where the source's equals the embedding."""
    embedding = checkpoint.match(EMBEDDING)
    if match.source == OUTPUT and checkpoint.choice.may_tie and embedding is not None:
        bands = (_bands(found, 1, checkpoint, sources) for found in (match, embedding))
        if all((left == right).all() for (_, left), (_, right) in zip(*bands, strict=True)):
            return None
        return f"{match.target}: missing, though {OUTPUT} differs from the embedding"
    return f"{match.target}: missing"


def _compare_tensor(comparison: _Comparison, match: Match | None, name: str, target: Written) -> str | None:
    """Compare one tensor; tell what is wrong with it."""
    if match is None:
        return f"{name} in {target.path}: not a tensor of the source, or there twice"
    stored = match.views[0].dtype
    shape, copies = _whole_shape(match, target)
    if target.shape != shape:
        return f"{name} in {target.path}: shape {target.shape}, expected {shape}"
    if target.dtype != (comparison.dtype or stored):
        return f"{name} in {target.path}: stored as {target.dtype}, expected {comparison.dtype or stored}"
    row_bytes = target.dtype.size_bytes * (shape[1] if len(shape) > 1 else 1)
    with opened(comparison.storage, target.path) as reader:
        for first, rows in _bands(match, copies, comparison.checkpoint, comparison.sources):
            size = len(rows) * row_bytes
            found = read_range(reader, target.offset_bytes + first * row_bytes, size)
            comparison.progress.advance(size)
            at = find_difference(cast_rows(rows, stored, target.dtype), found, row_bytes, target.dtype)
            if at is not None:
                return f"{name} in {target.path}: row {first + at[0]}, column {at[1]} differs from {match.source}"
    return None


def _whole_shape(match: Match, target: Written) -> tuple[tuple[int, ...], int]:
    """The shape that the shards give together; doubled key heads may be written once."""
    shape = join_shapes(match.views, match.cut.axis)
    if match.cut.heads != "key" or not target.shape:
        return shape, 1
    copies = count_copies(match.views, target.shape[0])
    return (shape[0] // copies, *shape[1:]), copies


def _bands(
    match: Match, copies: int, checkpoint: Checkpoint, sources: Sources
) -> Iterator[tuple[int, "Rows"]]:
    """Give the whole tensor as (first row, rows), permuted as Transformers wants it."""
    parts = group_copies(match.views, match.cut, copies)
    rows, *others = join_shapes([part for part, *_twins in parts], match.cut.axis)
    head = checkpoint.dimensions.head_dim if match.operation is ROTARY else 1
    band = band_rows(math.prod(others), match.views[0].dtype, head)
    for first in range(0, rows, band):
        found = read_whole_rows(match.cut, parts, first, min(band, rows - first), sources)
        yield first, found[_rotary_rows(len(found), head)] if match.operation is ROTARY else found


def _rotary_rows(rows: int, head: int) -> list[int]:
    """Meta's row for each of Transformers': row h, p, i is Meta's row h, 2 i + p."""
    half = head // 2
    return [
        start + 2 * (place % half) + place // half for start in range(0, rows, head) for place in range(head)
    ]
