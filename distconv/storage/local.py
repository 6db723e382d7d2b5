"""Files of this host, network file systems included, as a storage."""

import contextlib
import errno
import os
import shutil
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from distconv.errors import InputError, OutputError
from distconv.storage.base import Entry, join
from distconv.storage.fencing import (
    LocalRemoval,
    create_file,
    drop_attempt,
    read_file_now,
    refresh_file,
)
from distconv.storage.local_files import LocalPartWriter, LocalReader, LocalWriter
from distconv.storage.pinning import Pins, describe_change, make_stamp

_MOST_WRITTEN = 128
"""A process may usually have 1,024 files open, and has a few lanes."""
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
        except (FileExistsError, NotADirectoryError) as error:
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

    def find_most_written(self, _folder: str) -> int:
        """Give as many as a process may have open: what is written is the kernel's at once."""
        return _MOST_WRITTEN

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
