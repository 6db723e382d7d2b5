"""Files read from end to end: the same blocks' bytes wherever they lie, and an end when told to."""

import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distconv.errors import InputError, Interrupted
from distconv.storage.base import LOCAL_ACCESS, Access
from distconv.storage.blocks import read_blocks, read_together
from tests.storage.test_window import Counted

FAR = Access(1 << 20, 1 << 20, 1 << 20)
CONTENT = bytes(range(253)) * 160_000


@given(st.integers(0, len(CONTENT)), st.integers(0, len(CONTENT)), st.sampled_from([FAR, LOCAL_ACCESS]))
def test_blocks_are_the_bytes_of_the_range(one: int, other: int, access: Access) -> None:
    first, end = sorted((one, other))
    found = b"".join(bytes(block) for block in read_blocks(Counted(CONTENT, access), first, end))
    assert found == CONTENT[first:end]


@given(st.integers(0, len(CONTENT)), st.integers(0, len(CONTENT)), st.sampled_from([FAR, LOCAL_ACCESS]))
def test_what_is_read_together_is_the_range(one: int, other: int, access: Access) -> None:
    first, end = sorted((one, other))
    assert read_together(Counted(CONTENT, access), first, end - first) == CONTENT[first:end]


def test_a_file_that_ends_before_is_told_of() -> None:
    with pytest.raises(InputError, match="ends before"):
        list(read_blocks(Counted(CONTENT, FAR), 0, len(CONTENT) + 1))


def test_who_is_told_to_stop_does_not_wait_for_an_answer() -> None:
    gate = threading.Event()

    class Slow(Counted):
        """A file that answers when the gate opens."""

        def read_into(self, offset_bytes: int, buffer: memoryview) -> None:
            """Wait, and give what is there."""
            gate.wait()
            super().read_into(offset_bytes, buffer)

    asked = iter([False, False])
    try:
        with pytest.raises(Interrupted):
            list(read_blocks(Slow(CONTENT, FAR), 0, len(CONTENT), lambda: next(asked, True)))
    finally:
        gate.set()
