"""How one target tensor is put together from its parts in the shards.

Every way of cutting a Llama comes down to boxes at coordinates: rows, columns, rotary heads and
replicated heads alike, and heads that a cut goes through.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from distconv.errors import InputError
from distconv.families.copies import Loop, StridedCopy
from distconv.source.catalog import TensorView


@dataclass(frozen=True, slots=True)
class Gather:
    """A way of putting shards together.

    ``axis`` is the one that was cut, None where every shard holds the whole. ``heads`` says
    that rows are those of heads; key and value heads may be stored more than once. ``rotary``
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
    """Give the target's shape and the copies that fill it.

    ``views`` are one tensor's parts in shard order, alike but for their extents along the axis. Of key heads that are
    stored ``replication`` times the first is taken. The permutation is that of
    ``modeling_llama.py``: row ``h, p, i`` of (heads, 2, head_dim / 2) is Meta's row ``h, i, p``;
    a shard may begin and end anywhere in a head. InputError where all rows are no whole heads.
    """
    if gather.axis is None:
        views = views[:1]
    elif gather.heads == "key":
        views = views[::replication]
    shape = list(views[0].shape)
    if gather.axis is not None:
        shape[gather.axis] = sum(view.shape[gather.axis] for view in views)
    if 0 in shape:
        return tuple(shape), ()
    if gather.rotary and (shape[0] % head_dim or head_dim % 2):
        raise InputError(
            f"{views[0].name}: {shape[0]} rows in all shards, expected whole heads of {head_dim}, in pairs"
        )
    digits = _rotary_digits(head_dim) if gather.rotary else ()
    loops: dict[tuple[tuple[int, ...], tuple[int, ...]], tuple[Loop, ...]] = {}
    copies: list[StridedCopy] = []
    start = [0] * len(shape)
    for view in views:
        if 0 in view.shape:
            continue
        form = (view.shape, view.strides)
        if form not in loops:
            loops[form] = _make_loops(view)
        whole = StridedCopy(view.record, view.offset, tuple(start), loops[form])
        copies += _permute_rows(whole, digits) if digits else (whole,)
        if gather.axis is not None:
            start[gather.axis] += view.shape[gather.axis]
    return tuple(shape), tuple(copies)


def _make_loops(view: TensorView) -> tuple[Loop, ...]:
    """Give a loop for each axis of a view, with what lies between its steps that is not the view's."""
    gaps = [0] * len(view.shape)
    covered = 1
    for axis in sorted(range(len(view.shape)), key=lambda axis: view.strides[axis]):
        stride = view.strides[axis]
        gaps[axis] = max(0, stride - covered)
        covered += (view.shape[axis] - 1) * stride
    return tuple(
        Loop(extent, stride, axis, gap=gap)
        for axis, (extent, stride, gap) in enumerate(zip(view.shape, view.strides, gaps, strict=True))
    )


@dataclass(frozen=True, slots=True)
class _Digit:
    """One digit of a row's number: what it counts for in Meta's order and in Transformers'."""

    weight: int
    step: int


def _rotary_digits(head_dim: int) -> tuple[_Digit, ...]:
    """A row of Meta's is (head, pair, which of the pair); the halves of a head are its pairs' members."""
    return (_Digit(head_dim, head_dim), _Digit(2, 1), _Digit(1, head_dim // 2))


def _permute_rows(copy: StridedCopy, digits: tuple[_Digit, ...]) -> Iterator[StridedCopy]:
    """Split a run of rows so that each part is a box of digits, and put each digit at its place."""
    rows, *others = copy.loops
    weights = tuple(digit.weight for digit in digits)
    for first, extents in _split_run(copy.start[0], copy.start[0] + rows.extent, weights):
        values = _read_digits(first, weights)
        turned = [
            Loop(extent, rows.source_step * digit.weight, 0, digit.step, rows.gap)
            for extent, digit in zip(extents, digits, strict=True)
        ]
        turned.sort(key=lambda loop: -loop.step)  # (heads, 2, half)
        yield StridedCopy(
            copy.record,
            copy.source_offset + (first - copy.start[0]) * rows.source_step,
            (
                sum(value * digit.step for value, digit in zip(values, digits, strict=True)),
                *copy.start[1:],
            ),
            (*turned, *others),
        )


def _read_digits(number: int, weights: tuple[int, ...]) -> Iterator[int]:
    for weight in weights:
        digit, number = divmod(number, weight)
        yield digit


def _split_run(first: int, end: int, weights: tuple[int, ...]) -> Iterator[tuple[int, tuple[int, ...]]]:
    """Split a run of numbers into boxes of digits: each one's first number, and an extent a digit.

    A box has some whole steps of one digit, and one value of each digit before it.
    """
    weight, *finer = weights
    up = min(end, -(-first // weight) * weight)
    down = max(up, end // weight * weight)
    if first < up:
        yield from _within_one(first, up, tuple(finer))
    if up < down:
        yield up, ((down - up) // weight, *(above // below for above, below in pairwise(weights)))
    if down < end:
        yield from _within_one(down, end, tuple(finer))


def _within_one(first: int, end: int, weights: tuple[int, ...]) -> Iterator[tuple[int, tuple[int, ...]]]:
    for number, extents in _split_run(first, end, weights):
        yield number, (1, *extents)
