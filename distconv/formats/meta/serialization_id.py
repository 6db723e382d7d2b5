"""The record ``.data/serialization_id``: 20 digits of the records' names, 20 of their CRC32s.

Nothing reads it; it is made as torch's builds for Linux make it, so that files compare equal
(``caffe2/serialize/inline_container.cc``, ``writeSerializationId``; ``c10/util/hash.h``).
"""

import struct
from collections.abc import Iterable, Sequence
from functools import reduce

_MASK = (1 << 64) - 1
_SEED = 0xC70F6907
_MULTIPLIER = 0xC6A4A7935BD1E995
_BUCKET_COUNTS = (13, 29, 59, 127, 257, 541, 1109, 2357, 5087, 10273, 20753, 42043, 85229)
"""Of a libstdc++ hash table that grows by one element at a time."""


def make_serialization_id(names: Sequence[str], checksums: Iterable[int]) -> bytes:
    """Make the id of records with these names, without the archive's folder, in the order of the file.

    ``checksums`` are the CRC32s of those that are not empty, in the same order.
    """
    hashed_names = reduce(_combine, _order([_hash(name.encode()) for name in names]), 0)
    return f"{hashed_names:020}{reduce(_combine, checksums, 0):020}".encode()


def _combine(seed: int, value: int) -> int:
    return seed ^ ((value + 0x9E3779B9 + (seed << 6) + (seed >> 2)) & _MASK)


def _order(hashes: Iterable[int]) -> list[int]:
    """Put hashes into the order in which libstdc++'s unordered_set gives what was added in this one.

    Its buckets are parts of one linked list: a bucket's first element goes to the list's
    front, a further one to the bucket's front; growing adds all again, in the list's order.
    """
    sizes = iter(_BUCKET_COUNTS)
    count = next(sizes)
    buckets: dict[int, list[int]] = {}
    for added, value in enumerate(hashes):
        if added == count:
            count = next(sizes)
            ordered, buckets = _flatten(buckets), {}
            for earlier in ordered:
                buckets.setdefault(earlier % count, []).append(earlier)
        buckets.setdefault(value % count, []).append(value)
    return _flatten(buckets)


def _flatten(buckets: dict[int, list[int]]) -> list[int]:
    """Give the list from its end."""
    return [value for bucket in reversed(buckets.values()) for value in reversed(bucket)]


def _hash(content: bytes) -> int:
    """Hash as libstdc++'s ``std::hash<std::string>`` of 64 bits does (MurmurHash64A)."""
    value = _SEED ^ (len(content) * _MULTIPLIER & _MASK)
    whole = len(content) & ~7
    for (word,) in struct.iter_unpack("<Q", content[:whole]):
        mixed = word * _MULTIPLIER & _MASK
        value = (value ^ ((mixed ^ mixed >> 47) * _MULTIPLIER & _MASK)) * _MULTIPLIER & _MASK
    if content[whole:]:
        value = (value ^ int.from_bytes(content[whole:], "little")) * _MULTIPLIER & _MASK
    value = (value ^ value >> 47) * _MULTIPLIER & _MASK
    return value ^ value >> 47
