"""Where bytes live: every read of INPUT and every write to OUTPUT goes through here.

The verbs are those that an object store can serve as well: list, size, read a range; begin
a file of a known size, write ranges of it in any order, commit or abort. A file under its
final name is whole: its bytes are written under a name that no other attempt uses.
"""

import contextlib
import os
import posixpath
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from distconv.errors import InputError

PathLike = str | os.PathLike[str]
"""A path as callers give it."""

Buffer = bytes | bytearray | memoryview

Told = Callable[[int], object]
"""Hears how many bytes of a read have come by now."""


def ignore(_size_bytes: int) -> None:
    """Need not hear it."""


class ConflictError(BlockingIOError):
    """Somebody changed a file while it was being committed: nothing of that is kept, and it may be made again."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One name in a folder."""

    name: str
    is_folder: bool
    size_bytes: int
    version: str
    """Changes when the content does (for local files: the modification time in ns)."""
    stamp: str = field(default="", compare=False)
    """Changes also where somebody writes and puts the time back, or another file takes the name."""


@dataclass(frozen=True, slots=True)
class Access:
    """What a request to a place costs, and so how files there are best read."""

    gap_bytes: int
    """A gap up to this size costs no more than another request does."""
    request_bytes: int
    """A request of this size costs little more than its bytes do; longer ones are better cut."""
    ahead_bytes: int
    """So much is asked for before it is needed; 0 where an answer is there at once."""


LOCAL_ACCESS = Access(gap_bytes=4096, request_bytes=4 << 20, ahead_bytes=0)
"""The kernel reads by pages, and ahead by itself."""


class Reader(Protocol):
    """An open file; safe to use from several threads."""

    path: str
    size_bytes: int
    access: Access

    def read_into(self, offset_bytes: int, buffer: memoryview) -> None:
        """Fill the whole buffer from this offset; a file that ends before is an InputError."""

    def read_vector(
        self,
        offset_bytes: int,
        buffers: Sequence[memoryview],
        told: Told = ignore,  # noqa: ARG002  of what is there at once nothing is told
    ) -> None:
        """Fill buffers one behind the other from this offset; where reads are requests, by one.

        ``told`` may hear, now and then, how many bytes are there.
        """
        for buffer in buffers:
            self.read_into(offset_bytes, buffer)
            offset_bytes += len(buffer)

    def close(self) -> None:
        """Let go of the file."""


class PartWriter(Protocol):
    """A file that somebody else began, and commits."""

    def write_at(self, offset_bytes: int, buffer: Buffer) -> None:
        """Write the whole buffer at this offset; what was written is made durable from time to time."""

    def finish(self) -> str | None:
        """Make durable what was written, and let go of the file.

        Gives the version of the run that is stored, where it cannot be read before the file is committed.
        """

    def holds(self, first_byte: int, end_byte: int, version: str) -> bool:
        """Whether the run of these bytes that is stored is still of the version that ``finish`` gave."""

    def close(self) -> None:
        """Let go of the file."""


class Writer(PartWriter, Protocol):
    """A file that is being written, invisible under its final name until it is committed."""

    @property
    def attempt(self) -> str:
        """By which others open it, to write parts of it."""

    def commit(self, *, replace: bool = False) -> bool:
        """Make it durable and visible.

        Without ``replace`` a file that is already there stays as it is and False is returned; it
        may then be committed with ``replace``, or aborted.
        """

    def find_version(self) -> str | None:
        """Give the version of the entry that was committed, where no other content ever has it; else None."""

    def abort(self) -> None:
        """Remove what was written."""


class Removal(Protocol):
    """A file that is going to be removed."""

    def commit(self) -> None:
        """Remove it; one that is not there is no error."""

    def abort(self) -> None:
        """Leave nothing behind; after a commit as well."""


class Storage(Protocol):
    """A place that holds files; picklable, so that workers elsewhere can use it."""

    def list_folder(self, folder: str) -> tuple[Entry, ...]:
        """All names in a folder, sorted; empty where there is none."""

    def list_names(self, folder: str) -> tuple[str, ...]:
        """Names alone, as the folder has them now; empty where there is none."""

    def find(self, path: str) -> Entry | None:
        """What is at this path, if anything."""

    def open(self, path: str) -> Reader:
        """Open a file for reading; InputError where it is none, or not the one that it is pinned to."""

    def pinned(self, stamps: Mapping[str, str]) -> "Storage":
        """Give the same place, where files that have other stamps than these, by path, cannot be opened."""

    def make_folder(self, folder: str) -> None:
        """Make a folder and its parents where they are missing, their names durable too."""

    def probe(self, folder: str) -> None:
        """Raise OutputError where the place does not do what owning a folder in it rests on; who owns it asks."""

    def begin(self, path: str, size_bytes: int) -> Writer:
        """Begin a file of exactly this size, its space reserved where that can be."""

    def find_least_run(self, path: str, size_bytes: int) -> int:
        """Give the least size of the runs in which several may write a file of this size, but for its end."""

    def find_most_written(self, folder: str) -> int:
        """Give how many files in a folder one worker may write at once, as each takes memory until it is durable."""

    def open_attempt(self, path: str, attempt: str, size_bytes: int) -> PartWriter:
        """Open a file of this size that was begun; FileNotFoundError where it was aborted, committed or dropped.

        One run of it may be written, in order of offset, and of ``find_least_run`` at least.
        """

    def take_attempt(self, path: str, attempt: str, size_bytes: int) -> Writer | None:
        """Go on with somebody's unfinished write, with all that is in it, under a name of its own.

        Its maker can commit it until ``attempt`` is dropped, and whoever knows that name go on with it as well:
        it is dropped once the new one is recorded. None where it is not there, or not of this size.
        """

    def remove(self, path: str) -> None:
        """Remove a file whose name nobody else uses; one that is not there is no error."""

    def begin_removal(self, path: str) -> Removal:
        """Begin to remove a file."""

    def drop_attempt(self, path: str) -> None:
        """Make somebody's unfinished write or removal fail for good; ``is_attempt`` knows its name."""

    def create(self, path: str, content: bytes) -> bool:
        """Make a small file, durable; False where there is one already, whoever else tries at the same time."""

    def refresh(self, path: str, mark: bytes, content: bytes) -> bool:
        """Overwrite a small file where it contains ``mark``, and False where not; never makes one.

        ``content`` is as long as what is there.
        """

    def read_now(self, path: str, limit_bytes: int) -> bytes:
        """Read the beginning of a small file as it is now, whatever is kept of it on this host."""

    def flush_folder(self, folder: str) -> None:
        """Make the names in a folder durable."""

    def free_bytes(self, folder: str) -> int | None:
        """Give the space that is left for new files in a folder, which need not be there yet; None: no limit."""

    def real_path(self, path: str) -> str:
        """Give the path with links resolved, to tell whether two are the same place."""


def join(folder: str, *names: str) -> str:
    """Name a file in a folder."""
    return posixpath.join(folder, *names)


def is_folder(storage: Storage, path: str) -> bool:
    """Whether a folder is there."""
    found = storage.find(path)
    return found is not None and found.is_folder


def is_file(storage: Storage, path: str) -> bool:
    """Whether something is there that is no folder."""
    found = storage.find(path)
    return found is not None and not found.is_folder


def list_files(storage: Storage, folder: str) -> list[str]:
    """Give the names of what is no folder in a folder."""
    return [entry.name for entry in storage.list_folder(folder) if not entry.is_folder]


def read_range(reader: Reader, offset_bytes: int, size_bytes: int) -> bytearray:
    """Read a small range as bytes."""
    found = bytearray(size_bytes)
    reader.read_into(offset_bytes, memoryview(found))
    return found


@contextlib.contextmanager
def opened(storage: Storage, path: str) -> Iterator[Reader]:
    """Open a file and close it at the end of the block."""
    reader = storage.open(path)
    try:
        yield reader
    finally:
        reader.close()


def read_small(storage: Storage, path: str, limit_bytes: int) -> bytes:
    """Read a whole small file; InputError where it is larger than the limit."""
    with opened(storage, path) as reader:
        if reader.size_bytes > limit_bytes:
            raise InputError(f"{path}: {reader.size_bytes:,} bytes, expected at most {limit_bytes:,}")
        return bytes(read_range(reader, 0, reader.size_bytes))


def write_small(storage: Storage, path: str, content: bytes) -> None:
    """Write a whole small file, in place of an older one if there is one."""
    writer = storage.begin(path, len(content))
    try:
        writer.write_at(0, content)
        writer.commit(replace=True)
    except BaseException:
        writer.abort()
        raise
