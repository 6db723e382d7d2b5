"""Download models by the link of Meta's e-mail: what is there, is it whole, is it right."""

import os
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TypeVar

from tenacity import (
    RetryCallState,
    Retrying,
    retry_if_exception_type,
    sleep_using_event,
    stop_after_attempt,
    stop_when_event_set,
    wait_random_exponential,
)

from distconv.errors import ConversionError, InputError, Interrupted, OutputError, UsageError
from distconv.lock import locked
from distconv.progress import Progress, SilentProgress, format_size
from distconv.remote.crew import Task, run_tasks
from distconv.remote.link import read_link
from distconv.remote.partial import PartialFile, Range
from distconv.remote.releases import (
    CHECKLIST,
    LEGAL,
    PARAMS,
    TOKENIZER,
    TOKENIZER_CHECKLIST,
    Release,
    find_release,
)
from distconv.remote.server import PassingError, RefusedError, Remote, Server
from distconv.source.checklist import Listed, compare_md5, parse_checklist
from distconv.storage import PARTIAL_SUFFIX, LocalStorage, join, write_small
from distconv.survey import PathLike

PART_BYTES = 64 << 20
"""What one request asks for: large enough that asking costs nothing, small enough to share."""
MARK_SECONDS = 5.0
TRIES = 8
"""So often in a row may a request bring nothing; about two minutes pass meanwhile."""
_LONGEST_WAIT_SECONDS = 30.0

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class DownloadReport:
    """What was downloaded."""

    folders: tuple[str, ...]
    files: int
    bytes_fetched: int
    checked_files: int
    seconds: float
    notes: tuple[str, ...]

    def to_json(self) -> dict[str, object]:
        """Give the same as plain values."""
        return {
            "folders": list(self.folders),
            "files": self.files,
            "bytes_fetched": self.bytes_fetched,
            "files_by_md5": self.checked_files,
            "seconds": round(self.seconds, 3),
            "notes": list(self.notes),
        }

    def lines(self) -> tuple[str, ...]:
        """Give the same for people."""
        rate = self.bytes_fetched / max(self.seconds, 1e-9)
        return (
            (
                f"{self.files} files, {format_size(self.bytes_fetched)} fetched ({format_size(rate)}/s), "
                f"{self.checked_files} compared by MD5"
            ),
            "",
            "next:",
            *(f"  distconv convert {folder} {folder.rstrip('/')}-hf" for folder in self.folders),
        )


@dataclass(slots=True)
class _File:
    """One large file on its way."""

    name: str
    remote: Remote
    partial: PartialFile
    listed: Listed | None
    parts_left: int = 0
    fetched_again: bool = False


@dataclass(slots=True)
class _Found:
    """What the server has for one download."""

    small: list[tuple[str, str]] = field(default_factory=list)
    """Remote name and local path."""
    large: list[tuple[str, str]] = field(default_factory=list)


def download(
    models: Sequence[str], to: PathLike, url: str, *, connections: int = 8, progress: Progress | None = None
) -> DownloadReport:
    """Download models into folders of ``to``, in the layout that Meta's own scripts make.

    ``url`` is the presigned URL with its ``*``; it is told to nobody but its host. What is there
    already is kept, files that were cut are completed, and each file that a checklist names is
    compared by MD5 before it gets its name. Raises UsageError for the URL or a model's name,
    InputError where the server refuses or gives something else, OutputError where there is no
    room, ConversionError for a network that does not recover; the same call again goes on.
    """
    releases = tuple(dict.fromkeys(find_release(name) for name in models))
    if not releases:
        raise UsageError("no model was named; give for instance 7B or Llama-3.1-8B-Instruct")
    link = read_link(url)
    progress = progress or SilentProgress()
    storage = LocalStorage()
    place = os.fspath(to)
    storage.make_folder(place)
    server = Server(link)
    started = time.monotonic()
    try:
        with locked(storage, place, progress.note):
            return _Download(server, place, connections, progress).run(releases, started)
    finally:
        server.close()


class _Download:
    """One call's work; large files are fetched by threads, everything else by the caller."""

    def __init__(self, server: Server, place: str, connections: int, progress: Progress) -> None:
        self._server, self._place, self._progress = server, place, progress
        self._connections = connections
        self._storage = LocalStorage()
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._fetched_bytes = 0
        self._checked = 0
        self._begun: set[str] = set()

    def run(self, releases: Sequence[Release], started: float) -> DownloadReport:
        """Find out what there is, then fetch it."""
        found, folders = _Found(), []
        for release in releases:
            folder = join(self._place, release.folder)
            remote = self._find_folder(release)
            self._storage.make_folder(folder)
            folders.append(folder)
            small = [PARAMS, CHECKLIST] if release.shared_tokenizer else [PARAMS, CHECKLIST, TOKENIZER]
            found.small += [(f"{remote}/{name}", join(folder, name)) for name in small]
            found.large += [(f"{remote}/{name}", join(folder, name)) for name in release.shard_names]
        beside = [
            *LEGAL,
            *([TOKENIZER, TOKENIZER_CHECKLIST] if any(r.shared_tokenizer for r in releases) else []),
        ]
        found.small += [(name, join(self._place, name)) for name in beside]
        listed, count, notes = self._fetch_small(found.small)
        files = self._open_files(found.large, listed)
        try:
            self._check_room(files)
            self._fetch_large(files)
        finally:
            for file in files:
                file.partial.close()
        return DownloadReport(
            tuple(folders),
            count + len(files),
            self._fetched_bytes,
            self._checked,
            time.monotonic() - started,
            tuple(notes),
        )

    def _find_folder(self, release: Release) -> str:
        """Find a release's folder on the server, which Meta's lists name in different ways."""
        refusal: RefusedError | None = None
        for remote in release.remotes:
            try:
                self._patiently(partial(self._server.look, f"{remote}/{PARAMS}"), release.name)
            except RefusedError as error:
                refusal = refusal or error
            else:
                return remote
        raise refusal or InputError(f"{release.name}: not there")

    def _fetch_small(self, wanted: Sequence[tuple[str, str]]) -> tuple[dict[str, Listed], int, list[str]]:
        """Fetch small files; gives what the checklists among them say, how many came, and notes."""
        contents: dict[str, bytes] = {}
        listed: dict[str, Listed] = {}
        notes = []
        for name, path in wanted:
            base = os.path.basename(path)
            try:
                content = self._patiently(partial(self._server.read_small, name), name)
            except RefusedError:
                if base not in {*LEGAL, CHECKLIST, TOKENIZER_CHECKLIST}:
                    raise
                if base == CHECKLIST:
                    notes.append(f"{name} is not served: sizes are compared, MD5 cannot be")
                continue
            contents[path] = content
            if base in {CHECKLIST, TOKENIZER_CHECKLIST}:
                listed |= {
                    entry.path: entry for entry in parse_checklist(path, os.path.dirname(path), content)
                }
        for path, content in contents.items():
            write_small(self._storage, path, content)
            self._fetched_bytes += len(content)
            if path in listed:
                self._compare(listed[path])
        return listed, len(contents), notes

    def _compare(self, entry: Listed) -> None:
        difference = compare_md5(self._storage, entry, lambda _size: None, self._stop.is_set)
        if difference is not None:
            raise InputError(difference)
        self._checked += 1

    def _open_files(self, wanted: Sequence[tuple[str, str]], listed: dict[str, Listed]) -> list[_File]:
        files = []
        for name, path in wanted:
            remote = self._patiently(partial(self._server.look, name), name)
            files.append(_File(name, remote, PartialFile(path, remote), listed.get(path)))
        return files

    def _check_room(self, files: Sequence[_File]) -> None:
        needed = sum(file.partial.missing_bytes for file in files)
        free = self._storage.free_bytes(self._place)
        if needed > free:
            raise OutputError(
                f"{self._place}: {format_size(needed)} are to come, {format_size(free)} are free; free some space "
                f"or give another folder"
            )

    def _fetch_large(self, files: Sequence[_File]) -> None:
        self._progress.begin(sum(file.partial.missing_bytes for file in files), len(files), "files")
        tasks = [task for file in files for task in self._make_tasks(file)]
        try:
            run_tasks(tasks, self._connections, self._stop)
        finally:
            self._progress.end()

    def _make_tasks(self, file: _File) -> list[Task]:
        """Cut what is missing of a file into parts; a file that is all there is only compared."""
        whole = file.remote.size_bytes or 1
        parts = file.partial.missing(PART_BYTES if file.remote.has_ranges else whole)
        file.parts_left = len(parts)
        if not parts:
            return [partial(self._end_file, file)]
        return [partial(self._fetch_part, file, part) for part in parts]

    def _fetch_part(self, file: _File, part: Range) -> list[Task]:
        position, end = part
        with self._lock:
            # A line for each file, from its first part on.
            if file.name not in self._begun:
                self._begun.add(file.name)
                self._progress.take(file.name, "", file.partial.missing_bytes)
        while position < end:
            position = self._patiently(partial(self._pull, file, position, end), file.name)
        with self._lock:
            file.parts_left -= 1
            last = file.parts_left == 0
        return self._end_file(file) if last else []

    def _pull(self, file: _File, start: int, end: int) -> int:
        """Take what one request brings; gives how far it came, and raises only where it brought nothing."""
        position = marked = start
        marked_at = time.monotonic()
        try:
            for block in self._server.read_range(file.name, file.remote, start, end):
                if self._stop.is_set():
                    raise Interrupted("stopped")
                file.partial.write_at(position, block)
                position += len(block)
                with self._lock:
                    self._fetched_bytes += len(block)
                self._progress.advance(len(block), file.name)
                if time.monotonic() - marked_at > MARK_SECONDS:
                    file.partial.mark(marked, position)
                    marked, marked_at = position, time.monotonic()
        except PassingError:
            if position == start:
                raise
        finally:
            file.partial.mark(marked, position)
        if position == start:
            raise PassingError("the connection was cut")
        return position

    def _end_file(self, file: _File) -> list[Task]:
        """Compare a whole file and give it its name; a wrong one is fetched once more."""
        if file.listed is not None:
            there = Listed(file.partial.path + PARTIAL_SUFFIX, file.listed.md5, file.listed.checklist)
            difference = compare_md5(self._storage, there, lambda _size: None, self._stop.is_set)
            if self._stop.is_set():
                raise Interrupted("stopped")
            if difference is not None:
                file.partial.forget()
                if file.fetched_again:
                    raise InputError(
                        f"{file.name}: its MD5 is wrong twice in a row; ask Meta for a new URL and try again"
                    )
                file.fetched_again = True
                self._progress.note(f"{file.name}: its MD5 is wrong; fetching it again")
                self._progress.advance(-file.remote.size_bytes, file.name)
                return self._make_tasks(file)
        file.partial.finish()
        with self._lock:
            self._checked += file.listed is not None
        self._progress.unit_done(file.name)
        return []

    def _patiently(self, ask: Callable[[], _T], name: str) -> _T:
        """Ask again after a while where it may help."""

        def wait(state: RetryCallState) -> float:
            error = state.outcome.exception() if state.outcome is not None else None
            after = error.after_seconds if isinstance(error, PassingError) else 0.0
            return min(max(after, backoff(state)), _LONGEST_WAIT_SECONDS)

        def tell(state: RetryCallState) -> None:
            if state.outcome is not None and state.next_action is not None:
                self._progress.note(
                    f"{name}: {state.outcome.exception()}; trying again in {state.next_action.sleep:.0f} s"
                )

        backoff = wait_random_exponential(0.5, max=_LONGEST_WAIT_SECONDS)
        retrying = Retrying(
            retry=retry_if_exception_type(PassingError),
            stop=stop_after_attempt(TRIES) | stop_when_event_set(self._stop),
            wait=wait,
            sleep=sleep_using_event(self._stop),
            before_sleep=tell,
            reraise=True,
        )
        try:
            return retrying(ask)
        except PassingError as error:
            if self._stop.is_set():
                raise Interrupted("stopped") from None
            raise ConversionError(
                f"{name}: {error}, {TRIES} times in a row; run the same command again to go on"
            ) from None
