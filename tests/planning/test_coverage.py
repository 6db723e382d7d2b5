"""Copies and blocks cover every target element exactly once, whatever the shapes and the cuts."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from distconv.formats.views import TensorView
from distconv.layout.copies import Copy, cut_copy
from distconv.layout.dtypes import BFLOAT16, FLOAT32, contiguous_strides
from distconv.layout.regions import Region
from distconv.moving.bands import Block, make_blocks
from distconv.moving.devices import HostDevice
from tests.moving.stand_ins import StandIn, devices
from tests.views import HEAD_ROWS, ROTARY_KEY, ROTARY_QUERY, Case, cases, places


def landed(copy: Copy, shape: tuple[int, ...]) -> np.ndarray:
    """Where in the flat target a copy's elements land."""
    strides = contiguous_strides(shape)
    first = sum(at * stride for at, stride in zip(copy.start, strides, strict=True))
    return places(
        first,
        tuple(loop.extent for loop in copy.loops),
        tuple(loop.step * strides[loop.axis] for loop in copy.loops),
    )


def taken(copy: Copy) -> np.ndarray:
    """Which elements of its storage a copy takes, in the same order."""
    extents = tuple(loop.extent for loop in copy.loops)
    return places(copy.source_offset, extents, tuple(loop.source_step for loop in copy.loops))


@given(cases())
def test_copies_cover_every_target_element_exactly_once(case: Case) -> None:
    found = np.concatenate([landed(copy, case.target.shape) for copy in case.target.copies])
    np.testing.assert_array_equal(np.sort(found), np.arange(case.target.elements))
    assert sum(len(taken(copy)) for copy in case.target.copies) == case.target.elements


@given(cases())
def test_copies_put_what_concatenation_and_permutation_put(case: Case) -> None:
    found = np.full(case.target.elements, -1)
    for copy in case.target.copies:
        found[landed(copy, case.target.shape)] = case.contents[copy.region][taken(copy)]
        assert taken(copy).max() == copy.last_source
    np.testing.assert_array_equal(found.reshape(case.target.shape), case.expected)


@given(cases(), st.data())
def test_the_rows_of_copies_are_those_of_the_target(case: Case, data: st.DataObject) -> None:
    rows = case.target.shape[0]
    first = data.draw(st.integers(0, rows - 1))
    end = data.draw(st.integers(first + 1, rows))
    row = math.prod(case.target.shape[1:])
    found = np.full(case.target.elements, -1)
    parts = [part for copy in case.target.copies for part in cut_copy(copy, 0, first, end)]
    for part in parts:
        found[landed(part, case.target.shape)] = case.contents[part.region][taken(part)]
    assert sum(len(taken(part)) for part in parts) == (end - first) * row
    wanted = case.expected.reshape(-1)[first * row : end * row]
    np.testing.assert_array_equal(found[first * row : end * row], wanted)


@pytest.mark.parametrize(("heads", "shards"), [(8, 8), (8, 16), (12, 8), (1, 4), (3, 16)])
def test_a_cut_head_needs_a_few_copies_and_a_whole_one_no_more_than_before(heads: int, shards: int) -> None:
    rows = heads * 16 // shards
    record = Region("shard", 0, rows * 4 * 2, 0, zipped=False)
    views = [TensorView("tensor", record, BFLOAT16, 0, (rows, 4), (4, 1))] * shards
    for way in (ROTARY_QUERY, ROTARY_KEY):
        shape, copies = way.join(views, head_dim=16)
        assert shape == (heads * 16, 4)
        assert len(copies) == shards if rows % 16 == 0 else len(copies) <= 5 * shards
    assert len(HEAD_ROWS.join(views, head_dim=16)[1]) == shards


def fill(
    block: Block, by_record: dict[Region, np.ndarray], device: HostDevice | StandIn, place_bytes: int
) -> np.ndarray:
    """Gather one block on a device, for a place in a file."""
    sources = [
        by_record[piece.region][offset : offset + piece.run]
        for piece in block.pieces
        for offset in piece.offsets()
    ]
    content = device.begin(sum(source.nbytes for source in sources), place_bytes)
    content[:] = np.concatenate(sources).tobytes()
    found, _infinite = device.submit(content, block.pieces, block.elements, FLOAT32, FLOAT32)()
    return np.frombuffer(found, dtype=np.uint32)


@given(cases((FLOAT32,)), st.integers(1, 800), st.integers(0, 5000))
def test_blocks_of_any_size_and_place_give_the_same_on_host_and_torch(
    case: Case, block_bytes: int, first: int
) -> None:
    by_record = {record: content.astype(np.uint32) for record, content in case.contents.items()}
    for device in devices():
        position = 0
        for block in make_blocks(case.target, block_bytes):
            assert block.target_offset == position
            found = fill(block, by_record, device, 4 * (first + block.target_offset))
            expected = case.expected.reshape(-1)[position : position + block.elements]
            np.testing.assert_array_equal(found, expected)
            position += block.elements
        assert position == case.target.elements


def test_a_cast_gives_one_quiet_nan_whatever_the_payload_and_the_place() -> None:
    patterns = [0x7F800001, 0x7FC12345, 0xFFC00000, 0xFFFFFFFF, 0x7F800000, 0x3F800000] * 7
    values = torch.tensor(patterns, dtype=torch.int64).to(torch.int32)
    from distconv.layout.dtypes import FLOAT16
    from distconv.moving.casts import cast_block

    cast, infinite = cast_block(values.view(torch.float32), BFLOAT16)
    assert cast.view(torch.int16).tolist() == [0x7FC0, 0x7FC0, 0x7FC0, 0x7FC0, 0x7F80, 0x3F80] * 7
    assert infinite == 0
    _cast, infinite = cast_block(torch.tensor([1e5, -1e5, float("inf"), 1.0]), FLOAT16)
    assert infinite == 2
