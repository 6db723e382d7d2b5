"""Ranges of an object, read straight into the caller's memory, and only of the object that was opened."""

import errno
import os
from collections.abc import Sequence

from distconv.errors import InputError
from distconv.storage.base import Told, ignore
from distconv.storage.http.ranges import ACCESS, Range
from distconv.storage.pinning import describe_change
from distconv.storage.s3.client import Call, connect
from distconv.storage.s3.place import Place, split_path


class S3Reader:
    """An object as it was when it was opened; safe to use from several threads."""

    access = ACCESS

    def __init__(self, place: Place, path: str, size_bytes: int, etag: str, beginning: bytes = b"") -> None:
        """Take what is known of it, its first bytes too; nothing is asked."""
        self.path = path
        self.size_bytes = size_bytes
        self.stamp = f"{size_bytes} {etag}"
        self._place, self._etag, self._beginning = place, etag, beginning
        self._bucket, self._key = split_path(path)

    def read_into(self, offset_bytes: int, buffer: memoryview) -> None:
        """Fill the whole buffer from this offset, by one request at most."""
        end = offset_bytes + len(buffer)
        if end <= len(self._beginning):
            buffer[:] = self._beginning[offset_bytes:end]
            return
        self.read_vector(offset_bytes, (buffer,))

    def read_vector(self, offset_bytes: int, buffers: Sequence[memoryview], told: Told = ignore) -> None:
        """Fill buffers one behind the other from this offset, by one request.

        InputError where the object is another one by now, or ends before.
        """
        wanted = Range(self.path, self.size_bytes, offset_bytes, buffers, told)
        if wanted.next == wanted.end:
            return

        def make_call() -> Call:
            ranged = {"Range": wanted.header, "If-Match": self._etag}
            return Call("GetObject", "GET", self._bucket, self._key, headers=ranged)

        answer = connect(self._place).ask(
            make_call,
            accept=frozenset({404, 412, 416}),
            receive=wanted.receive,
            progress=lambda: wanted.next,
        )
        if answer.status == 404:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), self.path)
        if answer.status >= 300:
            raise InputError(describe_change(self.path))

    def close(self) -> None:
        """Let go of it; nothing is held."""
