"""Space for a file before it is written, where the file system can give it at once."""

import errno
import os
import sys

_TMPFS, _BTRFS, _ZFS = 0x01021994, 0x9123683E, 0x2FC12FC1
"""What ``statfs`` calls them: Linux's ``linux/magic.h``, and ``ZFS_SUPER_MAGIC`` of OpenZFS."""
_NOT_RESERVED = frozenset({_TMPFS, _BTRFS, _ZFS})


def reserve(descriptor: int, size_bytes: int) -> None:
    """Give an empty file its size and, so that a full disk shows now and not after the work, its space.

    A RAM disk would take its pages one by one here and look up each once more when it is written. Btrfs
    does not compress what lands in reserved space, and ZFS reserves none, but refuses what would fit
    only compressed. A file system that cannot reserve, as NFS before 4.2 and many in user space, only
    sets the size. OSError, ENOSPC above all, where there is no room.
    """
    if not (size_bytes and sys.platform == "linux" and _allocate(descriptor, size_bytes)):
        os.ftruncate(descriptor, size_bytes)


def _allocate(descriptor: int, size_bytes: int) -> bool:
    """Call ``fallocate``; False where that is of no use.

    Not ``os.posix_fallocate``: where the file system cannot, glibc's writes a byte into each 4 KiB,
    and over a network the whole file would be sent twice.
    """
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    status = (ctypes.c_long * 64)()  # struct statfs, which begins with the type, has 15 words
    if libc.fstatfs(descriptor, status) == 0 and status[0] in _NOT_RESERVED:
        return False
    while libc.fallocate(descriptor, 0, ctypes.c_int64(0), ctypes.c_int64(size_bytes)):
        code = ctypes.get_errno()
        if code in (errno.EOPNOTSUPP, errno.ENOSYS):
            return False
        if code != errno.EINTR:
            raise OSError(code, os.strerror(code))
    return True
