"""Files that several workers write: begun before them, sealed and committed after the last part."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import Self

from distconv.formats.meta.checksums import join_crc32
from distconv.layout.files import File, Part
from distconv.layout.stripes import Stripe
from distconv.layout.units import Checksum
from distconv.moving.digests import NO_DIGESTS, ChunkDigests, PartDigests
from distconv.moving.executor import Keep
from distconv.moving.job import Job, Receipt
from distconv.moving.trails import TRAILS
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
    parts: dict[int, tuple[Part, PartDigests]] = field(default_factory=dict)
    digests: list[str | None] = field(default_factory=list)
    """Of each tensor, once all parts are there; None where several have rows of it."""


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
        checksums: Sequence[Checksum] = (),
    ) -> None:
        """Begin each file that has parts, or go on with it, at its full size: a full disk shows at once.

        A file of which ``checksums`` has one that is open is committed once its digests are told.
        """
        stripes = (unit for unit in units if isinstance(unit, Stripe))
        self._parts = {part.name: part for stripe in stripes for part in stripe.parts}
        self._digested = {unit.name: unit.file for unit in checksums if unit.is_open}
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
        TRAILS.forget(self.attempts.values())
        self._ends.close()

    def hear(self, job: Job, expect: Keep, keep: Keep, keep_part: KeepPart) -> Keep:
        """Give whom a run tells its receipts.

        ``keep`` hears of whole files only, of those that had parts ``expect`` before they are committed.
        """

        def finish(begun: _Begun, told: ChunkDigests) -> None:
            receipt = _describe_whole(begun, told)
            expect(receipt)
            version = publish(job, begun.file, begun.writer, receipt.digests, lambda: False)
            begun.writer.abort()
            keep(replace(receipt, version=version))

        def hear(receipt: Receipt) -> None:
            if (file := self._digested.get(receipt.chunk)) is not None:
                finish(self._begun[file], receipt.digests)
                return
            if not receipt.parts:
                keep(receipt)
                return
            for durable in receipt.parts:
                part = self._parts[durable.part]
                begun = self._begun[part.file]
                begun.parts[part.number] = (part, durable.digests)
                keep_part(part, begun.writer.attempt, _describe(durable.digests))
            for durable in receipt.parts:
                part = self._parts[durable.part]
                begun = self._begun[part.file]
                if len(begun.parts) < part.count:
                    continue
                _seal(begun)
                if part.file not in self._digested.values():
                    finish(begun, NO_DIGESTS)
                elif begun.file.seal is not None:
                    # Whoever digests the file may be elsewhere.
                    begun.writer.finish()

        return hear


def _begin(storage: Storage, path: str, file: File, left: UnfinishedFile | None) -> _Begun:
    found = None if left is None else storage.take_attempt(path, left.attempt, file.size_bytes)
    writer = found or storage.begin(path, file.size_bytes)
    if file.seal is None:
        # Nothing is written here, and there may be more such files than may be open at once.
        writer.close()
    return _Begun(file, writer, {} if found is None or left is None else left.parts)


def _describe(digests: PartDigests) -> PartDigests:
    """Give what is recorded of a part: what can be read tells its CRC32s itself."""
    return digests if digests.version is not None else replace(digests, checksums=())


def _leave(begun: _Begun) -> None:
    """Close a file, and remove it where nothing of it is durable; once it is committed there is none."""
    if begun.parts or begun.left:
        begun.writer.close()
    else:
        begun.writer.abort()


def _seal(begun: _Begun) -> None:
    """Write what is made of several parts, all of which are there: trailers of tensors that were cut, and the seal."""
    file, checksums = begun.file, list[int]()
    for place, rows in enumerate(_list_rows(begun)):
        begun.digests.append(rows[0].digest if len(rows) == 1 else None)
        if file.seal is None:
            continue
        checksum = 0
        for one in rows:
            checksum = join_crc32(checksum, one.checksum, one.size_bytes)
        checksums.append(checksum)
        if len(rows) > 1 and file.trailers:
            start = file.offsets_bytes[place] + file.tensors[place].size_bytes
            begun.writer.write_at(start, file.trailers[place].make(checksum))
    if file.seal is not None:
        begun.writer.write_at(file.seal.offset_bytes, file.seal.make(checksums))


@dataclass(frozen=True, slots=True)
class _Rows:
    """What is known of some rows of a tensor."""

    digest: str
    checksum: int
    size_bytes: int


def _list_rows(begun: _Begun) -> list[list[_Rows]]:
    """Give, tensor by tensor, what parts have of it, in their order."""
    found: list[list[_Rows]] = [[] for _tensor in begun.file.tensors]
    for _number, (part, digests) in sorted(begun.parts.items()):
        checksums = digests.checksums or (0,) * len(part.tensors)
        described = zip(part.places, part.tensors, digests.tensors, checksums, strict=True)
        for place, tensor, digest, checksum in described:
            found[place].append(_Rows(digest, checksum, tensor.size_bytes))
    return found


def _describe_whole(begun: _Begun, told: ChunkDigests) -> Receipt:
    """Give the digests of a file that is sealed; ``told`` are its own and those of its tensors that were cut."""
    cut = iter(told.tensors)
    digests = tuple(next(cut) if digest is None else digest for digest in begun.digests)
    return Receipt(begun.file.name, ChunkDigests(told.file, digests), 0, begun.file.size_bytes)
