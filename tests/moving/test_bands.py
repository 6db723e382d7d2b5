"""Blocks: each element of a target once, no read beyond its record, the right bytes."""

import math
from dataclasses import dataclass

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from numpy.lib.stride_tricks import as_strided

from distconv.families.gather import (
    COLUMNS,
    HEAD_ROWS,
    REPLICATED,
    ROTARY_KEY,
    ROTARY_QUERY,
    ROWS,
    Gather,
    gather_copies,
)
from distconv.moving.bands import Piece, make_blocks
from distconv.planning.plan import TargetTensor
from distconv.source.archive import Record
from distconv.source.catalog import TensorView
from distconv.tensors import BFLOAT16, FLOAT32, FLOAT64, STORABLE, contiguous_strides, extent_elements

GATHERS = (ROWS, COLUMNS, REPLICATED, ROTARY_QUERY, ROTARY_KEY, HEAD_ROWS)
BLOCK_BYTES = st.integers(1, 64) | st.integers(65, 4096) | st.sampled_from([1 << 20, 1 << 40])


@dataclass(frozen=True)
class Case:
    """A target tensor, its records' elements, and what it should be."""

    target: TargetTensor
    contents: dict[Record, np.ndarray]
    expected: np.ndarray


def join_parts(gather: Gather, parts: list[np.ndarray], head_dim: int, replication: int) -> np.ndarray:
    """Concatenate the parts that count, then bring Meta's interleaved rows into halves."""
    if gather.axis is None:
        return parts[0]
    whole = np.concatenate(parts[::replication] if gather.heads == "key" else parts, axis=gather.axis)
    if not gather.rotary:
        return whole
    rows, columns = whole.shape
    return (
        whole.reshape(rows // head_dim, head_dim // 2, 2, columns)
        .transpose(0, 2, 1, 3)
        .reshape(rows, columns)
    )


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """Norms and matrices; dense, padded or transposed; in records of their own or shared."""
    gather = draw(st.sampled_from(GATHERS))
    shards = draw(st.integers(1, 4))
    head_dim = draw(st.sampled_from([2, 4, 8]))
    replication = draw(st.sampled_from([1, 2])) if gather.heads == "key" and shards % 2 == 0 else 1
    shape: tuple[int, ...] = (draw(st.integers(1, 6)) * (head_dim if gather.heads else 1),)
    if gather != REPLICATED or draw(st.booleans()):
        shape = (*shape, draw(st.integers(1, 12)))
    strides = contiguous_strides(shape)
    if len(shape) == 2:
        gap = draw(st.integers(0, 3))
        strides = draw(st.sampled_from([(shape[1] + gap, 1), (1, shape[0] + gap)]))
    elif draw(st.booleans()):
        strides = (3,)
    span = extent_elements(shape, strides)
    offset, packed = draw(st.integers(0, 5)), draw(st.booleans())
    stored, dtype = draw(st.sampled_from(STORABLE)), draw(st.sampled_from(STORABLE))
    room = offset + span
    contents: dict[Record, np.ndarray] = {}
    views, parts = [], []
    for shard in range(shards):
        size = room * shards if packed else room
        name, start = ("packed", offset + shard * room) if packed else (f"shard {shard}", offset)
        record = Record(name, 0, size * stored.size_bytes, 0, zipped=False)
        elements = contents.setdefault(record, np.arange(size, dtype=np.int64) + 100_000 * len(contents))
        views.append(TensorView("tensor", record, stored, start, shape, strides))
        parts.append(as_strided(elements[start:], shape, [8 * stride for stride in strides]))
    target_shape, copies = gather_copies(gather, views, head_dim, replication)
    target = TargetTensor("target", "source", target_shape, stored, dtype, copies)
    return Case(target, contents, join_parts(gather, parts, head_dim, replication))


def places(offset: int, extents: tuple[int, ...], strides: tuple[int, ...]) -> np.ndarray:
    """Every address of a box."""
    found = np.array([offset])
    for extent, stride in zip(extents, strides, strict=True):
        found = (found[:, None] + np.arange(extent) * stride).reshape(-1)
    return found


def target_places(piece: Piece) -> np.ndarray:
    """Where a piece's elements land in its block."""
    return places(piece.target_offset, piece.extents, piece.target_strides)


@given(cases(), BLOCK_BYTES)
def test_blocks_follow_each_other_and_fill_the_target(case: Case, block_bytes: int) -> None:
    position = 0
    for block in make_blocks(case.target, block_bytes):
        assert block.target_offset == position
        assert block.elements > 0
        position += block.elements
    assert position == case.target.elements == case.expected.size


@given(cases(), BLOCK_BYTES)
def test_the_pieces_of_a_block_fill_each_of_its_elements_once(case: Case, block_bytes: int) -> None:
    for block in make_blocks(case.target, block_bytes):
        landed = np.concatenate([target_places(piece) for piece in block.pieces])
        np.testing.assert_array_equal(np.sort(landed), np.arange(block.elements))


@given(cases(), BLOCK_BYTES)
def test_each_read_stays_inside_its_record_and_is_as_long_as_its_box(case: Case, block_bytes: int) -> None:
    for block in make_blocks(case.target, block_bytes):
        for piece in block.pieces:
            assert piece.source_offset >= 0
            assert (
                piece.source_offset + piece.span
            ) * case.target.stored.size_bytes <= piece.record.size_bytes
            taken = places(0, piece.extents, piece.source_strides)
            assert (taken.min(), taken.max()) == (0, piece.span - 1)


@given(cases(), BLOCK_BYTES)
def test_executed_blocks_are_concatenation_and_permutation(case: Case, block_bytes: int) -> None:
    found = np.full(case.target.elements, -1)
    for block in make_blocks(case.target, block_bytes):
        for piece in block.pieces:
            read = case.contents[piece.record][piece.source_offset :][: piece.span]
            taken = read[places(0, piece.extents, piece.source_strides)]
            found[block.target_offset + target_places(piece)] = taken
    assert case.target.shape == case.expected.shape
    np.testing.assert_array_equal(found.reshape(case.target.shape), case.expected)


@given(cases(), BLOCK_BYTES)
def test_a_straight_piece_needs_no_gathering(case: Case, block_bytes: int) -> None:
    for block in make_blocks(case.target, block_bytes):
        for piece in block.pieces:
            if piece.is_straight:
                assert piece.span == math.prod(piece.extents)
                landed = target_places(piece)
                np.testing.assert_array_equal(landed, landed[0] + np.arange(piece.span))


@given(cases(), st.integers(1, 4096))
def test_a_block_is_no_larger_than_asked_for_unless_one_step_is(case: Case, block_bytes: int) -> None:
    target = case.target
    step = target.copies[0].target_strides[0]
    unit = max(target.stored.size_bytes, target.dtype.size_bytes)
    for block in make_blocks(target, block_bytes):
        assert block.elements == step or block.elements * unit <= block_bytes


def test_rows_of_a_large_dense_matrix_are_read_once_in_blocks_of_the_size_asked_for() -> None:
    shape = (4096, 1024)
    record = Record("shard", 0, math.prod(shape) * 2, 0, zipped=False)
    view = TensorView("tensor", record, BFLOAT16, 0, shape, contiguous_strides(shape))
    for gather in (ROWS, ROTARY_QUERY):
        target_shape, copies = gather_copies(gather, (view,), head_dim=128)
        target = TargetTensor("target", "source", target_shape, BFLOAT16, BFLOAT16, copies)
        blocks = list(make_blocks(target, 1 << 20))
        assert len(blocks) == 8
        assert [piece.span for block in blocks for piece in block.pieces] == [1 << 19] * 8


def test_a_cast_to_a_wider_type_makes_blocks_smaller_and_one_to_a_narrower_type_does_not() -> None:
    record = Record("shard", 0, 1 << 20, 0, zipped=False)
    for stored, dtype, elements in (
        (BFLOAT16, FLOAT32, 256),
        (FLOAT32, BFLOAT16, 256),
        (FLOAT64, BFLOAT16, 128),
    ):
        view = TensorView("tensor", record, stored, 0, (1024,), (1,))
        _shape, copies = gather_copies(REPLICATED, (view,), head_dim=1)
        target = TargetTensor("target", "source", (1024,), stored, dtype, copies)
        assert {block.elements for block in make_blocks(target, 1024)} == {elements}


def test_an_empty_tensor_has_no_blocks() -> None:
    record = Record("shard", 0, 0, 0, zipped=False)
    view = TensorView("tensor", record, BFLOAT16, 0, (0, 4), (4, 1))
    shape, copies = gather_copies(ROWS, (view,), head_dim=1)
    assert list(make_blocks(TargetTensor("t", "s", shape, BFLOAT16, BFLOAT16, copies), 1024)) == []
