"""Gathering and casting on the host or on a GPU, to the same bytes.

Elements are moved as integers, so that no bit of a NaN changes. A cast happens on gathered,
contiguous elements, and every NaN becomes the one quiet NaN of the new type: what hardware
makes of a NaN's payload differs between devices, and even within one vector.
"""

import contextlib
import importlib
import mmap
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Protocol

from distconv.layout.dtypes import DType
from distconv.moving.pieces import Piece
from distconv.storage.memory import make_buffer

if TYPE_CHECKING:
    import torch

_QUIET_NAN = {"float16": 0x7E00, "bfloat16": 0x7FC0, "float32": 0x7FC00000, "float64": 0x7FF8000000000000}

Finish = Callable[[], tuple[memoryview, int]]
"""Waits for a block: its bytes, and how many finite elements became infinite."""


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
        self, content: memoryview, pieces: Sequence[Piece], elements: int, stored: DType, dtype: DType
    ) -> Finish:
        """Start to put the pieces into a block of so many elements, cast where ``dtype`` differs."""


class HostDevice:
    """Gathers with NumPy, which is at hand long before torch; loads torch for casts only."""

    depth = 1
    block_bytes = 4 << 20
    """Source and block together stay in the cache."""
    largest_block_bytes = 16 << 20

    def __init__(self) -> None:
        """Start with no memory."""
        self._content = self._block = make_buffer(0)
        self._phase = 0

    def begin(self, size_bytes: int, place_bytes: int) -> memoryview:
        """Give the same memory every time: fresh pages cost as much as reading into them does."""
        self._phase = place_bytes % mmap.PAGESIZE
        if self._phase + size_bytes > len(self._content):
            self._content = make_buffer(mmap.PAGESIZE + size_bytes)
        return self._content[self._phase : self._phase + size_bytes]

    def submit(
        self, content: memoryview, pieces: Sequence[Piece], elements: int, stored: DType, dtype: DType
    ) -> Finish:
        """Do it at once."""
        gathered = self._gather(content, pieces, elements, stored)
        if dtype == stored:
            return lambda: (gathered, 0)
        import torch

        cast, became_infinite = cast_block(
            torch.frombuffer(gathered, dtype=getattr(torch, stored.name)), dtype
        )
        found: memoryview = cast.view(torch.uint8).numpy().data
        return lambda: (found, int(became_infinite))

    def _gather(
        self, content: memoryview, pieces: Sequence[Piece], elements: int, stored: DType
    ) -> memoryview:
        import numpy as np

        unit = stored.size_bytes
        kind = np.dtype(f"u{unit}")
        if self._phase + elements * unit > len(self._block):
            self._block = make_buffer(mmap.PAGESIZE + elements * unit)

        def view(
            memory: memoryview, offset: int, extents: tuple[int, ...], strides: tuple[int, ...]
        ) -> "np.ndarray[tuple[int, ...], np.dtype[np.unsignedinteger]]":
            # The constructor refuses what would reach beyond the memory, and costs a fifth of as_strided.
            return np.ndarray(extents, kind, memory, offset * unit, [unit * n for n in strides])

        block = self._block[self._phase : self._phase + elements * unit]
        start = 0
        for piece in pieces:
            np.copyto(
                view(block, piece.target_offset, piece.extents, piece.target_strides),
                view(content, start, piece.extents, piece.source_strides),
            )
            start += piece.span
        return block


class TorchDevice:
    """Gathers and casts on a torch device: reads, both transfers and the gather overlap.

    Each block on its way has a slot of its own with pinned memory and a stream.
    """

    depth = 3
    block_bytes = 16 << 20
    """What keeps a PCIe link busy while two more such blocks wait."""
    largest_block_bytes = block_bytes

    def __init__(self, name: str) -> None:
        """Take a device by torch's name for it."""
        import torch

        self._device = torch.device(name)
        self._slots = [_Slot(self._device) for _ in range(self.depth)]
        self._begun = 0

    def begin(self, size_bytes: int, place_bytes: int) -> memoryview:  # noqa: ARG002  pinned memory lies as it does
        """Give the memory of the next slot."""
        self._begun += 1
        return self._slot().content(size_bytes)

    def submit(
        self, content: memoryview, pieces: Sequence[Piece], elements: int, stored: DType, dtype: DType
    ) -> Finish:
        """Queue transfers and gather on the slot's stream."""
        import torch

        integer = _integer(stored)
        slot = self._slot()
        with slot.queue():
            source = slot.memory[: len(content)].to(self._device, non_blocking=True).view(integer)
            block = torch.empty(elements, dtype=integer, device=self._device)
            start = 0
            for piece in pieces:
                target = block.as_strided(piece.extents, piece.target_strides, piece.target_offset)
                target.copy_(source.as_strided(piece.extents, piece.source_strides, start))
                start += piece.span
            if dtype == stored:
                return slot.bring_back(block, None)
            return slot.bring_back(*cast_block(block.view(getattr(torch, stored.name)), dtype))

    def _slot(self) -> "_Slot":
        return self._slots[self._begun % self.depth]


class _Slot:
    """Host memory and a stream for one block on its way: there and, when it has left, back."""

    def __init__(self, device: "torch.device") -> None:
        import torch

        self._is_gpu = device.type == "cuda"
        self._stream = torch.cuda.Stream(device) if self._is_gpu else None  # type: ignore[no-untyped-call]
        self.memory = self._host_memory(0)

    def content(self, size_bytes: int) -> memoryview:
        """Give memory that the stream reads from."""
        return self._memory_of(size_bytes).numpy().data[:size_bytes]

    def queue(self) -> contextlib.AbstractContextManager[object]:
        """Queue what happens in the block on the slot's stream."""
        import torch

        return torch.cuda.stream(self._stream) if self._stream is not None else contextlib.nullcontext()

    def bring_back(self, block: "torch.Tensor", became_infinite: "torch.Tensor | None") -> Finish:
        """Queue the way back to the host, and give what waits for its end."""
        import torch

        size_bytes = block.numel() * block.element_size()
        memory = self._memory_of(size_bytes)
        # The stream has read what lies there before it writes.
        memory[:size_bytes].copy_(block.view(torch.uint8), non_blocking=True)
        ended = self._stream.record_event() if self._stream is not None else None
        content: memoryview = memory.numpy().data

        def finish() -> tuple[memoryview, int]:
            if ended is not None:
                ended.synchronize()
            return content[:size_bytes], 0 if became_infinite is None else int(became_infinite)

        return finish

    def _memory_of(self, size_bytes: int) -> "torch.Tensor":
        if size_bytes > len(self.memory):
            self.memory = self._host_memory(size_bytes)
        return self.memory

    def _host_memory(self, size_bytes: int) -> "torch.Tensor":
        import torch

        return torch.empty(size_bytes, dtype=torch.uint8, pin_memory=self._is_gpu and size_bytes > 0)


def cast_block(block: "torch.Tensor", dtype: DType) -> tuple["torch.Tensor", "torch.Tensor"]:
    """Cast contiguous elements; returns them with the number of finite ones that became infinite."""
    import torch

    cast = block.to(getattr(torch, dtype.name))
    nan = block.isnan()
    # To ask a GPU would mean to wait for it.
    if block.is_cuda or bool(nan.any()):
        cast.view(_integer(dtype)).masked_fill_(nan, _QUIET_NAN[dtype.name])
    return cast, (cast.isinf() & ~block.isinf()).sum()


def _integer(dtype: DType) -> "torch.dtype":
    import torch

    return {2: torch.int16, 4: torch.int32, 8: torch.int64}[dtype.size_bytes]


def open_device(name: str) -> Device:
    """Open ``cpu`` or ``cuda``."""
    return HostDevice() if name == "cpu" else TorchDevice(name)


def load_device(name: str) -> None:
    """Import what a device computes with, for those who can do so before the first block waits for it."""
    importlib.import_module("numpy" if name == "cpu" else "torch")
