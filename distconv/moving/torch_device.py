"""Gathering and casting on a GPU, to the host's bytes: reads, both transfers and the gather overlap."""

import contextlib
import mmap
import threading
from collections.abc import Iterator, Sequence
from functools import partial

import torch

from distconv.errors import DeviceError
from distconv.layout.dtypes import DType
from distconv.moving.casts import cast_block, integer_of
from distconv.moving.devices import (
    GPU_BLOCK_BYTES,
    GPU_BLOCKS,
    Finish,
    HostDevice,
    Scales,
    is_what_was_read,
)
from distconv.moving.pieces import Piece

LOST = threading.Event()
"""Set when the GPU was lost: the process never gets it back, whichever of its threads noticed."""


class TorchDevice:
    """A device of torch's, for one thread.

    Each block on its way has a slot of its own. Their pinned memory and streams are made once, and used for unit
    after unit. What is too small to be worth a way there and back is done on the host.
    """

    depth = GPU_BLOCKS
    block_bytes = GPU_BLOCK_BYTES - mmap.PAGESIZE
    """Room is left for its place in a page: what is pinned is a power of two, whatever is asked for."""
    largest_block_bytes = block_bytes
    small_bytes = 512 << 10
    """A way there and back costs a quarter of a millisecond in launches and waits, as much as the host takes for this
    (H200, 2026-11-27)."""

    def __init__(self, name: str) -> None:
        """Take a device by torch's name for it; DeviceError where it has no memory left, or is lost."""
        with _explained():
            self._device = torch.device(name)
            self._slots = [_Slot(self._device) for _ in range(self.depth)]
        self._begun = 0

    def begin(self, size_bytes: int, place_bytes: int) -> memoryview:
        """Give the memory of the next slot."""
        self._begun += 1
        with _explained():
            return self._slot().content(size_bytes, place_bytes)

    def submit(
        self,
        content: memoryview,
        pieces: Sequence[Piece],
        elements: int,
        stored: DType,
        dtype: DType,
        scales: Scales | None = None,
    ) -> Finish:
        """Queue transfers and gather on the slot's stream."""
        slot = self._slot()
        if len(content) <= self.small_bytes:
            return slot.host.submit(content, pieces, elements, stored, dtype, scales)
        with _explained(), slot.queue():
            block = _gather(slot.send(len(content)).view(integer_of(stored)), pieces, elements)
            if dtype == stored:
                return partial(_finish, slot, slot.bring_back(block, 0))
            scale = None if scales is None else _spread(scales, elements, block.device)
            cast, became_infinite = cast_block(block.view(getattr(torch, stored.name)), dtype, scale)
            return partial(_finish, slot, slot.bring_back(cast, became_infinite))

    def _slot(self) -> "_Slot":
        return self._slots[self._begun % self.depth]


def _gather(source: torch.Tensor, pieces: Sequence[Piece], elements: int) -> torch.Tensor:
    """Put pieces, which lie one behind the other, into a block; all in elements."""
    if is_what_was_read(pieces, elements):
        return source
    block = torch.empty(elements, dtype=source.dtype, device=source.device)
    start = 0
    for piece in pieces:
        target = block.as_strided(piece.extents, piece.target_strides, piece.target_offset)
        target.copy_(source.as_strided(piece.extents, piece.source_strides, start))
        start += piece.span
    return block


def _spread(scales: Scales, elements: int, device: torch.device) -> torch.Tensor:
    """Give each element of a block its scale; what is sent is little."""
    sent = torch.frombuffer(scales.content, dtype=getattr(torch, scales.dtype.name)).to(device)
    return _gather(sent, scales.pieces, elements)


def _finish(slot: "_Slot", found: memoryview) -> tuple[memoryview, int]:
    with _explained():
        slot.wait()
        return found, slot.became_infinite()


class _Slot:
    """Host memory and a stream for one block on its way: there and, when it has left, back."""

    def __init__(self, device: torch.device) -> None:
        self.host = HostDevice()
        self._device = device
        self._is_gpu = device.type == "cuda"
        self._stream = torch.cuda.Stream(device) if self._is_gpu else None  # type: ignore[no-untyped-call]
        # A thread that waits by asking again and again takes a core from those that read and write.
        self._ended = torch.cuda.Event(blocking=True) if self._is_gpu else None  # type: ignore[no-untyped-call]
        self._memory = self._host_memory(0, torch.uint8)
        self._start = 0
        self._count = self._host_memory(1, torch.int64)

    def content(self, size_bytes: int, place_bytes: int) -> memoryview:
        """Give memory that the stream reads from, which lies in its page as the block does in its file's."""
        # As its elements must be aligned on the device, its own are.
        self._start = place_bytes % mmap.PAGESIZE & ~7
        return self._at_start(size_bytes).numpy().data

    def queue(self) -> contextlib.AbstractContextManager[object]:
        """Queue what happens in the block on the slot's stream."""
        return torch.cuda.stream(self._stream) if self._stream is not None else contextlib.nullcontext()

    def send(self, size_bytes: int) -> torch.Tensor:
        """Queue the way to the device."""
        there = torch.empty(size_bytes, dtype=torch.uint8, device=self._device)
        return there.copy_(self._at_start(size_bytes), non_blocking=True)

    def bring_back(self, block: torch.Tensor, became_infinite: torch.Tensor | int) -> memoryview:
        """Queue the way back to the host, with the count; gives where the block will lie."""
        # The stream has read what lies there before it writes.
        found = self._at_start(block.numel() * block.element_size())
        found.copy_(block.view(torch.uint8), non_blocking=True)
        if isinstance(became_infinite, int):
            self._count.fill_(became_infinite)
        else:
            self._count[0].copy_(became_infinite, non_blocking=True)
        if self._ended is not None:
            self._ended.record(self._stream)
        return found.numpy().data

    def wait(self) -> None:
        """Wait until the stream has done what was queued."""
        if self._ended is not None:
            self._ended.synchronize()

    def became_infinite(self) -> int:
        """Give the count that came back with the block."""
        return int(self._count)

    def _at_start(self, size_bytes: int) -> torch.Tensor:
        if self._start + size_bytes > len(self._memory):
            at_once = GPU_BLOCK_BYTES if self._is_gpu else 0
            self._memory = self._host_memory(max(self._start + size_bytes, at_once), torch.uint8)
        return self._memory[self._start : self._start + size_bytes]

    def _host_memory(self, elements: int, dtype: torch.dtype) -> torch.Tensor:
        return torch.empty(elements, dtype=dtype, pin_memory=self._is_gpu and elements > 0)


@contextlib.contextmanager
def _explained() -> Iterator[None]:
    """Raise DeviceError for what a GPU had no memory for, and where it is lost."""
    try:
        yield
    except RuntimeError as error:
        said = str(error).strip().partition("\n")[0]
        if isinstance(error, torch.OutOfMemoryError) or ("CUDA" in said and "out of memory" in said):
            raise DeviceError(
                f"the GPU, or memory that it can reach, is full ({said}); wait until others give some back, put "
                "fewer workers on a GPU (`gpus_per_worker=`), or use `device='cpu'`"
            ) from error
        if "CUDA" not in said:
            raise
        LOST.set()
        raise DeviceError(
            f"the GPU is lost to this process ({said}), which goes on with the CPU, to the same bytes; "
            "the kernel's log and nvidia-smi tell more"
        ) from error
