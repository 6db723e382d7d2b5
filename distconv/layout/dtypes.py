"""What a tensor's elements are: the data types and their names in each format."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class DType:
    """One element type.

    ``name`` is torch's and Transformers' name, ``code`` that of safetensors, ``rank`` the
    place in safetensors' enumeration, by which a file's tensors are ordered, highest first
    (``safetensors/src/tensor.rs``, 0.8.0); -1 where weights are never of this type.
    """

    name: str
    code: str
    size_bytes: int
    rank: int
    is_float: bool = False

    def __str__(self) -> str:
        """Show torch's name."""
        return self.name


def name_dtypes(found: Iterable[DType]) -> list[str]:
    """Name types once each, the widest first."""
    return [dtype.name for dtype in sorted(set(found), key=lambda dtype: -dtype.rank)]


BFLOAT16 = DType("bfloat16", "BF16", 2, 13, is_float=True)
FLOAT16 = DType("float16", "F16", 2, 12, is_float=True)
FLOAT32 = DType("float32", "F32", 4, 16, is_float=True)
FLOAT64 = DType("float64", "F64", 8, 18, is_float=True)

DTYPES = {
    dtype.name: dtype
    for dtype in (
        DType("bool", "BOOL", 1, 0),
        DType("uint8", "U8", 1, 4),
        DType("int8", "I8", 1, 5),
        DType("float8_e5m2", "F8_E5M2", 1, 6),
        DType("float8_e4m3fn", "F8_E4M3", 1, 7),
        DType("int16", "I16", 2, 10),
        FLOAT16,
        BFLOAT16,
        DType("int32", "I32", 4, 14),
        FLOAT32,
        DType("complex64", "C64", 8, 17),
        FLOAT64,
        DType("int64", "I64", 8, 19),
        DType("uint16", "U16", 2, -1),
        DType("uint32", "U32", 4, -1),
        DType("uint64", "U64", 8, -1),
        DType("float8_e4m3fnuz", "F8_E4M3FNUZ", 1, -1),
        DType("float8_e5m2fnuz", "F8_E5M2FNUZ", 1, -1),
        DType("float8_e8m0fnu", "F8_E8M0", 1, -1),
        DType("complex32", "C32", 4, -1),
        DType("complex128", "C128", 16, -1),
    )
}

STORABLE = (BFLOAT16, FLOAT16, FLOAT32, FLOAT64)
"""Types in which weights are accepted."""


def contiguous_strides(shape: Sequence[int]) -> tuple[int, ...]:
    """Strides, in elements, of a row-major tensor of this shape."""
    return tuple(math.prod(shape[axis + 1 :]) for axis in range(len(shape)))


def extent_elements(shape: Sequence[int], strides: Sequence[int]) -> int:
    """Elements from a view's first to its last one, both counted; 0 for an empty view."""
    if 0 in shape:
        return 0
    return 1 + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))
