"""Download models by the link of Meta's e-mail: what is there, is it whole, is it right."""

import os
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from distconv.downloads.evidence import has_checksums
from distconv.downloads.large import Fetching, LargeFile
from distconv.downloads.link import ANEW, read_link
from distconv.downloads.partial import PartialFile, state_path
from distconv.downloads.patience import Patience
from distconv.downloads.places import refuse_what_is_in_the_way, sweep_attempts
from distconv.downloads.releases import (
    CHECKLIST,
    LEGAL,
    PARAMS,
    TOKENIZER,
    TOKENIZER_CHECKLIST,
    Release,
    find_release,
)
from distconv.downloads.server import RefusedError, Server
from distconv.errors import InputError, UsageError
from distconv.formats.meta.checklist import Listed
from distconv.humanize import format_count, format_size
from distconv.moving.progress import Progress
from distconv.moving.progress_default import take_progress
from distconv.output.acquisition import owned
from distconv.output.room import refuse_full
from distconv.storage.base import PathLike, join
from distconv.storage.local import LocalStorage
from distconv.storage.places import read_local
from distconv.verbs.reports import Report
from distconv.verbs.small_downloads import SmallFiles

PART_BYTES = 64 << 20
"""What one request asks for: large enough that asking costs nothing, small enough to share."""
TRIES = 8
"""So often in a row may a request bring nothing; about two minutes pass meanwhile."""
_LONGEST_WAIT_SECONDS = 30.0


@dataclass(frozen=True, slots=True, repr=False)
class DownloadReport(Report):
    """What was downloaded."""

    folders: tuple[str, ...]
    files: int
    bytes_fetched: int
    checked_files: int
    """So many files were compared by MD5."""
    files_by_crc32: int
    seconds: float
    notes: tuple[str, ...]

    def to_json(self) -> dict[str, object]:
        """Give the same as plain values."""
        return {
            "folders": list(self.folders),
            "files": self.files,
            "bytes_fetched": self.bytes_fetched,
            "files_by_md5": self.checked_files,
            "files_by_crc32": self.files_by_crc32,
            "seconds": round(self.seconds, 3),
            "notes": list(self.notes),
        }

    def lines(self) -> tuple[str, ...]:
        """Give the same for people."""
        rate = self.bytes_fetched / max(self.seconds, 1e-9)
        by_crc32 = f", {self.files_by_crc32} by CRC32" if self.files_by_crc32 else ""
        return (
            (
                f"{format_count(self.files, 'file')}, {format_size(self.bytes_fetched)} fetched ({format_size(rate)}/s), "
                f"{self.checked_files} compared by MD5{by_crc32}"
            ),
        )


@dataclass(frozen=True, slots=True)
class _Wanted:
    """What is to come: folders, and files as pairs of their remote name and local path."""

    folders: tuple[str, ...]
    small: tuple[tuple[str, str], ...]
    large: tuple[tuple[str, str], ...]


def download(
    models: Sequence[str], to: PathLike, url: str, *, connections: int = 8, ignore_free_space: bool = False,
    progress: Progress | None = None,
) -> DownloadReport:  # fmt: skip
    """Download ``models``, as ["7B", "Llama-3.1-8B"], into folders of ``to``, in the layout that Meta's own scripts make.

    ``url`` is the presigned URL with its ``*``; it is told to nobody but its host. So many ``connections`` are open at
    once. What is there already is kept, files that were cut are completed, and each file that a checklist names is
    compared by MD5 before it gets its name. Free space is compared with what is to come unless ``ignore_free_space``,
    for file systems that compress. ``progress`` is told how far along it is. Raises UsageError for the URL or
    a model's name, InputError where the server refuses or gives something else, OutputError where there is no room,
    ConversionError for a network that does not recover; the same call again goes on.
    """
    releases = tuple(dict.fromkeys(find_release(name) for name in models))
    if not releases:
        raise UsageError("no model was named; give for instance 7B or Llama-3.1-8B-Instruct")
    link = read_link(url)
    progress = take_progress(progress)
    storage = LocalStorage()
    place = read_local(to)
    storage.make_folder(place)
    server = Server(link)
    started = time.monotonic()
    try:
        with owned(storage, place, progress.note):
            work = _Download(server, place, progress, ignore_free_space=ignore_free_space)
            return work.run(releases, connections, started)
    finally:
        server.close()


class _Download:
    """One call's work; large files are fetched by threads, everything else by the caller."""

    def __init__(self, server: Server, place: str, progress: Progress, *, ignore_free_space: bool) -> None:
        self._ignore_free_space = ignore_free_space
        self._server, self._place, self._progress = server, place, progress
        self._storage = LocalStorage()
        stop = threading.Event()
        self._patience = Patience(TRIES, _LONGEST_WAIT_SECONDS, stop, progress.note)
        self._large = Fetching(server, self._storage, self._patience, progress, stop, PART_BYTES)
        self._small = SmallFiles(server, self._storage, self._patience, progress)

    def run(self, releases: Sequence[Release], connections: int, started: float) -> DownloadReport:
        """Find out what there is, then fetch it."""
        paths = self._name_files(releases, {release: release.remotes[0] for release in releases})
        small, large = ([path for _name, path in pairs] for pairs in (paths.small, paths.large))
        refuse_what_is_in_the_way(paths.folders, small, large)
        wanted = self._name_files(releases, {release: self._find_folder(release) for release in releases})
        for folder in wanted.folders:
            self._storage.make_folder(folder)
        sweep_attempts(self._storage, [*small, *map(state_path, large)])
        listed, count = self._small.fetch(wanted.small)
        files = self._look_at_large(wanted.large, listed)
        try:
            if not self._ignore_free_space:
                needed_bytes = sum(file.missing_bytes for file in files)
                refuse_full(self._place, needed_bytes, self._storage.free_bytes(self._place))
            self._large.run(files, connections)
        finally:
            for file in files:
                file.partial.close()
        return DownloadReport(
            folders=wanted.folders,
            files=count + len(files),
            bytes_fetched=self._small.fetched_bytes + self._large.fetched_bytes,
            checked_files=self._small.by_md5 + self._large.by_md5,
            files_by_crc32=self._large.by_crc32,
            seconds=time.monotonic() - started,
            notes=(*self._small.notes, *self._describe_unproved()),
        )

    def _name_files(self, releases: Sequence[Release], remotes: Mapping[Release, str]) -> _Wanted:
        """Name all files of the releases, given each one's folder on the server."""
        folders, small, large = [], [], []
        for release, remote in remotes.items():
            folder = join(self._place, release.folder)
            folders.append(folder)
            names = [PARAMS, CHECKLIST] if release.shared_tokenizer else [PARAMS, CHECKLIST, TOKENIZER]
            small += [(f"{remote}/{name}", join(folder, name)) for name in names]
            large += [(f"{remote}/{name}", join(folder, name)) for name in release.weight_names]
        shared = any(release.shared_tokenizer for release in releases)
        beside = [*LEGAL, *([TOKENIZER, TOKENIZER_CHECKLIST] if shared else [])]
        small += [(name, join(self._place, name)) for name in beside]
        return _Wanted(tuple(folders), tuple(small), tuple(large))

    def _find_folder(self, release: Release) -> str:
        """Find a release's folder on the server, which Meta's lists name in different ways."""
        refusal: RefusedError | None = None
        for remote in release.remotes:
            try:
                self._patience.ask(partial(self._server.look, f"{remote}/{PARAMS}"), release.name)
            except RefusedError as error:
                refusal = refusal or error
            else:
                return remote
        raise refusal or InputError(f"{release.name}: not there; is it a model that Meta's e-mail names?")

    def _look_at_large(
        self, wanted: Sequence[tuple[str, str]], listed: Mapping[str, Listed]
    ) -> list[LargeFile]:
        files = []
        for name, path in wanted:
            remote = self._patience.ask(partial(self._server.look, name), name)
            if remote.size_bytes == 0:
                raise InputError(f"{name}: {self._server.host} gives an empty file, expected a shard; {ANEW}")
            entry = listed.get(path)
            takes_cut = entry is not None or has_checksums(self._storage, path)
            files.append(LargeFile(name, remote, PartialFile(path, remote, takes_cut=takes_cut), entry))
        return files

    def _describe_unproved(self) -> Iterator[str]:
        """Name the files that were only looked at, folder by folder."""
        folders: dict[str, list[str]] = {}
        for path in sorted([*self._small.unproved, *self._large.unproved]):
            folders.setdefault(os.path.dirname(path), []).append(os.path.basename(path))
        for folder, names in folders.items():
            yield f"{folder}: looked at, but compared with nothing, as no checksum is known: {', '.join(names)}"
