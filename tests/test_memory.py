"""Memory for blocks has the size that was asked for, is zeroed, and begins at a page."""

import mmap

import numpy as np
import pytest

from distconv.storage.memory import HUGE_PAGE_BYTES, make_buffer


@pytest.mark.parametrize(
    "size_bytes", [0, 1, HUGE_PAGE_BYTES - 1, HUGE_PAGE_BYTES, HUGE_PAGE_BYTES + 1, 4 << 20]
)
def test_a_buffer_is_zeroed_writable_and_of_its_size(size_bytes: int) -> None:
    buffer = make_buffer(size_bytes)
    assert len(buffer) == size_bytes
    assert not any(buffer)
    buffer[:] = bytes([7]) * size_bytes
    assert bytes(buffer) == bytes([7]) * size_bytes


def test_a_large_buffer_begins_at_a_page() -> None:
    address = np.frombuffer(make_buffer(4 << 20), dtype=np.uint8).__array_interface__["data"][0]
    assert address % mmap.PAGESIZE == 0


def test_a_system_that_refuses_huge_pages_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mmap, "MADV_HUGEPAGE", 9999, raising=False)
    assert len(make_buffer(HUGE_PAGE_BYTES)) == HUGE_PAGE_BYTES


def test_memory_that_is_not_to_be_had_is_a_memory_error() -> None:
    with pytest.raises(MemoryError, match="1,125,899,906,842,624 bytes"):
        make_buffer(1 << 50)
