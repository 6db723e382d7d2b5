"""Do one unit: make a file or a part of one (read source spans, put them together, write), digest a file, or compare.

Memory is bounded by a few blocks, whatever the model's size.
"""

from collections.abc import Callable, Iterable

from distconv.errors import Interrupted
from distconv.formats.meta.checksums import update_crc32
from distconv.layout.files import File, Literal, Part, Section
from distconv.layout.units import Checksum, Question, Unit
from distconv.moving.checksums import digest_file
from distconv.moving.compare import answer
from distconv.moving.devices import open_device
from distconv.moving.digests import ChunkDigests, ChunkHasher
from distconv.moving.existing import is_finished, is_same, read_digests
from distconv.moving.job import Job, Receipt
from distconv.moving.sources import Sources, make_contents
from distconv.moving.spans import DIGEST, WRITE, Spans
from distconv.storage.base import PartWriter, Writer, join


def make_unit(job: Job, unit: Unit, advance: Callable[[int], None], stopped: Callable[[], bool]) -> Receipt:
    """Write a file, or a part of one, make the MD5 of one, or answer a question.

    ``advance`` is told of output bytes as they are written or digested, or of INPUT's that are compared; ``stopped`` is asked between
    blocks, and Interrupted raised when it says so. OutputError where another conversion owns OUTPUT.
    """
    if isinstance(unit, Part):
        return _write_part(job, unit, advance, stopped)
    if isinstance(unit, Checksum):
        return digest_file(job, unit, advance, stopped)
    if isinstance(unit, Question):
        return answer(job, unit, advance, stopped)
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
            kept = is_same(job.storage, path, file, recorded, advance, stopped)
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
    unit: Section,
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
    if not is_finished(job.storage, path, chunk) or not is_same(
        job.storage, path, chunk, digests, lambda _size_bytes: None, stopped
    ):
        job.commit(writer, replace=True)
