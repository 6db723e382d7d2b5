"""The bytes of objects: in memory, in files of a folder that is shared, and made up.

A body is a run of segments, so that completing an upload copies nothing. A segment that repeats its
memory takes no more of it whatever its size: objects of many gigabytes, for measuring.
"""

import functools
import mmap
import os
import random
from collections.abc import Iterator
from dataclasses import dataclass

# A prime number: a block that is put in another's place shows.
PERIOD_BYTES = 524_309


@dataclass(frozen=True, slots=True)
class Segment:
    """Memory, repeated until there are ``size_bytes``."""

    memory: memoryview
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Body:
    """Segments in turn."""

    segments: tuple[Segment, ...]

    @property
    def size_bytes(self) -> int:
        return sum(segment.size_bytes for segment in self.segments)

    def runs(self, offset_bytes: int, size_bytes: int) -> Iterator[memoryview]:
        """Give the memory of what lies between."""
        for segment in self.segments:
            while size_bytes and offset_bytes < segment.size_bytes:
                start = offset_bytes % len(segment.memory)
                size = min(size_bytes, segment.size_bytes - offset_bytes, len(segment.memory) - start)
                yield segment.memory[start : start + size]
                offset_bytes, size_bytes = offset_bytes + size, size_bytes - size
            offset_bytes = max(0, offset_bytes - segment.size_bytes)


def join(bodies: list[Body]) -> Body:
    """Give bodies in turn as one."""
    return Body(tuple(segment for body in bodies for segment in body.segments))


def of_memory(memory: memoryview) -> Body:
    """Give bytes that nobody changes any more."""
    return Body((Segment(memory, len(memory)),) if memory else ())


def of_file(path: str) -> Body:
    """Give the bytes of a file, which must not change."""
    with open(path, "rb") as file:
        if not os.fstat(file.fileno()).st_size:
            return Body(())
        return of_memory(memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)))


@functools.cache
def pattern() -> bytes:
    """Give the bytes that made-up objects repeat."""
    return random.Random(PERIOD_BYTES).randbytes(PERIOD_BYTES)


def made_up(size_bytes: int) -> Body:
    """Give a body that takes no memory; ``made_up_bytes`` gives the same bytes anywhere."""
    return Body((Segment(memoryview(pattern()), size_bytes),) if size_bytes else ())


def made_up_bytes(offset_bytes: int, size_bytes: int) -> bytes:
    """Give bytes of a made-up object."""
    start = offset_bytes % PERIOD_BYTES
    return (pattern() * (1 + (start + size_bytes) // PERIOD_BYTES))[start : start + size_bytes]
