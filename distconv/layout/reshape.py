"""Tensors in other shapes, and of zeros: what the operations of families are put together from.

Only coordinates change: nothing is read, and a copy stays one wherever it holds whole steps.
"""

import math
from collections.abc import Sequence
from dataclasses import replace

from distconv.layout.copies import Copy
from distconv.layout.dtypes import DType, contiguous_strides
from distconv.layout.regions import ZEROS
from distconv.layout.tensors import Digit, Tensor, merge_loops, regroup, view_tensor


def zeros(name: str, dtype: DType, shape: tuple[int, ...]) -> Tensor:
    """Give a tensor of zeros, which is read from nowhere."""
    return view_tensor(name, dtype, ZEROS, 0, shape, contiguous_strides(shape))


def add_axis(tensor: Tensor) -> Tensor:
    """Let a tensor without axes have one, of one place."""
    copies = tuple(copy._replace(start=(0,)) for copy in tensor.copies)
    return replace(tensor, shape=(1,), copies=copies, scale=tensor.scale_by(add_axis))


def split_axis(tensor: Tensor, axis: int, extents: Sequence[int]) -> Tensor:
    """Let one axis be several, the outermost first; the extents' product is its own."""
    if math.prod(extents) != tensor.shape[axis]:
        raise ValueError(f"{tensor.shape[axis]} places along axis {axis}, expected {math.prod(extents)}")
    more = len(extents) - 1
    digits = tuple(Digit(extent, axis + place, 1) for place, extent in enumerate(extents))
    others = tuple(place if place <= axis else place + more for place in range(len(tensor.shape)))
    shape = (*tensor.shape[:axis], *extents, *tensor.shape[axis + 1 :])
    return regroup(tensor, axis, digits, others, shape)


def merge_axes(tensor: Tensor, axis: int) -> Tensor:
    """Let an axis and the next one be one, on which the next one counts by ones."""
    outer, inner = tensor.shape[axis : axis + 2]

    def merge(copy: Copy) -> Copy:
        loops = [
            loop._replace(step=loop.step * inner)
            if loop.axis == axis
            else loop._replace(axis=loop.axis - (loop.axis > axis))
            for loop in copy.loops
        ]
        loops.sort(key=lambda loop: (loop.axis, -loop.step))
        begin = copy.start[axis] * inner + copy.start[axis + 1]
        start = (*copy.start[:axis], begin, *copy.start[axis + 2 :])
        return Copy(copy.region, copy.source_offset, start, merge_loops(loops))

    shape = (*tensor.shape[:axis], outer * inner, *tensor.shape[axis + 2 :])
    scale = tensor.scale_by(lambda scale: merge_axes(scale, axis))
    return replace(tensor, shape=shape, copies=tuple(map(merge, tensor.copies)), scale=scale)


def transpose(tensor: Tensor) -> Tensor:
    """Let rows be columns."""

    def turn(copy: Copy) -> Copy:
        loops = sorted((loop._replace(axis=1 - loop.axis) for loop in copy.loops), key=lambda loop: loop.axis)
        return copy._replace(start=copy.start[::-1], loops=tuple(loops))

    copies = tuple(map(turn, tensor.copies))
    return replace(tensor, shape=tensor.shape[::-1], copies=copies, scale=tensor.scale_by(transpose))
