"""Ranges of an object, read straight into the caller's memory, and only of the object that was opened."""

import errno
import http.client
import os
from collections.abc import Sequence

from distconv.errors import InputError
from distconv.storage.base import Access
from distconv.storage.pinning import describe_change
from distconv.storage.s3.client import Call, connect
from distconv.storage.s3.place import Place, split_path
from distconv.storage.s3.wire import receive_into

ACCESS = Access(gap_bytes=1 << 20, request_bytes=16 << 20, ahead_bytes=56 << 20)
"""A first byte takes 10 to 30 ms, in which a connection brings a megabyte or two."""


class S3Reader:
    """An object as it was when it was opened; safe to use from several threads."""

    access = ACCESS

    def __init__(self, place: Place, path: str, size_bytes: int, etag: str) -> None:
        """Take what is known of it; nothing is asked."""
        self.path = path
        self.size_bytes = size_bytes
        self.stamp = f"{size_bytes} {etag}"
        self._place, self._etag = place, etag
        self._bucket, self._key = split_path(path)

    def read_into(self, offset_bytes: int, buffer: memoryview) -> None:
        """Fill the whole buffer from this offset, by one request."""
        self.read_vector(offset_bytes, (buffer,))

    def read_vector(self, offset_bytes: int, buffers: Sequence[memoryview]) -> None:
        """Fill buffers one behind the other from this offset, by one request.

        InputError where the object is another one by now, or ends before.
        """
        end = offset_bytes + sum(len(buffer) for buffer in buffers)
        if end > self.size_bytes:
            raise InputError(
                f"{self.path}: ends at byte {self.size_bytes:,}, expected data up to byte {end:,}; "
                "the file is truncated"
            )
        if end == offset_bytes:
            return
        done = 0

        def receive(response: http.client.HTTPResponse) -> None:
            nonlocal done
            first = offset_bytes + done
            check_range(response, first, end, self.size_bytes)
            done += receive_into(response, _skip(buffers, done))
            if offset_bytes + done < end:
                raise http.client.IncompleteRead(b"", end - offset_bytes - done)

        def attempt_call() -> Call:
            ranged = {"Range": f"bytes={offset_bytes + done}-{end - 1}", "If-Match": self._etag}
            return Call("GetObject", "GET", self._bucket, self._key, headers=ranged)

        answer = connect(self._place).ask(
            attempt_call, accept=frozenset({404, 412, 416}), receive=receive, progress=lambda: done
        )
        if answer.status == 404:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), self.path)
        if answer.status >= 300:
            raise InputError(describe_change(self.path))

    def close(self) -> None:
        """Let go of it; nothing is held."""


def check_range(response: http.client.HTTPResponse, first: int, end: int, size: int) -> None:
    """Raise HTTPException where other bytes come than were asked for."""
    length = response.getheader("Content-Length", "")
    is_whole = response.status == 200 and first == 0 and end == size
    found = response.getheader("Content-Range", "")
    if length != str(end - first) or not (is_whole or found == f"bytes {first}-{end - 1}/{size}"):
        raise http.client.HTTPException(f"asked for bytes {first}-{end - 1}/{size}, got {found!r}")


def _skip(buffers: Sequence[memoryview], done: int) -> list[memoryview]:
    left = []
    for buffer in buffers:
        if done < len(buffer):
            left.append(buffer[done:])
        done = max(0, done - len(buffer))
    return left
