"""The contents that are made of what INPUT's files hold, block by block.

Memory is bounded by a few blocks, whatever the model's size.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial

from distconv.layout.files import OutputTensor
from distconv.layout.regions import Region
from distconv.moving.ahead import Ahead
from distconv.moving.bands import Block, make_blocks
from distconv.moving.devices import Device, Finish, HostDevice, is_what_was_read
from distconv.moving.ranges import Wanted, cut_ranges, split_range
from distconv.moving.scales import read_scales
from distconv.moving.sources import Sources
from distconv.moving.spans import GATHER, READ
from distconv.storage.base import LOCAL_ACCESS, Access

_FAR_BLOCK_BYTES = 2 << 20
"""What is read ahead ends where a block does: with small ones ranges are alike, and their memory is used again."""


class Contents:
    """The finished bytes of some tensors, which are to be had in their order."""

    def __init__(
        self,
        tensors: Sequence[OutputTensor],
        starts_bytes: Sequence[int],
        sources: Sources,
        device: Device,
        block_bytes: int | None = None,
        stopped: Callable[[], bool] = lambda: False,
    ) -> None:
        """Take the tensors, and where in its file each begins.

        Without ``block_bytes`` blocks are of the device's sizes. Interrupted where ``stopped`` says so
        while an answer is waited for.
        """
        self._tensors, self._starts = tensors, starts_bytes
        self._sources, self._device, self._block_bytes = sources, device, block_bytes
        self._flow = self._make(stopped)
        self._next = next(self._flow, None)

    def of(self, place: int) -> Iterator[tuple[Block, memoryview, int]]:
        """Give each block of a tensor with its bytes, and how many elements became infinite.

        The bytes are good until the next block is asked for.
        """
        while self._next is not None and self._next[0] == place:
            yield self._next[1:]
            self._next = next(self._flow, None)

    def _make(self, stopped: Callable[[], bool]) -> Iterator[tuple[int, Block, memoryview, int]]:
        waiting: deque[tuple[int, Block, Finish]] = deque()
        for wanted, content in self._read(stopped):
            tensor, block = self._tensors[wanted.place], wanted.block
            if _is_straight(tensor, block):
                finish: Finish = partial(_give, content)
            else:
                with self._sources.spans.during(READ, 0):
                    scales = read_scales(tensor, block, self._sources)
                with self._sources.spans.during(GATHER, len(content)):
                    finish = self._device.submit(
                        content, block.pieces, block.elements, tensor.stored, tensor.dtype, scales
                    )
            waiting.append((wanted.place, block, finish))
            if len(waiting) >= self._device.depth:
                yield self._finish(*waiting.popleft())
        while waiting:
            yield self._finish(*waiting.popleft())

    def _finish(self, place: int, block: Block, finish: Finish) -> tuple[int, Block, memoryview, int]:
        with self._sources.spans.during(GATHER, 0):
            return place, block, *finish()

    def _read(self, stopped: Callable[[], bool]) -> Iterator[tuple[Wanted, memoryview]]:
        """Give each block with what its pieces read, one behind the other."""
        access = self._find_access()
        spans = self._sources.spans
        if not access.ahead_bytes:
            for wanted in self._list_blocks(access):
                content = self._begin(wanted)
                with spans.during(READ, len(content)):
                    self._sources.read_block(wanted.block.pieces, wanted.unit_bytes, content)
                yield wanted, content
            return
        found = Ahead(self._sources, access, stopped).read(self._list_blocks(access))
        while True:
            with spans.during(READ, 0):
                one = next(found, None)
            if one is None:
                return
            wanted, runs = one
            # What was read is overwritten while blocks wait in a device that takes several.
            if self._device.depth == 1 and _is_straight(self._tensors[wanted.place], wanted.block):
                parts = _split(wanted, self._tensors[wanted.place], [len(run) for run in runs])
                if parts is not None:
                    yield from zip(parts, runs, strict=True)
                    continue
            content, start = self._begin(wanted), 0
            for run in runs:
                content[start : start + len(run)] = run
                start += len(run)
            yield wanted, content

    def _begin(self, wanted: Wanted) -> memoryview:
        tensor, block = self._tensors[wanted.place], wanted.block
        # A cast wants its elements aligned, and gives memory of its own.
        is_cast = tensor.dtype != tensor.stored
        offset = block.target_offset // tensor.stacked * wanted.unit_bytes
        start = 0 if is_cast else self._starts[wanted.place] + offset
        return self._device.begin(sum(piece.span for piece in block.pieces) * wanted.unit_bytes, start)

    def _list_blocks(self, access: Access) -> Iterator[Wanted]:
        if self._block_bytes:
            return list_blocks(self._tensors, access, self._block_bytes, 0)
        size, host = self._device.block_bytes, HostDevice.block_bytes
        straight = None if size == host else host
        return list_blocks(self._tensors, access, size, self._device.largest_block_bytes, straight)

    def _find_access(self) -> Access:
        """Tell how INPUT is read, all of which lies in one place."""
        region = find_stored(self._tensors)
        return LOCAL_ACCESS if region is None else self._sources.open(region.path).access


def find_stored(tensors: Iterable[OutputTensor]) -> Region | None:
    """Give a region of INPUT that tensors are made of; None where nothing is read for them."""
    regions = (copy.region for tensor in tensors for copy in tensor.copies)
    return next((region for region in regions if region.is_stored), None)


def list_blocks(
    tensors: Sequence[OutputTensor],
    access: Access,
    block_bytes: int,
    largest_bytes: int,
    straight_bytes: int | None = None,
) -> Iterator[Wanted]:
    """Cut some tensors into the blocks that are read, see ``make_blocks``.

    With ``straight_bytes`` blocks that are what is read are no larger: they pass the host's cache only.
    """
    gap_bytes = 0
    if access.ahead_bytes:
        gap_bytes, block_bytes = access.gap_bytes, min(block_bytes, _FAR_BLOCK_BYTES)
    for place, tensor in enumerate(tensors):
        # A cast takes several times its block.
        largest = 0 if tensor.dtype != tensor.stored else largest_bytes
        size = block_bytes
        if straight_bytes is not None:
            first = next(make_blocks(tensor, straight_bytes, 0, gap_bytes), None)
            size = block_bytes if first is None or not _is_straight(tensor, first) else straight_bytes
        for block in make_blocks(tensor, size, largest, gap_bytes):
            yield Wanted(place, block, tensor.stored.size_bytes)


def expect_requests(tensors: Sequence[OutputTensor], access: Access) -> int:
    """Tell how many requests bring the data of a unit's tensors on the host, if none is sent twice."""
    blocks = list_blocks(tensors, access, HostDevice.block_bytes, HostDevice.largest_block_bytes)
    ranges = cut_ranges(blocks, access)
    return sum(split_range(one.size_bytes, access) for one in ranges if one.region.is_stored)


def make_contents(
    tensor: OutputTensor, sources: Sources, device: Device, block_bytes: int | None = None
) -> Iterator[tuple[Block, memoryview, int]]:
    """Give each block of one tensor with its finished bytes, as ``Contents`` does."""
    return Contents((tensor,), (0,), sources, device, block_bytes).of(0)


def _is_straight(tensor: OutputTensor, block: Block) -> bool:
    """Whether a block is what is read, as it is."""
    return tensor.dtype == tensor.stored and is_what_was_read(block.pieces, block.elements)


def _split(wanted: Wanted, tensor: OutputTensor, sizes_bytes: Sequence[int]) -> list[Wanted] | None:
    """Cut a block that is what is read, in one run or several of these sizes.

    None where that cuts elements, or a run of each of several tensors that are stacked.
    """
    if len(sizes_bytes) == 1:
        return [wanted]
    if tensor.stacked > 1:
        return None
    (piece,) = wanted.block.pieces
    if any(size % wanted.unit_bytes for size in sizes_bytes):
        return None
    found, offset = [], wanted.block.target_offset
    for size in sizes_bytes:
        elements = size // wanted.unit_bytes
        part = replace(
            piece, source_offset=piece.source_offset + offset - wanted.block.target_offset, span=elements,
            extents=(elements,), source_strides=(1,), target_strides=(1,),
        )  # fmt: skip
        found.append(replace(wanted, block=Block(offset, elements, (part,))))
        offset += elements
    return found


def _give(content: memoryview) -> tuple[memoryview, int]:
    return content, 0
