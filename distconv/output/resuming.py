"""What OUTPUT holds, and whether a conversion may go on in it.

While a conversion is unfinished a journal stands in OUTPUT: what is being converted, and the
digests of the chunks that are finished. When it is done the receipt takes the journal's
place, and the mark (index or config) is set last.
"""

import hashlib
import json
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from distconv.errors import DistconvError, InputError, OutputError
from distconv.formats.plain_json import LIMIT_BYTES
from distconv.humanize import format_size
from distconv.moving.digests import ALGORITHM, ChunkDigests
from distconv.moving.progress import Progress
from distconv.moving.worker import Receipt, is_finished
from distconv.output.finalise import clear_folder, clear_marks, write_files
from distconv.output.identity import Source, find_libraries
from distconv.output.loading import find_legal
from distconv.output.ownership import Ownership, is_owned, is_owner_file, owned
from distconv.output.receipt import RecordedChunk, make_receipt, read_receipt
from distconv.output.targets import JOURNAL_NAME, RECEIPT_NAME, Target, is_partial
from distconv.planning.plan import Plan
from distconv.sidecars.config import to_json
from distconv.storage.base import Storage, join, read_small

JOURNAL_SECONDS = 2.0
"""Chunks that were finished within it share one writing of the journal; so much work a crash may cost."""
_SMALL_FILES_BYTES = 32 << 20
"""Room for what stands beside the chunks: the largest tokenizer takes half of it."""


@dataclass(frozen=True, slots=True)
class _Found:
    """What stands in OUTPUT before a conversion."""

    entries: Mapping[str, int]
    """Sizes in bytes of all files and folders but owners' and what was never finished."""
    left_bytes: int
    """Of files that were never finished."""
    conversion: object
    """Identity of the conversion that was there; None where nothing tells."""
    digests: Mapping[str, ChunkDigests]


def _look(storage: Storage, output: str) -> _Found:
    entry = storage.find(output)
    if entry is not None and not entry.is_folder:
        raise OutputError(f"{output}: a file, expected a folder")
    listed = storage.list_folder(output)
    entries = {
        found.name: found.size_bytes
        for found in listed
        if not is_owner_file(found.name) and not is_partial(found.name)
    }
    left_bytes = sum(found.size_bytes for found in listed if is_partial(found.name))
    # The journal counts more: it stands until the very end.
    for name in (JOURNAL_NAME, RECEIPT_NAME):
        if name in entries:
            try:
                return _Found(entries, left_bytes, *_read_record(storage, join(output, name)))
            except FileNotFoundError:
                # Who had the folder has just made it whole.
                if name in storage.list_names(output):
                    raise
                return _look(storage, output)
    return _Found(entries, left_bytes, None, {})


def _read_record(storage: Storage, path: str) -> tuple[object, dict[str, ChunkDigests]]:
    """Read a journal or a receipt; a damaged one tells nothing."""
    try:
        content = json.loads(read_small(storage, path, LIMIT_BYTES))
        digests = {
            chunk["name"]: ChunkDigests(chunk.get(ALGORITHM), tuple(chunk["tensors"].values()))
            for chunk in content["chunks"]
        }
        return content["conversion"], digests
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError, InputError):
        return None, {}


def is_recorded(storage: Storage, output: str, identity: dict[str, object]) -> bool:
    """Whether OUTPUT has the receipt of this very conversion, and is nobody's any more; only looks."""
    # Its owner is about to finish, or was killed as it did.
    if is_owned(storage, output):
        return False
    path = join(output, RECEIPT_NAME)
    if storage.find(path) is None:
        return False
    try:
        return read_receipt(storage, path).identity == identity
    except (OutputError, FileNotFoundError):
        return False


class Folder:
    """OUTPUT while a conversion has it: keeps its journal, and makes it whole at the end."""

    def __init__(
        self,
        storage: Storage,
        owner: Ownership,
        source: Source,
        plan: Plan,
        identity: dict[str, object],
        recorded: Mapping[str, ChunkDigests],
    ) -> None:
        """Begin with what an earlier run recorded and what stood there when the folder was taken."""
        self.owner = owner
        self.recorded = dict(recorded)
        self._storage, self._source = storage, source
        self._chunks = {chunk.name: chunk for chunk in plan.files}
        self._identity = identity
        self._digests = dict(recorded)
        self._pending, self._mixed, self._finished = False, False, False
        self._failure: Exception | None = None
        self._beside: tuple[str, ...] = ()
        self._ended = threading.Event()
        self._write_journal(self._chunk_rows())
        self._thread = threading.Thread(target=self._keep_up, daemon=True)
        self._thread.start()

    def keep(self, receipt: Receipt) -> None:
        """Record a finished chunk, within JOURNAL_SECONDS.

        Raises what kept earlier ones from being recorded: OutputError where another conversion has
        taken the folder, InputError where INPUT has changed.
        """
        if self._failure is not None:
            raise self._failure
        if self._digests.get(receipt.chunk) != receipt.digests:
            self._digests[receipt.chunk] = receipt.digests
            self._pending = True

    def remove(self, names: Iterable[str]) -> None:
        """Remove files of the folder."""
        for name in names:
            self.owner.remove(self._storage, name)

    def finish(self, files: Mapping[str, bytes]) -> None:
        """Write what stands beside the chunks, receipt included; the mark last, and only of one INPUT."""
        self._stop()
        if self._failure is not None:
            raise self._failure
        self._flush()
        # A worker that was killed could not remove its own.
        self.owner.sweep(self._storage, is_partial)
        *before, mark = files
        self._beside = (*before, RECEIPT_NAME)
        ordered = {name: files[name] for name in before} | {RECEIPT_NAME: self._make_receipt(files)}
        write_files(self._storage, self.owner, ordered)
        with self._noting_change():
            self._source.prove(self._identity)
        write_files(self._storage, self.owner, {mark: files[mark]})
        self._finished = True
        self.owner.remove(self._storage, JOURNAL_NAME)
        self._storage.flush_folder(self.owner.folder)

    def close(self) -> None:
        """Record what is not recorded yet; of an INPUT that has changed nothing of this run stays."""
        self._stop()
        if self._finished:
            return
        # Why it ended matters more than that this could not be recorded.
        with suppress(OSError, OutputError):
            with suppress(InputError), self._noting_change():
                self._source.check()
                self._flush()
            if self._mixed:
                self._drop()

    def _stop(self) -> None:
        self._ended.set()
        self._thread.join()

    def _keep_up(self) -> None:
        while not self._ended.wait(JOURNAL_SECONDS):
            try:
                self._flush()
            except (OSError, DistconvError) as error:
                self._failure = error
                return

    def _flush(self) -> None:
        if not self._pending:
            return
        self._pending = False
        rows = self._chunk_rows()
        try:
            # After the chunks were made: all that they were read from was INPUT's, then.
            with self._noting_change():
                self._source.check()
            self._write_journal(rows)
        except BaseException:
            self._pending = True
            raise

    @contextmanager
    def _noting_change(self) -> Iterator[None]:
        try:
            yield
        except InputError:
            self._mixed = True
            raise

    def _drop(self) -> None:
        """Forget and remove the chunks of this run; where there are no others, the folder is as it was."""
        self._digests = dict(self.recorded)
        self._write_journal(self._chunk_rows())
        self.remove(name for name in self._chunks if name not in self.recorded)
        if not self.recorded:
            self.remove((*self._beside, JOURNAL_NAME))
        self._storage.flush_folder(self.owner.folder)

    def _write_journal(self, rows: list[dict[str, object]]) -> None:
        content = {"conversion": self._identity, "chunks": rows}
        self.owner.write(self._storage, JOURNAL_NAME, to_json(content))

    def _make_receipt(self, files: Mapping[str, bytes]) -> bytes:
        digests = {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
        return make_receipt(self._identity, self._chunk_rows(), digests, find_libraries())

    def _chunk_rows(self) -> list[dict[str, object]]:
        return [
            RecordedChunk(
                name,
                chunk.size_bytes,
                digests.file,
                {tensor.name: digest for tensor, digest in zip(chunk.tensors, digests.tensors, strict=True)},
            ).to_row()
            for name, chunk in self._chunks.items()
            if (digests := self._digests.get(name)) is not None
        ]


@contextmanager
def taken(
    storage: Storage,
    output: str,
    source: Source,
    plan: Plan,
    identity: dict[str, object],
    progress: Progress,
    find_obstacles: Callable[[], Iterable[str]],
    target: Target,
    *,
    overwrite: bool,
) -> Iterator[Folder]:
    """Take OUTPUT for a conversion: owned, cleared of what is not wanted, with room for the rest.

    OutputError, with nothing touched, where it holds something else, has too little room, or
    is another conversion's that still runs. ``find_obstacles`` tells of what must be moved away.
    """
    _check(storage, output, plan, identity, find_obstacles, target, overwrite=overwrite)
    storage.make_folder(output)
    with owned(storage, output, progress.note, is_partial) as owner:
        found = _check(storage, output, plan, identity, find_obstacles, target, overwrite=overwrite)
        if overwrite:
            clear_folder(storage, owner, find_legal(storage, output), target)
        else:
            # What misses a chunk must not look whole while it is mended.
            clear_marks(storage, owner, (target,))
        recorded = {} if overwrite else _find_recorded(storage, output, found.digests, plan)
        folder = Folder(storage, owner, source, plan, identity, recorded)
        try:
            yield folder
        finally:
            folder.close()


def _find_recorded(
    storage: Storage, output: str, digests: Mapping[str, ChunkDigests], plan: Plan
) -> dict[str, ChunkDigests]:
    """Give the digests of chunks that are recorded and there; what is there is compared with them later."""
    return {
        chunk.name: found
        for chunk in plan.files
        if (found := digests.get(chunk.name)) is not None
        and len(found.tensors) == len(chunk.tensors)
        and is_finished(storage, join(output, chunk.name), chunk)
    }


def _check(
    storage: Storage,
    output: str,
    plan: Plan,
    identity: dict[str, object],
    find_obstacles: Callable[[], Iterable[str]],
    target: Target,
    *,
    overwrite: bool,
) -> _Found:
    found = _look(storage, output)
    if found.entries and not overwrite and found.conversion != identity:
        raise OutputError(
            f"{output}: holds {_difference(found, identity)}; "
            "give an empty folder, or --overwrite to replace the model in it"
        )
    obstacles = tuple(find_obstacles())
    if obstacles:
        raise OutputError("\n".join(obstacles))
    free_bytes = storage.free_bytes(output)
    needed_bytes = _SMALL_FILES_BYTES + sum(
        chunk.size_bytes
        for chunk in plan.files
        if overwrite or not is_finished(storage, join(output, chunk.name), chunk)
    )
    removed = [size for name, size in found.entries.items() if overwrite and target.is_model_file(name)]
    room_bytes = free_bytes + found.left_bytes + sum(removed)
    if needed_bytes > room_bytes:
        raise OutputError(
            f"{output}: {format_size(needed_bytes)} needed, {format_size(room_bytes)} free; "
            f"free {format_size(needed_bytes - room_bytes)} or give a folder elsewhere"
        )
    return found


def _difference(found: _Found, identity: dict[str, object]) -> str:
    if JOURNAL_NAME not in found.entries and RECEIPT_NAME not in found.entries:
        names = sorted(found.entries)
        return f"other files ({', '.join(names[:4])}{', …' if len(names) > 4 else ''})"
    if not isinstance(found.conversion, dict):
        return f"an unreadable {JOURNAL_NAME if JOURNAL_NAME in found.entries else RECEIPT_NAME}"
    changes = [
        change
        for key, now in identity.items()
        if found.conversion.get(key) != now and key != "plan_sha256"
        for change in _describe(key, found.conversion.get(key), now)
    ]
    return f"another conversion ({'; '.join(changes) or 'another plan'})"


def _describe(key: str, before: object, now: object) -> Iterator[str]:
    if not isinstance(before, dict) or not isinstance(now, dict):
        yield f"{key} was {before}, is {now}"
        return
    changed = sorted(name for name in before.keys() | now.keys() if before.get(name) != now.get(name))
    yield f"changed since: {', '.join(changed[:4])}{', …' if len(changed) > 4 else ''}"
