"""Ranges of a file, asked for by one request at a time, and taken straight into the caller's memory."""

import http.client
from collections.abc import Sequence

from distconv.errors import InputError
from distconv.storage.base import Access, Told, ignore
from distconv.storage.http.wire import receive_into
from distconv.storage.pinning import describe_end

ACCESS = Access(gap_bytes=1 << 20, request_bytes=13 << 20, ahead_bytes=68 << 20)
"""A first byte takes 10 to 30 ms, in which a connection brings a megabyte or two.

Five requests fit into what is read ahead; with larger ones fewer would be on their way.
"""
_STEP_BYTES = 2 << 20
"""After about so many it is told that they have come."""


class Range:
    """Buffers to be filled one behind the other from an offset; what has come is not asked for again."""

    def __init__(
        self,
        path: str,
        size_bytes: int,
        offset_bytes: int,
        buffers: Sequence[memoryview],
        told: Told = ignore,
    ) -> None:
        """Take what is wanted of a file of this size; InputError where it ends before."""
        self.end = offset_bytes + sum(len(buffer) for buffer in buffers)
        if self.end > size_bytes:
            raise InputError(describe_end(path, size_bytes, self.end))
        self.next = offset_bytes
        """The first byte that has not come."""
        self._size_bytes, self._offset_bytes = size_bytes, offset_bytes
        self._buffers, self._told = buffers, told

    @property
    def is_whole(self) -> bool:
        """Whether all of the file is wanted, and nothing of it has come."""
        return self.next == 0 and self.end == self._size_bytes

    @property
    def header(self) -> str:
        """What is still to come, as the header ``Range`` says it."""
        return f"bytes={self.next}-{self.end - 1}"

    def receive(self, response: http.client.HTTPResponse) -> None:
        """Take the body of an answer; HTTPException where it is another range, or ends before."""
        check_range(response, self.next, self.end, self._size_bytes)
        for buffer in _skip(self._buffers, self.next - self._offset_bytes):
            # Even ones: a short rest would be read by itself.
            step = -(-len(buffer) // max(1, round(len(buffer) / _STEP_BYTES)))
            for start in range(0, len(buffer), max(1, step)):
                part = buffer[start : start + step]
                count = receive_into(response, part)
                self._add(count)
                if count < len(part):
                    raise http.client.IncompleteRead(b"", self.end - self.next)

    def take(self, content: bytes) -> None:
        """Take what is wanted out of the whole file."""
        self.add(memoryview(content)[self.next : self.end])

    def add(self, content: memoryview) -> None:
        """Take the next bytes; ValueError where they are more than are wanted."""
        for buffer in _skip(self._buffers, self.next - self._offset_bytes):
            part = content[: len(buffer)]
            buffer[: len(part)] = part
            self._add(len(part))
            content = content[len(part) :]
        if content:
            raise ValueError(f"{len(content)} bytes more than were asked for")

    def _add(self, size_bytes: int) -> None:
        self.next += size_bytes
        self._told(self.next - self._offset_bytes)


def check_range(response: http.client.HTTPResponse, first: int, end: int, size: int) -> None:
    """Raise HTTPException where other bytes come than were asked for."""
    length, found = response.getheader("Content-Length"), response.getheader("Content-Range", "")
    is_long = length == str(end - first)
    is_whole = response.status == 200 and first == 0 and end == size and is_long
    # The length of a part need not be said (RFC 9110, 15.3.7), as where it comes in pieces.
    is_part = found == f"bytes {first}-{end - 1}/{size}" and (is_long or length is None)
    if not is_whole and not is_part:
        raise http.client.HTTPException(
            f"asked for bytes {first}-{end - 1}/{size}, got {found!r} in {length or 'any number of'} bytes"
        )


def _skip(buffers: Sequence[memoryview], done: int) -> list[memoryview]:
    left = []
    for buffer in buffers:
        if done < len(buffer):
            left.append(buffer[done:])
        done = max(0, done - len(buffer))
    return left
