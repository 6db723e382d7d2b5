"""CRC32s of a zip's records, also of records whose parts several workers write in any order.

zlib-ng computes them as fast as memory gives the bytes, zlib several times slower; combining
two takes less than a microsecond.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from zlib_ng import zlib_ng

from distconv.errors import ConversionError


@dataclass(frozen=True, slots=True, order=True)
class Part:
    """The CRC32 of some of a record's bytes; the offset is counted from the record's first byte."""

    offset_bytes: int
    size_bytes: int
    crc32: int


def update_crc32(crc32: int, block: bytes | bytearray | memoryview) -> int:
    """Give the CRC32 of bytes whose own is ``crc32`` (0 of none) and a block after them."""
    return zlib_ng.crc32(block, crc32)


def combine_crc32(parts: Iterable[Part], size_bytes: int) -> int:
    """Give the CRC32 of a record of so many bytes from those of its parts, in any order.

    Raises ConversionError where the parts do not tile the record: each byte once.
    """
    position = crc32 = 0
    for part in sorted(parts):
        if part.offset_bytes != position:
            break
        crc32 = zlib_ng.crc32_combine(crc32, part.crc32, part.size_bytes)
        position += part.size_bytes
    else:
        if position == size_bytes:
            return crc32
    raise ConversionError(
        f"CRC32s of a record of {size_bytes:,} bytes: its parts cover it in order up to byte {position:,} only, "
        "expected each byte once"
    )
