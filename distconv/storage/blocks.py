"""Files read from one end of a range to the other, block by block."""

from collections.abc import Callable, Iterator

from distconv.errors import Interrupted
from distconv.storage.base import Reader
from distconv.storage.memory import make_buffer

BLOCK_BYTES = 4 << 20


def read_blocks(
    reader: Reader, first: int, end: int, stopped: Callable[[], bool] = lambda: False
) -> Iterator[memoryview]:
    """Give the bytes from ``first`` to before ``end``, each block in place of the last.

    ``stopped`` is asked before each; Interrupted where it says so.
    """
    memory = make_buffer(min(BLOCK_BYTES, end - first))
    for start in range(first, end, BLOCK_BYTES):
        if stopped():
            raise Interrupted("stopped")
        block = memory[: min(BLOCK_BYTES, end - start)]
        reader.read_into(start, block)
        yield block
