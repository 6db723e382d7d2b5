"""What OUTPUT holds, and whether a conversion may go on in it.

While a conversion is unfinished a journal stands in OUTPUT: what is being converted, and the
digests of the chunks that are finished. When it is done the receipt takes the journal's
place, and the mark (index or config) is set last.
"""

import hashlib
import json
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from distconv.digests import ALGORITHM, ChunkDigests
from distconv.errors import InputError, OutputError
from distconv.lock import LOCK_NAME, Lock, locked
from distconv.moving.worker import Receipt, is_finished
from distconv.planning.plan import Plan
from distconv.progress import Progress, format_size
from distconv.storage import Storage, join, read_small, write_small
from distconv.survey import Checkpoint
from distconv.target.config import to_json
from distconv.target.finalise import (
    JOURNAL_NAME,
    RECEIPT_NAME,
    clear_folder,
    clear_marks,
    is_model_file,
    is_partial,
    sweep_partials,
    write_files,
)
from distconv.target.loading import find_legal
from distconv.target.receipt import digest_receipt, read_receipt

_LIMIT_BYTES = 64 << 20
JOURNAL_SECONDS = 2.0
"""To make the journal durable holds up the chunks that are being written; what a crash leaves
unrecorded is kept by header and size."""
_SMALL_FILES_BYTES = 32 << 20
"""Room for what stands beside the chunks: the largest tokenizer takes half of it."""


def make_identity(storage: Storage, checkpoint: Checkpoint, plan: Plan, version: str) -> dict[str, object]:
    """Say what is converted and how: two conversions of one identity make the same bytes.

    It names no host, worker or time of running.
    """
    files = checkpoint.files
    small = (files.params, *files.legal, *([files.tokenizer] if files.tokenizer else []))
    return {
        "distconv": version,
        "family": checkpoint.choice.family.name,
        "instruct": checkpoint.choice.instruct,
        "dtype": plan.dtype.name,
        "max_shard_size": plan.chunk_limit_bytes,
        "tied": plan.decisions.tied,
        "kv_replication": plan.decisions.kv_replication,
        "source": {
            **{
                os.path.basename(path): {
                    "sha256": hashlib.sha256(read_small(storage, path, _LIMIT_BYTES)).hexdigest()
                }
                for path in small
            },
            **{
                os.path.basename(path): _fingerprint(storage, checkpoint, path)
                for shard in files.shards
                for path in shard.paths
            },
        },
        "plan_sha256": hashlib.sha256(b"".join(chunk.header for chunk in plan.chunks)).hexdigest(),
    }


def _fingerprint(storage: Storage, checkpoint: Checkpoint, path: str) -> dict[str, object]:
    """Tell a shard from a changed one without reading its data: size, time, and what its headers say."""
    entry = storage.find(path)
    if entry is None:
        raise InputError(f"{path}: gone while it was read")
    digest = hashlib.sha256()
    for shard in checkpoint.catalog:
        for view in shard.tensors.values():
            if view.record.path == path:
                where = (view.record.offset_bytes, view.record.size_bytes, view.record.crc32)
                digest.update(repr((view.name, view.dtype.name, view.shape, view.strides, where)).encode())
    return {"size_bytes": entry.size_bytes, "version": entry.version, "headers_sha256": digest.hexdigest()}


@dataclass(frozen=True, slots=True)
class _Found:
    """What stands in OUTPUT before a conversion."""

    entries: Mapping[str, int]
    """Sizes in bytes of all files and folders but a lock and what was never finished."""
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
        if found.name != LOCK_NAME and (found.is_folder or not is_partial(found.name))
    }
    left_bytes = sum(found.size_bytes for found in listed if is_partial(found.name))
    # The journal counts more: it stands until the very end.
    for name in (JOURNAL_NAME, RECEIPT_NAME):
        if name in entries:
            return _Found(entries, left_bytes, *_read_record(storage, join(output, name)))
    return _Found(entries, left_bytes, None, {})


def _read_record(storage: Storage, path: str) -> tuple[object, dict[str, ChunkDigests]]:
    """Read a journal or a receipt; a damaged one tells nothing."""
    try:
        content = json.loads(read_small(storage, path, _LIMIT_BYTES))
        digests = {
            chunk["name"]: ChunkDigests(chunk[ALGORITHM], tuple(chunk["tensors"].values()))
            for chunk in content["chunks"]
        }
        return content["conversion"], digests
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError, InputError):
        return None, {}


def is_recorded(storage: Storage, output: str, identity: dict[str, object]) -> bool:
    """Whether OUTPUT has the receipt of this very conversion, and is nobody's any more; only looks."""
    # A lock is that of one who is about to finish, or who was killed as it did.
    if storage.find(join(output, LOCK_NAME)) is not None:
        return False
    path = join(output, RECEIPT_NAME)
    if storage.find(path) is None:
        return False
    try:
        return read_receipt(storage, path).identity == identity
    except OutputError:
        return False


class Folder:
    """OUTPUT while a conversion has it: keeps its journal, and makes it whole at the end."""

    def __init__(
        self,
        storage: Storage,
        output: str,
        plan: Plan,
        identity: dict[str, object],
        recorded: Mapping[str, ChunkDigests],
        lock: Lock,
    ) -> None:
        """Begin with what an earlier run recorded."""
        self.recorded = dict(recorded)
        self._storage, self._output = storage, output
        self._chunks = {chunk.name: chunk for chunk in plan.chunks}
        self._identity = identity
        self._lock = lock
        self._pending = False
        self._write_journal()

    @property
    def witness(self) -> tuple[str, bytes]:
        """A file in the folder, and what it contains in this folder alone."""
        return join(self._output, LOCK_NAME), self._lock.token.encode()

    def keep(self, receipt: Receipt) -> None:
        """Record a finished chunk; OutputError where another conversion has taken the folder."""
        self._lock.check()
        if self.recorded.get(receipt.chunk) != receipt.digests:
            self.recorded[receipt.chunk] = receipt.digests
            self._pending = True
        if time.monotonic() - self._written_at >= JOURNAL_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Record what is not recorded yet."""
        if self._pending:
            self._write_journal()

    def remove(self, names: Iterable[str]) -> None:
        """Remove files of the folder."""
        self._lock.check()
        for name in names:
            self._storage.remove(join(self._output, name))

    def finish(self, files: Mapping[str, bytes]) -> None:
        """Write what stands beside the chunks, receipt included, the mark last."""
        self._lock.check()
        # A worker that was killed could not remove its own.
        sweep_partials(self._storage, self._output)
        *before, mark = files
        receipt = {RECEIPT_NAME: self._make_receipt(files)}
        ordered = {name: files[name] for name in before} | receipt | {mark: files[mark]}
        write_files(self._storage, self._output, ordered)
        self._pending = False
        self._storage.remove(join(self._output, JOURNAL_NAME))
        self._storage.flush_folder(self._output)

    def _write_journal(self) -> None:
        content = {"conversion": self._identity, "chunks": self._chunk_rows()}
        write_small(self._storage, join(self._output, JOURNAL_NAME), to_json(content))
        self._pending = False
        self._written_at = time.monotonic()

    def _make_receipt(self, files: Mapping[str, bytes]) -> bytes:
        content: dict[str, object] = {
            "conversion": self._identity,
            "chunks": self._chunk_rows(),
            "files": {name: hashlib.sha256(content).hexdigest() for name, content in files.items()},
        }
        return to_json(content | {"sha256": digest_receipt(content)})

    def _chunk_rows(self) -> list[dict[str, object]]:
        return [
            {
                "name": name,
                "size_bytes": chunk.size_bytes,
                ALGORITHM: digests.file,
                "tensors": {
                    tensor.name: digest for tensor, digest in zip(chunk.tensors, digests.tensors, strict=True)
                },
            }
            for name, chunk in self._chunks.items()
            if (digests := self.recorded.get(name)) is not None
        ]


@contextmanager
def taken(
    storage: Storage,
    output: str,
    plan: Plan,
    identity: dict[str, object],
    progress: Progress,
    find_obstacles: Callable[[], Iterable[str]],
    *,
    overwrite: bool,
) -> Iterator[Folder]:
    """Take OUTPUT for a conversion: locked, cleared of what is not wanted, with room for the rest.

    OutputError, with nothing touched, where it holds something else, has too little room, or
    is another conversion's that still runs. ``find_obstacles`` tells of what must be moved away.
    """
    _check(storage, output, plan, identity, find_obstacles, overwrite=overwrite)
    storage.make_folder(output)
    with locked(storage, output, progress.note) as lock:
        found = _check(storage, output, plan, identity, find_obstacles, overwrite=overwrite)
        sweep_partials(storage, output)
        if overwrite:
            clear_folder(storage, output, find_legal(storage, output))
        else:
            # What misses a chunk must not look whole while it is mended.
            clear_marks(storage, output)
        digests = {} if overwrite else _known(found.digests, plan)
        folder = Folder(storage, output, plan, identity, digests, lock)
        try:
            yield folder
        finally:
            # Why it ended matters more than that this could not be recorded.
            with suppress(OSError):
                folder.flush()


def _known(digests: Mapping[str, ChunkDigests], plan: Plan) -> dict[str, ChunkDigests]:
    tensors = {chunk.name: len(chunk.tensors) for chunk in plan.chunks}
    return {name: found for name, found in digests.items() if len(found.tensors) == tensors.get(name)}


def _check(
    storage: Storage,
    output: str,
    plan: Plan,
    identity: dict[str, object],
    find_obstacles: Callable[[], Iterable[str]],
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
        for chunk in plan.chunks
        if overwrite or not is_finished(storage, join(output, chunk.name), chunk)
    )
    removed = [size for name, size in found.entries.items() if overwrite and is_model_file(name)]
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
