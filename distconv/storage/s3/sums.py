"""CRC64NVME as S3 has it: checked of every part where it arrives, and of the whole where it is completed."""

import base64
from collections.abc import Iterable

from distconv.storage.base import Buffer
from distconv.storage.extras import need


def describe_sum(*blocks: Buffer) -> str:
    """Give the checksum of blocks one behind the other, in base64 as S3 writes it."""
    checksums, value = need("awscrt.checksums", "s3"), 0
    for block in blocks:
        value = checksums.crc64nvme(block, value)
    return _encode(value)


def combine_sums(sums: Iterable[tuple[str, int]]) -> str:
    """Give the checksum of a whole from those of its parts, each with its size in bytes."""
    checksums, value = need("awscrt.checksums", "s3"), 0
    for text, size in sums:
        value = checksums.combine_crc64nvme(value, int.from_bytes(base64.b64decode(text), "big"), size)
    return _encode(value)


def _encode(value: int) -> str:
    return base64.b64encode(value.to_bytes(8, "big")).decode()
