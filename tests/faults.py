"""A storage that fails where a test wants it to, and models to compare."""

import contextlib
import errno
import hashlib
import json
import os
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict

import pytest

from distconv.errors import DistconvError
from distconv.storage.base import Buffer
from distconv.storage.local import LocalStorage
from distconv.storage.local_files import LocalReader, LocalWriter
from tests.stored import AnyPath, StoredPath


class Calls:
    """Counts calls of one kind and lets the n-th one fail; from ``lasting`` on all that follow too."""

    def __init__(self, number: int, code: int, *, lasting: bool) -> None:
        self.count = 0
        self._number, self._code, self._lasting = number, code, lasting
        self._lock = threading.Lock()

    def call(self, path: str) -> None:
        """Count one call, and fail if it is its turn."""
        with self._lock:
            self.count += 1
            if self.count == self._number or (self._lasting and self.count > self._number):
                raise OSError(self._code, os.strerror(self._code), path)


class FaultyReader(LocalReader):
    """A file whose reads may fail."""

    calls: Calls

    def read_into(self, offset_bytes: int, buffer: memoryview) -> None:
        """Read, or fail."""
        self.calls.call(self.path)
        super().read_into(offset_bytes, buffer)


class FaultyWriter(LocalWriter):
    """A file whose writes and commit may fail."""

    calls: Calls

    def write_at(self, offset_bytes: int, buffer: Buffer) -> None:
        """Write, or fail."""
        self.calls.call(self._path)
        super().write_at(offset_bytes, buffer)

    def commit(self, *, replace: bool = False) -> bool:
        """Commit, or fail."""
        self.calls.call(self._path)
        return super().commit(replace=replace)


@dataclass(frozen=True, slots=True)
class FaultyStorage(LocalStorage):
    """Local files, with faults in reads or in writes."""

    reads: Calls
    writes: Calls

    def open(self, path: str) -> LocalReader:
        """Open a file whose reads may fail."""
        reader = FaultyReader(path)
        reader.calls = self.reads
        return reader

    def create(self, path: str, content: bytes) -> bool:
        """Make a file that only one may make, or fail."""
        self.writes.call(path)
        return LocalStorage.create(self, path, content)

    def read_now(self, path: str, limit_bytes: int) -> bytes:
        """Read a small file as it is now, or fail."""
        self.reads.call(path)
        return LocalStorage.read_now(self, path, limit_bytes)

    def begin(self, path: str, size_bytes: int) -> LocalWriter:
        """Begin a file, or fail; its writes may fail."""
        self.writes.call(path)
        writer = FaultyWriter(path, size_bytes)
        writer.calls = self.writes
        return writer


def never() -> Calls:
    """Give calls that do not fail."""
    return Calls(0, errno.EIO, lasting=False)


def digest_folder(folder: AnyPath) -> dict[str, str]:
    """Give the SHA-256 of every file in a folder, but for what FUSE keeps of removed files while they are open."""
    names = (path for path in sorted(folder.iterdir()) if not path.name.startswith(".fuse_hidden"))
    files = (path for path in names if isinstance(path, StoredPath) or path.is_file())
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def read_data(folder: Path) -> dict[str, bytes]:
    """Read all files but the receipt, which names folders, versions and times."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "distconv.json"}


def digest_shards(folder: AnyPath) -> dict[str, str]:
    """Give the SHA-256 of a folder's shards in Meta's layout."""
    return {name: digest for name, digest in digest_folder(folder).items() if name.endswith(".pth")}


class InterruptedAtError(DistconvError):
    """An end that does not pass."""


def give_up(*_arguments: object, **_options: object) -> None:
    """End a conversion where this is called."""
    raise InterruptedAtError


@contextlib.contextmanager
def interrupted_at(place: object, name: str) -> Iterator[None]:
    """Have what is done in the block end where a function is called."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(place, name, give_up)
        with pytest.raises(InterruptedAtError):
            yield


class UnfinishedEntry(TypedDict):
    """An unfinished file: what it is open as, and its durable parts."""

    attempt: str
    parts: dict[str, dict[str, list[object]]]


class Journal(TypedDict):
    """What the journal of an unfinished conversion says."""

    chunks: list[object]
    unfinished: dict[str, UnfinishedEntry]


def read_journal(output: AnyPath) -> Journal:
    """Read what an unfinished conversion left word of."""
    found: Journal = json.loads((output / ".distconv.journal").read_text())
    return found


def read_recorded(folder: AnyPath) -> set[str]:
    """Give the names of the chunks that an unfinished conversion's journal vouches for."""
    journal = folder / ".distconv.journal"
    content = journal.read_text() if journal.exists() else ""
    # Killed between a store's note in its place and the note's deletion, which counts as removed.
    if not content or content.startswith("This file was removed."):
        return set()
    found = json.loads(content)
    # A file that is both was about to be committed, or just was.
    return {chunk["name"] for chunk in found["chunks"]} - found.get("unfinished", {}).keys()


def looks_whole(folder: AnyPath) -> bool:
    """Whether Transformers, or Meta's code, would try to load it."""
    names = {path.name for path in folder.iterdir()} if folder.exists() else set()
    marks = {"model.safetensors.index.json", "model.safetensors"}
    return "params.json" in names or ("config.json" in names and bool(marks & names))
