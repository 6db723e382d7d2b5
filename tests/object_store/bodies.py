"""The bytes of objects: files that have no name, sent by the kernel, and bytes that are made up.

A body is a run of segments, so that completing an upload copies nothing. A segment that repeats
costs no memory whatever its size: objects of many gigabytes, for measuring.
"""

import functools
import os
import random
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO

# A prime number: a block that is put in another's place shows.
PERIOD_BYTES = 8_388_617


@dataclass(frozen=True, slots=True)
class Segment:
    """The first bytes of a file, repeated until there are ``size_bytes``."""

    file: IO[bytes]
    size_bytes: int
    period_bytes: int


@dataclass(frozen=True, slots=True)
class Body:
    """Segments in turn."""

    segments: tuple[Segment, ...]

    @property
    def size_bytes(self) -> int:
        return sum(segment.size_bytes for segment in self.segments)

    def runs(self, offset_bytes: int, size_bytes: int) -> Iterator[tuple[int, int, int]]:
        """Give (file descriptor, offset, size) of what lies between."""
        for segment in self.segments:
            while size_bytes and offset_bytes < segment.size_bytes:
                start = offset_bytes % segment.period_bytes
                size = min(size_bytes, segment.size_bytes - offset_bytes, segment.period_bytes - start)
                yield segment.file.fileno(), start, size
                offset_bytes, size_bytes = offset_bytes + size, size_bytes - size
            offset_bytes = max(0, offset_bytes - segment.size_bytes)

    def read(self) -> bytes:
        """Give all bytes."""
        return b"".join(os.pread(file, size, offset) for file, offset, size in self.runs(0, self.size_bytes))


def join(bodies: list[Body]) -> Body:
    """Give bodies in turn as one."""
    return Body(tuple(segment for body in bodies for segment in body.segments))


def of_file(file: IO[bytes], size_bytes: int) -> Body:
    """Give what stands in a file that nobody changes any more."""
    return Body((Segment(file, size_bytes, size_bytes),) if size_bytes else ())


@functools.cache
def pattern() -> bytes:
    """Give the bytes that made-up objects repeat."""
    return random.Random(PERIOD_BYTES).randbytes(PERIOD_BYTES)


@functools.cache
def pattern_file() -> IO[bytes]:
    """Give them in a file in memory."""
    file = tempfile.TemporaryFile(dir="/dev/shm")  # noqa: SIM115
    file.write(pattern())
    file.flush()
    return file


def made_up(size_bytes: int) -> Body:
    """Give a body that takes no memory; ``made_up_bytes`` gives the same bytes anywhere."""
    return Body((Segment(pattern_file(), size_bytes, PERIOD_BYTES),) if size_bytes else ())


def made_up_bytes(offset_bytes: int, size_bytes: int) -> bytes:
    """Give bytes of a made-up object."""
    start = offset_bytes % PERIOD_BYTES
    return (pattern() * (1 + (start + size_bytes) // PERIOD_BYTES))[start : start + size_bytes]
