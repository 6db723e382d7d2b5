"""Google's and Azure's stores, by obstore, as a storage that is only read: ``gs://BUCKET/…``, ``az://CONTAINER/…``.

They are not written to: a file is given its name at the completion of an upload in parts, and obstore can set no
condition there, nor can Google's uploads in parts. What names an object's content is its generation where the store
gives one, and its ETag elsewhere; all reads ask for that.

Credentials are those that obstore finds: for Google's ``GOOGLE_APPLICATION_CREDENTIALS`` or the machine's own, for
Azure's ``AZURE_STORAGE_ACCOUNT_NAME`` with a key, a SAS token or an identity in the environment.
"""

import errno
import os
import posixpath
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from types import ModuleType

from distconv.errors import InputError, UsageError
from distconv.storage.base import Entry, Told, ignore
from distconv.storage.extras import need
from distconv.storage.http.ranges import ACCESS, Range
from distconv.storage.pinning import describe_change
from distconv.storage.requests import count_request
from distconv.storage.web.read_only import ReadOnly, expect_file

_PATH = re.compile(
    r"(?P<scheme>gs|az)://(?P<bucket>[A-Za-z0-9][A-Za-z0-9._$-]{1,254})(?:/(?P<key>.*))?", re.DOTALL
)
_STORES = {"gs": "GCSStore", "az": "AzureStore"}
_SECONDS = "120s"
"""For a whole answer; what takes longer is asked for again."""


@dataclass(frozen=True, slots=True)
class CloudStorage(ReadOnly):
    """Paths of one scheme; credentials and connections are each process's own."""

    scheme: str
    pins: Mapping[str, str] | None = field(default=None, kw_only=True)

    def list_folder(self, folder: str) -> tuple[Entry, ...]:
        """All names in a folder, sorted; empty where there is none."""
        store, key = _open(folder)
        prefix = f"{key}/" if key else ""
        with _explaining(folder):
            count_request("list")
            found = _obstore().list_with_delimiter(store, prefix or None)
        entries = {}
        for path in found["common_prefixes"]:
            name = str(path).rstrip("/").removeprefix(prefix)
            entries[name] = Entry(name, True, 0, "")
        for meta in found["objects"]:
            name = str(meta["path"]).removeprefix(prefix)
            if name and "/" not in name and (meta["size"] or name not in entries):
                entries[name] = _make_entry(name, meta)
        return tuple(entries[name] for name in sorted(entries))

    def find(self, path: str) -> Entry | None:
        """What is at this path, if anything; an empty object of a folder's name is how some tools make the folder."""
        store, key = _open(path)
        file = None
        with suppress(FileNotFoundError):
            if key:
                with _explaining(path):
                    count_request("head")
                    file = _make_entry(posixpath.basename(key), _obstore().head(store, key))
        if (file is None or not file.size_bytes) and self.list_folder(path):
            return Entry(posixpath.basename(key), True, 0, "")
        return file

    def open(self, path: str) -> "CloudReader":
        """Open a file for reading, without a request where it is known which one it must be."""
        stamp = None if self.pins is None else self.pins.get(path)
        if stamp is None:
            entry = expect_file(self, path)
            stamp = entry.stamp
        return CloudReader(path, stamp)

    def pinned(self, stamps: Mapping[str, str]) -> "CloudStorage":
        """Give the same place, where files that have other stamps than these cannot be read."""
        return replace(self, pins=dict(stamps))

    def real_path(self, path: str) -> str:
        """Give the one spelling that all paths to the same place share."""
        scheme, bucket, key = _split(path)
        key = posixpath.normpath(f"/{key}").lstrip("/")
        return f"{scheme}://{bucket}/{key}".rstrip("/")


class CloudReader:
    """An object as it was when it was found; safe to use from several threads."""

    access = ACCESS

    def __init__(self, path: str, stamp: str) -> None:
        """Take what is known of it; nothing is asked."""
        size, kind, version = stamp.split(" ", 2)
        self.path, self.size_bytes, self.stamp = path, int(size), stamp
        self._condition = {"version" if kind == "generation" else "if_match": version}

    def read_into(self, offset_bytes: int, buffer: memoryview) -> None:
        """Fill the whole buffer from this offset, by one request."""
        self.read_vector(offset_bytes, (buffer,))

    def read_vector(self, offset_bytes: int, buffers: Sequence[memoryview], told: Told = ignore) -> None:
        """Fill buffers one behind the other from this offset, by one request.

        InputError where the object is another one by now, or ends before.
        """
        wanted = Range(self.path, self.size_bytes, offset_bytes, buffers, told)
        if wanted.next == wanted.end:
            return
        store, key = _open(self.path)
        with _explaining(self.path, is_pinned="version" in self._condition):
            count_request("get")
            options = {"range": (offset_bytes, wanted.end), **self._condition}
            # By pieces: obstore keeps no whole answer besides.
            for piece in _obstore().get(store, key, options=options).stream():
                wanted.add(memoryview(piece))
        if wanted.next != wanted.end:
            came = wanted.next - offset_bytes
            raise OSError(
                errno.EIO, f"{came:,} bytes came, expected {wanted.end - offset_bytes:,}", self.path
            )

    def close(self) -> None:
        """Let go of it; nothing is held."""


def _make_entry(name: str, meta: Mapping[str, object]) -> Entry:
    size, generation = meta["size"], meta.get("version")
    tag = str(meta.get("e_tag") or "")
    if not generation and (not tag or tag.startswith("W/")):
        raise UsageError(f"{name}: the store tells no ETag of it, so that nobody can tell whether it changes")
    stamp = f"{size} generation {generation}" if generation else f"{size} etag {tag}"
    # In lists some have no quotes, which conditions need.
    return Entry(name, False, int(str(size)), str(generation or tag.strip('"')), stamp)


def _split(path: str) -> tuple[str, str, str]:
    match = _PATH.fullmatch(path)
    if match is None:
        raise UsageError(
            f"{path}: expected gs://BUCKET/PREFIX or az://CONTAINER/PREFIX, the first being of 2 letters, digits, dots, hyphens and underscores or more"
        )
    return match["scheme"], match["bucket"], (match["key"] or "").strip("/")


def _obstore() -> ModuleType:
    return need("obstore", "gs")


_opened: dict[tuple[str, str], object] = {}


def _open(path: str) -> tuple[object, str]:
    """Give this process's store of a bucket, and the key."""
    scheme, bucket, key = _split(path)
    found = _opened.get((scheme, bucket))
    if found is None:
        stores, exceptions = need("obstore.store", scheme), need("obstore.exceptions", scheme)
        try:
            found = getattr(stores, _STORES[scheme])(bucket, client_options={"timeout": _SECONDS})
        except exceptions.BaseError as error:
            raise UsageError(f"{scheme}://{bucket}: {_show(error)}") from None
        _opened[scheme, bucket] = found
    return found, key


@contextmanager
def _explaining(path: str, *, is_pinned: bool = False) -> Iterator[None]:
    """Raise what the rest of the program knows; of what the store answers no signature, token or URL is shown."""
    exceptions = need("obstore.exceptions", "gs")
    try:
        yield
    except FileNotFoundError:
        if is_pinned:
            # Another generation is there, or none.
            raise InputError(describe_change(path)) from None
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path) from None
    except exceptions.PreconditionError:
        raise InputError(describe_change(path)) from None
    except (exceptions.PermissionDeniedError, exceptions.UnauthenticatedError):
        reason = "not allowed to the credentials that this process's environment or machine has"
        raise PermissionError(errno.EACCES, reason, path) from None
    except exceptions.BaseError as error:
        raise OSError(errno.EIO, _show(error), path) from None


def _show(error: Exception) -> str:
    """Give the first words of an error, which may go on with what was sent and answered."""
    words = str(error).partition("\n")[0].partition(" - ")[0]
    return re.sub(r"\S*://\S*", "its URL", words)[:200]


# Threads of the library do not survive a fork.
os.register_at_fork(after_in_child=_opened.clear)
