"""Files read from one end of a range to the other, block by block."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_EXCEPTION, Future, wait

from distconv.errors import Interrupted
from distconv.storage.base import Reader
from distconv.storage.memory import make_buffer
from distconv.storage.parallel import map_ahead, submit

BLOCK_BYTES = 4 << 20
_FAR_BLOCK_BYTES = 8 << 20
_SHARE_BYTES = 1 << 20
_MOST_AHEAD = 4
"""Several files are read at once."""
_ASK_SECONDS = 0.2

Stopped = Callable[[], bool]


def read_blocks(
    reader: Reader, first: int, end: int, stopped: Stopped = lambda: False
) -> Iterator[memoryview]:
    """Give the bytes from ``first`` to before ``end``, each block in place of an earlier one.

    Where answers take time, the next ones are asked for meanwhile. ``stopped`` is asked before each;
    Interrupted where it says so.
    """
    if reader.access.ahead_bytes:
        yield from _read_ahead(reader, first, end, stopped)
        return
    memory = make_buffer(min(BLOCK_BYTES, end - first))
    for start in range(first, end, BLOCK_BYTES):
        if stopped():
            raise Interrupted("stopped")
        block = memory[: min(BLOCK_BYTES, end - start)]
        reader.read_into(start, block)
        yield block


def _read_ahead(reader: Reader, first: int, end: int, stopped: Stopped) -> Iterator[memoryview]:
    size = min(_FAR_BLOCK_BYTES, end - first)
    starts = iter(range(first, end, max(1, size)))
    asked: deque[tuple[Future[None], memoryview]] = deque()

    def ask(memory: memoryview) -> None:
        start = next(starts, None)
        if start is not None:
            block = memory[: min(size, end - start)]
            asked.append((submit(reader.read_into, start, block), memory))
            blocks.append(block)

    blocks: deque[memoryview] = deque()
    try:
        for _ in range(min(_MOST_AHEAD, -(-(end - first) // max(1, size)))):
            ask(make_buffer(size))
        while asked:
            future, memory = asked[0]
            wait_for((future,), stopped)
            yield blocks.popleft()
            asked.popleft()
            ask(memory)
    finally:
        for future, _memory in asked:
            future.cancel()


def read_together(reader: Reader, offset_bytes: int, size_bytes: int) -> memoryview:
    """Read a range of several megabytes; where answers take time, by requests that are on their way together."""
    found = make_buffer(size_bytes)
    size = _SHARE_BYTES if reader.access.ahead_bytes else max(1, size_bytes)

    def read(first: int) -> None:
        reader.read_into(offset_bytes + first, found[first : first + size])

    list(map_ahead(read, range(0, size_bytes, size), (size_bytes - 1) // size))
    return found


def wait_for(futures: Iterable[Future[None]], stopped: Stopped) -> None:
    """Wait until all are done, and raise what any of them raised; Interrupted where ``stopped`` says so."""
    pending = set(futures)
    while pending:
        if stopped():
            raise Interrupted("stopped")
        done, pending = wait(pending, _ASK_SECONDS, return_when=FIRST_EXCEPTION)
        for future in done:
            future.result()
