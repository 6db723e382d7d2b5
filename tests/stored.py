"""Folders and files in a store, named and looked at as ``pathlib`` does it with local ones.

The client is botocore's, not ours. ``AnyPath`` is what mechanisms take that do the same in either place.
"""

import contextlib
import errno
import functools
import os
import posixpath
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import pytest

from tests.object_store import ObjectStore, start
from tests.seaweed import Seaweed

Store = ObjectStore | Seaweed


@functools.cache
def _client(_process: int, url: str, access_key: str, secret_key: str) -> Any:
    # Who looks at local folders only needs no botocore.
    from tests.s3_clients import open_client

    return open_client(url, access_key, secret_key)


@contextlib.contextmanager
def _missing(path: "StoredPath") -> Iterator[None]:
    from botocore.exceptions import ClientError

    try:
        yield
    except ClientError as error:
        if error.response["Error"]["Code"] in {"404", "NoSuchKey"}:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path)) from error
        raise


@dataclass(frozen=True, slots=True, order=True)
class StoredPath:
    """A folder or a file in a store."""

    store: Store = field(compare=False)
    bucket: str
    key: str

    def __str__(self) -> str:
        return f"s3://{self.bucket}/{self.key}"

    def __fspath__(self) -> str:
        return str(self)

    def __truediv__(self, name: str) -> "StoredPath":
        return StoredPath(self.store, self.bucket, posixpath.join(self.key, name))

    @property
    def name(self) -> str:
        """The last part."""
        return posixpath.basename(self.key)

    @property
    def client(self) -> Any:
        """A client of this process."""
        return _client(os.getpid(), self.store.url, self.store.access_key, self.store.secret_key)

    def iterdir(self) -> Iterator["StoredPath"]:
        """Give the files in a folder; what is not completed is none."""
        yield from (self / name for name in self.etags())

    def glob(self, pattern: str) -> Iterator["StoredPath"]:
        """Give the files in a folder whose names fit."""
        yield from (path for path in self.iterdir() if fnmatchcase(path.name, pattern))

    def etags(self) -> dict[str, str]:
        """Give the ETags of the files in a folder, by name."""
        pages = self.client.get_paginator("list_objects_v2").paginate(
            Bucket=self.bucket, Prefix=f"{self.key}/", Delimiter="/"
        )
        rows = [row for page in pages for row in page.get("Contents", ())]
        return {posixpath.basename(row["Key"]): row["ETag"] for row in rows}

    def parts(self) -> list[str]:
        """Give the names of what is being written in a folder, by the parts that are stored of it."""
        found = []
        for name, upload in self.uploads():
            listed = self.client.list_parts(Bucket=self.bucket, Key=(self / name).key, UploadId=upload)
            found += [name for _part in listed.get("Parts", ())]
        return found

    def uploads(self) -> list[tuple[str, str]]:
        """Give (name, id) of what is being written in a folder."""
        rows = self.client.list_multipart_uploads(Bucket=self.bucket, Prefix=f"{self.key}/").get(
            "Uploads", ()
        )
        return [(row["Key"].removeprefix(f"{self.key}/"), row["UploadId"]) for row in rows]

    def exists(self) -> bool:
        """Whether there is a file of this name, or a folder."""
        return self.is_file() or bool(self.etags())

    def is_file(self) -> bool:
        """Whether there is a file of this name."""
        with contextlib.suppress(FileNotFoundError), _missing(self):
            self.client.head_object(Bucket=self.bucket, Key=self.key)
            return True
        return False

    def read_bytes(self) -> bytes:
        """Read a file; FileNotFoundError where there is none."""
        with _missing(self):
            content: bytes = self.client.get_object(Bucket=self.bucket, Key=self.key)["Body"].read()
        return content

    def read_text(self) -> str:
        """Read a file of text."""
        return self.read_bytes().decode()

    def write_bytes(self, content: bytes) -> None:
        """Write a file."""
        self.client.put_object(Bucket=self.bucket, Key=self.key, Body=content)

    def unlink(self) -> None:
        """Remove a file."""
        self.client.delete_object(Bucket=self.bucket, Key=self.key)


AnyPath = Path | StoredPath


def remove_folder(folder: AnyPath) -> None:
    """Remove a folder with all that is in it, unfinished too."""
    if isinstance(folder, Path):
        shutil.rmtree(folder)
        return
    for path in folder.iterdir():
        path.unlink()
    for name, upload in folder.uploads():
        folder.client.abort_multipart_upload(Bucket=folder.bucket, Key=(folder / name).key, UploadId=upload)


def stamp_files(folder: AnyPath) -> dict[str, object]:
    """Tell a folder's files apart from ones that were written again; a store must give each write an ETag of its own."""
    if isinstance(folder, StoredPath):
        return dict(folder.etags())
    found: dict[str, object] = {}
    for path in folder.glob("*"):
        # Whoever writes there may give a file its name, or drop it, at any time.
        with contextlib.suppress(FileNotFoundError):
            status = path.stat()
            found[path.name] = status.st_ino, status.st_mtime_ns
    return found


def use_store(patch: pytest.MonkeyPatch, store: Store, folder: Path) -> None:
    """Let this process and those that it starts find a store where AWS's tools look, and nothing else."""
    # Where a store is, a process finds out once.
    _forget()
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        patch.delenv(name)
    patch.setenv("AWS_CONFIG_FILE", str(folder / "config"))
    patch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(folder / "credentials"))
    patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    patch.setenv("AWS_ACCESS_KEY_ID", store.access_key)
    patch.setenv("AWS_SECRET_ACCESS_KEY", store.secret_key)
    patch.setenv("AWS_ENDPOINT_URL", store.url)


def _forget() -> None:
    with contextlib.suppress(ImportError):
        from distconv.storage.s3 import client

        client._forget()


@contextlib.contextmanager
def run_store(folder: Path) -> Iterator[ObjectStore]:
    """Run a store with a bucket ``models``, where this process and its children find it; each write has an ETag of its own."""
    with start("models", random_etags=True) as store, pytest.MonkeyPatch.context() as patch:
        use_store(patch, store, folder)
        yield store
