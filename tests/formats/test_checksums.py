"""CRC32s of blocks after each other are zlib's of the whole."""

import zlib

from hypothesis import given
from hypothesis import strategies as st

from distconv.formats.meta.checksums import update_crc32


@given(st.lists(st.binary(max_size=3000), max_size=6))
def test_blocks_after_each_other_give_the_crc32_of_the_whole(blocks: list[bytes]) -> None:
    crc32 = 0
    for block in blocks:
        crc32 = update_crc32(crc32, memoryview(bytearray(block)))
    assert crc32 == zlib.crc32(b"".join(blocks))
