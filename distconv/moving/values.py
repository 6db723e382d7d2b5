"""Values that no trained weight has: what is no number, what is infinite, and tensors that are all zero.

They are told by the bit patterns of elements taken as integers, at the speed at which memory is read. All bits of
a block, one over the other, tell whether it is zero, and whether any number in it is 2 or more; only where one is,
the largest pattern with the sign and the largest without it are looked for, and only where these are odd it is counted.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from distconv.layout.dtypes import DType

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Patterns = npt.NDArray[np.unsignedinteger]

_LARGEST_FINITE = {
    "bfloat16": 0x7F7F, "float16": 0x7BFF, "float32": 0x7F7FFFFF, "float64": 0x7FEFFFFFFFFFFFFF,
    "float8_e5m2": 0x7B, "float8_e4m3fn": 0x7E,
}  # fmt: skip
"""The pattern of the largest finite number, by torch's name of the type; the one above is infinity."""
_WITHOUT_INFINITY = frozenset({"float8_e4m3fn"})


@dataclass(frozen=True, slots=True)
class Tally:
    """What is odd in a tensor's values, in elements."""

    nan: int = 0
    infinite: int = 0
    zero: bool = False
    """Whether it has elements, and all are zero."""

    def __bool__(self) -> bool:
        """Whether anything is."""
        return bool(self.nan or self.infinite or self.zero)


class Tallying:
    """Counts the odd values of one tensor, block by block."""

    def __init__(self, dtype: DType) -> None:
        """Begin with no element."""
        self._dtype = dtype
        self._nan = self._infinite = 0
        self._seen = False
        self._zero = True

    def update(self, content: memoryview) -> None:
        """Add whole elements."""
        import numpy as np

        if not len(content):
            return
        unit = min(self._dtype.size_bytes, 8)
        whole = len(content) // 8 * 8
        words = int(np.bitwise_or.reduce(np.frombuffer(content[:whole], np.uint64))) if whole else 0
        bits = 0
        for start in range(0, 64, 8 * unit):
            bits |= words >> start & ((1 << 8 * unit) - 1)
        for pattern in np.frombuffer(content[whole:], f"u{unit}").tolist():
            bits |= pattern
        finite = _LARGEST_FINITE.get(self._dtype.name)
        sign = 0 if finite is None else 1 << (8 * unit - 1)
        self._seen = True
        self._zero = self._zero and not bits & ~sign
        # Below 2 the first bit of the exponent is not set; hardly any block of weights has more.
        if finite is not None and bits & 1 << (8 * unit - 2):
            self._count(np.frombuffer(content, f"u{unit}"), finite, sign)

    def _count(self, patterns: "Patterns", finite: int, sign: int) -> None:
        signed = int(patterns.view(f"i{patterns.itemsize}").max())
        if signed <= finite and int(patterns.max()) <= sign + finite:
            return
        magnitudes = patterns & (sign - 1)
        odd = int((magnitudes > finite).sum())
        infinite = 0 if self._dtype.name in _WITHOUT_INFINITY else int((magnitudes == finite + 1).sum())
        self._infinite += infinite
        self._nan += odd - infinite

    def finish(self) -> Tally:
        """Give what was counted."""
        return Tally(self._nan, self._infinite, zero=self._seen and self._zero)
