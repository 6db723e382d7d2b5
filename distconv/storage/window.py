"""Headers in few requests: what lies around a small read comes with it, and answers the next ones."""

import threading
from collections import deque
from collections.abc import Sequence

from distconv.storage.base import Access, Reader, Told, ignore

WINDOW_BYTES = 64 << 10
"""A request that takes 20 ms brings as much for nothing."""
_KEPT = 4


def read_by_windows(reader: Reader, window_bytes: int = WINDOW_BYTES) -> Reader:
    """Give a reader for many small reads that lie together; a file whose answers are there at once as it is."""
    return WindowReader(reader, window_bytes) if reader.access.ahead_bytes else reader


class WindowReader:
    """Reads windows of a file and answers small reads from them; safe to use from several threads."""

    def __init__(self, reader: Reader, window_bytes: int = WINDOW_BYTES) -> None:
        """Begin without any; they are of so many bytes, and a few are kept."""
        self.path: str = reader.path
        self.size_bytes: int = reader.size_bytes
        self.access: Access = reader.access
        self._reader = reader
        self._window_bytes = window_bytes
        self._windows: deque[tuple[int, memoryview]] = deque(maxlen=_KEPT)
        self._lock = threading.Lock()

    def read_into(self, offset_bytes: int, buffer: memoryview) -> None:
        """Fill the whole buffer from this offset."""
        end = offset_bytes + len(buffer)
        if len(buffer) >= self._window_bytes or end > self.size_bytes:
            self._reader.read_into(offset_bytes, buffer)
            return
        with self._lock:
            first, window = self._find(offset_bytes, end)
            buffer[:] = window[offset_bytes - first : end - first]

    def read_vector(self, offset_bytes: int, buffers: Sequence[memoryview], told: Told = ignore) -> None:
        """Fill buffers one behind the other from this offset, which no window answers."""
        self._reader.read_vector(offset_bytes, buffers, told)

    def _find(self, offset: int, end: int) -> tuple[int, memoryview]:
        for first, window in self._windows:
            if first <= offset and end <= first + len(window):
                return first, window
        # A zip's end is looked for backwards, from the last byte on.
        first = max(0, min(offset, self.size_bytes - self._window_bytes))
        window = memoryview(bytearray(min(self._window_bytes, self.size_bytes - first)))
        self._reader.read_into(first, window)
        self._windows.append((first, window))
        return first, window

    def close(self) -> None:
        """Let go of the file."""
        self._reader.close()
