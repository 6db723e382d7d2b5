"""Files that several workers write: begun before them, sealed and committed after the last part."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import Self

from distconv.layout.files import File, Part
from distconv.layout.stripes import Stripe
from distconv.moving.digests import ChunkDigests, PartDigests
from distconv.moving.executor import Keep
from distconv.moving.job import Job, Receipt
from distconv.moving.worker import publish
from distconv.storage.base import Storage, Writer, join


@dataclass(frozen=True, slots=True)
class UnfinishedFile:
    """A file that an earlier run began: what it is open as, and the digests of its durable parts, by number."""

    attempt: str
    parts: Mapping[int, PartDigests]


KeepPart = Callable[[Part, str, PartDigests], None]
"""Is told of each part, what its file is open as, and the part's digests, once it is durable."""


@dataclass(slots=True)
class _Begun:
    """One file, and what is known of its parts by their numbers."""

    file: File
    writer: Writer
    left: Mapping[int, PartDigests]
    parts: dict[int, PartDigests] = field(default_factory=dict)


class SharedFiles:
    """The files of which parts are units.

    At the end those stay of which a part is durable, so that another run may go on with them.
    """

    def __init__(
        self,
        storage: Storage,
        output: str,
        files: Sequence[File],
        units: Sequence[File | Stripe],
        unfinished: Mapping[str, UnfinishedFile],
    ) -> None:
        """Begin each file that has parts, or go on with it, at its full size: a full disk shows at once."""
        stripes = (unit for unit in units if isinstance(unit, Stripe))
        self._parts = {part.name: part for stripe in stripes for part in stripe.parts}
        shared = {part.file for part in self._parts.values()}
        self._begun: dict[str, _Begun] = {}
        with ExitStack() as stack:
            for file in files:
                if file.name in shared:
                    begun = _begin(storage, join(output, file.name), file, unfinished.get(file.name))
                    self._begun[file.name] = begun
                    stack.callback(_leave, begun)
            self._ends = stack.pop_all()

    @property
    def unfinished(self) -> dict[str, UnfinishedFile]:
        """The files as they are open now, with the parts that an earlier run wrote."""
        return {name: UnfinishedFile(begun.writer.attempt, begun.left) for name, begun in self._begun.items()}

    @property
    def attempts(self) -> dict[str, str]:
        """What the files are open as, for ``Job``."""
        return {name: begun.writer.attempt for name, begun in self._begun.items()}

    @property
    def durable(self) -> dict[str, PartDigests]:
        """Digests of parts that an earlier run wrote, for ``Job``."""
        return {
            part.name: begun.left[part.number]
            for part in self._parts.values()
            if part.number in (begun := self._begun[part.file]).left
        }

    def __enter__(self) -> Self:
        """Use it in a ``with`` block."""
        return self

    def __exit__(self, *_exception: object) -> None:
        """Let go of all files."""
        self._ends.close()

    def hear(self, job: Job, keep: Keep, keep_part: KeepPart) -> Keep:
        """Give whom a run tells its receipts: ``keep`` hears of whole files only."""

        def hear(receipt: Receipt) -> None:
            if not receipt.parts:
                keep(receipt)
                return
            for durable in receipt.parts:
                part = self._parts[durable.part]
                begun = self._begun[part.file]
                begun.parts[part.number] = durable.digests
                keep_part(part, begun.writer.attempt, _describe(durable.digests))
            for durable in receipt.parts:
                part = self._parts[durable.part]
                if len(self._begun[part.file].parts) == part.count:
                    keep(_finish(job, self._begun[part.file]))

        return hear


def _begin(storage: Storage, path: str, file: File, left: UnfinishedFile | None) -> _Begun:
    if left is not None:
        writer = storage.take_attempt(path, left.attempt, file.size_bytes)
        if writer is not None:
            return _Begun(file, writer, left.parts)
    return _Begun(file, storage.begin(path, file.size_bytes), {})


def _describe(digests: PartDigests) -> PartDigests:
    """Give what is recorded of a part: what can be read tells its CRC32s itself."""
    return digests if digests.version is not None else replace(digests, checksums=())


def _leave(begun: _Begun) -> None:
    """Close a file, and remove it where nothing of it is durable; once it is committed there is none."""
    if begun.parts or begun.left:
        begun.writer.close()
    else:
        begun.writer.abort()


def _finish(job: Job, begun: _Begun) -> Receipt:
    """Seal and commit a file whose parts are all there."""
    parts = [begun.parts[number] for number in sorted(begun.parts)]
    if begun.file.seal is not None:
        checksums = [checksum for part in parts for checksum in part.checksums]
        begun.writer.write_at(begun.file.seal.offset_bytes, begun.file.seal.make(checksums))
    digests = ChunkDigests(None, tuple(digest for part in parts for digest in part.tensors))
    version = publish(job, begun.file, begun.writer, digests, lambda: False)
    begun.writer.abort()
    return Receipt(begun.file.name, digests, 0, begun.file.size_bytes, version=version)
