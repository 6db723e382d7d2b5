"""Fetch files that come in parts, over several connections, and give each its name once it is proved."""

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from distconv.downloads.evidence import Look, compare_shard, look_at_shard
from distconv.downloads.link import ANEW
from distconv.downloads.partial import PartialFile, Range
from distconv.downloads.patience import Patience
from distconv.downloads.server import PassingError, Remote, Server
from distconv.downloads.threads import Task, run_tasks
from distconv.errors import InputError, Interrupted
from distconv.formats.meta.checklist import Listed
from distconv.humanize import pluralise
from distconv.moving.progress import Progress
from distconv.storage.base import Storage

MARK_SECONDS = 5.0


@dataclass(slots=True)
class LargeFile:
    """One file on its way."""

    name: str
    remote: Remote
    partial: PartialFile
    listed: Listed | None
    parts_left: int = 0
    wrong: int = 0
    """How often all that came for it from the server was not what it should be."""

    @property
    def missing_bytes(self) -> int:
        """How many bytes are to come."""
        return self.remote.size_bytes - self.partial.found_bytes


class Fetching:
    """The threads' work, and what came of it."""

    def __init__(
        self,
        server: Server,
        storage: Storage,
        patience: Patience,
        progress: Progress,
        stop: threading.Event,
        part_bytes: int,
    ) -> None:
        """Take whom to ask, in parts of what size, and whom to tell."""
        self._server, self._storage, self._patience = server, storage, patience
        self._progress, self._stop, self._part_bytes = progress, stop, part_bytes
        self._lock = threading.Lock()
        self._begun: set[str] = set()
        self.fetched_bytes = self.by_md5 = self.by_crc32 = 0
        self.unproved: list[str] = []
        """Paths of files whose bytes could be compared with nothing."""

    def run(self, files: Sequence[LargeFile], connections: int) -> None:
        """Fetch and prove all files; the first error stops all of it."""
        # What has the name already is read and compared, which takes its time too.
        total = sum(file.remote.size_bytes if file.partial.stands else file.missing_bytes for file in files)
        self._progress.begin(total, len(files), pluralise(len(files), "file"))
        try:
            run_tasks([task for file in files for task in self._make_tasks(file)], connections, self._stop)
        finally:
            self._progress.end()

    def _make_tasks(self, file: LargeFile) -> list[Task]:
        """Cut what is missing of a file into parts; a file that is all there is only compared."""
        parts = file.partial.missing(self._part_bytes if file.remote.has_ranges else file.remote.size_bytes)
        file.parts_left = len(parts)
        if not parts:
            return [partial(self._end_file, file)]
        return [partial(self._fetch_part, file, part) for part in parts]

    def _fetch_part(self, file: LargeFile, part: Range) -> list[Task]:
        position, end = part
        with self._lock:
            # A line for each file, from its first part on.
            if file.name not in self._begun:
                self._begun.add(file.name)
                self._progress.take(file.name, "", file.missing_bytes)
        while position < end:
            position = self._patience.ask(partial(self._pull, file, position, end), file.name)
        with self._lock:
            file.parts_left -= 1
            last = file.parts_left == 0
        return self._end_file(file) if last else []

    def _pull(self, file: LargeFile, start: int, end: int) -> int:
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
                    self.fetched_bytes += len(block)
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

    def _end_file(self, file: LargeFile) -> list[Task]:
        """Look at a whole file and give it its name; a wrong one is fetched once more."""
        look = self._look(file)
        if self._stop.is_set():
            raise Interrupted("stopped")
        if look.fault is not None:
            return self._begin_anew(file, look)
        file.partial.finish()
        with self._lock:
            self.by_md5 += file.listed is not None
            self.by_crc32 += file.listed is None and look.has_checksums
            if file.listed is None and not look.has_checksums:
                self.unproved.append(file.partial.path)
        self._progress.unit_done(file.name)
        return []

    def _look(self, file: LargeFile) -> Look:
        """Compare a file with its checksum, or else look at what is in it."""
        counted = 0

        def advance(size_bytes: int) -> None:
            nonlocal counted
            if file.partial.stands:
                counted += size_bytes
                self._progress.advance(size_bytes, file.name)

        path = file.partial.content_path
        if file.listed is None:
            look = look_at_shard(self._storage, path, advance, self._stop.is_set)
        else:
            listed = Listed(path, file.listed.md5, file.listed.checklist)
            look = compare_shard(self._storage, listed, advance, self._stop.is_set)
        if file.partial.stands and not self._stop.is_set():
            self._progress.advance(file.remote.size_bytes - counted, file.name)
        return look

    def _begin_anew(self, file: LargeFile, look: Look) -> list[Task]:
        """Fetch a wrong file again; InputError where all of it came from the server twice."""
        file.wrong += not file.partial.has_foreign_bytes
        reason = f" ({look.reason})" if look.reason else ""
        if file.wrong == 2:
            raise InputError(f"{file.name}: {look.fault} twice in a row{reason}; {ANEW}")
        self._progress.note(f"{file.name}: {look.fault}{reason}; fetching it again")
        file.partial.forget()
        tasks = self._make_tasks(file)
        self._progress.advance(-file.missing_bytes, file.name)
        return tasks
