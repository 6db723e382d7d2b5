"""Places by their names: folders of this host, and stores that a URL names."""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from distconv.errors import UsageError
from distconv.storage.base import Entry, PartWriter, PathLike, Reader, Removal, Storage, Writer
from distconv.storage.local import LocalStorage

_URL = re.compile(r"([a-z][a-z0-9+.-]*)://")
_NOT_TEXT = re.compile("[\ud800-\udfff]")
"""What Python has for bytes that are no UTF-8 (PEP 383)."""
_WRITABLE = ("s3",)
_READABLE = ("s3", "gs", "az", "hf", "http", "https")
_MEANT = re.compile(rf"({'|'.join(_READABLE)}):/*(.*)", re.IGNORECASE | re.DOTALL)
"""What was meant as a URL, also where ``pathlib`` took a slash away, or a person left them out."""


def find_scheme(path: str) -> str | None:
    """Give the scheme of a URL; None for a local path."""
    match = _URL.match(path)
    return None if match is None else match[1]


def take_name(path: PathLike) -> str:
    """Take a path or URL as text; UsageError for what nothing can be called, TypeError for bytes."""
    name = os.fspath(path)
    if not isinstance(name, str):
        raise TypeError(f"{name!r}: expected str or os.PathLike[str]; os.fsdecode gives that")
    if not name:
        raise UsageError("no name is given; is a variable of the shell not set?")
    if "\0" in name:
        raise UsageError(f"{name}: a zero byte, which no name can have")
    return name


def _take(path: PathLike) -> tuple[str, str | None]:
    """Give what a person gave, and its scheme; UsageError where a URL was meant, and a local path would be taken."""
    name = take_name(path)
    scheme, meant = find_scheme(name), _MEANT.match(name)
    if meant is not None and (scheme is None or not meant[2]):
        raise UsageError(
            f"{name}: expected {meant[1].lower()}:// in small letters, with two slashes, and a place behind it; is a "
            f"variable of the shell not set? A folder of this host is ./{name}"
        )
    if scheme is not None and _NOT_TEXT.search(name):
        raise UsageError(f"{name}: not UTF-8, as URLs are; correct the name")
    return name, scheme


def read_place(path: PathLike) -> str:
    """Take a path or URL of what is read; UsageError where a URL is of no kind that is known.

    A revision on the Hugging Face Hub becomes the commit that it is now, so that all that is read is of one.
    """
    name, scheme = _take(path)
    if scheme is None:
        return name
    if scheme not in _READABLE:
        known = ", ".join(f"{each}://" for each in _READABLE)
        raise UsageError(f"{name}: {scheme}:// is no place that distconv knows; give a folder or {known}")
    if scheme == "hf":
        from distconv.storage.web.hub_api import pin

        return pin(name.rstrip("/"))
    if scheme in {"http", "https"}:
        from distconv.storage.web.servers import check_url

        return check_url(name)
    return name.rstrip("/")


def read_output(path: PathLike) -> str:
    """Take a path or URL of what is written; UsageError where a URL is of a kind that is only read, or not known."""
    name, scheme = _take(path)
    if scheme in _READABLE and scheme not in _WRITABLE:
        from distconv.storage.web.read_only import refuse_writing

        raise refuse_writing(name.partition("?")[0])
    return read_place(path)


_OF_MODELS = re.compile(
    r".*\.(safetensors|bin|pth?|ckpt|distcp|gguf|model)|\.metadata|merges\.txt|checklist\.chk"
    r"|(.*config|params|.*tokenizer|.*vocab|.*index|special_tokens_map|added_tokens|tekken|distconv)\.json"
)
"""Names under which nobody wants a card, a manifest or a chart, but finds them beside the one that was meant."""


def read_small_output(path: PathLike) -> str:
    """Take a path or URL of a small file that is written last; UsageError, before hours of work, where it cannot be."""
    name = read_output(path)
    if _OF_MODELS.fullmatch(os.path.basename(name)):
        raise UsageError(f"{name}: a name of a model's files, of which one could be lost; give another name")
    if find_scheme(name) is not None:
        return name
    folder = os.path.dirname(name) or "."
    if os.path.exists(name) and not os.path.isdir(name) and not os.path.isfile(name):
        raise UsageError(f"{name}: a pipe or device, expected a regular file; give another name")
    if os.path.isdir(name) or not os.path.isdir(folder) or not os.access(folder, os.W_OK):
        raise UsageError(f"{name}: cannot be written; give a file in a folder that is there")
    return name


def read_local(path: PathLike) -> str:
    """Take a path as it was given; UsageError where it is a URL."""
    name, scheme = _take(path)
    if scheme is not None:
        raise UsageError(f"{name}: a URL, expected a folder of this host")
    return name


def make_absolute(path: str) -> str:
    """Name a place for processes that start in other folders."""
    return os.path.abspath(path) if find_scheme(path) is None else path


def open_places(*paths: str | None, endpoint_url: str | None = None) -> Storage:
    """Give the storage in which all these lie; ``endpoint_url`` is of an S3 service other than Amazon's."""
    schemes = {scheme for path in paths if path is not None and (scheme := find_scheme(path)) is not None}
    if not schemes:
        return LocalStorage()
    return Places({scheme: _open_store(scheme, endpoint_url) for scheme in sorted(schemes)})


def _open_store(scheme: str, endpoint_url: str | None) -> Storage:
    if scheme == "s3":
        from distconv.storage.s3.place import Place
        from distconv.storage.s3.storage import S3Storage

        return S3Storage(Place(endpoint_url=endpoint_url))
    if scheme in {"gs", "az"}:
        from distconv.storage.clouds import CloudStorage

        return CloudStorage(scheme)
    if scheme == "hf":
        from distconv.storage.web.hub import HubStorage

        return HubStorage()
    if scheme in {"http", "https"}:
        from distconv.storage.web.servers import WebStorage

        return WebStorage()
    raise UsageError(f"{scheme}:// is no place that distconv knows")


@dataclass(frozen=True, slots=True)
class Places:
    """Several storages as one, told apart by what a path begins with."""

    stores: Mapping[str, Storage]
    """By scheme."""
    local: Storage = field(default_factory=LocalStorage)

    def _of(self, path: str) -> Storage:
        scheme = find_scheme(path)
        return self.local if scheme is None else self.stores[scheme]

    def list_folder(self, folder: str) -> tuple[Entry, ...]:
        """All names in a folder, sorted."""
        return self._of(folder).list_folder(folder)

    def list_names(self, folder: str) -> tuple[str, ...]:
        """Names alone."""
        return self._of(folder).list_names(folder)

    def find(self, path: str) -> Entry | None:
        """What is at this path, if anything."""
        return self._of(path).find(path)

    def open(self, path: str) -> Reader:
        """Open a file for reading."""
        return self._of(path).open(path)

    def pinned(self, stamps: Mapping[str, str]) -> "Places":
        """Give the same places, where files that have other stamps than these cannot be opened."""
        stores = {scheme: store.pinned(_choose(stamps, scheme)) for scheme, store in self.stores.items()}
        return replace(self, stores=stores, local=self.local.pinned(_choose(stamps, None)))

    def make_folder(self, folder: str) -> None:
        """Make a folder and its parents where they are missing."""
        self._of(folder).make_folder(folder)

    def probe(self, folder: str) -> None:
        """Raise OutputError where the place does not do what owning a folder in it rests on."""
        self._of(folder).probe(folder)

    def begin(self, path: str, size_bytes: int) -> Writer:
        """Begin a file of exactly this size."""
        return self._of(path).begin(path, size_bytes)

    def find_least_run(self, path: str, size_bytes: int) -> int:
        """Give the least size of the runs in which several may write a file of this size, but for its end."""
        return self._of(path).find_least_run(path, size_bytes)

    def find_most_written(self, folder: str) -> int:
        """Give how many files in a folder one worker may write at once."""
        return self._of(folder).find_most_written(folder)

    def open_attempt(self, path: str, attempt: str, size_bytes: int) -> PartWriter:
        """Open a file that was begun."""
        return self._of(path).open_attempt(path, attempt, size_bytes)

    def take_attempt(self, path: str, attempt: str, size_bytes: int) -> Writer | None:
        """Go on with somebody's unfinished write."""
        return self._of(path).take_attempt(path, attempt, size_bytes)

    def remove(self, path: str) -> None:
        """Remove a file whose name nobody else uses."""
        self._of(path).remove(path)

    def begin_removal(self, path: str) -> Removal:
        """Begin to remove a file."""
        return self._of(path).begin_removal(path)

    def drop_attempt(self, path: str) -> None:
        """Make somebody's unfinished write or removal fail for good."""
        self._of(path).drop_attempt(path)

    def create(self, path: str, content: bytes) -> bool:
        """Make a small file, durable; False where there is one already."""
        return self._of(path).create(path, content)

    def refresh(self, path: str, mark: bytes, content: bytes) -> bool:
        """Overwrite a small file where it contains ``mark``, and False where not."""
        return self._of(path).refresh(path, mark, content)

    def read_now(self, path: str, limit_bytes: int) -> bytes:
        """Read the beginning of a small file as it is now."""
        return self._of(path).read_now(path, limit_bytes)

    def flush_folder(self, folder: str) -> None:
        """Make the names in a folder durable."""
        self._of(folder).flush_folder(folder)

    def free_bytes(self, folder: str) -> int | None:
        """Give the space that is left for new files in a folder; None where there is no limit."""
        return self._of(folder).free_bytes(folder)

    def real_path(self, path: str) -> str:
        """Give the path with links resolved."""
        return self._of(path).real_path(path)


def _choose(stamps: Mapping[str, str], scheme: str | None) -> dict[str, str]:
    return {path: stamp for path, stamp in stamps.items() if find_scheme(path) == scheme}
