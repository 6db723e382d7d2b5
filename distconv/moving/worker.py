"""Make one chunk: read its source spans, put them together, write the file.

Memory is bounded by a few blocks, whatever the model's size.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Self

from distconv.errors import Interrupted
from distconv.moving.bands import Block, Piece, make_blocks
from distconv.moving.devices import Device, open_device
from distconv.planning.plan import Chunk, TargetTensor
from distconv.source.archive import Record, locate_data
from distconv.storage import Reader, Storage, join, opened, read_range

BLOCK_BYTES = 4 << 20
"""What is read and gathered at once; a block of this size stays in the cache."""


@dataclass(frozen=True, slots=True)
class Job:
    """All that a worker must know besides its unit of work."""

    storage: Storage
    output: str
    device: str
    block_bytes: int = BLOCK_BYTES


@dataclass(frozen=True, slots=True)
class Receipt:
    """What was done for one chunk; ``kept`` says that it had been finished before."""

    chunk: str
    bytes_read: int
    bytes_written: int
    became_infinite: int = 0
    kept: bool = False


class Sources:
    """The open input files of one unit of work; reads pieces and counts the bytes."""

    def __init__(self, storage: Storage) -> None:
        """Start with no file open."""
        self.bytes_read = 0
        self._storage = storage
        self._stack = ExitStack()
        self._readers: dict[str, Reader] = {}
        self._data_offsets: dict[Record, int] = {}
        self._arena = memoryview(b"")

    def __enter__(self) -> Self:
        """Use it in a ``with`` block."""
        return self

    def __exit__(self, *_exception: object) -> None:
        """Close all files."""
        self._stack.close()

    def read(self, piece: Piece, unit_bytes: int) -> memoryview:
        """Read a piece's span into memory of its own."""
        buffer = memoryview(bytearray(piece.span * unit_bytes))
        self._read_into(piece, unit_bytes, buffer)
        return buffer

    def read_block(self, pieces: Sequence[Piece], unit_bytes: int) -> list[tuple[Piece, memoryview]]:
        """Read the spans of a block's pieces; they are overwritten when the next block is read.

        Fresh memory for every block would cost as much as reading into it does.
        """
        needed = sum(piece.span for piece in pieces) * unit_bytes
        if needed > len(self._arena):
            self._arena = memoryview(bytearray(needed))
        contents = []
        start = 0
        for piece in pieces:
            end = start + piece.span * unit_bytes
            self._read_into(piece, unit_bytes, self._arena[start:end])
            contents.append((piece, self._arena[start:end]))
            start = end
        return contents

    def _read_into(self, piece: Piece, unit_bytes: int, buffer: memoryview) -> None:
        reader = self._readers.get(piece.record.path)
        if reader is None:
            reader = self._stack.enter_context(opened(self._storage, piece.record.path))
            self._readers[piece.record.path] = reader
        start = self._data_offsets.get(piece.record)
        if start is None:
            start = self._data_offsets[piece.record] = locate_data(reader, piece.record)
        reader.read_into(start + piece.source_offset * unit_bytes, buffer)
        self.bytes_read += len(buffer)


def convert_chunk(
    job: Job, chunk: Chunk, advance: Callable[[int], None], stopped: Callable[[], bool]
) -> Receipt:
    """Write one chunk, unless it is there already.

    ``advance`` is told of output bytes as they are written; ``stopped`` is asked between
    blocks, and Interrupted raised when it says so. Whatever is raised, no file is left.
    """
    path = join(job.output, chunk.name)
    if is_finished(job.storage, path, chunk):
        advance(chunk.size_bytes)
        return Receipt(chunk.name, 0, 0, kept=True)
    # What is there is damaged or of another plan, and only a replacing commit takes its place.
    stale = job.storage.find(path) is not None
    device = open_device(job.device)
    became_infinite = 0
    writer = job.storage.begin(path, chunk.size_bytes)
    try:
        with Sources(job.storage) as sources:
            writer.write_at(0, chunk.header)
            advance(len(chunk.header))
            for tensor, start in zip(chunk.tensors, chunk.offsets_bytes, strict=True):
                for block, content, infinite in make_contents(tensor, sources, device, job.block_bytes):
                    if stopped():
                        raise Interrupted("stopped")
                    writer.write_at(start + block.target_offset * tensor.dtype.size_bytes, content)
                    advance(len(content))
                    became_infinite += infinite
        writer.commit(replace=stale)
    except BaseException:
        writer.abort()
        raise
    return Receipt(chunk.name, sources.bytes_read, chunk.size_bytes, became_infinite)


def make_contents(
    tensor: TargetTensor, sources: Sources, device: Device, block_bytes: int
) -> Iterator[tuple[Block, memoryview, int]]:
    """Give each block of a tensor with its finished bytes, and how many elements became infinite.

    The bytes are good until the next block is asked for.
    """
    unit = tensor.stored.size_bytes
    for block in make_blocks(tensor, block_bytes):
        contents = sources.read_block(block.pieces, unit)
        if tensor.dtype != tensor.stored:
            cast, infinite = device.gather_and_cast(
                contents, block.elements * unit, tensor.stored, tensor.dtype
            )
            yield block, cast, infinite
        elif len(block.pieces) == 1 and block.pieces[0].is_straight:
            yield block, contents[0][1], 0
        else:
            yield block, device.gather(contents, block.elements * unit, tensor.stored), 0


def is_finished(storage: Storage, path: str, chunk: Chunk) -> bool:
    """Whether a file is there with this chunk's size and header."""
    entry = storage.find(path)
    if entry is None or entry.size_bytes != chunk.size_bytes:
        return False
    with opened(storage, path) as reader:
        return read_range(reader, 0, len(chunk.header)) == chunk.header
