"""Make one file or a part of one: read source spans, put them together, write.

Memory is bounded by a few blocks, whatever the model's size.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import Protocol, Self

from distconv.errors import Interrupted, describe_os_error
from distconv.formats.meta.archive import locate_data
from distconv.formats.meta.checksums import update_crc32
from distconv.layout.files import File, Literal, OutputTensor, Part, Unit
from distconv.layout.regions import Region
from distconv.moving.bands import Block, make_blocks
from distconv.moving.devices import Device, Finish, open_device
from distconv.moving.digests import ChunkDigests, ChunkHasher
from distconv.moving.pieces import Piece
from distconv.moving.spans import DIGEST, GATHER, READ, WRITE, Spans, Work
from distconv.storage.base import PartWriter, Reader, Storage, Writer, join, opened, read_range
from distconv.storage.blocks import read_blocks


class Owner(Protocol):
    """Who may write into OUTPUT, as ``output.ownership`` tells it."""

    @property
    def path(self) -> str:
        """The file that says so."""

    def holds(self, storage: Storage) -> bool:
        """Whether OUTPUT is still this owner's, as seen from here."""

    def check(self, storage: Storage) -> None:
        """Raise OutputError where it is another's by now."""

    def commit(self, storage: Storage, writer: Writer, *, replace: bool = False) -> bool:
        """Commit a file; OutputError where OUTPUT is another's by now."""


@dataclass(frozen=True, slots=True)
class Preconditions:
    """How to tell, on another host, that INPUT and OUTPUT are the ones that are meant."""

    sources: Mapping[str, int] = field(default_factory=dict)
    """Sizes in bytes of INPUT's files."""
    owner: Owner | None = None
    """Whose OUTPUT is: a folder of the same name on a local disk is nobody's, or another's."""

    def find_missing_source(self, storage: Storage) -> str | None:
        """Tell which of INPUT's files is not to be seen here, if any."""
        try:
            for path, size_bytes in self.sources.items():
                entry = storage.find(path)
                if entry is None:
                    return f"{path} is not there"
                if entry.size_bytes != size_bytes:
                    return f"{path} has {entry.size_bytes:,} bytes, expected {size_bytes:,}"
        except OSError as error:
            return describe_os_error(error)
        return None

    def find_other_output(self, storage: Storage) -> str | None:
        """Tell why OUTPUT is not the folder that is meant, if so."""
        if self.owner is None:
            return None
        try:
            if self.owner.holds(storage):
                return None
        except OSError as error:
            return describe_os_error(error)
        return f"{self.owner.path} is not there, or another conversion's"


@dataclass(frozen=True, slots=True)
class Job:
    """All that a worker must know besides its unit of work."""

    storage: Storage
    output: str
    device: str
    block_bytes: int | None = None
    """What is read and gathered at once; None leaves it to the device."""
    recorded: Mapping[str, ChunkDigests] = field(default_factory=dict)
    """Digests of files that an earlier run finished."""
    attempts: Mapping[str, str] = field(default_factory=dict)
    """Files that are written in parts, and what they are open as: see ``Storage.open_attempt``."""
    traced: bool = False
    """Whether receipts tell of each read, gather and write."""
    preconditions: Preconditions = field(default_factory=Preconditions)
    """What a worker must see before it may begin."""

    def commit(self, writer: Writer, *, replace: bool = False) -> bool:
        """Commit a file of OUTPUT; OutputError where that is another conversion's by now."""
        if self.preconditions.owner is None:
            return writer.commit(replace=replace)
        return self.preconditions.owner.commit(self.storage, writer, replace=replace)


@dataclass(frozen=True, slots=True)
class Receipt:
    """What was done for one chunk; ``kept`` says that it had been finished before."""

    chunk: str
    digests: ChunkDigests
    bytes_read: int
    bytes_written: int
    became_infinite: int = 0
    kept: bool = False
    checksums: tuple[int, ...] = ()
    """CRC32 of each tensor's data, where the file's seal is still to be made of them."""
    attempts: int = field(default=1, compare=False)
    """How often the unit was begun; the executor counts."""
    work: Work = field(default_factory=Work, compare=False)


class Sources:
    """The open input files of one unit of work; reads pieces and counts the bytes."""

    def __init__(self, storage: Storage, spans: Spans | None = None) -> None:
        """Start with no file open."""
        self.bytes_read = 0
        self.spans = spans or Spans()
        self._storage = storage
        self._stack = ExitStack()
        self._readers: dict[str, Reader] = {}
        self._data_offsets: dict[Region, int] = {}

    def __enter__(self) -> Self:
        """Use it in a ``with`` block."""
        return self

    def __exit__(self, *_exception: object) -> None:
        """Close all files."""
        self._stack.close()

    def read(self, piece: Piece, unit_bytes: int) -> memoryview:
        """Read what a piece needs into memory of its own."""
        buffer = memoryview(bytearray(piece.span * unit_bytes))
        self._read_into(piece, unit_bytes, buffer)
        return buffer

    def read_block(self, pieces: Sequence[Piece], unit_bytes: int, content: memoryview) -> None:
        """Read what a block's pieces need into memory, one behind the other."""
        start = 0
        for piece in pieces:
            end = start + piece.span * unit_bytes
            self._read_into(piece, unit_bytes, content[start:end])
            start = end

    def _read_into(self, piece: Piece, unit_bytes: int, buffer: memoryview) -> None:
        reader = self._readers.get(piece.region.path)
        if reader is None:
            reader = self._stack.enter_context(opened(self._storage, piece.region.path))
            self._readers[piece.region.path] = reader
        start = self._data_offsets.get(piece.region)
        if start is None:
            start = self._data_offsets[piece.region] = locate_data(reader, piece.region)
        size = piece.run * unit_bytes
        for number, offset in enumerate(piece.offsets()):
            reader.read_into(start + offset * unit_bytes, buffer[number * size : (number + 1) * size])
        self.bytes_read += len(buffer)


def make_unit(job: Job, unit: Unit, advance: Callable[[int], None], stopped: Callable[[], bool]) -> Receipt:
    """Write a file, or a part of one.

    ``advance`` is told of output bytes as they are written; ``stopped`` is asked between
    blocks, and Interrupted raised when it says so. OutputError where another conversion owns OUTPUT.
    """
    if isinstance(unit, Part):
        return _write_part(job, unit, advance, stopped)
    return write_file(job, unit, advance, stopped)


def write_file(job: Job, file: File, advance: Callable[[int], None], stopped: Callable[[], bool]) -> Receipt:
    """Write one file, unless it is there already: whatever is raised, no file is left.

    It is there when a file has all that is planned around its tensors, and the digests that were recorded for it.
    """
    spans = Spans(kept=job.traced)
    path = join(job.output, file.name)
    recorded = job.recorded.get(file.name)
    if recorded is not None and is_finished(job.storage, path, file):
        with spans.during(DIGEST, file.size_bytes):
            kept = _is_same(job.storage, path, file, recorded, advance, stopped)
        if kept:
            return Receipt(file.name, recorded, 0, 0, kept=True, work=spans.finish())
        advance(-file.size_bytes)
    with spans.during(WRITE, 0):
        writer = job.storage.begin(path, file.size_bytes)
    try:
        with Sources(job.storage, spans) as sources:
            hasher = ChunkHasher(file.plain_head)
            write_literals(file.literals, writer, advance)
            checksums, became_infinite = _write_tensors(job, file, writer, sources, hasher, advance, stopped)
            if file.seal is not None:
                write_literals(file.seal.make(checksums), writer, advance)
        digests = hasher.finish()
        with spans.during(WRITE, 0):
            publish(job, file, writer, digests, stopped)
    finally:
        writer.abort()
    return Receipt(
        file.name, digests, sources.bytes_read, file.size_bytes, became_infinite, work=spans.finish()
    )


def _write_part(job: Job, part: Part, advance: Callable[[int], None], stopped: Callable[[], bool]) -> Receipt:
    """Write a part of a file that somebody else commits; what was written is durable at the end."""
    spans = Spans(kept=job.traced)
    with spans.during(WRITE, 0):
        if job.preconditions.owner is not None:
            job.preconditions.owner.check(job.storage)
        writer = job.storage.open_attempt(join(job.output, part.file), job.attempts[part.file])
    try:
        recorded = job.recorded.get(part.name)
        if recorded is not None:
            with spans.during(DIGEST, part.size_bytes):
                found, checksums = read_digests(job.storage, job.attempts[part.file], part, advance, stopped)
            if found == recorded:
                return Receipt(part.name, found, 0, 0, kept=True, checksums=checksums, work=spans.finish())
            advance(-part.size_bytes)
        with Sources(job.storage, spans) as sources:
            hasher = ChunkHasher(part.plain_head)
            checksums, became_infinite = _write_tensors(job, part, writer, sources, hasher, advance, stopped)
        with spans.during(WRITE, 0):
            writer.finish()
    finally:
        writer.close()
    return Receipt(
        part.name, hasher.finish(), sources.bytes_read, part.size_bytes, became_infinite,
        checksums=checksums, work=spans.finish(),
    )  # fmt: skip


def write_literals(
    literals: Iterable[Literal], writer: PartWriter, advance: Callable[[int], None] = lambda _size_bytes: None
) -> None:
    """Write what of a file is no tensor's."""
    for literal in literals:
        writer.write_at(literal.offset_bytes, literal.content)
        advance(len(literal.content))


def _write_tensors(
    job: Job,
    unit: Unit,
    writer: PartWriter,
    sources: Sources,
    hasher: ChunkHasher,
    advance: Callable[[int], None],
    stopped: Callable[[], bool],
) -> tuple[tuple[int, ...], int]:
    """Write a unit's tensors; gives their CRC32s if a seal needs them, and how many elements became infinite."""
    spans = sources.spans
    device = open_device(job.device)
    sealed = unit.is_sealed
    checksums, became_infinite = [], 0
    for tensor, start in zip(unit.tensors, unit.offsets_bytes, strict=True):
        checksum = 0
        for block, content, infinite in make_contents(tensor, sources, device, job.block_bytes, start):
            if stopped():
                raise Interrupted("stopped")
            with spans.during(WRITE, len(content)):
                writer.write_at(start + block.target_offset * tensor.dtype.size_bytes, content)
            with spans.during(DIGEST, len(content)):
                hasher.update(content)
                if sealed:
                    checksum = update_crc32(checksum, content)
            advance(len(content))
            became_infinite += infinite
        hasher.end_tensor()
        checksums.append(checksum)
    return tuple(checksums) if sealed else (), became_infinite


def publish(
    job: Job, chunk: File, writer: Writer, digests: ChunkDigests, stopped: Callable[[], bool]
) -> None:
    """Give a file its name; what has the name already stays only where it is the same."""
    if job.commit(writer):
        return
    # An attempt of this run that was taken for dead made it; or it is damaged, or nobody recorded it.
    path = join(job.output, chunk.name)
    if not is_finished(job.storage, path, chunk) or not _is_same(
        job.storage, path, chunk, digests, lambda _size_bytes: None, stopped
    ):
        job.commit(writer, replace=True)


def make_contents(
    tensor: OutputTensor,
    sources: Sources,
    device: Device,
    block_bytes: int | None = None,
    start_bytes: int = 0,
) -> Iterator[tuple[Block, memoryview, int]]:
    """Give each block of a tensor with its finished bytes, and how many elements became infinite.

    Without ``block_bytes`` blocks are of the device's sizes. ``start_bytes`` is where the tensor
    begins in its file. The bytes are good until the next block is asked for.
    """
    unit = tensor.stored.size_bytes
    waiting: deque[tuple[Block, Finish]] = deque()
    # A cast takes several times its block.
    largest = 0 if block_bytes or tensor.dtype != tensor.stored else device.largest_block_bytes
    for block in make_blocks(tensor, block_bytes or device.block_bytes, largest):
        # A cast wants its elements aligned, and gives memory of its own.
        place = start_bytes + block.target_offset * unit if tensor.dtype == tensor.stored else 0
        content = device.begin(sum(piece.span for piece in block.pieces) * unit, place)
        with sources.spans.during(READ, len(content)):
            sources.read_block(block.pieces, unit, content)
        if tensor.dtype == tensor.stored and len(block.pieces) == 1 and block.pieces[0].is_straight:
            waiting.append((block, partial(_give, content)))
        else:
            with sources.spans.during(GATHER, len(content)):
                finish = device.submit(content, block.pieces, block.elements, tensor.stored, tensor.dtype)
            waiting.append((block, finish))
        if len(waiting) >= device.depth:
            yield _finish(*waiting.popleft(), sources.spans)
    while waiting:
        yield _finish(*waiting.popleft(), sources.spans)


def _give(content: memoryview) -> tuple[memoryview, int]:
    return content, 0


def _finish(block: Block, finish: Finish, spans: Spans) -> tuple[Block, memoryview, int]:
    with spans.during(GATHER, 0):
        return block, *finish()


def is_finished(storage: Storage, path: str, chunk: File) -> bool:
    """Whether a file is there with this chunk's size and header."""
    entry = storage.find(path)
    if entry is None or entry.size_bytes != chunk.size_bytes:
        return False
    try:
        with opened(storage, path) as reader:
            return read_range(reader, 0, len(chunk.head)) == chunk.head
    except FileNotFoundError:
        return False


def _is_same(
    storage: Storage,
    path: str,
    file: File,
    digests: ChunkDigests,
    advance: Callable[[int], None],
    stopped: Callable[[], bool],
) -> bool:
    """Whether a file that is there has these digests, and around its tensors what is planned of such data."""
    found, checksums = read_digests(storage, path, file, advance, stopped)
    if found != digests:
        return False
    sealed = () if file.seal is None else file.seal.make(checksums)
    with opened(storage, path) as reader:
        return all(
            read_range(reader, literal.offset_bytes, len(literal.content)) == literal.content
            for literal in (*file.literals, *sealed)
        )


def read_digests(
    storage: Storage, path: str, unit: Unit, advance: Callable[[int], None], stopped: Callable[[], bool]
) -> tuple[ChunkDigests, tuple[int, ...]]:
    """Digest a file, or a part of one, that is there, telling of bytes as they are read.

    Gives the CRC32s of its tensors too, where a seal is made of them.
    """
    hasher, checksums, sealed = ChunkHasher(unit.plain_head), [], unit.is_sealed
    advance(unit.size_bytes - sum(tensor.size_bytes for tensor in unit.tensors))
    with opened(storage, path) as reader:
        for tensor, first in zip(unit.tensors, unit.offsets_bytes, strict=True):
            checksum = 0
            for content in read_blocks(reader, first, first + tensor.size_bytes, stopped):
                hasher.update(content)
                if sealed:
                    checksum = update_crc32(checksum, content)
                advance(len(content))
            hasher.end_tensor()
            checksums.append(checksum)
    return hasher.finish(), tuple(checksums) if sealed else ()
