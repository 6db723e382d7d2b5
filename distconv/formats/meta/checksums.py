"""CRC32s of a zip's records: zlib-ng computes them as fast as memory gives the bytes, zlib several times slower."""

from zlib_ng import zlib_ng


def update_crc32(crc32: int, block: bytes | bytearray | memoryview) -> int:
    """Give the CRC32 of bytes whose own is ``crc32`` (0 of none) and a block after them."""
    return zlib_ng.crc32(block, crc32)


def join_crc32(crc32: int, following: int, size_bytes: int) -> int:
    """Give the CRC32 of bytes whose own is ``crc32`` and of so many after them, whose own is ``following``."""
    return zlib_ng.crc32_combine(crc32, following, size_bytes)
