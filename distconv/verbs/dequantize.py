"""The values of FP8 tensors, as a comparison has them: another way than the worker's, which casts by torch.

A byte's value is looked up in a table made by the definition of the type, and multiplied by the scale of its row.
"""

from functools import cache
from typing import TYPE_CHECKING

from distconv.formats.views import TensorView
from distconv.moving.pieces import Piece
from distconv.moving.sources import Sources

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Floats = npt.NDArray[np.float32]
    Patterns = npt.NDArray[np.unsignedinteger]

_BIAS, _MANTISSA_BITS = 7, 3


@cache
def make_values() -> "Floats":
    """Give the value of each byte as float8_e4m3fn: sign, 4 bits of exponent, 3 of mantissa; no infinity, two NaNs.

    Source: Micikevicius et al., FP8 Formats for Deep Learning (arXiv 2209.05433), table 1.
    """
    import numpy as np

    steps = 1 << _MANTISSA_BITS
    values = []
    for magnitude in range(0x7F):
        exponent, mantissa = divmod(magnitude, steps)
        significand = mantissa / steps + (exponent > 0)
        values.append(significand * 2.0 ** (max(exponent, 1) - _BIAS))
    half = np.array([*values, np.nan], np.float32)
    return np.concatenate([half, np.copysign(half, np.float32(-1))])


def dequantize(
    rows: "Patterns", view: TensorView, scale: TensorView, first: int, sources: Sources
) -> "Patterns":
    """Give the products of some rows of a part, from its row ``first`` on, and their scales: patterns of float32."""
    import numpy as np

    products = make_values()[rows.reshape(len(rows), -1)]
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        products *= _read_scales(view, scale, first, len(rows), sources)
    products[np.isnan(products)] = np.nan
    return products.view(np.uint32).reshape(rows.shape)


def _read_scales(view: TensorView, scale: TensorView, first: int, count: int, sources: Sources) -> "Floats":
    """Give what rows of a matrix are multiplied by: a number for each row, or for each column of its expert."""
    import numpy as np

    if len(scale.shape) == len(view.shape):
        return _read(scale, scale.offset + first * scale.strides[0], count, scale.strides[0], sources)[
            :, None
        ]
    experts, rows, columns = scale.shape
    low, high = first // rows, (first + count - 1) // rows
    found = [
        _read(scale, scale.offset + expert * scale.strides[0], columns, scale.strides[2], sources)
        for expert in range(low, min(high + 1, experts))
    ]
    by_row: Floats = np.stack(found)[np.arange(first, first + count) // rows - low]
    return by_row


def _read(scale: TensorView, offset: int, count: int, step: int, sources: Sources) -> "Floats":
    import numpy as np

    span = 1 + (count - 1) * step
    piece = Piece(scale.region, offset, span, (count,), (step,), 0, (1,))
    return np.frombuffer(sources.read(piece, scale.dtype.size_bytes), np.float32)[::step]
