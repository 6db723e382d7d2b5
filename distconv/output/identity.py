"""What is converted, and how: what must be the same for a conversion to go on.

INPUT must be at the end what it was at the beginning, or what was made of it may be a mixture.
"""

import errno
import hashlib
import os
import posixpath
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from importlib import metadata
from typing import Self

from distconv.errors import InputError
from distconv.families.choose import Choice
from distconv.formats.meta.catalog import Catalog, read_catalog
from distconv.formats.meta.files import SourceFiles
from distconv.planning.plan import Plan
from distconv.storage.base import Storage, opened, read_small
from distconv.storage.pinning import describe_change

_LIMIT_BYTES = 64 << 20
_LIBRARIES = ("tokenizers",)
"""Of these another version may write the files beside the chunks otherwise."""


def make_identity(
    storage: Storage, files: SourceFiles, catalog: Catalog, choice: Choice, plan: Plan, version: str
) -> dict[str, object]:
    """Say what is converted and how: two conversions of one identity make the same chunks.

    It names no host, worker, place or time of running.
    """
    return {
        "distconv": version,
        "family": choice.family.name,
        "instruct": choice.instruct,
        "dtype": plan.dtype.name,
        "max_shard_size": plan.chunk_limit_bytes,
        "tied": plan.decisions.tied,
        "kv_replication": plan.decisions.kv_replication,
        "source": _describe(storage, files, catalog),
        "plan_sha256": hashlib.sha256(b"".join(chunk.header for chunk in plan.chunks)).hexdigest(),
    }


def find_libraries() -> dict[str, str]:
    """Give the versions of the libraries that have a part in the files beside the chunks."""
    return {name: metadata.version(name) for name in _LIBRARIES}


class Source:
    """INPUT as it was before anything of it was read."""

    def __init__(self, storage: Storage, files: SourceFiles) -> None:
        """Look at all files, and keep them open.

        No other file can then be known by their numbers, and a file system that makes numbers
        up keeps theirs.
        """
        self._storage, self._files = storage, files
        with ExitStack() as held:
            for path in (*_shard_paths(files), *_small_paths(files)):
                held.enter_context(opened(storage, path))
            self._shards = {path: _stamp(storage, path) for path in _shard_paths(files)}
            stamps = {path: _stamp(storage, path) for path in _small_paths(files)}
            self.pinned = storage.pinned(self._shards | stamps)
            """Where INPUT is read: there nothing can be read of what has its names meanwhile."""
            self._small = {path: _digest(storage, path) for path in _small_paths(files)}
            self._held = held.pop_all()

    def __enter__(self) -> Self:
        """Use it in a ``with`` block."""
        return self

    def __exit__(self, *_exception: object) -> None:
        """Let go of the files."""
        self._held.close()

    def check(self) -> None:
        """Raise InputError where a shard was written, replaced or touched since; asks for names and times only.

        FileNotFoundError where one is not to be seen, which on a share may pass.
        """
        _refuse(path for path, stamp in self._shards.items() if _stamp(self._storage, path) != stamp)

    def prove(self, identity: Mapping[str, object]) -> None:
        """Raise InputError where any file is not the one of which ``identity`` was made.

        Beside names and times headers are read again, with the checksums in them: what a host
        knows of files on a share may be old.
        """
        self.check()
        _refuse(path for path, digest in self._small.items() if _digest(self._storage, path) != digest)
        before = identity["source"]
        now = _describe(self._storage, self._files, read_catalog(self._storage, self._files.shards))
        if isinstance(before, dict) and now != before:
            changed = (name for name in now | before if now.get(name) != before.get(name))
            _refuse(posixpath.join(self._files.folder, name) for name in changed)


def _refuse(changed: Iterable[str]) -> None:
    findings = [describe_change(path) for path in changed]
    if findings:
        raise InputError.of(findings)


def _describe(storage: Storage, files: SourceFiles, catalog: Catalog) -> dict[str, object]:
    """Describe each file: a shard by its place below INPUT's folder, a small one by its name."""
    small: dict[str, object] = {
        posixpath.basename(path): {"sha256": _digest(storage, path)} for path in _small_paths(files)
    }
    folder = files.folder
    shards = {
        os.path.relpath(path, folder): _fingerprint(storage, catalog, path) for path in _shard_paths(files)
    }
    return small | shards


def _shard_paths(files: SourceFiles) -> tuple[str, ...]:
    return tuple(path for shard in files.shards for path in shard.paths)


def _small_paths(files: SourceFiles) -> tuple[str, ...]:
    return (files.params, *files.legal, *([files.tokenizer] if files.tokenizer else []))


def _digest(storage: Storage, path: str) -> str:
    return hashlib.sha256(read_small(storage, path, _LIMIT_BYTES)).hexdigest()


def _stamp(storage: Storage, path: str) -> str:
    entry = storage.find(path)
    if entry is None:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
    return entry.stamp


def _fingerprint(storage: Storage, catalog: Catalog, path: str) -> dict[str, object]:
    """Tell a shard from a changed one without reading its data: size, time, and what its headers say."""
    entry = storage.find(path)
    if entry is None:
        raise InputError(f"{path}: gone while it was read")
    digest = hashlib.sha256()
    for shard in catalog:
        for view in shard.tensors.values():
            if view.region.path == path:
                where = (view.region.offset_bytes, view.region.size_bytes, view.region.crc32)
                digest.update(repr((view.name, view.dtype.name, view.shape, view.strides, where)).encode())
    return {"size_bytes": entry.size_bytes, "version": entry.version, "headers_sha256": digest.hexdigest()}
