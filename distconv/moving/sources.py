"""INPUT's files as a unit of work reads them, and the contents that are made of what they hold.

Memory is bounded by a few blocks, whatever the model's size.
"""

from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Self

from distconv.formats.meta.archive import locate_data
from distconv.layout.files import OutputTensor
from distconv.layout.regions import Region
from distconv.moving.bands import Block, make_blocks
from distconv.moving.devices import Device, Finish
from distconv.moving.pieces import Piece
from distconv.moving.spans import GATHER, READ, Spans
from distconv.storage.base import Reader, Storage, opened


class Sources:
    """The open input files of one unit of work; reads pieces and counts the bytes."""

    def __init__(self, storage: Storage, spans: Spans | None = None) -> None:
        """Start with no file open."""
        self.bytes_read = 0
        self.spans = spans or Spans()
        self._storage = storage
        self._stack = ExitStack()
        self._readers: dict[str, Reader] = {}
        self._data_offsets: dict[Region, int] = {}

    def __enter__(self) -> Self:
        """Use it in a ``with`` block."""
        return self

    def __exit__(self, *_exception: object) -> None:
        """Close all files."""
        self._stack.close()

    def read(self, piece: Piece, unit_bytes: int) -> memoryview:
        """Read what a piece needs into memory of its own."""
        buffer = memoryview(bytearray(piece.span * unit_bytes))
        self._read_into(piece, unit_bytes, buffer)
        return buffer

    def read_block(self, pieces: Sequence[Piece], unit_bytes: int, content: memoryview) -> None:
        """Read what a block's pieces need into memory, one behind the other."""
        start = 0
        for piece in pieces:
            end = start + piece.span * unit_bytes
            self._read_into(piece, unit_bytes, content[start:end])
            start = end

    def _read_into(self, piece: Piece, unit_bytes: int, buffer: memoryview) -> None:
        reader = self._readers.get(piece.region.path)
        if reader is None:
            reader = self._stack.enter_context(opened(self._storage, piece.region.path))
            self._readers[piece.region.path] = reader
        start = self._data_offsets.get(piece.region)
        if start is None:
            start = self._data_offsets[piece.region] = locate_data(reader, piece.region)
        size, position = piece.run * unit_bytes, 0
        for offset in piece.offsets():
            end = position + size
            reader.read_into(start + offset * unit_bytes, buffer[position:end])
            position = end
        self.bytes_read += len(buffer)


def make_contents(
    tensor: OutputTensor,
    sources: Sources,
    device: Device,
    block_bytes: int | None = None,
    start_bytes: int = 0,
) -> Iterator[tuple[Block, memoryview, int]]:
    """Give each block of a tensor with its finished bytes, and how many elements became infinite.

    Without ``block_bytes`` blocks are of the device's sizes. ``start_bytes`` is where the tensor
    begins in its file. The bytes are good until the next block is asked for.
    """
    unit = tensor.stored.size_bytes
    waiting: deque[tuple[Block, Finish]] = deque()
    # A cast takes several times its block.
    largest = 0 if block_bytes or tensor.dtype != tensor.stored else device.largest_block_bytes
    for block in make_blocks(tensor, block_bytes or device.block_bytes, largest):
        # A cast wants its elements aligned, and gives memory of its own.
        place = start_bytes + block.target_offset * unit if tensor.dtype == tensor.stored else 0
        content = device.begin(sum(piece.span for piece in block.pieces) * unit, place)
        with sources.spans.during(READ, len(content)):
            sources.read_block(block.pieces, unit, content)
        if tensor.dtype == tensor.stored and len(block.pieces) == 1 and block.pieces[0].is_straight:
            waiting.append((block, partial(_give, content)))
        else:
            with sources.spans.during(GATHER, len(content)):
                finish = device.submit(content, block.pieces, block.elements, tensor.stored, tensor.dtype)
            waiting.append((block, finish))
        if len(waiting) >= device.depth:
            yield _finish(*waiting.popleft(), sources.spans)
    while waiting:
        yield _finish(*waiting.popleft(), sources.spans)


def _give(content: memoryview) -> tuple[memoryview, int]:
    return content, 0


def _finish(block: Block, finish: Finish, spans: Spans) -> tuple[Block, memoryview, int]:
    with spans.during(GATHER, 0):
        return block, *finish()
