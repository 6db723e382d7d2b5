"""The checksums that S3 knows: of a body as it comes in, and of a whole from those of its parts.

CRC64NVME is CRC-64/NVME of the catalogue https://reveng.sourceforge.io/crc-catalogue/ (reflected, all ones
before and after), CRC32C is CRC-32/ISCSI. Values travel as base64 of the big-endian number:
https://docs.aws.amazon.com/AmazonS3/latest/userguide/checking-object-integrity-upload.html
"""

import base64
import functools
import hashlib
import zlib
from collections.abc import Callable, Iterable
from typing import Protocol

Update = Callable[[bytes | memoryview, int], int]


class Digest(Protocol):
    """A checksum that is being computed."""

    def update(self, block: memoryview, /) -> object:
        """Add bytes."""

    def digest(self) -> bytes:
        """Give the value, big-endian."""


@functools.cache
def table(polynomial: int) -> tuple[int, ...]:
    """Give the 256 steps of a reflected polynomial."""
    steps = []
    for value in range(256):
        for _bit in range(8):
            value = value >> 1 ^ (polynomial if value & 1 else 0)  # noqa: PLW2901
        steps.append(value)
    return tuple(steps)


def step_by_step(polynomial: int, ones: int, block: bytes | memoryview, value: int) -> int:
    """Compute any reflected CRC by its table: about 10 MB/s."""
    steps = table(polynomial)
    value ^= ones
    for byte in bytes(block):
        value = steps[(value ^ byte) & 255] ^ value >> 8
    return value ^ ones


POLYNOMIALS = {"CRC32": 0xEDB88320, "CRC32C": 0x82F63B78, "CRC64NVME": 0x9A6C9329AC4BC9B5}
BYTES = {"CRC32": 4, "CRC32C": 4, "CRC64NVME": 8}
IN_PYTHON: dict[str, Update] = {
    name: functools.partial(step_by_step, polynomial, (1 << 8 * BYTES[name]) - 1)
    for name, polynomial in POLYNOMIALS.items()
}


def fast() -> dict[str, Update]:
    """Give the CRCs with those that have code of their own here: zlib's, and awscrt's where it is installed."""
    found = IN_PYTHON | {"CRC32": zlib.crc32}
    try:
        from awscrt import checksums
    except ImportError:
        return found
    return found | {"CRC32C": checksums.crc32c, "CRC64NVME": checksums.crc64nvme}


CRCS = fast()
ALGORITHMS = ("CRC32", "CRC32C", "CRC64NVME", "SHA1", "SHA256")


class Crc:
    """A CRC that is being computed."""

    def __init__(self, name: str) -> None:
        self._update, self._bytes, self._value = CRCS[name], BYTES[name], 0

    def update(self, block: memoryview) -> None:
        self._value = self._update(block, self._value)

    def digest(self) -> bytes:
        return self._value.to_bytes(self._bytes, "big")


def begin(algorithm: str) -> Digest:
    """Begin a checksum of one of ``ALGORITHMS``."""
    return Crc(algorithm) if algorithm in CRCS else hashlib.new(algorithm.lower(), usedforsecurity=False)


def times(polynomial: int, bits: int, left: int, right: int) -> int:
    """Multiply two reflected polynomials modulo a third: the highest bit is the power nought."""
    product = 0
    while left:
        if left >> bits - 1 & 1:
            product ^= right
        left = left << 1 & (1 << bits) - 1
        right = right >> 1 ^ (polynomial if right & 1 else 0)
    return product


def combine(algorithm: str, left: int, right: int, right_bytes: int) -> int:
    """Give the CRC of two runs of bytes in turn: ``left`` times x to the power of ``right``'s bits, and ``right``."""
    polynomial, bits = POLYNOMIALS[algorithm], 8 * BYTES[algorithm]
    power, square, exponent = 1 << bits - 1, 1 << bits - 2, 8 * right_bytes
    while exponent:
        if exponent & 1:
            power = times(polynomial, bits, power, square)
        square = times(polynomial, bits, square, square)
        exponent >>= 1
    return times(polynomial, bits, left, power) ^ right


def of_whole(algorithm: str, kind: str, parts: Iterable[tuple[str, int]]) -> str:
    """Give an object's checksum from its parts' (checksum, size in bytes); COMPOSITE: one of theirs in turn."""
    known = [(base64.b64decode(value), size) for value, size in parts]
    if kind == "COMPOSITE":
        digest = begin(algorithm)
        digest.update(memoryview(b"".join(value for value, _size in known)))
        return f"{base64.b64encode(digest.digest()).decode()}-{len(known)}"
    total = 0
    for value, size in known:
        total = combine(algorithm, total, int.from_bytes(value, "big"), size)
    return base64.b64encode(total.to_bytes(BYTES[algorithm], "big")).decode()
