"""Small reads that lie together: the same bytes, and few requests."""

from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distconv.errors import InputError
from distconv.storage.base import Access
from distconv.storage.window import WINDOW_BYTES, read_by_windows

CONTENT = bytes(range(251)) * 2000


@dataclass
class Counted:
    """A file in memory that counts its requests."""

    content: bytes
    access: Access = field(default_factory=lambda: Access(0, 1 << 20, 1 << 20))
    path: str = "file"
    asked: int = 0

    @property
    def size_bytes(self) -> int:
        """Its size."""
        return len(self.content)

    def read_into(self, offset_bytes: int, buffer: memoryview) -> None:
        """Give what is there."""
        self.asked += 1
        found = self.content[offset_bytes : offset_bytes + len(buffer)]
        if len(found) < len(buffer):
            raise InputError("ends before")
        buffer[:] = found

    def close(self) -> None:
        """Do nothing."""


@given(
    st.sampled_from([0, 1, 5000, WINDOW_BYTES, WINDOW_BYTES + 1, len(CONTENT)]),
    st.lists(st.tuples(st.integers(0, len(CONTENT)), st.integers(0, 2 * WINDOW_BYTES)), max_size=20),
)
def test_windows_give_the_bytes_of_the_file(size: int, reads: list[tuple[int, int]]) -> None:
    reader = read_by_windows(Counted(CONTENT[:size]))
    for first, count in reads:
        buffer = bytearray(count)
        if count and first + count > size:
            with pytest.raises(InputError):
                reader.read_into(first, memoryview(buffer))
        else:
            reader.read_into(first, memoryview(buffer))
            assert buffer == CONTENT[first : first + count]


def test_head_and_tail_cost_a_request_each() -> None:
    file = Counted(CONTENT)
    reader = read_by_windows(file)
    for first in (0, 16, 30, 500, len(CONTENT) - 22, len(CONTENT) - 42, len(CONTENT) - 3000):
        reader.read_into(first, memoryview(bytearray(20)))
    assert file.asked == 2


def test_a_file_whose_answers_are_there_at_once_is_read_as_it_is() -> None:
    file = Counted(CONTENT, Access(0, 1 << 20, 0))
    assert read_by_windows(file) is file
