"""Gathering and casting: what every device can do, and the host's way of it.

Elements are moved as integers, so that no bit of a NaN changes; a cast happens on gathered, contiguous elements.
"""

import mmap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from distconv.layout.dtypes import DType
from distconv.moving.pieces import Piece
from distconv.storage.memory import make_buffer

if TYPE_CHECKING:
    import numpy as np

GPU_BLOCKS = 3
"""How many blocks are on their way through a GPU at once, for each lane: read, gathered, written."""
GPU_BLOCK_BYTES = 16 << 20
"""What keeps a PCIe link busy while the others wait; as much is pinned for each block."""
GPU_MEMORY_BYTES = GPU_BLOCKS * 6 * GPU_BLOCK_BYTES
"""At most, for each lane: what is read, the block, its cast, and what finds NaNs and infinities."""

Finish = Callable[[], tuple[memoryview, int]]
"""Waits for a block: its bytes, and how many finite elements became infinite."""


@dataclass(frozen=True, slots=True)
class Scales:
    """What the elements of a block are multiplied by before they are cast.

    The pieces lie in ``content`` one behind the other, and fill as many elements as the block has.
    """

    content: memoryview
    pieces: tuple[Piece, ...]
    dtype: DType


class Device(Protocol):
    """Where blocks are put together; one thread uses it.

    For each block ``begin`` gives memory, the caller fills it with the source's bytes, one
    piece behind the other, and ``submit`` takes it from there. All memory is used again when
    ``depth`` more blocks have begun.
    """

    depth: int
    """How many blocks may be on their way at once."""
    block_bytes: int
    """A good size of a block."""
    largest_block_bytes: int
    """What a block may grow to where that saves requests."""

    def begin(self, size_bytes: int, place_bytes: int) -> memoryview:
        """Give memory for the source bytes of one more block.

        ``place_bytes`` is where in its file the block will go. Memory that lies in its page as the
        block lies in the file's is written faster.
        """

    def submit(
        self,
        content: memoryview,
        pieces: Sequence[Piece],
        elements: int,
        stored: DType,
        dtype: DType,
        scales: Scales | None = None,
    ) -> Finish:
        """Start to put the pieces into a block of so many elements, scaled and cast where ``dtype`` differs."""


def is_what_was_read(pieces: Sequence[Piece], elements: int) -> bool:
    """Whether a block of so many elements is what its pieces read, as it is."""
    return len(pieces) == 1 and pieces[0].is_straight and pieces[0].span == elements


class HostDevice:
    """Gathers with NumPy, which is at hand long before torch; loads torch for casts only."""

    depth = 1
    block_bytes = 4 << 20
    """Source and block together stay in the cache."""
    largest_block_bytes = 16 << 20

    def __init__(self) -> None:
        """Start with no memory."""
        self._content = self._block = self._scale = self._cast = make_buffer(0)
        self._phase = 0

    def begin(self, size_bytes: int, place_bytes: int) -> memoryview:
        """Give the same memory every time: fresh pages cost as much as reading into them does."""
        self._phase = place_bytes % mmap.PAGESIZE
        if self._phase + size_bytes > len(self._content):
            self._content = make_buffer(mmap.PAGESIZE + size_bytes)
        return self._content[self._phase : self._phase + size_bytes]

    def submit(
        self,
        content: memoryview,
        pieces: Sequence[Piece],
        elements: int,
        stored: DType,
        dtype: DType,
        scales: Scales | None = None,
    ) -> Finish:
        """Do it at once."""
        if is_what_was_read(pieces, elements):
            gathered = content
        else:
            gathered = self._gather(content, pieces, elements, stored)
        if dtype == stored:
            return lambda: (gathered, 0)
        import torch

        from distconv.moving.casts import cast_block

        def take(memory: memoryview, kind: DType) -> torch.Tensor:
            return torch.frombuffer(memory, dtype=getattr(torch, kind.name))

        scale = None if scales is None else take(self._gather_scales(scales, elements), scales.dtype)
        size = elements * dtype.size_bytes
        if size > len(self._cast):
            self._cast = make_buffer(size)
        found = self._cast[:size]
        _cast, became_infinite = cast_block(take(gathered, stored), dtype, scale, take(found, dtype))
        return lambda: (found, int(became_infinite))

    def _gather(
        self, content: memoryview, pieces: Sequence[Piece], elements: int, stored: DType
    ) -> memoryview:
        size = elements * stored.size_bytes
        if self._phase + size > len(self._block):
            self._block = make_buffer(mmap.PAGESIZE + size)
        block = self._block[self._phase : self._phase + size]
        _gather(content, pieces, block, stored.size_bytes)
        return block

    def _gather_scales(self, scales: Scales, elements: int) -> memoryview:
        size = elements * scales.dtype.size_bytes
        if size > len(self._scale):
            self._scale = make_buffer(size)
        _gather(scales.content, scales.pieces, self._scale[:size], scales.dtype.size_bytes)
        return self._scale[:size]


def _gather(content: memoryview, pieces: Sequence[Piece], block: memoryview, unit: int) -> None:
    """Put pieces, which lie one behind the other, into a block; elements are of ``unit`` bytes."""
    import numpy as np

    kind = np.dtype(f"u{unit}")

    def view(
        memory: memoryview, offset: int, extents: tuple[int, ...], strides: tuple[int, ...]
    ) -> "np.ndarray[tuple[int, ...], np.dtype[np.unsignedinteger]]":
        # The constructor refuses what would reach beyond the memory, and costs a fifth of as_strided.
        return np.ndarray(extents, kind, memory, offset * unit, [unit * n for n in strides])

    start = 0
    for piece in pieces:
        np.copyto(
            view(block, piece.target_offset, piece.extents, piece.target_strides),
            view(content, start, piece.extents, piece.source_strides),
        )
        start += piece.span
