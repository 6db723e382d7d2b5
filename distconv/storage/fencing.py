"""Local files that change at one stroke or not at all, whoever else works in their folder.

Whatever is to appear or to go away is prepared under a name that no other attempt uses. Who
takes a folder over removes all such names; from then on what somebody else had prepared
fails, as its name is gone, however long that one was held up between deciding and doing.
"""

import contextlib
import errno
import os
import re
import socket
import stat
import time
import uuid

from distconv.errors import InputError

PARTIAL_SUFFIX = ".partial"
"""Ends the name of everything that is being written or removed."""
ATTEMPT_ENDING = rf"\.[^/]+-\d+-[0-9a-f]{{8}}{re.escape(PARTIAL_SUFFIX)}"
"""Pattern of what make_attempt puts behind a dot and a file's name."""
_ATTEMPT = re.compile(rf"\..+{ATTEMPT_ENDING}", re.DOTALL)
_OPEN_SECONDS = 0.5
"""So long a file that is removed may still be read by somebody who only looks at it."""
_FLAGS = os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOFOLLOW


def make_attempt(path: str) -> str:
    """Name a new attempt at a file, in the file's folder."""
    folder, name = os.path.split(path)
    attempt = f"{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:8]}"
    return os.path.join(folder, f".{name}.{attempt}{PARTIAL_SUFFIX}")


def is_attempt(name: str) -> bool:
    """Whether a name is one that make_attempt gives."""
    return _ATTEMPT.fullmatch(name) is not None


def drop_attempt(path: str) -> None:
    """Remove an attempt, so that it fails; one that is not there is no error.

    A removal that took place may stay for now: the client of a network file system keeps a file that is open in it,
    under another name, until it is closed.
    """
    with contextlib.suppress(FileNotFoundError):
        if not stat.S_ISDIR(os.lstat(path).st_mode):
            os.unlink(path)
            return
        until = time.monotonic() + _OPEN_SECONDS
        while not _remove_empty(path):
            # What its maker moved is in it, who moves once: from now on nothing more can land.
            for name in os.listdir(path):
                _remove_closed(os.path.join(path, name))
            if time.monotonic() > until:
                return
            time.sleep(_OPEN_SECONDS / 50)


def _remove_empty(folder: str) -> bool:
    try:
        os.rmdir(folder)
    except OSError as error:
        if error.errno not in {errno.ENOTEMPTY, errno.EEXIST}:
            raise
        return False
    return True


def _remove_closed(path: str) -> None:
    """Remove a file; one that is open may stay under this name (NFS) or get another one (FUSE)."""
    try:
        os.unlink(path)
    except OSError as error:
        if error.errno not in {errno.ENOENT, errno.EBUSY}:
            raise


def publish_file(partial: str, path: str) -> bool:
    """Give a file its final name unless that name is taken; then the partial one stays."""
    try:
        # A link fails where the name is taken; a rename would replace what somebody committed.
        os.link(partial, path)
    except FileExistsError:
        return False
    except FileNotFoundError:
        raise
    except OSError:
        # A file system without hard links: it is enough that a folder has one owner.
        if os.path.exists(path):
            return False
        os.rename(partial, path)
        return True
    with contextlib.suppress(FileNotFoundError):
        os.unlink(partial)
    return True


def add_name(path: str, name: str) -> None:
    """Give a file another name; it keeps the first one where the file system has hard links."""
    try:
        os.link(path, name, follow_symlinks=False)
    except FileNotFoundError:
        raise
    except OSError:
        os.rename(path, name)


def create_file(path: str, content: bytes) -> bool:
    """Make a small file, durable; False where there is one already."""
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
    except FileExistsError:
        return False
    try:
        os.pwrite(descriptor, content, 0)
        os.fsync(descriptor)
    except OSError as error:
        error.filename = error.filename or path
        os.unlink(path)
        raise
    finally:
        os.close(descriptor)
    return True


def refresh_file(path: str, mark: bytes, content: bytes) -> bool:
    """Overwrite a small file in place where it contains ``mark``; False where it is not there or does not.

    ``content`` is as long as what is there.
    """
    try:
        descriptor = os.open(path, os.O_RDWR | _FLAGS)
    except FileNotFoundError:
        return False
    try:
        # The descriptor stays this very file's, also when another one gets its name meanwhile.
        if mark not in _read(descriptor, len(content)):
            return False
        os.pwrite(descriptor, content, 0)
    finally:
        os.close(descriptor)
    return True


def read_file_now(path: str, limit_bytes: int) -> bytes:
    """Read the beginning of a file as it is now, also where its host keeps what it once read."""
    descriptor = os.open(path, os.O_RDONLY | _FLAGS)
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise InputError(f"{path}: a folder, pipe or device, expected a regular file")
        return _read(descriptor, limit_bytes)
    finally:
        os.close(descriptor)


def _read(descriptor: int, size_bytes: int) -> bytes:
    if hasattr(os, "posix_fadvise"):
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    return os.pread(descriptor, size_bytes, 0)


class LocalRemoval:
    """A file that is going to be removed, by moving it into a folder of this attempt's own."""

    def __init__(self, path: str) -> None:
        """Make the folder."""
        self._path = path
        self._attempt = make_attempt(path)
        os.mkdir(self._attempt)

    def commit(self) -> None:
        """Remove the file; one that is not there is no error."""
        if os.path.isdir(self._path) and not os.path.islink(self._path):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), self._path)
        try:
            os.rename(self._path, os.path.join(self._attempt, "removed"))
        except FileNotFoundError:
            # Which of the two is not there? The folder goes in any case.
            os.rmdir(self._attempt)

    def abort(self) -> None:
        """Leave nothing behind; after a commit as well."""
        drop_attempt(self._attempt)
