"""Casts: the same bytes on the host and on a GPU.

Every NaN becomes the one quiet NaN of the new type: what hardware makes of a NaN's payload differs between
devices, and even within one vector.

On the host lanes are what runs in parallel. From 32,768 elements on torch would take several threads, which wait for
each other: with four lanes on two busy cores a cast took ten times as long. And between any two calls lanes wait for the
interpreter's lock: with sixteen of them, and a call for each part of 32,767 elements, all together were no faster than
one (16 cores, 2026-11-27). So a block is cast by few calls, one of which goes through its parts.
"""

from functools import cache
from typing import TYPE_CHECKING

import torch

from distconv.layout.dtypes import DType

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Integers = npt.NDArray[np.integer]

_QUIET_NAN = {"float16": 0x7E00, "bfloat16": 0x7FC0, "float32": 0x7FC00000, "float64": 0x7FF8000000000000}
_INFINITY = {"float16": 0x7C00, "bfloat16": 0x7F80, "float32": 0x7F800000, "float64": 0x7FF0000000000000}
_INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
_PART_ELEMENTS = 32_767
"""The most that torch copies with one thread; read and written it stays in the nearest cache."""
_PRODUCT_ELEMENTS = 1 << 18
"""Of products with scales, which are four bytes each: as many as stay in a core's own cache."""


def cast_block(
    block: torch.Tensor, dtype: DType, scale: torch.Tensor | None = None, into: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor | int]:
    """Cast contiguous elements; returns them with the number of finite ones that became infinite.

    With a ``scale``, of as many elements, each is multiplied by its own first, in the scale's type; scales are
    positive and finite. ``into`` is where they go, of as many elements; without it they have memory of their own.
    """
    target = getattr(torch, dtype.name)
    cast = torch.empty(block.shape, dtype=target, device=block.device) if into is None else into
    if block.is_cuda:
        # To ask a GPU what it found would mean to wait for it.
        cast.copy_(block if scale is None else block.to(scale.dtype).mul_(scale))
        return cast, _mend(cast, block, dtype)
    if scale is None:
        _copy(cast, block)
    else:
        for first in range(0, len(block), _PRODUCT_ELEMENTS):
            run = slice(first, first + _PRODUCT_ELEMENTS)
            _copy(cast[run], _multiply(block[run], scale[run]))
    if not _has_odd_values(cast, dtype):
        return cast, 0
    parts = zip(_split(cast), _split(block), strict=True)
    return cast, sum(int(_mend(found, part, dtype)) for found, part in parts)


def _copy(target: torch.Tensor, source: torch.Tensor) -> None:
    """Copy, and cast, in this thread alone, which lets others have the interpreter meanwhile."""
    torch._foreach_copy_(_split(target), _split(source))


def _split(block: torch.Tensor) -> tuple[torch.Tensor, ...]:
    return block.chunk(max(1, -(-len(block) // _PART_ELEMENTS)))


def _multiply(block: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """Give products in the type of the scales; NumPy takes no other threads, and lets go of the interpreter."""
    import numpy as np

    if block.element_size() == 1:
        # Torch's own way on a CPU takes four times as long as to look up what it makes of each byte.
        values = np.take(_list_values(block.dtype, scale.dtype).numpy(), block.view(torch.uint8).numpy())
    else:
        wide = torch.empty(block.shape, dtype=scale.dtype)
        _copy(wide, block)
        values = wide.numpy()
    with np.errstate(all="ignore"):
        return torch.from_numpy(np.multiply(values, scale.numpy(), out=values))


@cache
def _list_values(stored: torch.dtype, dtype: torch.dtype) -> torch.Tensor:
    return torch.arange(256, dtype=torch.uint8).view(stored).to(dtype)


def _has_odd_values(cast: torch.Tensor, dtype: DType) -> bool:
    """Whether there is any NaN or infinity: as integers these are the largest of their sign."""
    signed: Integers = cast.view(integer_of(dtype)).numpy()
    infinity, sign = _INFINITY[dtype.name], 1 << 8 * dtype.size_bytes - 1
    unsigned = signed.view(f"u{dtype.size_bytes}")
    return bool(signed.size) and (int(signed.max()) >= infinity or int(unsigned.max()) >= sign + infinity)


def _mend(cast: torch.Tensor, block: torch.Tensor, dtype: DType) -> torch.Tensor:
    """Make every NaN the quiet one; count finite elements that became infinite."""
    if block.element_size() == 1:
        # Of types of eight bits torch cannot tell what is infinite.
        block = block.to(torch.float32)
    cast.view(integer_of(dtype)).masked_fill_(block.isnan(), _QUIET_NAN[dtype.name])
    return (cast.isinf() & ~block.isinf()).sum()


def integer_of(dtype: DType) -> torch.dtype:
    """Give the integers as which elements are moved, so that no bit of a NaN changes."""
    return _INTEGERS[dtype.size_bytes]
