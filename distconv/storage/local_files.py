"""Local files that are open: for reading at any place, for writing under a name that nobody else uses."""

import contextlib
import os
import stat
from collections.abc import Iterator

from distconv.errors import ConversionError, InputError
from distconv.storage.base import LOCAL_ACCESS, Buffer, Reader
from distconv.storage.fencing import add_name, make_attempt, publish_file
from distconv.storage.pinning import describe_change, describe_end, make_stamp
from distconv.storage.space import reserve

FLUSH_BYTES = 256 << 20
"""So much of a file is written before it is made durable: what was written is told as progress, and the
commit must not take, on storage that many share, the time of a whole file of which nothing was durable."""


class LocalReader(Reader):
    """A local file, read by explicit positioned reads."""

    access = LOCAL_ACCESS

    def __init__(self, path: str) -> None:
        """Open the file."""
        self.path = path
        # Opening a pipe would wait for somebody to write into it.
        self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        status = os.fstat(self._descriptor)
        if not stat.S_ISREG(status.st_mode):
            self.close()
            raise InputError(f"{path}: a folder, pipe or device, expected a regular file")
        self.size_bytes = status.st_size
        self.stamp = make_stamp(status)

    def read_into(self, offset_bytes: int, buffer: memoryview) -> None:
        """Fill the whole buffer from this offset."""
        # Columns of a matrix are hundreds of thousands of short runs: one call each, and little around it.
        try:
            done = os.preadv(self._descriptor, (buffer,), offset_bytes)
        except OSError as error:
            error.filename = error.filename or self.path
            raise
        while done < len(buffer):
            with _naming(self.path):
                count = os.preadv(self._descriptor, (buffer[done:],), offset_bytes + done)
            if count == 0:
                raise InputError(self._describe_end(offset_bytes + len(buffer)))
            done += count

    def _describe_end(self, end_bytes: int) -> str:
        status = os.fstat(self._descriptor)
        # Cut short by somebody who writes it anew, perhaps: it may be whole again by now.
        if make_stamp(status) != self.stamp:
            return describe_change(self.path)
        return describe_end(self.path, status.st_size, end_bytes)

    def close(self) -> None:
        """Let go of the file."""
        os.close(self._descriptor)


class LocalPartWriter:
    """A local file that is open for writing; ``path`` is its name in messages."""

    def __init__(self, path: str, descriptor: int) -> None:
        """Take the open file."""
        self._path = path
        self._descriptor = descriptor
        self._unflushed_bytes = 0

    def write_at(self, offset_bytes: int, buffer: Buffer) -> None:
        """Write the whole buffer at this offset."""
        view = memoryview(buffer)
        done = 0
        while done < len(view):
            with _naming(self._path):
                done += os.pwrite(self._descriptor, view[done:], offset_bytes + done)
        # Or the disk would idle until the commit's fsync, and then hold up the lane. What is on
        # its way to the disk stays in the page cache.
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(self._descriptor, offset_bytes, len(view), os.POSIX_FADV_DONTNEED)
        self._unflushed_bytes += len(view)
        if self._unflushed_bytes >= FLUSH_BYTES:
            self.flush()

    def flush(self) -> None:
        """Wait until what was written is on the disk."""
        with _naming(self._path):
            os.fsync(self._descriptor)
        self._unflushed_bytes = 0

    def finish(self) -> None:
        """Make durable what was written, and let go of the file; it can be read."""
        self.flush()
        self.close()

    def holds(self, _first_byte: int, _end_byte: int, _version: str) -> bool:
        """Give False: no version was given."""
        return False

    def close(self) -> None:
        """Let go of the file."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


class LocalWriter(LocalPartWriter):
    """A local file under a name of its own, linked to its final name by the commit."""

    def __init__(self, path: str, size_bytes: int, found: str | None = None) -> None:
        """Create the file at its size, or give one that was found a name of our own as well."""
        self.attempt = make_attempt(path)
        self._size_bytes = size_bytes
        flags = os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW
        self._descriptor = -1
        try:
            if found is not None:
                add_name(found, self.attempt)
            else:
                flags |= os.O_CREAT | os.O_EXCL
            super().__init__(path, os.open(self.attempt, flags, 0o666))
            if found is None:
                with _naming(path):
                    reserve(self._descriptor, size_bytes)
        except BaseException:
            # Also where a signal raised while the file was made: nobody else knows its name.
            with contextlib.suppress(OSError):
                self.abort()
            raise

    def commit(self, *, replace: bool = False) -> bool:
        """Make the file durable and give it its name."""
        # It is closed where it could not be given its name before.
        if self._descriptor >= 0:
            found = os.fstat(self._descriptor).st_size
            if found != self._size_bytes:
                raise ConversionError(f"{self._path}: {found} bytes written, expected {self._size_bytes}")
            self.finish()
        if replace:
            os.replace(self.attempt, self._path)
            return True
        return publish_file(self.attempt, self._path)

    def find_version(self) -> None:
        """Tell nothing: whoever writes into a file can set its time."""

    def abort(self) -> None:
        """Remove what was written."""
        self.close()
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self.attempt)


@contextlib.contextmanager
def _naming(path: str) -> Iterator[None]:
    """Let an error of a descriptor, which knows no name, tell the file's."""
    try:
        yield
    except OSError as error:
        error.filename = error.filename or path
        raise
