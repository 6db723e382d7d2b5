"""Blocks: each element of a target once, no read beyond its record, the right bytes."""

import math

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from distconv.formats.views import TensorView
from distconv.layout.copies import Copy, Loop
from distconv.layout.dtypes import BFLOAT16, FLOAT32, FLOAT64, contiguous_strides
from distconv.layout.files import OutputTensor
from distconv.layout.regions import Region
from distconv.layout.tensors import join, view_tensor
from distconv.moving.bands import make_blocks
from distconv.moving.pieces import Piece
from tests.layout.test_algebra import Contents, numbered, store
from tests.views import BY_ROWS, REPLICATED, ROTARY_QUERY, Case, cases, places

BLOCK_BYTES = st.integers(1, 64) | st.integers(65, 4096) | st.sampled_from([1 << 20, 1 << 40])


def read(case: Case, piece: Piece) -> np.ndarray:
    """What a piece reads, range by range."""
    content = case.contents[piece.region]
    return np.concatenate([content[offset : offset + piece.run] for offset in piece.offsets()])


def step_of(target: OutputTensor) -> int:
    """Elements of the rows that are put together at once: one row, or one head."""
    steps = (loop.step for copy in target.copies for loop in copy.loops if loop.axis == 0)
    rows = max(steps, default=1)
    return rows * math.prod(target.shape[1:])


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


@given(st.integers(1, 4), st.integers(1, 4), st.integers(1, 3), st.integers(1, 5), st.integers(1, 300))
def test_blocks_of_experts_that_are_larger_than_one_are_of_their_rows(
    experts: int, rows: int, shards: int, columns: int, block_bytes: int
) -> None:
    contents: Contents = {}
    wholes = [numbered((experts, rows, columns * shards)) + 1000 * part for part in range(2)]
    parts = [store(contents, part) for whole in wholes for part in np.split(whole, shards, axis=2)]
    joined = join(parts, 2)
    target = OutputTensor("t", "s", joined.shape, FLOAT32, FLOAT32, joined.copies)
    found = np.full(target.elements, -1)
    position = 0
    for block in make_blocks(target, block_bytes):
        assert block.target_offset == position
        assert block.elements * 4 <= max(block_bytes, 2 * columns * shards * 4)
        for piece in block.pieces:
            read_elements = np.concatenate(
                [contents[piece.region][offset : offset + piece.run] for offset in piece.offsets()]
            )
            landed = target_places(piece) + position
            found[landed] = read_elements[places(0, piece.extents, piece.source_strides)]
        position += block.elements
    np.testing.assert_array_equal(found.reshape(target.shape), np.concatenate(wholes, axis=2))


@given(cases(), BLOCK_BYTES)
def test_the_pieces_of_a_block_fill_each_of_its_elements_once(case: Case, block_bytes: int) -> None:
    for block in make_blocks(case.target, block_bytes):
        landed = np.concatenate([target_places(piece) for piece in block.pieces])
        np.testing.assert_array_equal(np.sort(landed), np.arange(block.elements))


@given(cases(), BLOCK_BYTES)
def test_each_read_stays_inside_its_record_and_is_as_long_as_its_box(case: Case, block_bytes: int) -> None:
    for block in make_blocks(case.target, block_bytes):
        for piece in block.pieces:
            assert min(piece.offsets()) >= 0
            end = max(piece.offsets()) + piece.run
            assert end * case.target.stored.size_bytes <= piece.region.size_bytes
            taken = places(0, piece.extents, piece.source_strides)
            assert (taken.min(), taken.max()) == (0, piece.span - 1)


@given(cases(), BLOCK_BYTES)
def test_executed_blocks_are_concatenation_and_permutation(case: Case, block_bytes: int) -> None:
    found = np.full(case.target.elements, -1)
    for block in make_blocks(case.target, block_bytes):
        for piece in block.pieces:
            taken = read(case, piece)[places(0, piece.extents, piece.source_strides)]
            found[block.target_offset + target_places(piece)] = taken
    assert case.target.shape == case.expected.shape
    np.testing.assert_array_equal(found.reshape(case.target.shape), case.expected)


@given(cases(), BLOCK_BYTES)
def test_sources_are_read_about_once(case: Case, block_bytes: int) -> None:
    blocks = list(make_blocks(case.target, block_bytes))
    spans = [piece.span for block in blocks for piece in block.pieces]
    if case.plain:
        assert sum(spans) <= 1.1 * sum(len(content) for content in case.contents.values())


@given(cases(), BLOCK_BYTES)
def test_what_a_block_reads_together_is_no_larger_than_a_block_or_step(case: Case, block_bytes: int) -> None:
    for block in make_blocks(case.target, block_bytes):
        read = sum(piece.span for piece in block.pieces)
        step = step_of(case.target)
        assert read <= max(block_bytes / case.target.stored.size_bytes, step * 1.1)


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
    step = step_of(target)
    unit = max(target.stored.size_bytes, target.dtype.size_bytes)
    for block in make_blocks(target, block_bytes):
        assert block.elements == step or block.elements * unit <= block_bytes


def test_rows_of_a_large_dense_matrix_are_read_once_in_blocks_of_the_size_asked_for() -> None:
    shape = (4096, 1024)
    record = Region("shard", 0, math.prod(shape) * 2, 0, zipped=False)
    view = TensorView("tensor", record, BFLOAT16, 0, shape, contiguous_strides(shape))
    for way in (BY_ROWS, ROTARY_QUERY):
        target_shape, copies = way.join((view,), head_dim=128)
        target = OutputTensor("target", "source", target_shape, BFLOAT16, BFLOAT16, copies)
        blocks = list(make_blocks(target, 1 << 20))
        assert len(blocks) == 8
        assert [piece.span for block in blocks for piece in block.pieces] == [1 << 19] * 8


def test_a_cast_to_a_wider_type_makes_blocks_smaller_and_one_to_a_narrower_type_does_not() -> None:
    record = Region("shard", 0, 1 << 20, 0, zipped=False)
    for stored, dtype, elements in (
        (BFLOAT16, FLOAT32, 256),
        (FLOAT32, BFLOAT16, 256),
        (FLOAT64, BFLOAT16, 128),
    ):
        view = TensorView("tensor", record, stored, 0, (1024,), (1,))
        _shape, copies = REPLICATED.join((view,), head_dim=1)
        target = OutputTensor("target", "source", (1024,), stored, dtype, copies)
        assert {block.elements for block in make_blocks(target, 1024)} == {elements}


def test_an_empty_tensor_has_no_blocks() -> None:
    record = Region("shard", 0, 0, 0, zipped=False)
    view = TensorView("tensor", record, BFLOAT16, 0, (0, 4), (4, 1))
    shape, copies = BY_ROWS.join((view,), head_dim=1)
    assert list(make_blocks(OutputTensor("t", "s", shape, BFLOAT16, BFLOAT16, copies), 1024)) == []


def test_a_tensor_without_axes_is_one_block_of_its_element() -> None:
    record = Region("shard", 0, 8, 0, zipped=False)
    scalar = view_tensor("tensor", FLOAT32, record, 1, (), ())
    for stored_as in (FLOAT32, BFLOAT16):
        (block,) = make_blocks(OutputTensor("t", "s", (), FLOAT32, stored_as, scalar.copies), 1024)
        assert (block.target_offset, block.elements) == (0, 1)
        (piece,) = block.pieces
        assert (list(piece.offsets()), piece.run, piece.target_offset) == ([1], 1, 0)


def test_copies_of_single_rows_need_no_loop_for_them() -> None:
    record = Region("shard", 0, 2 * 4 * 2, 0, zipped=False)
    rows = tuple(Copy(record, 4 * row, (row, 0), (Loop(4, 1, 1),)) for row in range(2))
    target = OutputTensor("target", "source", (2, 4), BFLOAT16, BFLOAT16, rows)
    for block_bytes, sizes in ((1 << 20, [4, 4]), (2, [4, 4])):
        assert [block.elements for block in make_blocks(target, block_bytes)] == sizes
