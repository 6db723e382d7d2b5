"""Folders seen through mounts that remember what files looked like, as network shares do."""

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

_MAKE = {"ext4": ("mkfs.ext4", "-q"), "btrfs": ("mkfs.btrfs", "-q", "--metadata", "single")}
REMEMBERED_SECONDS = 30
SFTP_SERVER = Path("/usr/lib/openssh/sftp-server")


class NoDiskError(Exception):
    """A file system that cannot be made here, and why."""


@contextmanager
def disk_in_a_file(place: Path, kind: str, size_bytes: int, *options: str) -> Iterator[Path]:
    """Have a file system of this size in a file, which takes of the disk what is written to it; NoDiskError where not."""
    folder, image = _make(place / kind), place / f"{kind}.image"
    image.touch()
    os.truncate(image, size_bytes)
    commands = ((*_MAKE[kind], image), ("mount", "-o", ",".join(("loop", *options)), image, folder))
    for command in commands:
        if shutil.which(command[0]) is None:
            raise NoDiskError(f"no {command[0]} here")
        ended = subprocess.run(command, capture_output=True, text=True, check=False)
        if ended.returncode:
            raise NoDiskError(f"{command[0]}: {ended.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", folder], check=True)
        image.unlink()


def why_no_bindfs() -> str | None:
    """Tell why bindfs cannot be used here, if so."""
    if not Path("/dev/fuse").exists():
        return "no /dev/fuse here"
    return None if shutil.which("bindfs") else "no bindfs here"


def why_no_sshfs() -> str | None:
    """Tell why sshfs cannot be used here, if so."""
    if not Path("/dev/fuse").exists():
        return "no /dev/fuse here"
    return None if shutil.which("sshfs") and SFTP_SERVER.exists() else "no sshfs or no sftp-server here"


@contextmanager
def bound_twice(place: Path) -> Iterator[tuple[Path, Path]]:
    """Have one folder under two names, each of which remembers names and attributes for half a minute."""
    options = f"attr_timeout={REMEMBERED_SECONDS},entry_timeout={REMEMBERED_SECONDS}"
    with ExitStack() as stack:
        folder = _make(place / "real")
        for name in ("one", "two"):
            subprocess.run(["bindfs", "-o", options, folder, _make(place / name)], check=True)
            stack.callback(unmount, place / name)
        yield place / "one", place / "two"


@contextmanager
def shared_twice(place: Path) -> Iterator[tuple[Path, Path]]:
    """Have one folder by two sshfs with the options that it has by itself."""
    with ExitStack() as stack:
        folder = _make(place / "real")
        for name in ("one", "two"):
            ours, its = socket.socketpair()
            with ours, its:
                server = subprocess.Popen([SFTP_SERVER], stdin=its, stdout=its)
                stack.callback(server.wait)
                command = ["sshfs", "-f", "-o", "passive", f"host:{folder}", str(_make(place / name))]
                client = subprocess.Popen(command, stdin=ours, stdout=ours)
                stack.callback(client.wait)
            stack.callback(unmount, place / name)
            while not (place / name).is_mount():
                assert client.poll() is None
                time.sleep(0.01)
        yield place / "one", place / "two"


def unmount(folder: Path) -> None:
    """Unmount a folder, whatever is still open in it."""
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def _make(folder: Path) -> Path:
    folder.mkdir()
    return folder
