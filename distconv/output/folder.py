"""OUTPUT while a conversion has it: what is done is recorded, and the mark is set last.

While a conversion is unfinished a journal stands in OUTPUT: what is being converted, and the
digests of what is finished. When it is done the receipt takes the journal's place.
"""

import hashlib
import posixpath
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress

from distconv.errors import DistconvError, InputError, OutputError
from distconv.layout.files import Part
from distconv.moving.digests import ChunkDigests, PartDigests
from distconv.moving.job import Receipt
from distconv.moving.shared import UnfinishedFile
from distconv.output.finalise import write_files
from distconv.output.identity import Source, find_libraries
from distconv.output.ownership import Ownership
from distconv.output.receipt import RecordedChunk, make_receipt
from distconv.output.targets import JOURNAL_NAME, RECEIPT_NAME, is_partial
from distconv.output.unfinished import make_unfinished
from distconv.planning.plan import Plan
from distconv.sidecars.config import to_json
from distconv.storage.base import Storage

JOURNAL_SECONDS = 2.0
"""Chunks that were finished within it share one writing of the journal; so much work a crash may cost."""


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
        md5s: Mapping[str, str],
        unfinished: Mapping[str, UnfinishedFile],
        versions: Mapping[str, str],
    ) -> None:
        """Begin with what an earlier run recorded and what stood there when the folder was taken."""
        self.owner = owner
        self.recorded = dict(recorded)
        self.md5s = dict(md5s)
        self.versions = dict(versions)
        self.unfinished = dict(unfinished)
        self._unfinished = {name: (file.attempt, dict(file.parts)) for name, file in unfinished.items()}
        self._storage, self._source = storage, source
        self._chunks = {chunk.name: chunk for chunk in plan.files}
        self._identity = identity
        self._digests = dict(recorded)
        self._expected: dict[str, ChunkDigests] = {}
        self._writing = threading.Lock()
        self._pending, self._mixed, self._finished = False, False, False
        self._failure: Exception | None = None
        self._beside: tuple[str, ...] = ()
        self._ended = threading.Event()
        self._write_journal()
        self._thread = threading.Thread(target=self._keep_up, daemon=True)
        self._thread.start()

    def keep(self, receipt: Receipt) -> None:
        """Record a finished chunk, within JOURNAL_SECONDS.

        Raises what kept earlier ones from being recorded: OutputError where another conversion has
        taken the folder, InputError where INPUT has changed.
        """
        if self._failure is not None:
            raise self._failure
        if not receipt.kept:
            self.versions.pop(receipt.chunk, None)
            if receipt.version is not None:
                self.versions[receipt.chunk] = receipt.version
        if self._digests.get(receipt.chunk) != receipt.digests:
            self._digests[receipt.chunk] = receipt.digests
            # One that was recorded is of other bytes.
            self.md5s.pop(receipt.chunk, None)
            self._pending = True

    def expect(self, receipt: Receipt) -> None:
        """Record a file that is going to be committed, beside its parts, at once: one of both is there whenever this ends."""
        if self._failure is not None:
            raise self._failure
        self._expected[receipt.chunk] = receipt.digests
        self._pending = True
        self._flush()

    def keep_md5(self, name: str, md5: str) -> None:
        """Record the MD5 of a finished chunk, as ``keep`` records its digests."""
        if self._failure is not None:
            raise self._failure
        self.md5s[name] = md5
        self._pending = True

    def go_on(self, unfinished: Mapping[str, UnfinishedFile]) -> None:
        """Record what unfinished files are open as now, before anything is written into them.

        What they were open as before is dropped after that: whenever this ends, a name that is recorded is there.
        """
        now = {posixpath.basename(file.attempt) for file in unfinished.values()}
        dropped = {posixpath.basename(attempt) for attempt, _parts in self._unfinished.values()} - now
        self._unfinished = {name: (file.attempt, dict(file.parts)) for name, file in unfinished.items()}
        if any(file.parts for file in unfinished.values()):
            self._write_journal()
        self.owner.sweep(self._storage, dropped.__contains__)

    def keep_part(self, part: Part, attempt: str, digests: PartDigests) -> None:
        """Record a part that is durable in a file which is not finished."""
        if self._failure is not None:
            raise self._failure
        known, parts = self._unfinished.get(part.file, ("", {}))
        if known != attempt:
            self._unfinished[part.file] = (attempt, parts := {})
        if parts.get(part.number) != digests:
            parts[part.number] = digests
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
        write_files(self._storage, self.owner, {name: files[name] for name in before})
        write_files(self._storage, self.owner, {RECEIPT_NAME: self._make_receipt(files)})
        with self._noting_change():
            self._source.prove(self._identity)
        write_files(self._storage, self.owner, {mark: files[mark]})
        self._finished = True
        self.owner.remove(self._storage, JOURNAL_NAME)
        # Where the answer to a beginning is lost, a store has another one.
        self.owner.sweep(self._storage, is_partial)
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
            # A worker that was killed could not remove its own.
            going_on = {posixpath.basename(attempt) for attempt, _parts in self._unfinished.values()}
            self.owner.sweep(self._storage, lambda name: is_partial(name) and name not in going_on)

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
        with self._writing:
            self._flush_pending()

    def _flush_pending(self) -> None:
        if not self._pending:
            return
        self._pending = False
        content = self._make_journal()
        try:
            # After the chunks were made: all that they were read from was INPUT's, then.
            with self._noting_change():
                self._source.check()
            self._write_journal(content)
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
        self._digests, self._expected, self._unfinished = dict(self.recorded), {}, {}
        self._write_journal()
        self.remove(name for name in self._chunks if name not in self.recorded)
        if not self.recorded:
            self.remove((*self._beside, JOURNAL_NAME))
        self._storage.flush_folder(self.owner.folder)

    def _make_journal(self) -> bytes:
        # A receipt has no versions: it is the same wherever the folder lies.
        rows = [
            row | ({"version": version} if (version := self.versions.get(name)) is not None else {})
            for name, row in self._chunk_rows().items()
        ]
        content: dict[str, object] = {"conversion": self._identity, "chunks": rows}
        unfinished = {
            name: (attempt, dict(parts))
            for name, (attempt, parts) in list(self._unfinished.items())
            if name not in self._digests
        }
        if unfinished:
            content["unfinished"] = make_unfinished(unfinished)
        return to_json(content)

    def _write_journal(self, content: bytes | None = None) -> None:
        self.owner.write(self._storage, JOURNAL_NAME, content or self._make_journal())

    def _make_receipt(self, files: Mapping[str, bytes]) -> bytes:
        digests = {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
        return make_receipt(self._identity, self._chunk_rows().values(), digests, find_libraries())

    def _chunk_rows(self) -> dict[str, dict[str, object]]:
        return {
            name: RecordedChunk(
                name,
                chunk.size_bytes,
                digests.file,
                {tensor.name: digest for tensor, digest in zip(chunk.tensors, digests.tensors, strict=True)},
                self.md5s.get(name),
            ).to_row()
            for name, chunk in self._chunks.items()
            if (digests := self._digests.get(name, self._expected.get(name))) is not None
        }
