"""Pieces: which ranges are read of a storage whose elements lie apart, and how few, in what order, how much."""

import math
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.lib.stride_tricks import as_strided

from distconv.formats.views import TensorView
from distconv.layout.copies import Copy, Loop
from distconv.layout.dtypes import BFLOAT16, FLOAT32, contiguous_strides
from distconv.layout.files import OutputTensor
from distconv.layout.regions import Region
from distconv.moving import bands
from distconv.moving.bands import Block, make_blocks
from distconv.moving.pieces import PAGE_BYTES, Piece, make_piece
from tests.views import BY_COLUMNS, BY_ROWS, ROTARY_QUERY, join_parts, places

UNIT_BYTES = 4


def as_target(view: TensorView) -> OutputTensor:
    """Take a view as a whole tensor."""
    return OutputTensor("target", "source", view.shape, view.dtype, view.dtype, view.whole().copies)


def look(
    shape: tuple[int, ...], strides: tuple[int, ...], offset: int = 0
) -> tuple[OutputTensor, np.ndarray]:
    """Give a view of a storage of numbered elements as a target, and what it should be."""
    size = offset + 1 + sum((extent - 1) * stride for extent, stride in zip(shape, strides, strict=True))
    region = Region("storage", 0, size * UNIT_BYTES, 0, zipped=False)
    elements = np.arange(size, dtype=np.int64)
    expected = as_strided(elements[offset:], shape, [8 * stride for stride in strides])
    return as_target(TensorView("tensor", region, FLOAT32, offset, shape, strides)), expected


def ranges(piece: Piece) -> list[tuple[int, int]]:
    """What is read, as (first element, number of elements)."""
    return [(offset, piece.run) for offset in piece.offsets()]


def execute(target: OutputTensor, blocks: list[Block]) -> np.ndarray:
    """Read and put together: the number of each element in its storage."""
    found = np.full(target.elements, -1)
    for block in blocks:
        for piece in block.pieces:
            taken = np.concatenate([np.arange(first, first + length) for first, length in ranges(piece)])
            landed = block.target_offset + places(piece.target_offset, piece.extents, piece.target_strides)
            found[landed] = taken[places(0, piece.extents, piece.source_strides)]
    return found.reshape(target.shape)


@st.composite
def wide_views(draw: st.DrawFn) -> tuple[tuple[int, ...], tuple[int, ...], int]:
    """A view of up to three axes, in any order in its storage, with gaps around a page's size."""
    shape = tuple(draw(st.lists(st.integers(1, 5), min_size=1, max_size=3)))
    page = PAGE_BYTES // UNIT_BYTES
    gaps = st.sampled_from([0, 0, 1, 7, page - 1, page, page + 1, 3 * page])
    strides, covered = [0] * len(shape), 1
    for axis in draw(st.permutations(range(len(shape)))):
        strides[axis] = covered + draw(gaps)
        covered += (shape[axis] - 1) * strides[axis]
    return shape, tuple(strides), draw(st.integers(0, 3))


@given(wide_views(), st.integers(1, 400), st.sampled_from([0, 1 << 12, 1 << 30]))
def test_elements_that_lie_far_apart_are_read_once_in_order_and_in_bounds(
    view: tuple[tuple[int, ...], tuple[int, ...], int], block_bytes: int, largest_bytes: int
) -> None:
    target, expected = look(*view)
    blocks = list(make_blocks(target, block_bytes, largest_bytes))
    np.testing.assert_array_equal(execute(target, blocks), expected)
    row = math.prod(target.shape[1:])
    for block in blocks:
        read = sum(piece.span for piece in block.pieces)
        assert read * UNIT_BYTES <= max(block_bytes, largest_bytes, UNIT_BYTES * row)
        for piece in block.pieces:
            found = ranges(piece)
            # A request for each run, in the order of the storage, and none that another one reads.
            assert all(first + length <= second for (first, length), (second, _) in pairwise(found))
            # A gap of more than a page is nowhere read.
            held = np.unique(piece.source_offset + _source_places(piece))
            gaps = np.diff(held)
            inside = sum(length for _, length in found) - len(held)
            assert inside <= sum(gap - 1 for gap in gaps if (gap - 1) * UNIT_BYTES <= PAGE_BYTES)


def _source_places(piece: Piece) -> np.ndarray:
    """Where in the storage, behind the first one, the elements of the box lie."""
    read = np.concatenate([np.arange(first, first + length) for first, length in ranges(piece)])
    return read[places(0, piece.extents, piece.source_strides)] - piece.source_offset


def columns(rows: int, width: int, between: int, gap: int) -> Piece:
    """Read columns of a matrix, ``between`` elements after each row, of which ``gap`` are no other block's."""
    region = Region("storage", 0, 1 << 30, 0, zipped=False)
    copy = Copy(region, 0, (0, 0), (Loop(rows, width + between, 0, gap=gap), Loop(width, 1, 1)))
    return make_piece(copy, (width, 1), 0, UNIT_BYTES, through_gaps=gap > 0)


@pytest.mark.parametrize(
    ("between", "gap", "requests"),
    [
        # Up to a page that no other block reads costs no more than another request.
        (PAGE_BYTES // UNIT_BYTES, PAGE_BYTES // UNIT_BYTES, 1),
        (PAGE_BYTES // UNIT_BYTES + 1, PAGE_BYTES // UNIT_BYTES + 1, 10),
        # Of what another block reads one part in 32.
        (2, 0, 1),
        (3, 0, 10),
        # Of both, the other block's part alone counts.
        (102, 100, 1),
        (103, 100, 10),
    ],
)
def test_ranges_are_joined_where_hardly_anything_lies_between(between: int, gap: int, requests: int) -> None:
    piece = columns(10, 64, between, gap)
    assert len(ranges(piece)) == requests
    assert piece.span == (640 if requests == 10 else 640 + 9 * between)
    # Where they were read, ranges lie one behind the other.
    assert piece.is_straight == (requests == 10)


def test_gaps_are_not_read_where_that_is_not_wanted() -> None:
    region = Region("storage", 0, 1 << 20, 0, zipped=False)
    copy = Copy(region, 0, (0, 0), (Loop(4, 70, 0, gap=6), Loop(64, 1, 1)))
    assert len(ranges(make_piece(copy, (64, 1), 0, UNIT_BYTES, through_gaps=True))) == 1
    assert len(ranges(make_piece(copy, (64, 1), 0, UNIT_BYTES, through_gaps=False))) == 4


@pytest.mark.parametrize("shape", [(7,), (1, 7), (7, 1), (3, 1, 5)])
def test_what_is_dense_alike_needs_no_gathering(shape: tuple[int, ...]) -> None:
    target, _expected = look(shape, contiguous_strides(shape))
    (block,) = make_blocks(target, 1 << 20)
    assert [piece.is_straight for piece in block.pieces] == [True]
    # A row of a wider matrix is dense, too.
    target, _expected = look((1, 8), (1000, 1))
    assert next(make_blocks(target, 1 << 20)).pieces[0].is_straight


def test_a_piece_further_on_reads_the_same_further_on() -> None:
    piece = columns(10, 64, 3, 0)
    moved = piece.moved(1000)
    assert ranges(moved) == [(first + 1000, length) for first, length in ranges(piece)]
    assert replace(moved, source_offset=piece.source_offset) == piece


@pytest.mark.parametrize("rows", [64, 67])
def test_blocks_are_read_through_gaps_that_are_nobodys(rows: int) -> None:
    target, expected = look((rows, 8), (10, 1))
    blocks = list(make_blocks(target, 4 * 10 * UNIT_BYTES))
    np.testing.assert_array_equal(execute(target, blocks), expected)
    assert [block.elements // 8 for block in blocks[:-1]] == [4] * ((rows - 1) // 4)
    assert all(len(ranges(piece)) == 1 for block in blocks for piece in block.pieces)


@pytest.mark.parametrize(("block_bytes", "rows", "requests"), [(64, 2, 8), (3002 * UNIT_BYTES, 1, 1)])
def test_gaps_are_read_through_only_where_a_block_has_room_for_them(
    block_bytes: int, rows: int, requests: int
) -> None:
    target, expected = look((16, 4, 2), (4000, 1000, 1))
    blocks = list(make_blocks(target, block_bytes))
    np.testing.assert_array_equal(execute(target, blocks), expected)
    assert {block.elements for block in blocks} == {rows * 8}
    assert {len(ranges(piece)) for block in blocks for piece in block.pieces} == {requests}


TRANSPOSED = (4096, 1024), (1, 4096)


@pytest.mark.parametrize(
    ("largest_bytes", "block_bytes", "run_bytes"),
    [
        (0, 1 << 17, 128),
        (1 << 17, 1 << 17, 128),
        # Twice as large each time, up to what is allowed.
        (1 << 20, 1 << 20, 1024),
        ((1 << 20) + (1 << 19), (1 << 20) + (1 << 19), 1536),
        # And no further than to a page at a time.
        (16 << 20, 4 << 20, PAGE_BYTES),
    ],
)
def test_blocks_of_a_transposed_matrix_grow_until_a_page_is_read_at_a_time(
    largest_bytes: int, block_bytes: int, run_bytes: int
) -> None:
    target, _expected = look(*TRANSPOSED)
    first = next(make_blocks(target, 1 << 17, largest_bytes))
    assert first.elements * UNIT_BYTES == block_bytes
    assert [piece.run * UNIT_BYTES for piece in first.pieces] == [run_bytes]


def test_blocks_do_not_grow_where_that_makes_no_range_longer() -> None:
    target, _expected = look((4096, 8), (8192, 1))
    assert {block.elements for block in make_blocks(target, 1 << 10, 1 << 20)} == {256}


@pytest.mark.parametrize("way", [BY_ROWS, BY_COLUMNS, ROTARY_QUERY])
@pytest.mark.parametrize("rows", [512, 520])
def test_what_repeats_is_cut_once_however_many_blocks_there_are(
    monkeypatch: pytest.MonkeyPatch, way: object, rows: int
) -> None:
    made = []

    def count(*arguments: object, **options: object) -> Piece:
        made.append(1)
        return make_piece(*arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(bands, "make_piece", count)
    parts = [
        TensorView(
            "tensor", Region(f"{number}", 0, rows * 16 * 2, 0, zipped=False), BFLOAT16, 0, (rows, 16), (16, 1)
        )
        for number in range(3)
    ]
    shape, copies = way.join(parts, head_dim=8)  # type: ignore[attr-defined]
    target = OutputTensor("target", "source", shape, BFLOAT16, BFLOAT16, copies)
    blocks = list(make_blocks(target, 8 * math.prod(shape[1:]) * 2))
    assert len(blocks) == shape[0] // 8
    # To choose the size of a block, and to make the first one: of each part that is a band of its own.
    bands_of_parts = 1 if way is BY_COLUMNS else 3
    assert len(made) == bands_of_parts * 2 * (3 if way is BY_COLUMNS else 1) * (len(copies) // 3)


@pytest.mark.parametrize("block_rows", [4, 8, 12])
def test_copies_of_different_steps_are_put_together_block_by_block(block_rows: int) -> None:
    left, right = (Region(name, 0, 128 * UNIT_BYTES, 0, zipped=False) for name in ("0", "1"))
    copies = (
        Copy(left, 0, (0, 0), (Loop(32, 4, 0), Loop(4, 1, 1))),
        Copy(right, 0, (0, 4), (Loop(8, 4, 0, step=4), Loop(4, 32, 0), Loop(4, 1, 1))),
    )
    target = OutputTensor("target", "source", (32, 8), FLOAT32, FLOAT32, copies)
    stored = np.arange(128).reshape(4, 8, 4).transpose(1, 0, 2).reshape(32, 4)
    expected = np.concatenate([np.arange(128).reshape(32, 4), stored], axis=1)
    blocks = list(make_blocks(target, block_rows * 8 * UNIT_BYTES))
    np.testing.assert_array_equal(execute(target, blocks), expected)


@pytest.mark.parametrize("heads", [1, 2, 5])
@pytest.mark.parametrize("within", [2, 4, 6])
def test_parts_that_end_within_a_head_are_put_together_block_by_block(heads: int, within: int) -> None:
    head_dim, columns_of_each = 8, 3
    rows = (heads * head_dim + within, 4 * head_dim - within)
    views, parts = [], []
    for number, count in enumerate(rows):
        region = Region(f"{number}", 0, count * columns_of_each * 2, 0, zipped=False)
        views.append(TensorView("t", region, BFLOAT16, 0, (count, columns_of_each), (columns_of_each, 1)))
        start = 1000 * number
        parts.append(np.arange(start, start + count * columns_of_each).reshape(count, columns_of_each))
    shape, copies = ROTARY_QUERY.join(views, head_dim)
    target = OutputTensor("target", "source", shape, BFLOAT16, BFLOAT16, copies)
    expected = join_parts(ROTARY_QUERY, parts, head_dim, 1)
    for block_heads in (1, 2, 3, 100):
        found = np.full(target.elements, -1)
        for block in make_blocks(target, block_heads * head_dim * columns_of_each * 2):
            for piece in block.pieces:
                start = 1000 * int(piece.region.path)
                taken = start + np.concatenate([np.arange(*(f, f + n)) for f, n in ranges(piece)])
                landed = block.target_offset + places(
                    piece.target_offset, piece.extents, piece.target_strides
                )
                found[landed] = taken[places(0, piece.extents, piece.source_strides)]
        np.testing.assert_array_equal(found.reshape(shape), expected)
