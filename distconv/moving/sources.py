"""INPUT's files as a unit of work reads them."""

import threading
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Self

from distconv.formats.meta.archive import locate_data
from distconv.layout.regions import ZEROS, Region
from distconv.moving.pieces import Piece
from distconv.moving.spans import Spans
from distconv.storage.base import LOCAL_ACCESS, Reader, Storage, opened
from distconv.storage.memory import make_buffer
from distconv.storage.window import read_by_windows

_SCALE_WINDOW_BYTES = 256 << 10
"""Of a file of scales, of which each block wants a few kilobytes, and the next one the same or what follows."""


class ZeroReader(Reader):
    """What is read where nothing is stored."""

    path = ZEROS.path
    size_bytes = ZEROS.size_bytes
    access = LOCAL_ACCESS

    def read_into(self, offset_bytes: int, buffer: memoryview) -> None:  # noqa: ARG002
        """Fill the buffer with zeros."""
        buffer[:] = bytes(len(buffer))

    def close(self) -> None:
        """There is nothing to let go of."""


class Sources:
    """The open input files of one unit of work; reads pieces and counts the bytes. Several threads may read."""

    def __init__(self, storage: Storage, spans: Spans | None = None) -> None:
        """Start with no file open."""
        self.bytes_read = 0
        self.spans = spans or Spans()
        self.data_offsets: dict[Region, int] = {}
        """Where data begins, as far as that is known."""
        self._storage = storage
        self._stack = ExitStack()
        self._readers: dict[str, Reader] = {ZEROS.path: ZeroReader()}
        self._opening = threading.Lock()

    def __enter__(self) -> Self:
        """Use it in a ``with`` block."""
        return self

    def __exit__(self, *_exception: object) -> None:
        """Close all files."""
        self._stack.close()

    def open(self, path: str) -> Reader:
        """Open a file, once; it is closed with the others."""
        with self._opening:
            reader = self._readers.get(path)
            if reader is None:
                reader = self._readers[path] = self._stack.enter_context(opened(self._storage, path))
            return reader

    def locate(self, region: Region) -> int:
        """Give where a region's data begins in its file."""
        start = self.data_offsets.get(region)
        if start is None:
            start = self.data_offsets[region] = locate_data(self.open(region.path), region)
        return start

    def read(self, piece: Piece, unit_bytes: int) -> memoryview:
        """Read what a piece needs into memory of its own."""
        buffer = make_buffer(piece.span * unit_bytes)
        self._read_into(piece, unit_bytes, buffer)
        return buffer

    def read_block(self, pieces: Sequence[Piece], unit_bytes: int, content: memoryview) -> None:
        """Read what a block's pieces need into memory, one behind the other."""
        start = 0
        for piece in pieces:
            end = start + piece.span * unit_bytes
            self._read_into(piece, unit_bytes, content[start:end])
            start = end

    def read_scales(self, pieces: Sequence[Piece], unit_bytes: int) -> memoryview:
        """Read what a block's scales need, one behind the other; they are not counted, as they are read for each block."""
        counted = self.bytes_read
        for path in {piece.region.path for piece in pieces} - self._readers.keys():
            reader = self._stack.enter_context(opened(self._storage, path))
            self._readers[path] = read_by_windows(reader, _SCALE_WINDOW_BYTES)
        content = memoryview(bytearray(sum(piece.span for piece in pieces) * unit_bytes))
        self.read_block(pieces, unit_bytes, content)
        self.bytes_read = counted
        return content

    def _read_into(self, piece: Piece, unit_bytes: int, buffer: memoryview) -> None:
        reader = self.open(piece.region.path)
        start = self.locate(piece.region)
        size, position = piece.run * unit_bytes, 0
        for offset in piece.offsets():
            end = position + size
            reader.read_into(start + offset * unit_bytes, buffer[position:end])
            position = end
        self.count(piece.region, len(buffer))

    def count(self, region: Region, size_bytes: int) -> None:
        """Count what was read of INPUT."""
        if region.is_stored:
            self.bytes_read += size_bytes
