"""Gathering and casting on the host or on a GPU, to the same bytes.

Elements are moved as integers, so that no bit of a NaN changes. A cast happens on gathered,
contiguous elements, and every NaN becomes the one quiet NaN of the new type: what hardware
makes of a NaN's payload differs between devices, and even within one vector.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

from distconv.moving.bands import Piece
from distconv.tensors import DType

if TYPE_CHECKING:
    import torch

_QUIET_NAN = {"float16": 0x7E00, "bfloat16": 0x7FC0, "float32": 0x7FC00000, "float64": 0x7FF8000000000000}


class Device(Protocol):
    """Where a block is put together."""

    def gather(
        self, sources: Sequence[tuple[Piece, memoryview]], size_bytes: int, stored: DType
    ) -> memoryview:
        """Put pieces, each with the bytes of its span, into one block of this size."""

    def gather_and_cast(
        self, sources: Sequence[tuple[Piece, memoryview]], size_bytes: int, stored: DType, dtype: DType
    ) -> tuple[memoryview, int]:
        """Gather, then cast; also tells how many finite elements became infinite."""


class HostDevice:
    """Gathers with NumPy, which is at hand long before torch; loads torch for casts only.

    What it gives is overwritten by the next block.
    """

    def __init__(self) -> None:
        """Start with no memory."""
        self._memory = bytearray()

    def gather(
        self, sources: Sequence[tuple[Piece, memoryview]], size_bytes: int, stored: DType
    ) -> memoryview:
        """Put pieces together in host memory."""
        import numpy as np
        from numpy.lib.stride_tricks import as_strided

        unit = stored.size_bytes
        if size_bytes > len(self._memory):
            self._memory = bytearray(size_bytes)
        block = np.frombuffer(self._memory, dtype=f"u{unit}", count=size_bytes // unit)
        for piece, content in sources:
            source = np.frombuffer(content, dtype=block.dtype)
            np.copyto(
                as_strided(
                    block[piece.target_offset :], piece.extents, [unit * n for n in piece.target_strides]
                ),
                as_strided(source, piece.extents, [unit * n for n in piece.source_strides]),
            )
        return block.view(np.uint8).data

    def gather_and_cast(
        self, sources: Sequence[tuple[Piece, memoryview]], size_bytes: int, stored: DType, dtype: DType
    ) -> tuple[memoryview, int]:
        """Gather in host memory, cast with torch."""
        import torch

        gathered = self.gather(sources, size_bytes, stored)
        block = torch.frombuffer(gathered, dtype=getattr(torch, stored.name))
        cast, became_infinite = cast_block(block, dtype)
        return _host_bytes(cast), became_infinite


class TorchDevice:
    """Gathers and casts on a torch device."""

    def __init__(self, name: str) -> None:
        """Take a device by torch's name for it."""
        import torch

        self._device = torch.device(name)

    def gather(
        self, sources: Sequence[tuple[Piece, memoryview]], size_bytes: int, stored: DType
    ) -> memoryview:
        """Put pieces together on the device and bring the block back."""
        return _host_bytes(self._gather(sources, size_bytes, stored))

    def gather_and_cast(
        self, sources: Sequence[tuple[Piece, memoryview]], size_bytes: int, stored: DType, dtype: DType
    ) -> tuple[memoryview, int]:
        """Gather and cast on the device and bring the block back."""
        import torch

        block = self._gather(sources, size_bytes, stored).view(getattr(torch, stored.name))
        cast, became_infinite = cast_block(block, dtype)
        return _host_bytes(cast), became_infinite

    def _gather(
        self, sources: Sequence[tuple[Piece, memoryview]], size_bytes: int, stored: DType
    ) -> "torch.Tensor":
        import torch

        integer = {2: torch.int16, 4: torch.int32, 8: torch.int64}[stored.size_bytes]
        block = torch.empty(size_bytes // stored.size_bytes, dtype=integer, device=self._device)
        for piece, content in sources:
            source = torch.frombuffer(content, dtype=integer).to(self._device)
            target = block.as_strided(piece.extents, piece.target_strides, piece.target_offset)
            target.copy_(source.as_strided(piece.extents, piece.source_strides))
        return block


def cast_block(block: "torch.Tensor", dtype: DType) -> tuple["torch.Tensor", int]:
    """Cast contiguous elements; returns them with the number of finite ones that became infinite."""
    import torch

    cast = block.to(getattr(torch, dtype.name))
    nan = block.isnan()
    if bool(nan.any()):
        integer = {2: torch.int16, 4: torch.int32, 8: torch.int64}[dtype.size_bytes]
        cast.view(integer)[nan] = _QUIET_NAN[dtype.name]
    infinite = cast.isinf() & ~block.isinf()
    return cast, int(infinite.sum())


def _host_bytes(block: "torch.Tensor") -> memoryview:
    import torch

    found: memoryview = block.cpu().view(torch.uint8).numpy().data
    return found


def open_device(name: str) -> Device:
    """Open ``cpu`` or ``cuda``."""
    return HostDevice() if name == "cpu" else TorchDevice(name)
