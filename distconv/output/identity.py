"""What is converted, and how: what must be the same for a conversion to go on.

INPUT must be at the end what it was at the beginning, or what was made of it may be a mixture.
"""

import errno
import hashlib
import os
import posixpath
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from importlib import metadata
from typing import Self

from distconv.errors import InputError, OutputError
from distconv.formats.views import TensorView
from distconv.output.loading import digest_file
from distconv.output.targets import TRANSFORMERS, Target
from distconv.planning.plan import Plan
from distconv.storage.base import Entry, Storage
from distconv.storage.looks import ask_each, find_each, is_versioned
from distconv.storage.pinning import describe_change

_LIBRARIES = ("tokenizers",)
"""Of these another version may write the files beside the chunks otherwise."""


@dataclass(frozen=True, slots=True)
class Subject:
    """What a model is: as records have it, and as people read it."""

    family: str
    title: str
    instruct: bool = False
    read_as: Mapping[str, object] = field(default_factory=dict)
    """How INPUT was read, where that can be said in several ways."""


def make_identity(
    source: Mapping[str, object],
    subject: Subject,
    plan: Plan,
    version: str,
    target: Target,
    shards: int | None,
) -> dict[str, object]:
    """Say what is converted and how: two conversions of one identity make the same files.

    It names no host, worker, place or time of running. ``source`` is what ``Source.describe`` gives.
    """
    heads = (literal.content for file in plan.files for literal in file.literals)
    return {
        "distconv": version,
        # What older versions wrote names no target.
        **({} if target is TRANSFORMERS else {"to": target.name, "shards": shards}),
        "family": subject.family,
        "instruct": subject.instruct,
        **subject.read_as,
        "dtype": plan.dtype.name,
        "max_shard_size": plan.chunk_limit_bytes,
        "tied": plan.decisions.tied,
        "kv_replication": plan.decisions.kv_replication,
        "source": source,
        "plan_sha256": hashlib.sha256(b"".join(heads)).hexdigest(),
    }


def find_libraries() -> dict[str, str]:
    """Give the versions of the libraries that have a part in the files beside the chunks."""
    return {name: metadata.version(name) for name in _LIBRARIES}


@dataclass(frozen=True, slots=True)
class InputFiles:
    """Which files INPUT consists of, and how the headers of its weights are read."""

    folder: str
    weights: tuple[str, ...]
    small: tuple[str, ...]
    """Files beside the weights that have a part in OUTPUT."""
    read_views: Callable[[Storage], Iterable[TensorView]]
    read_before: bool = False
    """Whether headers were read before it was looked which files these are: then they may be another's."""


class Source:
    """INPUT as it was before anything of it was read."""

    def __init__(self, storage: Storage, files: InputFiles) -> None:
        """Look at all files, and keep local ones open.

        No other file can then be known by their numbers, and a file system that makes numbers
        up keeps theirs.
        """
        self._storage, self._files = storage, files
        paths = (*files.weights, *files.small)
        with ExitStack() as held:

            def hold(path: str) -> None:
                held.callback(storage.open(path).close)

            ask_each(hold, (path for path in paths if not is_versioned(path)))
            self._entries = _look(storage, paths)
            self.pinned = storage.pinned({path: entry.stamp for path, entry in self._entries.items()})
            """Where INPUT is read: there nothing can be read of what has its names meanwhile."""
            self._small = ask_each(partial(digest_file, self.pinned), files.small)
            self._held = held.pop_all()

    def __enter__(self) -> Self:
        """Use it in a ``with`` block."""
        return self

    def __exit__(self, *_exception: object) -> None:
        """Let go of the files."""
        self._held.close()

    @property
    def sizes(self) -> dict[str, int]:
        """Sizes in bytes of the weights' files, by path."""
        return {path: self._entries[path].size_bytes for path in self._files.weights}

    @property
    def digests(self) -> frozenset[str]:
        """SHA-256 in hex of the small files, of which OUTPUT may hold copies."""
        return frozenset(self._small.values())

    def describe(self, views: Iterable[TensorView]) -> dict[str, object]:
        """Describe each file as it was: one with weights by its place below INPUT's folder, a small one by its name.

        ``views`` are what the headers of the weights say.
        """
        small: dict[str, object] = {
            posixpath.basename(path): {"sha256": digest} for path, digest in self._small.items()
        }
        by_path: dict[str, list[TensorView]] = {path: [] for path in self._files.weights}
        for view in views:
            by_path[view.region.path].append(view)
        return small | {
            os.path.relpath(path, self._files.folder): _fingerprint(self._entries[path], found)
            for path, found in by_path.items()
        }

    def check(self) -> None:
        """Raise InputError where a shard was written, replaced or touched since; asks for names and times only.

        FileNotFoundError where one is not to be seen, which on a share may pass.
        """
        self._compare_stamps(self._files.weights)

    def _compare_stamps(self, paths: Iterable[str]) -> None:
        now = _look(self._storage, paths)
        _refuse(path for path, entry in now.items() if entry.stamp != self._entries[path].stamp)

    def prove(self, identity: Mapping[str, object]) -> None:
        """Raise InputError where any file is not the one of which ``identity`` was made.

        Beside names and times headers are read again, with the checksums in them: what a host
        knows of files on a share may be old. Where a stamp stands for one content that tells nothing more of
        what was read under it.
        """
        local = [path for path in self._files.small if not is_versioned(path)]
        small = ask_each(partial(digest_file, self._storage), local)
        _refuse(path for path, digest in small.items() if self._small[path] != digest)
        before = identity["source"]
        is_known = not self._files.read_before and all(map(is_versioned, self._files.weights))
        if isinstance(before, dict) and not is_known:
            now = self.describe(self._files.read_views(self.pinned))
            changed = (name for name in now | before if now.get(name) != before.get(name))
            _refuse(posixpath.join(self._files.folder, name) for name in changed)
        self._compare_stamps(path for path in self._files.small if is_versioned(path))
        # After their headers: those were of these very files.
        self.check()


def refuse_overlap(storage: Storage, files: InputFiles, output: str) -> None:
    """OUTPUT must not be, hold or lie in a folder of INPUT's weights, links resolved."""
    target = storage.real_path(output)
    # A small file from elsewhere may lie above both.
    folders = [os.path.dirname(storage.real_path(path)) for path in files.weights]
    for folder in (storage.real_path(files.folder), *folders):
        place = _place(target, folder)
        if place is not None:
            raise OutputError(f"{output}: {place} INPUT's folder {folder}; give another folder")
    for path in files.small:
        if target == os.path.dirname(storage.real_path(path)):
            raise OutputError(f"{output}: holds {path}, which is INPUT's; give another folder")


def _place(target: str, folder: str) -> str | None:
    """Say where a path is, as seen from a folder; None where neither is in the other."""
    if target == folder:
        return "equal to"
    if target.startswith(folder + os.sep):
        return "inside"
    return "above" if folder.startswith(target.rstrip(os.sep) + os.sep) else None


def _refuse(changed: Iterable[str]) -> None:
    findings = [describe_change(path) for path in changed]
    if findings:
        raise InputError.of(findings)


def _look(storage: Storage, paths: Iterable[str]) -> dict[str, Entry]:
    """Look at files; FileNotFoundError where one is not there."""
    found = {}
    for path, entry in find_each(storage, paths).items():
        if entry is None:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
        found[path] = entry
    return found


def _fingerprint(entry: Entry, views: Iterable[TensorView]) -> dict[str, object]:
    """Tell a file from a changed one without reading its data: size, time, and what its headers say."""
    digest = hashlib.sha256()
    for view in views:
        where = (view.region.offset_bytes, view.region.size_bytes, view.region.crc32)
        digest.update(repr((view.name, view.dtype.name, view.shape, view.strides, where)).encode())
    return {"size_bytes": entry.size_bytes, "version": entry.version, "headers_sha256": digest.hexdigest()}
