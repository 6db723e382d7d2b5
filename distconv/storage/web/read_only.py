"""Verbs of places where nothing is written."""

import errno
import os
from typing import NoReturn

from distconv.errors import InputError, UsageError
from distconv.storage.base import Entry, Removal, Storage, Writer, opened, read_range


def refuse_writing(path: str) -> UsageError:
    """Say what to do instead of writing to a URL that is only read."""
    if path.startswith(("gs://", "az://")):
        return UsageError(
            f"{path}: is only read: large files cannot be given their names there on a condition, which keeps two "
            "conversions from destroying each other's; convert into a folder (or s3://) and copy that"
        )
    end = "ORG/REPO" if not path.startswith("hf://") else "/".join(path.split("/")[2:4]).partition("@")[0]
    return UsageError(
        f"{path}: is only read; convert into a folder (or s3://), then `distconv push FOLDER {end}` brings that "
        "to the hub"
    )


class ReadOnly:
    """All verbs of ``Storage`` that write, each of which raises UsageError, and those that follow from others."""

    __slots__ = ()

    def make_folder(self, folder: str) -> None:
        """Refuse."""
        raise refuse_writing(folder)

    def probe(self, folder: str) -> None:
        """Refuse."""
        raise refuse_writing(folder)

    def find_least_run(self, path: str, size_bytes: int) -> int:  # noqa: ARG002
        """Refuse."""
        raise refuse_writing(path)

    def find_most_written(self, folder: str) -> int:
        """Refuse."""
        raise refuse_writing(folder)

    def begin(self, path: str, size_bytes: int) -> Writer:  # noqa: ARG002
        """Refuse."""
        raise refuse_writing(path)

    def open_attempt(self, path: str, attempt: str, size_bytes: int) -> NoReturn:  # noqa: ARG002
        """Refuse."""
        raise refuse_writing(path)

    def take_attempt(self, path: str, attempt: str, size_bytes: int) -> NoReturn:  # noqa: ARG002
        """Refuse."""
        raise refuse_writing(path)

    def remove(self, path: str) -> None:
        """Refuse."""
        raise refuse_writing(path)

    def begin_removal(self, path: str) -> Removal:
        """Refuse."""
        raise refuse_writing(path)

    def drop_attempt(self, path: str) -> None:
        """Refuse."""
        raise refuse_writing(path)

    def create(self, path: str, content: bytes) -> bool:  # noqa: ARG002
        """Refuse."""
        raise refuse_writing(path)

    def refresh(self, path: str, mark: bytes, content: bytes) -> bool:  # noqa: ARG002
        """Refuse."""
        raise refuse_writing(path)

    def flush_folder(self, folder: str) -> None:
        """Refuse."""
        raise refuse_writing(folder)

    def free_bytes(self, folder: str) -> int | None:
        """Refuse."""
        raise refuse_writing(folder)

    def list_names(self: Storage, folder: str) -> tuple[str, ...]:
        """Names alone."""
        return tuple(entry.name for entry in self.list_folder(folder))

    def read_now(self: Storage, path: str, limit_bytes: int) -> bytes:
        """Read the beginning of a small file."""
        with opened(self, path) as reader:
            return bytes(read_range(reader, 0, min(reader.size_bytes, limit_bytes)))


def expect_file(storage: Storage, path: str) -> Entry:
    """Find a file that must be there; FileNotFoundError where it is not, InputError for a folder."""
    entry = storage.find(path)
    if entry is None:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
    if entry.is_folder:
        raise InputError(f"{path}: a folder, expected a file")
    return entry
