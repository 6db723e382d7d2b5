"""Objects in S3, and in what speaks its language, as a storage.

Nothing but UTF-8 can be a key. A folder is there where a key begins with its name; there is nothing to make.
"""

import errno
import os
import posixpath
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from distconv.errors import InputError, OutputError
from distconv.storage.base import Entry
from distconv.storage.fencing import is_attempt
from distconv.storage.parallel import submit
from distconv.storage.s3 import small
from distconv.storage.s3.client import connect
from distconv.storage.s3.listing import has_bucket, has_keys, list_attempts, list_objects
from distconv.storage.s3.objects import delete, get, head
from distconv.storage.s3.place import SCHEME, Place, make_path, normalise, split_folder, split_path
from distconv.storage.s3.probe import probe
from distconv.storage.s3.reader import S3Reader
from distconv.storage.s3.removal import S3Removal, drop_attempt
from distconv.storage.s3.stream import part_size
from distconv.storage.s3.uploads import is_there, parse_name
from distconv.storage.s3.writer import S3PartWriter, S3Writer

_BEGINNING_BYTES = 64 << 10
"""Small files and headers: they come with the answer that tells what the file is, for less than a millisecond."""


@dataclass(frozen=True, slots=True)
class S3Storage:
    """Paths ``s3://BUCKET/KEY``; connections are each process's own."""

    place: Place = field(default_factory=Place)
    pins: Mapping[str, str] | None = field(default=None, kw_only=True)

    def list_folder(self, folder: str) -> tuple[Entry, ...]:
        """All names in a folder, those of unfinished files too, sorted; empty where there is none."""
        client, (bucket, prefix) = connect(self.place), split_folder(folder)
        attempts = submit(_find_attempts, self.place, bucket, prefix)
        found: dict[str, Entry] = {}
        for entry in (*list_objects(client, bucket, prefix), *attempts.result()):
            # A key may be the beginning of others; as a file it is found first, unless it is empty: see ``find``.
            if not entry.is_folder or entry.name not in found or not found[entry.name].size_bytes:
                found[entry.name] = entry
        return tuple(found[name] for name in sorted(found))

    def list_names(self, folder: str) -> tuple[str, ...]:
        """Names alone, sorted; those of unfinished files as well."""
        return tuple(entry.name for entry in self.list_folder(folder))

    def find(self, path: str) -> Entry | None:
        """What is at this path, if anything; an empty object of a folder's name is how some tools make the folder."""
        if not _can_be(path):
            return None
        client, (bucket, key) = connect(self.place), split_path(path)
        found = head(client, bucket, key) if key else None
        if found is not None and found.is_removed:
            found = None
        if (found is None or not found.size_bytes) and has_keys(client, *split_folder(path)):
            return Entry(posixpath.basename(path.rstrip("/")), True, 0, "")
        if found is None:
            return None
        return Entry(posixpath.basename(path), False, found.size_bytes, found.etag, found.stamp)

    def open(self, path: str) -> S3Reader:
        """Open a file for reading: without a request where it is known which one it must be, else with its beginning."""
        stamp = None if self.pins is None else self.pins.get(path)
        if stamp is not None:
            size, _, etag = stamp.partition(" ")
            return S3Reader(self.place, path, int(size), etag)
        bucket, key = split_path(path)
        client = connect(self.place)
        found = get(client, bucket, key, _BEGINNING_BYTES) if key and _can_be(path) else None
        if found is None or found[0].is_removed:
            if _can_be(path) and has_keys(client, *split_folder(path)):
                raise InputError(f"{path}: a folder, expected a file")
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
        return S3Reader(self.place, path, found[0].size_bytes, found[0].etag, found[1])

    def pinned(self, stamps: Mapping[str, str]) -> "S3Storage":
        """Give the same place, where files that have other stamps than these cannot be read."""
        return replace(self, pins=dict(stamps))

    def make_folder(self, folder: str) -> None:
        """Make nothing: a folder is there once something is in it.

        OutputError where there is no such bucket, or where stores differ in which folder it is.
        """
        bucket, prefix = split_folder(folder)
        if normalise(folder) != make_path(bucket, prefix.rstrip("/")).rstrip("/"):
            raise OutputError(
                f"{folder}: an empty name, . or .. among its folders, which some stores keep and others leave out; give "
                f"{normalise(folder)}"
            )
        if not has_bucket(connect(self.place), bucket, prefix):
            raise OutputError(f"{folder}: there is no bucket {bucket}; make it, or correct its name")

    def probe(self, folder: str) -> None:
        """Raise OutputError where the store does not keep the conditions on which all of this rests."""
        probe(self.place, folder)

    def begin(self, path: str, size_bytes: int) -> S3Writer:
        """Begin a file of exactly this size."""
        return S3Writer.begin(self.place, path, size_bytes)

    def find_least_run(self, _path: str, size_bytes: int) -> int:
        """Give the size of a file's parts: only the last may be smaller."""
        return part_size(size_bytes)

    def find_most_written(self, _folder: str) -> int:
        """Give one: each takes all the memory that a worker has for what is on its way."""
        return 1

    def open_attempt(self, path: str, attempt: str, size_bytes: int) -> S3PartWriter:
        """Open a file that was begun."""
        found = parse_name(posixpath.basename(attempt))
        if found is None or not is_there(connect(self.place), *split_path(path), found[1]):
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
        return S3PartWriter.open(self.place, path, found[1], size_bytes)

    def take_attempt(self, path: str, attempt: str, size_bytes: int) -> S3Writer | None:
        """Go on with somebody's unfinished write, under the name that it has: see ``writer``."""
        found = parse_name(posixpath.basename(attempt))
        return None if found is None else S3Writer.take(self.place, path, found[1], size_bytes)

    def remove(self, path: str) -> None:
        """Remove a file; one that is not there is no error."""
        delete(connect(self.place), *split_path(path))

    def begin_removal(self, path: str) -> S3Removal:
        """Begin to remove a file."""
        return S3Removal(self.place, path)

    def drop_attempt(self, path: str) -> None:
        """Make somebody's unfinished write or removal fail for good."""
        folder, name = posixpath.split(path)
        found = parse_name(name)
        if found is not None:
            drop_attempt(self.place, folder, *found)
        elif is_attempt(name):
            # An object of such a name was copied from where attempts are files.
            self.remove(path)

    def create(self, path: str, content: bytes) -> bool:
        """Make a small file; False where there is one already."""
        return small.create(self.place, path, content)

    def refresh(self, path: str, mark: bytes, content: bytes) -> bool:
        """Overwrite a small file where it contains ``mark``, and False where not."""
        return small.refresh(self.place, path, mark, content)

    def read_now(self, path: str, limit_bytes: int) -> bytes:
        """Read the beginning of a small file as it is now."""
        return small.read_now(self.place, path, limit_bytes)

    def flush_folder(self, folder: str) -> None:
        """Do nothing: what a store has acknowledged is durable."""

    def free_bytes(self, _folder: str) -> None:
        """Tell of no limit."""

    def real_path(self, path: str) -> str:
        """Give the one spelling that all paths to the same place share."""
        return normalise(path)


def _find_attempts(place: Place, bucket: str, prefix: str) -> tuple[Entry, ...]:
    """Give unfinished files; a reader who may not list them has begun none. ``probe`` asks who writes."""
    try:
        return tuple(list_attempts(connect(place), bucket, prefix))
    except (PermissionError, FileNotFoundError):
        return ()


def _can_be(path: str) -> bool:
    """Whether an object can have this path: texts of strangers name files too. A key has at most 1,024 bytes."""
    try:
        return path.startswith(SCHEME) and "\0" not in path and len(split_path(path)[1].encode()) <= 1024
    except UnicodeEncodeError:
        return False
