"""Files of this host, network file systems included, as a storage."""

import contextlib
import errno
import os
import shutil
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

from distconv.errors import ConversionError, InputError, OutputError
from distconv.storage.base import LOCAL_ACCESS, Buffer, Entry, join
from distconv.storage.fencing import (
    LocalRemoval,
    add_name,
    create_file,
    drop_attempt,
    make_attempt,
    publish_file,
    read_file_now,
    refresh_file,
)
from distconv.storage.pinning import Pins, describe_change, make_stamp
from distconv.storage.space import reserve

FLUSH_BYTES = 256 << 20
"""So much of a file is written before it is made durable: what was written is told as progress, and the
commit must not take, on storage that many share, the time of a whole file of which nothing was durable."""


class LocalReader:
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
                raise InputError(
                    f"{self.path}: ends at byte {offset_bytes + done:,}, "
                    f"expected data up to byte {offset_bytes + len(buffer):,}; the file is truncated"
                )
            done += count

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
        if found is not None:
            add_name(found, self.attempt)
        else:
            flags |= os.O_CREAT | os.O_EXCL
        super().__init__(path, os.open(self.attempt, flags, 0o666))
        if found is None:
            try:
                with _naming(path):
                    reserve(self._descriptor, size_bytes)
            except BaseException:
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


_NOTHING_THERE = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG})


@dataclass(frozen=True, slots=True)
class LocalStorage:
    """Files of this host, network file systems included."""

    pins: Pins | None = field(default=None, kw_only=True)

    def list_folder(self, folder: str) -> tuple[Entry, ...]:
        """All names in a folder, sorted; empty where there is none."""
        found = (self.find(join(folder, name)) for name in self.list_names(folder))
        return tuple(entry for entry in found if entry is not None)

    def list_names(self, folder: str) -> tuple[str, ...]:
        """Names alone, sorted; those of links to nowhere as well."""
        try:
            return tuple(sorted(os.listdir(folder)))
        except (FileNotFoundError, NotADirectoryError):
            return ()

    def find(self, path: str) -> Entry | None:
        """What is at this path, if anything; links are followed."""
        # Texts of strangers name files too; where no file can have a name, there is none.
        if "\0" in path:
            return None
        try:
            status = os.stat(path)
        except OSError as error:
            if error.errno in _NOTHING_THERE:
                return None
            raise
        is_folder = stat.S_ISDIR(status.st_mode)
        version = str(status.st_mtime_ns)
        return Entry(os.path.basename(path), is_folder, status.st_size, version, make_stamp(status))

    def open(self, path: str) -> LocalReader:
        """Open a file for reading."""
        reader = LocalReader(path)
        if self.pins is not None and self.pins.tell_apart(path, reader.stamp):
            reader.close()
            raise InputError(describe_change(path))
        return reader

    def pinned(self, stamps: Mapping[str, str]) -> "LocalStorage":
        """Give the same place, where files that have other stamps than these cannot be opened."""
        return replace(self, pins=Pins.here(stamps))

    def make_folder(self, folder: str) -> None:
        """Make a folder and its parents where they are missing, their names durable too."""
        made = []
        above = os.path.abspath(folder)
        while not os.path.lexists(above):
            above = os.path.dirname(above)
            made.append(above)
        try:
            os.makedirs(folder, exist_ok=True)
        except FileExistsError as error:
            raise OutputError(
                f"{folder}: a file or a link to nowhere is in the way, expected a folder"
            ) from error
        for parent in reversed(made):
            # Where one may make names but not look there is no way to.
            with contextlib.suppress(PermissionError):
                self.flush_folder(parent)

    def probe(self, _folder: str) -> None:
        """Do nothing: no file system is known that takes the same name twice."""

    def find_least_run(self, _path: str, _size_bytes: int) -> int:
        """Give zero: any byte may be written by itself."""
        return 0

    def begin(self, path: str, size_bytes: int) -> LocalWriter:
        """Begin a file of exactly this size, its space reserved where that can be."""
        return LocalWriter(path, size_bytes)

    def open_attempt(self, path: str, attempt: str, size_bytes: int) -> LocalPartWriter:  # noqa: ARG002
        """Open a file that was begun."""
        return LocalPartWriter(path, os.open(attempt, os.O_WRONLY | os.O_CLOEXEC))

    def take_attempt(self, path: str, attempt: str, size_bytes: int) -> LocalWriter | None:
        """Go on with somebody's unfinished write, under a name of our own."""
        try:
            status = os.lstat(attempt)
            # What a link leads to is somebody else's file.
            if not stat.S_ISREG(status.st_mode) or status.st_size != size_bytes:
                return None
            return LocalWriter(path, size_bytes, attempt)
        except FileNotFoundError:
            return None

    def remove(self, path: str) -> None:
        """Remove a file; one that is not there is no error."""
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)

    def begin_removal(self, path: str) -> LocalRemoval:
        """Begin to remove a file."""
        return LocalRemoval(path)

    def drop_attempt(self, path: str) -> None:
        """Make somebody's unfinished write or removal fail for good."""
        drop_attempt(path)

    def create(self, path: str, content: bytes) -> bool:
        """Make a small file, durable; False where there is one already."""
        return create_file(path, content)

    def refresh(self, path: str, mark: bytes, content: bytes) -> bool:
        """Overwrite a small file where it contains ``mark``, and False where not."""
        return refresh_file(path, mark, content)

    def read_now(self, path: str, limit_bytes: int) -> bytes:
        """Read the beginning of a small file as it is now."""
        return read_file_now(path, limit_bytes)

    def flush_folder(self, folder: str) -> None:
        """Make the names in a folder durable."""
        descriptor = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def free_bytes(self, folder: str) -> int:
        """Give the space that is left to this user on the folder's file system."""
        folder = os.path.abspath(folder)
        while not os.path.isdir(folder):
            folder = os.path.dirname(folder)
        return shutil.disk_usage(folder).free

    def real_path(self, path: str) -> str:
        """Give the absolute path with links resolved."""
        return os.path.realpath(path)


@contextlib.contextmanager
def _naming(path: str) -> Iterator[None]:
    """Let an error of a descriptor, which knows no name, tell the file's."""
    try:
        yield
    except OSError as error:
        error.filename = error.filename or path
        raise
