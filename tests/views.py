"""Parts of tensors for property tests: cut anywhere, in storages of any layout, with a plain oracle."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from hypothesis import strategies as st
from numpy.lib.stride_tricks import as_strided

from distconv.families.cuts import COLUMNS, KEY_HEADS, QUERY_HEADS, ROWS, Cut
from distconv.families.cuts import REPLICATED as WHOLE
from distconv.families.operations import ROTARY, SAME, Operation
from distconv.formats.views import TensorView
from distconv.layout.copies import Copy
from distconv.layout.dtypes import STORABLE, DType, extent_elements
from distconv.layout.files import OutputTensor
from distconv.layout.regions import Region


@dataclass(frozen=True)
class Way:
    """A cut that is joined, and what is done to the whole."""

    cut: Cut
    operation: Operation = SAME

    def join(
        self, views: Sequence[TensorView], head_dim: int, replication: int = 1
    ) -> tuple[tuple[int, ...], tuple[Copy, ...]]:
        """Give the target's shape, and the copies that fill it."""
        tensor = self.operation.apply(self.cut.join(views, replication), head_dim)
        return tensor.shape, tensor.copies


BY_ROWS, BY_COLUMNS, REPLICATED, HEAD_ROWS = Way(ROWS), Way(COLUMNS), Way(WHOLE), Way(KEY_HEADS)
ROTARY_QUERY, ROTARY_KEY = Way(QUERY_HEADS, ROTARY), Way(KEY_HEADS, ROTARY)
WAYS = (BY_ROWS, BY_COLUMNS, REPLICATED, ROTARY_QUERY, ROTARY_KEY, HEAD_ROWS)


@dataclass(frozen=True)
class Case:
    """A target tensor, its records' elements, and what it should be."""

    target: OutputTensor
    contents: dict[Region, np.ndarray]
    expected: np.ndarray
    plain: bool
    """Whether no two elements of a part are the same one of its storage."""


def join_parts(way: Way, parts: list[np.ndarray], head_dim: int, replication: int) -> np.ndarray:
    """Concatenate the parts that count, then bring Meta's interleaved rows into halves."""
    if way.cut.axis is None:
        return parts[0]
    whole = np.concatenate(parts[::replication] if way.cut.heads == "key" else parts, axis=way.cut.axis)
    if way.operation is not ROTARY:
        return whole
    rows, columns = whole.shape
    return (
        whole.reshape(rows // head_dim, head_dim // 2, 2, columns)
        .transpose(0, 2, 1, 3)
        .reshape(rows, columns)
    )


@st.composite
def strides_of(draw: st.DrawFn, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Strides of a view: its axes in any order, with steps and gaps, now and then expanded or overlapping."""
    kind = draw(st.sampled_from(["dense", "apart", "apart", "expanded", "overlapping"]))
    found = [0] * len(shape)
    covered = 1
    for axis in draw(st.permutations(range(len(shape)))):
        if kind == "overlapping":
            found[axis] = draw(st.integers(0, 3))
            continue
        found[axis] = covered + (draw(st.integers(0, 3)) if kind != "dense" else 0)
        covered = found[axis] * shape[axis]
    if kind == "expanded":
        found[draw(st.integers(0, len(shape) - 1))] = 0
    return tuple(found)


def is_plain(shape: tuple[int, ...], strides: tuple[int, ...]) -> bool:
    """Whether all elements of a view are different ones of its storage."""
    return len(np.unique(places(0, shape, strides))) == math.prod(shape)


def places(offset: int, extents: tuple[int, ...], strides: tuple[int, ...]) -> np.ndarray:
    """Every address of a box."""
    found = np.array([offset])
    for extent, stride in zip(extents, strides, strict=True):
        found = (found[:, None] + np.arange(extent) * stride).reshape(-1)
    return found


@st.composite
def cases(draw: st.DrawFn, types: tuple[DType, ...] = STORABLE) -> Case:
    """Norms and matrices, in 1 to 16 parts that may end within a head, in records of their own or shared."""
    way = draw(st.sampled_from(WAYS))
    shards = draw(st.integers(1, 16))
    head_dim = draw(st.sampled_from([2, 4, 6, 8, 10, 16]))
    replication = draw(st.sampled_from([1, 2])) if way.cut.heads == "key" and shards % 2 == 0 else 1
    rows = draw(st.integers(1, 6))
    if way.cut.heads:  # together they are whole heads, whatever each holds of them
        rows *= head_dim // math.gcd(head_dim, shards // replication)
    shape: tuple[int, ...] = (rows,)
    if way != REPLICATED or draw(st.booleans()):
        shape = (rows, draw(st.integers(1, 12)))
    strides = draw(strides_of(shape))
    room = draw(st.integers(0, 5)) + extent_elements(shape, strides)
    offset = room - extent_elements(shape, strides)
    packed = draw(st.booleans())
    stored, dtype = draw(st.sampled_from(types)), draw(st.sampled_from(types))
    contents: dict[Region, np.ndarray] = {}
    views, parts = [], []
    for shard in range(shards):
        size = room * shards if packed else room
        name, start = ("packed", offset + shard * room) if packed else (f"shard {shard}", offset)
        record = Region(name, 0, size * stored.size_bytes, 0, zipped=False)
        elements = contents.setdefault(record, np.arange(size, dtype=np.int64) + 100_000 * len(contents))
        views.append(TensorView("tensor", record, stored, start, shape, strides))
        parts.append(as_strided(elements[start:], shape, [8 * stride for stride in strides]))
    target_shape, copies = way.join(views, head_dim, replication)
    target = OutputTensor("target", "source", target_shape, stored, dtype, copies)
    expected = join_parts(way, parts, head_dim, replication)
    return Case(target, contents, expected, is_plain(shape, strides))
