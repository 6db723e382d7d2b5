"""Memory that bytes pass through on their way."""

import contextlib
import mmap

HUGE_PAGE_BYTES = 2 << 20


def make_buffer(size_bytes: int) -> memoryview:
    """Give zeroed memory that begins at a page, of huge pages where the system grants them.

    The kernel copies into and out of it faster than with what ``bytearray`` gives, which
    begins 32 bytes behind a page and has an entry of the page table every 4 KiB.
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
            whole.madvise(mmap.MADV_HUGEPAGE)
    return memoryview(whole)[:size_bytes]


# Shared memory, which is what mmap gives without flags, would count as a file's.
_PRIVATE = {"flags": mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS}
