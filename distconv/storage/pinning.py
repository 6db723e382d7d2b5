"""Files that must be the very ones they were, whatever is under their names meanwhile.

A folder that goes away and comes back has all its files' names, numbers and times again: only
who opened a file can tell which one it was.
"""

import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

_BOOT = Path("/proc/sys/kernel/random/boot_id")
_MOUNTS = Path("/proc/self/ns/mnt")


@dataclass(frozen=True, slots=True)
class Pins:
    """What files looked like; elsewhere they have other numbers, and nothing is said of them."""

    stamps: Mapping[str, str]
    """By path."""
    view: str
    """Where they looked like that."""

    @classmethod
    def here(cls, stamps: Mapping[str, str]) -> "Pins":
        """Pin files to what they look like to this process."""
        return cls(stamps, _view())

    def tell_apart(self, path: str, stamp: str) -> bool:
        """Whether a file that was opened here is not the one that is meant."""
        return self.stamps.get(path, stamp) != stamp and self.view == _view()


def make_stamp(status: os.stat_result) -> str:
    """Say what a file looks like: another one, or the same once it was written to, looks otherwise."""
    return f"{status.st_size} {status.st_mtime_ns} {status.st_ctime_ns} {status.st_ino}"


def describe_change(path: str) -> str:
    """Tell of a file of INPUT that is another one now."""
    return f"{path}: written, replaced or touched while it was converted; nothing was made whole of it"


def describe_end(path: str, size_bytes: int, end_bytes: int) -> str:
    """Tell of a file that is too short for what is read of it, to before ``end_bytes``."""
    return (
        f"{path}: ends at byte {size_bytes:,}, expected data up to byte {end_bytes:,}; the file is truncated"
    )


def _view() -> str:
    """Name all that decides which numbers and times files have: the host, its boot and its mounts."""
    boot = _BOOT.read_text().strip() if _BOOT.exists() else ""
    mounts = os.readlink(_MOUNTS) if _MOUNTS.is_symlink() else ""
    return f"{socket.gethostname()} {boot} {mounts}"
