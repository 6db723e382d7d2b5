"""Whether chunks hold the tensors of a trainer's checkpoint, on another path than the worker's.

The worker copies by loops over coordinates that the plan computed. Here a band of each tensor is put together of
the boxes that reach into it, its rows are brought into order by an index, and it is compared with what the chunks'
own headers say is where.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from distconv.errors import InputError
from distconv.families.trained import HeadCounts, Recipe
from distconv.formats.boxes import BoxedTensor, Extents
from distconv.formats.written import Headers, Written
from distconv.layout.dtypes import DType
from distconv.layout.regions import ZEROS
from distconv.moving.progress import Progress
from distconv.moving.sources import Sources
from distconv.output.findings import Finding
from distconv.storage.base import Storage
from distconv.verbs.rows import (
    band_rows,
    cast_rows,
    choose_dtype,
    find_difference,
    read_ahead,
    read_bytes,
    read_rows,
)
from distconv.verbs.side_by_side import Reading, compare_files
from distconv.verbs.trained import Made, TrainedModel
from distconv.verbs.turning import halve_heads

if TYPE_CHECKING:
    from distconv.verbs.rows import Rows


@dataclass(frozen=True, slots=True)
class _Comparison:
    """What all tensors are compared with."""

    counts: HeadCounts | None
    reading: Reading
    dtype: DType | None
    """What all were cast to; None where each is as INPUT has it."""


def compare_trained(
    storage: Storage, model: TrainedModel, headers: Headers, progress: Progress
) -> list[Finding]:
    """List every tensor of these chunks that is missing, foreign, or differs from the source."""
    wanted = {made.name: made for made in model.made}
    dtype = choose_dtype(
        (wanted[name].source.dtype, written)
        for held in headers.values()
        for name, written in held.items()
        if name in wanted and wanted[name].source.dtype.is_float
    )
    findings = compare_files(
        storage,
        headers,
        lambda name: wanted.pop(name, None),
        lambda reading, *one: _compare(_Comparison(model.counts, reading, dtype), *one),
        progress,
    )
    return findings + [Finding(f"{name}: missing", absent=True) for name in wanted]


def _compare(comparison: _Comparison, made: Made | None, name: str, written: Written) -> str | None:
    """Compare one tensor; tell what is wrong with it."""
    if made is None:
        return f"{name} in {written.path}: not a tensor of the source, or there twice"
    stored, shape = made.source.dtype, made.saved.shape
    expected = comparison.dtype if comparison.dtype is not None and stored.is_float else stored
    if written.shape != shape:
        return f"{name} in {written.path}: shape {written.shape}, expected {shape}"
    if written.dtype != expected:
        return f"{name} in {written.path}: stored as {written.dtype}, expected {expected}"
    row_bytes = math.prod(shape[1:]) * written.dtype.size_bytes
    reader = comparison.reading.open(written)
    for first, rows in _bands(comparison, made):
        content = cast_rows(rows, stored, written.dtype)
        found = read_bytes(reader, written.offset_bytes + first * row_bytes, content.nbytes)
        comparison.reading.advance(content.nbytes)
        at = find_difference(content, found, row_bytes, written.dtype)
        if at is not None:
            return f"{name} in {written.path}: row {first + at[0]}, column {at[1]} differs from {made.source.name}"
    return None


def _bands(comparison: _Comparison, made: Made) -> Iterator[tuple[int, "Rows"]]:
    """Give the tensor as OUTPUT should have it, as (first row, rows)."""
    shape, counts = made.saved.shape or (1,), comparison.counts
    unit = 1 if counts is None else _unit_rows(made.recipe, counts)
    band = band_rows(math.prod(shape[1:]), made.source.dtype, unit)
    if made.recipe.fused is not None:
        band = unit
    # What a tensor has no box for is told of when it is read.
    paths = [box.view.region.path for box in made.source.boxes] or [ZEROS.path]
    reader = comparison.reading.sources.open(paths[0])
    size = band * math.prod(shape[1:]) * made.source.dtype.size_bytes
    yield from read_ahead(partial(_read_band, comparison, made), shape[0], band, reader, size)


def _unit_rows(recipe: Recipe, counts: HeadCounts) -> int:
    """Give how many rows go together: those of a head, or of all of a key head's that a fused projection has in a row."""
    heads = counts.group if recipe.fused == "query" else 1
    return heads * counts.head_dim if recipe.fused is not None or recipe.is_rotary else 1


def _read_band(comparison: _Comparison, made: Made, first: int, count: int) -> "Rows":
    import numpy as np

    recipe, saved, counts = made.recipe, made.saved, comparison.counts
    if counts is not None and recipe.fused is not None:
        # What is written of key head k stands in its group, behind the query heads of it, or these and the key.
        before = {"query": 0, "key": counts.group, "value": counts.group + 1}[recipe.fused] * counts.head_dim
        group = first // count
        start = group * (counts.group + 2) * counts.head_dim + before
    else:
        start = first
    low, high = list(saved.first), [at + 1 for at in saved.first]
    for axis, extent in saved.sizes.items():
        high[axis] = low[axis] + extent
    if saved.axes:
        low[saved.axes[0]] += start
        high[saved.axes[0]] = low[saved.axes[0]] + count
    found = _read_slab(made.source, tuple(low), tuple(high), comparison.reading.sources)
    others = [axis for axis in range(found.ndim) if axis not in saved.axes]
    rows = np.ascontiguousarray(found.transpose(*saved.axes, *others)).reshape(count, -1)
    if counts is None or not recipe.is_rotary:
        return rows
    return rows[halve_heads(count, counts.head_dim)]


def _read_slab(tensor: BoxedTensor, low: Extents, high: Extents, sources: Sources) -> "Rows":
    """Put the part of a tensor between two corners together of all boxes that reach into it."""
    import numpy as np

    unit = tensor.dtype.size_bytes
    found = np.zeros([end - start for start, end in zip(low, high, strict=True)], dtype=f"u{unit}")
    filled = 0
    for box in tensor.boxes:
        ends = [at + size for at, size in zip(box.first, box.view.shape, strict=True)]
        begin = [max(*pair) for pair in zip(low, box.first, strict=True)]
        end = [min(*pair) for pair in zip(high, ends, strict=True)]
        sizes = tuple(last - start for start, last in zip(begin, end, strict=True))
        if any(size <= 0 for size in sizes):
            continue
        offset = sum(
            (start - at) * stride
            for start, at, stride in zip(begin, box.first, box.view.strides, strict=True)
        )
        part = box.view._replace(
            offset=box.view.offset + offset, shape=sizes or (1,), strides=box.view.strides or (1,)
        )
        place = tuple(slice(start - at, last - at) for start, last, at in zip(begin, end, low, strict=True))
        found[place] = read_rows(part, 0, part.shape[0], sources).reshape(sizes)
        filled += math.prod(sizes)
    if filled != found.size:
        raise InputError(f"{tensor.name}: its boxes hold {filled:,} of {found.size:,} elements")
    return found
