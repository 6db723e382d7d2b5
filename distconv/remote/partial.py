"""A file that arrives in parts, in any order, over several runs.

Beside ``NAME.partial`` a small file keeps which byte ranges of it have arrived; it is written
after these bytes are durable, so that it never tells of more than there is.
"""

import contextlib
import json
import os
import threading
from collections.abc import Iterable

from distconv.errors import OutputError
from distconv.remote.server import Remote
from distconv.storage import PARTIAL_SUFFIX, LocalStorage, read_small, write_small

Range = tuple[int, int]
_LIMIT_BYTES = 1 << 22


class PartialFile:
    """What has arrived of one file; safe to use from several threads."""

    def __init__(self, path: str, remote: Remote) -> None:
        """Go on where an earlier run stopped, if it had the same content in its hands."""
        self.path, self.size_bytes = path, remote.size_bytes
        self._partial, self._state = path + PARTIAL_SUFFIX, path + PARTIAL_SUFFIX + ".json"
        self._tag = remote.tag
        self._lock = threading.Lock()
        self._storage = LocalStorage()
        self._have = self._find()
        try:
            self._descriptor = os.open(self._partial, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        except IsADirectoryError:
            raise OutputError(f"{self._partial}: a folder is in the way, expected a file") from None

    @property
    def missing_bytes(self) -> int:
        """How many bytes are still to come."""
        return self.size_bytes - sum(end - start for start, end in self._have)

    def missing(self, part_bytes: int) -> list[Range]:
        """Give what is still to come, in parts of at most this size."""
        gaps = []
        position = 0
        for start, end in [*self._have, (self.size_bytes, self.size_bytes)]:
            gaps += [(at, min(at + part_bytes, start)) for at in range(position, start, part_bytes)]
            position = end
        return gaps

    def write_at(self, offset_bytes: int, content: bytes) -> None:
        """Write bytes; they count once ``mark`` tells of them."""
        view = memoryview(content)
        while view:
            written = os.pwrite(self._descriptor, view, offset_bytes)
            view, offset_bytes = view[written:], offset_bytes + written

    def mark(self, start: int, end: int) -> None:
        """Remember for later runs that this range has arrived."""
        if start >= end:
            return
        with self._lock:
            os.fdatasync(self._descriptor)
            self._have = merge([*self._have, (start, end)])
            state = {"size_bytes": self.size_bytes, "tag": self._tag, "have": self._have}
            write_small(self._storage, self._state, json.dumps(state).encode())

    def forget(self) -> None:
        """Begin anew: what is there is not what it should be."""
        with self._lock:
            self._have = []
            self._storage.remove(self._state)
            os.ftruncate(self._descriptor, 0)

    def finish(self) -> None:
        """Give the whole file its name."""
        os.fsync(self._descriptor)
        self.close()
        os.replace(self._partial, self.path)
        self._storage.remove(self._state)

    def close(self) -> None:
        """Let go of the file; what was marked stays."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def _find(self) -> list[Range]:
        """Find what an earlier run, or another program that was cut, has left."""
        here = self._storage.find(self._partial)
        if here is not None:
            with contextlib.suppress(OSError, ValueError, LookupError, TypeError):
                state = json.loads(read_small(self._storage, self._state, _LIMIT_BYTES))
                ranges = merge((int(start), int(end)) for start, end in state["have"])
                same = (state["size_bytes"], state["tag"]) == (self.size_bytes, self._tag)
                if (
                    same
                    and ranges
                    and ranges[0][0] >= 0
                    and ranges[-1][1] <= min(self.size_bytes, here.size_bytes)
                ):
                    return ranges
            return []
        whole = self._storage.find(self.path)
        if whole is None or whole.is_folder:
            return []
        if whole.size_bytes <= self.size_bytes:
            # wget and browsers write from the beginning on; checksums tell whether that was so.
            os.replace(self.path, self._partial)
            return merge([(0, whole.size_bytes)])
        return []


def merge(ranges: Iterable[Range]) -> list[Range]:
    """Join ranges that touch or overlap; the result is sorted."""
    found: list[Range] = []
    for start, end in sorted(ranges):
        if start < end and found and start <= found[-1][1]:
            found[-1] = (found[-1][0], max(end, found[-1][1]))
        elif start < end:
            found.append((start, end))
    return found
