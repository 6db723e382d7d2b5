"""Whole tensors wherever their bytes lie, and the operations on them: join, cut, regroup.

Every way from one layout of a model to another is made of these: parts of ranks are joined, and
cut for others; a rotary permutation, its inverse, a transpose are one way each to regroup.
Nothing is read; what lands where is arithmetic on coordinates.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import pairwise
from typing import NamedTuple

from distconv.layout.copies import Copy, Loop, cut_copy, with_gaps
from distconv.layout.dtypes import DType
from distconv.layout.regions import ZEROS, Region


@dataclass(frozen=True, slots=True)
class Tensor:
    """A tensor and the copies that fill it; ``find_untiled`` tells whether they do."""

    name: str
    dtype: DType
    shape: tuple[int, ...]
    copies: tuple[Copy, ...]
    scale: "Tensor | None" = None
    """What each element is multiplied by: of the same shape, and everything done to the tensor is done to it too.

    Where elements share a number, as those of a row do, that is read again and again: by loops of no step.
    """

    def scale_by(self, operation: Callable[["Tensor"], "Tensor"]) -> "Tensor | None":
        """Give what an operation on the tensor makes of its scale; None where it has none."""
        return None if self.scale is None else operation(self.scale)


def view_tensor(
    name: str, dtype: DType, region: Region, offset: int, shape: tuple[int, ...], strides: tuple[int, ...]
) -> Tensor:
    """Take a strided view of a storage as a tensor; offset and strides in elements."""
    if 0 in shape:
        return Tensor(name, dtype, shape, ())
    return Tensor(name, dtype, shape, (view_part(region, offset, shape, strides, (0,) * len(shape)),))


def view_part(
    region: Region, offset: int, shape: tuple[int, ...], strides: tuple[int, ...], first: tuple[int, ...]
) -> Copy:
    """Take a strided view of a storage as what a tensor has from ``first`` on."""
    return Copy(region, offset, first, _make_loops(shape, strides))


@lru_cache(maxsize=1024)
def _make_loops(shape: tuple[int, ...], strides: tuple[int, ...]) -> tuple[Loop, ...]:
    """Give a loop for each axis of a view; the layers of a model have the same few forms."""
    return with_gaps(
        tuple(
            Loop(extent, stride, axis)
            for axis, (extent, stride) in enumerate(zip(shape, strides, strict=True))
        )
    )


def join(tensors: Sequence[Tensor], axis: int) -> Tensor:
    """Put tensors one behind the other along an axis; they are alike but for their extents along it."""
    first = tensors[0]
    scales = [tensor.scale for tensor in tensors if tensor.scale is not None]
    if 0 < len(scales) < len(tensors):
        raise ValueError(
            f"{first.name}: {len(scales)} of {len(tensors)} parts have scales, expected all or none"
        )
    copies: list[Copy] = []
    end = 0
    for tensor in tensors:
        copies += (copy.shifted(axis, end) if end else copy for copy in tensor.copies)
        end += tensor.shape[axis]
    scale = join(scales, axis) if scales else None
    return replace(first, shape=_resize(first.shape, axis, end), copies=tuple(copies), scale=scale)


def cut(tensor: Tensor, axis: int, first: int, end: int) -> Tensor:
    """Give the slab from ``first`` to before ``end`` along an axis."""
    copies = [
        (copy if part is copy else part._replace(loops=with_gaps(part.loops))).shifted(axis, -first)
        for copy in tensor.copies
        for part in cut_copy(copy, axis, first, end)
    ]
    scale = tensor.scale_by(lambda scale: cut(scale, axis, first, end))
    return replace(tensor, shape=_resize(tensor.shape, axis, end - first), copies=tuple(copies), scale=scale)


def _resize(shape: tuple[int, ...], axis: int, size: int) -> tuple[int, ...]:
    return (*shape[:axis], size, *shape[axis + 1 :])


class Digit(NamedTuple):
    """One digit of a coordinate: how many values it has, and where it counts for how much afterwards."""

    radix: int
    axis: int
    step: int


def regroup(
    tensor: Tensor, axis: int, digits: tuple[Digit, ...], others: tuple[int, ...], shape: tuple[int, ...]
) -> Tensor:
    """Read the coordinate along an axis as digits, the widest first, and put each at its place in ``shape``.

    The radices' product is the axis' extent. ``others`` says for each axis of the tensor which one
    it becomes; its value for ``axis`` itself counts for nothing. A copy becomes as many as are
    needed for each to be a box of digits: one, where it holds whole values of the widest one.
    """
    copies = [
        Copy(copy.region, copy.source_offset + offset, start, loops)
        for copy in tensor.copies
        for offset, start, loops in _turn(copy.start, copy.loops, axis, digits, others, len(shape))
    ]
    scale = tensor.scale_by(lambda scale: regroup(scale, axis, digits, others, shape))
    return replace(tensor, shape=shape, copies=tuple(copies), scale=scale)


@lru_cache(maxsize=4096)
def _turn(
    start: tuple[int, ...],
    loops: tuple[Loop, ...],
    axis: int,
    digits: tuple[Digit, ...],
    others: tuple[int, ...],
    axes: int,
) -> tuple[tuple[int, tuple[int, ...], tuple[Loop, ...]], ...]:
    """Give offset, start and loops of each copy that one becomes; the layers of a model have the same few."""
    weights = tuple(math.prod(digit.radix for digit in digits[place + 1 :]) for place in range(len(digits)))
    parts = _split_digits(Copy(ZEROS, 0, start, loops), axis, digits, weights)
    turned = (_put_digits(part, axis, digits, weights, others, axes) for part in parts)
    return tuple((copy.source_offset, copy.start, copy.loops) for copy in turned)


def _put_digits(
    copy: Copy,
    axis: int,
    digits: tuple[Digit, ...],
    weights: tuple[int, ...],
    others: tuple[int, ...],
    axes: int,
) -> Copy:
    """Turn each loop, which is of one digit, to that digit's place."""
    start = [0] * axes
    for place, at in enumerate(copy.start):
        if place != axis:
            start[others[place]] += at
    for digit, weight in zip(digits, weights, strict=True):
        start[digit.axis] += copy.start[axis] // weight % digit.radix * digit.step
    loops = []
    for loop in copy.loops:
        if loop.axis == axis:
            if loop.extent == 1:
                continue
            digit = digits[weights.index(loop.step)]
            loops.append(Loop(loop.extent, loop.source_step, digit.axis, digit.step, loop.gap))
        else:
            loops.append(Loop(loop.extent, loop.source_step, others[loop.axis], loop.step, loop.gap))
    loops.sort(key=lambda loop: (loop.axis, -loop.step))
    return Copy(copy.region, copy.source_offset, tuple(start), merge_loops(loops))


def merge_loops(loops: Sequence[Loop]) -> tuple[Loop, ...]:
    """Take a loop that only goes on where the next one ends together with that one."""
    found: list[Loop] = []
    for inner in loops:
        outer = found[-1] if found else None
        if outer is not None and outer.extent == 1 and outer.axis == inner.axis:
            found[-1] = inner
        elif (
            outer is not None
            and outer.axis == inner.axis
            and (inner.extent == 1 or (outer.step, outer.source_step) == _covered(inner))
        ):
            found[-1] = inner._replace(extent=outer.extent * inner.extent) if inner.extent > 1 else outer
        else:
            found.append(inner)
    return tuple(found)


def _covered(loop: Loop) -> tuple[int, int]:
    return loop.extent * loop.step, loop.extent * loop.source_step


def _split_digits(
    copy: Copy, axis: int, digits: tuple[Digit, ...], weights: tuple[int, ...]
) -> Iterator[Copy]:
    """Split a copy so that each part's loops along the axis are of one digit each."""
    places = [place for place, loop in enumerate(copy.loops) if loop.axis == axis]
    if all(_is_digit(copy, copy.loops[place], digits, weights) for place in places):
        yield copy
        return
    outer = next(place for place in places if not _is_digit(copy, copy.loops[place], digits, weights))
    loop = copy.loops[outer]
    if loop.step == 1 and outer == places[-1]:
        for first, extents in _split_run(copy.start[axis], copy.start[axis] + loop.extent, weights):
            steps = zip(extents, weights, strict=True)
            turned = [Loop(n, loop.source_step * w, axis, w, loop.gap) for n, w in steps if n > 1]
            part = copy.take(outer, first - copy.start[axis], first - copy.start[axis] + 1)
            loops = (*copy.loops[:outer], *turned, *copy.loops[outer + 1 :])
            yield from _split_digits(part._replace(loops=loops), axis, digits, weights)
        return
    for step in range(loop.extent):
        yield from _split_digits(copy.take(outer, step, step + 1), axis, digits, weights)


def _is_digit(copy: Copy, loop: Loop, digits: tuple[Digit, ...], weights: tuple[int, ...]) -> bool:
    """Whether a loop counts one digit up without a carry."""
    if loop.extent == 1:
        return True
    if loop.step not in weights:
        return False
    radix = digits[weights.index(loop.step)].radix
    return copy.start[loop.axis] // loop.step % radix + loop.extent <= radix


def _split_run(first: int, end: int, weights: tuple[int, ...]) -> list[tuple[int, tuple[int, ...]]]:
    """Split a run of numbers into boxes of digits: each one's first number, and an extent a digit.

    A box has some whole steps of one digit, and one value of each digit before it; or one value of
    the last digit, where fewer boxes are needed that way.
    """
    weight, *finer = weights
    up = min(end, -(-first // weight) * weight)
    down = max(up, end // weight * weight)
    found = []
    if first < up:
        found += _within_one(first, up, tuple(finer))
    if up < down:
        found.append((up, ((down - up) // weight, *(above // below for above, below in pairwise(weights)))))
    if down < end:
        found += _within_one(down, end, tuple(finer))
    if len(weights) == 2 and len(found) > weight:
        found = [(start, (-((start - end) // weight), 1)) for start in range(first, min(first + weight, end))]
    return found


def _within_one(first: int, end: int, weights: tuple[int, ...]) -> list[tuple[int, tuple[int, ...]]]:
    return [(number, (1, *extents)) for number, extents in _split_run(first, end, weights)]
