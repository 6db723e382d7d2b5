"""A file that arrives in parts, in any order, over several runs.

Beside ``NAME.partial`` a small file keeps which byte ranges of it have arrived; it is written
after these bytes are durable, so that it never tells of more than there is. A file of the right
size under NAME itself may be whole, and stays as it is until another one takes its place.
"""

import contextlib
import json
import operator
import os
import threading
from collections.abc import Iterable, Iterator

from distconv.downloads.server import Remote
from distconv.errors import InputError, Interrupted
from distconv.storage.base import read_small, write_small
from distconv.storage.fencing import PARTIAL_SUFFIX
from distconv.storage.local import LocalStorage

Range = tuple[int, int]
_LIMIT_BYTES = 1 << 22


def state_path(path: str) -> str:
    """Name the file that tells what has arrived of another."""
    return path + PARTIAL_SUFFIX + ".json"


class PartialFile:
    """What has arrived of one file; safe to use from several threads.

    Nothing is touched on the disk before the first byte is written.
    """

    def __init__(self, path: str, remote: Remote, *, takes_cut: bool) -> None:
        """Go on where an earlier run stopped, if it had the same content in its hands.

        With ``takes_cut`` a shorter file under the name itself is taken for the beginning of this one,
        as wget and browsers leave it: something must tell in the end whether that was so.
        """
        self.path, self.size_bytes = path, remote.size_bytes
        self._partial, self._state = path + PARTIAL_SUFFIX, state_path(path)
        self._tag = remote.tag
        self._lock = threading.Lock()
        self._storage = LocalStorage()
        self._descriptor = -1
        self._ended = False
        self._stands = self._cut = False
        self._have = self._find(takes_cut=takes_cut)
        self.has_foreign_bytes = self._stands or self._cut
        """Whether some of it came from elsewhere than the server."""

    @property
    def found_bytes(self) -> int:
        """How many bytes need not come."""
        return sum(end - start for start, end in self._have)

    @property
    def stands(self) -> bool:
        """Whether a file of the right size has the name already."""
        return self._stands

    @property
    def content_path(self) -> str:
        """Where the bytes are until ``finish``."""
        return self.path if self._stands else self._partial

    def missing(self, part_bytes: int) -> list[Range]:
        """Give what is still to come, in parts of at most this size."""
        gaps = []
        position = 0
        for start, end in [*self._have, (self.size_bytes, self.size_bytes)]:
            gaps += [(at, min(at + part_bytes, start)) for at in range(position, start, part_bytes)]
            position = end
        return gaps

    def write_at(self, offset_bytes: int, content: bytes) -> None:
        """Write bytes; they count once ``mark`` tells of them. Interrupted where the file was let go of."""
        view = memoryview(content)
        # Within the lock: a descriptor that is closed meanwhile may be another file's by then.
        with self._lock, self._naming():
            if self._ended:
                raise Interrupted("stopped")
            if self._descriptor < 0:
                self._descriptor = self._open()
            while view:
                written = os.pwrite(self._descriptor, view, offset_bytes)
                view, offset_bytes = view[written:], offset_bytes + written

    def mark(self, start: int, end: int) -> None:
        """Remember for later runs that this range has arrived."""
        if start >= end:
            return
        with self._lock:
            with self._naming():
                os.fdatasync(self._descriptor)
            self._have = merge([*self._have, (start, end)])
            self._remember()

    def forget(self) -> None:
        """Begin anew: what is there is not what it should be.

        What has the name keeps it until another file takes its place, which may have begun to arrive.
        """
        with self._lock:
            self._have = self._read_state() if self._stands else []
            self._stands = self._cut = self.has_foreign_bytes = False
            self._close()

    def finish(self) -> None:
        """Give the whole file its name, durably."""
        with self._lock:
            if not self._stands:
                with self._naming():
                    self._close(durably=True)
                    os.replace(self._partial, self.path)
                self._storage.flush_folder(os.path.dirname(self.path) or ".")
                self._stands = True
            if self._storage.find(self._state) is not None:
                # Of a run whose file another one has overtaken.
                self._storage.remove(self._partial)
                self._storage.remove(self._state)

    def close(self) -> None:
        """Let go of the file; what was marked stays, and a thread that comes late opens it no more."""
        with self._lock:
            self._ended = True
            self._close()

    def _close(self, *, durably: bool = False) -> None:
        if self._descriptor >= 0:
            if durably:
                os.fsync(self._descriptor)
            os.close(self._descriptor)
            self._descriptor = -1

    def _open(self) -> int:
        """Open what was found, or a new file; never what a link leads to."""
        if self._cut:
            # First the state: without it, what gets the other name would count for nothing.
            self._remember()
            os.replace(self.path, self._partial)
            self._cut = False
        flags = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW
        if self._have:
            return os.open(self._partial, flags)
        self._storage.remove(self._state)
        self._storage.remove(self._partial)
        return os.open(self._partial, flags | os.O_CREAT | os.O_EXCL, 0o666)

    def _remember(self) -> None:
        state = {"size_bytes": self.size_bytes, "tag": self._tag, "have": self._have}
        write_small(self._storage, self._state, json.dumps(state).encode())

    def _find(self, *, takes_cut: bool) -> list[Range]:
        """Find what an earlier run, or another program that was cut, has left."""
        named = self._storage.find(self.path)
        if named is not None and named.size_bytes == self.size_bytes:
            self._stands = True
            return merge([(0, self.size_bytes)])
        if have := self._read_state():
            return have
        # In a file with a second name, that one would be written to as well.
        if (
            named is not None
            and takes_cut
            and named.size_bytes < self.size_bytes
            and _has_one_name(self.path)
        ):
            self._cut = named.size_bytes > 0
            return merge([(0, named.size_bytes)])
        return []

    def _read_state(self) -> list[Range]:
        """Read which ranges are there; none where that is not told, or of another content."""
        here = self._storage.find(self._partial)
        if here is None:
            return []
        # Whatever else is in the state's place says nothing.
        with contextlib.suppress(OSError, InputError, ValueError, LookupError, TypeError, RecursionError):
            state = json.loads(read_small(self._storage, self._state, _LIMIT_BYTES))
            ranges = merge((operator.index(start), operator.index(end)) for start, end in state["have"])
            same = (state["size_bytes"], state["tag"]) == (self.size_bytes, self._tag)
            if same and ranges and ranges[0][0] >= 0 and ranges[-1][1] <= here.size_bytes <= self.size_bytes:
                return ranges
        return []

    @contextlib.contextmanager
    def _naming(self) -> Iterator[None]:
        """Let an error of a descriptor, which knows no name, tell the file's."""
        try:
            yield
        except OSError as error:
            error.filename = error.filename or self._partial
            raise


def _has_one_name(path: str) -> bool:
    return os.stat(path).st_nlink == 1


def merge(ranges: Iterable[Range]) -> list[Range]:
    """Join ranges that touch or overlap; the result is sorted."""
    found: list[Range] = []
    for start, end in sorted(ranges):
        if start < end and found and start <= found[-1][1]:
            found[-1] = (found[-1][0], max(end, found[-1][1]))
        elif start < end:
            found.append((start, end))
    return found
