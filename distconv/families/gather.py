"""How one target tensor is put together from its parts in the shards.

Every way of cutting a Llama comes down to one strided copy per shard: rows, columns, rotary
heads and replicated heads alike.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from distconv.source.archive import Record
from distconv.source.catalog import TensorView
from distconv.tensors import contiguous_strides


@dataclass(frozen=True, slots=True)
class StridedCopy:
    """Elements of one source storage and where they go; everything counted in elements.

    Element ``(i, j, …)`` of a box with these extents is read at ``source_offset + i *
    source_strides[0] + …`` and lands at ``target_offset + i * target_strides[0] + …``. The
    first axis is the one along which a copy may be cut: its target stride is at least as long
    as everything that a step of it covers.
    """

    record: Record
    source_offset: int
    extents: tuple[int, ...]
    source_strides: tuple[int, ...]
    target_offset: int
    target_strides: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Gather:
    """A way of putting shards together.

    ``axis`` is the one that was cut, None where every shard holds the whole. ``heads`` says
    that rows are whole heads; key and value heads may be stored more than once. ``rotary``
    turns Meta's interleaved pairs into Transformers' halves within each head.
    """

    axis: Literal[0, 1] | None
    heads: Literal["query", "key"] | None = None
    rotary: bool = False


ROWS = Gather(0)
COLUMNS = Gather(1)
REPLICATED = Gather(None)
ROTARY_QUERY = Gather(0, "query", rotary=True)
ROTARY_KEY = Gather(0, "key", rotary=True)
HEAD_ROWS = Gather(0, "key")


def gather_copies(
    gather: Gather, views: Sequence[TensorView], head_dim: int, replication: int = 1
) -> tuple[tuple[int, ...], tuple[StridedCopy, ...]]:
    """Give the target's shape and a copy for each shard that is needed.

    ``views`` are one tensor's parts in shard order, all of one shape. Of key heads that are
    stored ``replication`` times the first is taken. The permutation is that of
    ``modeling_llama.py``: row ``h, p, i`` of (heads, 2, head_dim / 2) is Meta's row ``h, i, p``.
    """
    if gather.axis is None:
        views = views[:1]
    elif gather.heads == "key":
        views = views[::replication]
    part = views[0].shape
    shape = list(part)
    if gather.axis is not None:
        shape[gather.axis] *= len(views)
    row = math.prod(shape[1:])
    step = 0 if gather.axis is None else contiguous_strides(shape)[gather.axis] * part[gather.axis]
    make = _rotary_copy if gather.rotary else _plain_copy
    copies = (make(view, index * step, row, head_dim) for index, view in enumerate(views))
    return tuple(shape), tuple(copy for copy in copies if 0 not in copy.extents)


def _plain_copy(view: TensorView, target_offset: int, row: int, _head_dim: int) -> StridedCopy:
    strides = (row, *contiguous_strides(view.shape)[1:])
    return StridedCopy(view.record, view.offset, view.shape, view.strides, target_offset, strides)


def _rotary_copy(view: TensorView, target_offset: int, row: int, head_dim: int) -> StridedCopy:
    half = head_dim // 2
    rows, columns = view.shape
    down, across = view.strides
    return StridedCopy(
        view.record,
        view.offset,
        (rows // head_dim, 2, half, columns),  # (heads, 2, half, dim)
        (head_dim * down, down, 2 * down, across),
        target_offset,
        (head_dim * row, half * row, row, 1),
    )
