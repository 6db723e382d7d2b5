"""CRC32s of parts give the whole's, whoever computed them and in whatever order."""

import random
import zlib
from functools import reduce
from operator import xor

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distconv.errors import ConversionError
from distconv.formats.meta.checksums import Part, combine_crc32, update_crc32

ONES = (1 << 32) - 1


def cut(content: bytes, places: list[int]) -> list[Part]:
    ends = sorted({min(place, len(content)) for place in places} | {len(content)})
    starts = [0, *ends[:-1]]
    return [
        Part(start, end - start, zlib.crc32(content[start:end]))
        for start, end in zip(starts, ends, strict=True)
    ]


contents = st.binary(max_size=3000)
places = st.lists(st.integers(0, 3000), max_size=12)


@given(contents, places, st.randoms(use_true_random=False))
def test_parts_in_any_order_give_the_crc32_of_the_whole(
    content: bytes, places: list[int], chooser: random.Random
) -> None:
    parts = cut(content, places)
    chooser.shuffle(parts)
    assert combine_crc32(parts, len(content)) == zlib.crc32(content)


@given(st.lists(contents, max_size=6))
def test_blocks_after_each_other_give_the_crc32_of_the_whole(blocks: list[bytes]) -> None:
    crc32 = 0
    for block in blocks:
        crc32 = update_crc32(crc32, memoryview(bytearray(block)))
    assert crc32 == zlib.crc32(b"".join(blocks))


@given(st.integers(1, 1 << 24), st.integers(0, (1 << 32) - 1))
def test_parts_longer_than_4_gib_combine_as_their_halves_do(size: int, first: int) -> None:
    half = size << 29
    head, whole = Part(0, 5, first), Part(5, 2 * half, checksum_of_zeros(2 * half))
    halves = [Part(5, half, checksum_of_zeros(half)), Part(5 + half, half, checksum_of_zeros(half))]
    assert combine_crc32([head, whole], 5 + 2 * half) == combine_crc32([head, *halves], 5 + 2 * half)


def checksum_of_zeros(size_bytes: int) -> int:
    """Give the CRC32 of so many zeros: a zero moves the register by one linear map, which is squared."""

    def apply(columns: list[int], value: int) -> int:
        return reduce(xor, (column for bit, column in enumerate(columns) if value >> bit & 1), 0)

    # zlib's own register before and after a zero, without the inversion at both ends.
    step = [zlib.crc32(b"\0", (1 << bit) ^ ONES) ^ ONES for bit in range(32)]
    register = ONES
    while size_bytes:
        if size_bytes & 1:
            register = apply(step, register)
        step = [apply(step, column) for column in step]
        size_bytes >>= 1
    return register ^ ONES


@pytest.mark.parametrize("size_bytes", [0, 1, 7, 1000])
def test_zeros_have_the_checksum_that_zlib_gives_them(size_bytes: int) -> None:
    assert checksum_of_zeros(size_bytes) == zlib.crc32(bytes(size_bytes))


@given(contents.filter(len), places, st.data())
def test_parts_that_do_not_tile_the_record_are_refused(
    content: bytes, places: list[int], data: st.DataObject
) -> None:
    parts = [part for part in cut(content, places) if part.size_bytes]
    spoilt = data.draw(st.sampled_from(parts))
    others = [part for part in parts if part is not spoilt]
    for wrong in (others, [*parts, spoilt], [*others, Part(spoilt.offset_bytes, spoilt.size_bytes + 1, 0)]):
        with pytest.raises(ConversionError, match="expected each byte once"):
            combine_crc32(wrong, len(content))


def test_a_record_without_bytes_has_the_crc32_of_nothing() -> None:
    assert combine_crc32([], 0) == zlib.crc32(b"")
