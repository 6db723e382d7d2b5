"""Casts: the same bytes on the host and on a GPU.

Every NaN becomes the one quiet NaN of the new type: what hardware makes of a NaN's payload differs between
devices, and even within one vector.
"""

import math
from functools import cache

import torch

from distconv.layout.dtypes import DType

_QUIET_NAN = {"float16": 0x7E00, "bfloat16": 0x7FC0, "float32": 0x7FC00000, "float64": 0x7FF8000000000000}
_INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
_PART_ELEMENTS = 32_767
"""Stays in the cache from step to step. From one more on torch takes several threads, which wait for each other: lanes
are what runs in parallel, and with four of them on two busy cores a cast took ten times as long."""


def cast_block(
    block: torch.Tensor, dtype: DType, scale: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Cast contiguous elements; returns them with the number of finite ones that became infinite.

    With a ``scale``, of as many elements, each is multiplied by its own first, in the scale's type; scales are
    positive and finite.
    """
    target = getattr(torch, dtype.name)
    if block.is_cuda:
        # To ask a GPU what it found would mean to wait for it.
        values = _scale(block, scale)
        cast = values.to(target)
        return cast, _mend(cast, block, dtype)
    cast, became_infinite = torch.empty(block.shape, dtype=target), torch.zeros((), dtype=torch.int64)
    for first in range(0, len(block), _PART_ELEMENTS):
        run = slice(first, first + _PART_ELEMENTS)
        part, found = block[run], cast[run]
        found.copy_(_scale(part, None if scale is None else scale[run]))
        # One look tells whether anything is to be mended; a NaN is both the least and the greatest.
        low, high = torch.aminmax(found)
        if not -math.inf < float(low) <= float(high) < math.inf:
            became_infinite += _mend(found, part, dtype)
    return cast, became_infinite


def _scale(block: torch.Tensor, scale: torch.Tensor | None) -> torch.Tensor:
    return block if scale is None else _widen(block, scale.dtype).mul_(scale)


def _widen(block: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Give a copy of elements in a wider type."""
    if block.is_cuda or block.element_size() > 1:
        return block.to(dtype)
    # Torch's own way on a CPU takes four times as long as to look up what it makes of each byte.
    return _list_values(block.dtype, dtype).index_select(0, block.view(torch.uint8).to(torch.int32))


@cache
def _list_values(stored: torch.dtype, dtype: torch.dtype) -> torch.Tensor:
    return torch.arange(256, dtype=torch.uint8).view(stored).to(dtype)


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
