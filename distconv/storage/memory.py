"""Memory that bytes pass through on their way."""

import contextlib
import mmap
import threading

HUGE_PAGE_BYTES = 2 << 20


def make_buffer(size_bytes: int) -> memoryview:
    """Give zeroed memory that begins at a page, of huge pages where the system grants them.

    The kernel copies into and out of it faster than with what ``bytearray`` gives, which
    begins 32 bytes behind a page and has an entry of the page table every 4 KiB. What fills no huge page is of small
    ones, of which only those take memory that are used.
    """
    if size_bytes < HUGE_PAGE_BYTES:
        return memoryview(bytearray(size_bytes))
    # Linux begins an anonymous mapping at a huge page where its length is a multiple of one.
    try:
        whole = mmap.mmap(-1, -(-size_bytes // HUGE_PAGE_BYTES) * HUGE_PAGE_BYTES, **_PRIVATE)
    except OSError as error:  # which would be taken for a file's, and tried again
        raise MemoryError(f"the system gives no {size_bytes:,} bytes of memory") from error
    if hasattr(mmap, "MADV_HUGEPAGE"):
        # A kernel without huge pages refuses.
        with contextlib.suppress(OSError):
            whole.madvise(mmap.MADV_HUGEPAGE, 0, size_bytes // HUGE_PAGE_BYTES * HUGE_PAGE_BYTES)
    return memoryview(whole)[:size_bytes]


def take_buffer(size_bytes: int) -> memoryview:
    """Give memory with anything in it: some that this thread has given back, or new one.

    The system zeroes new memory page by page, which costs as much as to fill it: a lane needs the same for each unit.
    """
    for place, one in enumerate(_KEPT.buffers):
        if len(one) == size_bytes:
            return _KEPT.buffers.pop(place)
    return make_buffer(size_bytes)


def give_back(memory: memoryview) -> None:
    """Keep memory that nobody uses any more, until this thread ends."""
    if len(memory) >= HUGE_PAGE_BYTES:
        _KEPT.buffers.append(memory)
        # What was kept longest is of a size that is not asked for any more.
        del _KEPT.buffers[:-_MOST_KEPT]


class _Kept(threading.local):
    """What one thread has given back."""

    def __init__(self) -> None:
        self.buffers: list[memoryview] = []


_MOST_KEPT = 16
_KEPT = _Kept()
# Shared memory, which is what mmap gives without flags, would count as a file's.
_PRIVATE = {"flags": mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS}
