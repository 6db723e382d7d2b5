"""Copies and blocks cover every target element exactly once, whatever the shapes."""

import itertools

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from distconv.families.gather import (
    COLUMNS,
    HEAD_ROWS,
    REPLICATED,
    ROTARY_KEY,
    ROTARY_QUERY,
    ROWS,
    Gather,
    StridedCopy,
    gather_copies,
)
from distconv.moving.bands import Block, make_blocks
from distconv.moving.devices import HostDevice, TorchDevice
from distconv.planning.plan import TargetTensor
from distconv.source.archive import Record
from distconv.source.catalog import TensorView
from distconv.tensors import BFLOAT16, extent_elements

GATHERS = (ROWS, COLUMNS, REPLICATED, ROTARY_QUERY, ROTARY_KEY, HEAD_ROWS)


@st.composite
def parts(draw: st.DrawFn) -> tuple[Gather, list[TensorView], int, int]:
    """A way of gathering, views in shard order (rows apart, or transposed), head size, replication."""
    gather = draw(st.sampled_from(GATHERS))
    shards = draw(st.integers(1, 5))
    head_dim = draw(st.sampled_from([2, 4, 8]))
    rows = draw(st.integers(1, 5)) * (head_dim if gather.heads else 1)
    columns = draw(st.integers(1, 7))
    gap = draw(st.integers(0, 3))
    offset = draw(st.integers(0, 5))
    strides = (1, rows + gap) if draw(st.booleans()) else (columns + gap, 1)
    replication = draw(st.sampled_from([1, 2])) if gather.heads == "key" and shards % 2 == 0 else 1
    views = []
    for shard in range(shards):
        size = offset + extent_elements((rows, columns), strides)
        record = Record(f"shard {shard}", 0, size * 2, 0, zipped=False)
        views.append(TensorView("tensor", record, BFLOAT16, offset, (rows, columns), strides))
    return gather, views, head_dim, replication


def addresses(offset: int, extents: tuple[int, ...], strides: tuple[int, ...]) -> np.ndarray:
    """Every address of a box, in its order."""
    boxes = itertools.product(*map(range, extents))
    return np.array([offset + sum(i * s for i, s in zip(place, strides, strict=True)) for place in boxes])


def contents(view: TensorView) -> np.ndarray:
    """A storage whose elements all differ, also between shards."""
    number = int(view.record.path.rpartition(" ")[2])
    return np.arange(view.record.size_bytes // 2, dtype=np.uint16) + np.uint16(number * 1000)


def make_target(gather: Gather, views: list[TensorView], head_dim: int, replication: int) -> TargetTensor:
    """Gather the parts into one target."""
    shape, copies = gather_copies(gather, views, head_dim, replication)
    return TargetTensor("target", "source", shape, BFLOAT16, BFLOAT16, copies)


def expect(gather: Gather, views: list[TensorView], head_dim: int, replication: int) -> np.ndarray:
    """Concatenate and permute with plain operations."""
    whole = [
        np.lib.stride_tricks.as_strided(
            contents(view)[view.offset :], view.shape, [2 * stride for stride in view.strides]
        )
        for view in views
    ]
    if gather.axis is None:
        return whole[0]
    joined = np.concatenate(whole[::replication] if gather.heads == "key" else whole, axis=gather.axis)
    if not gather.rotary:
        return joined
    rows, columns = joined.shape
    paired = joined.reshape(rows // head_dim, head_dim // 2, 2, columns)
    return paired.swapaxes(1, 2).reshape(rows, columns)


@given(parts())
def test_copies_cover_every_target_element_exactly_once(
    drawn: tuple[Gather, list[TensorView], int, int],
) -> None:
    target = make_target(*drawn)
    landed = np.concatenate([addresses(c.target_offset, c.extents, c.target_strides) for c in target.copies])
    assert sorted(landed.tolist()) == list(range(target.elements))


@given(parts())
def test_copies_put_what_concatenation_and_permutation_put(
    drawn: tuple[Gather, list[TensorView], int, int],
) -> None:
    target = make_target(*drawn)
    by_record = {view.record: contents(view) for view in drawn[1]}
    found = np.zeros(target.elements, dtype=np.uint16)
    for copy in target.copies:
        sources = addresses(copy.source_offset, copy.extents, copy.source_strides)
        found[addresses(copy.target_offset, copy.extents, copy.target_strides)] = by_record[copy.record][
            sources
        ]
    np.testing.assert_array_equal(found.reshape(target.shape), expect(*drawn))


def fill(
    block: Block, by_record: dict[Record, np.ndarray], device: HostDevice | TorchDevice, place_bytes: int
) -> np.ndarray:
    """Gather one block on a device, for a place in a file."""
    sources = [by_record[piece.record][piece.source_offset :][: piece.span] for piece in block.pieces]
    assert all(len(source) == piece.span for source, piece in zip(sources, block.pieces, strict=True))
    content = device.begin(sum(source.nbytes for source in sources), place_bytes)
    content[:] = np.concatenate(sources).tobytes()
    found, _infinite = device.submit(content, block.pieces, block.elements, BFLOAT16, BFLOAT16)()
    return np.frombuffer(found, dtype=np.uint16)


@given(parts(), st.integers(1, 400), st.integers(0, 5000))
def test_blocks_of_any_size_and_place_give_the_same_on_host_and_torch(
    drawn: tuple[Gather, list[TensorView], int, int], block_bytes: int, first: int
) -> None:
    target = make_target(*drawn)
    by_record = {view.record: contents(view) for view in drawn[1]}
    for device in (HostDevice(), TorchDevice("cpu")):
        position = 0
        for block in make_blocks(target, block_bytes):
            assert block.target_offset == position
            found = fill(block, by_record, device, 2 * (first + block.target_offset))
            expected = expect(*drawn).reshape(-1)[position : position + block.elements]
            np.testing.assert_array_equal(found, expected)
            position += block.elements
        assert position == target.elements


@given(parts(), st.integers(1, 400))
def test_no_read_is_larger_than_a_block_or_the_step_that_needs_it(
    drawn: tuple[Gather, list[TensorView], int, int], block_bytes: int
) -> None:
    target = make_target(*drawn)
    step: StridedCopy = target.copies[0]
    least = int(np.prod(step.extents[1:]))
    for block in make_blocks(target, block_bytes):
        for piece in block.pieces:
            assert piece.span <= max(block_bytes // 2, least)


def test_a_cast_gives_one_quiet_nan_whatever_the_payload_and_the_place() -> None:
    patterns = [0x7F800001, 0x7FC12345, 0xFFC00000, 0xFFFFFFFF, 0x7F800000, 0x3F800000] * 7
    values = torch.tensor(patterns, dtype=torch.int64).to(torch.int32)
    from distconv.moving.devices import cast_block
    from distconv.tensors import FLOAT16

    cast, infinite = cast_block(values.view(torch.float32), BFLOAT16)
    assert cast.view(torch.int16).tolist() == [0x7FC0, 0x7FC0, 0x7FC0, 0x7FC0, 0x7F80, 0x3F80] * 7
    assert infinite == 0
    _cast, infinite = cast_block(torch.tensor([1e5, -1e5, float("inf"), 1.0]), FLOAT16)
    assert infinite == 2
