"""Do one unit: make a file or a part of one (read source spans, put them together, write), digest a file, compare, examine.

Memory is bounded by a few blocks, whatever the model's size.
"""

from collections.abc import Callable

from distconv.errors import Interrupted
from distconv.formats.meta.checksums import update_crc32
from distconv.layout.files import File, Literal, Part, Section, list_in_order
from distconv.layout.units import Checksum, Examination, Question, Unit
from distconv.moving.checksums import digest_file
from distconv.moving.compare import answer
from distconv.moving.contents import Contents
from distconv.moving.devices import Device
from distconv.moving.digests import ChunkDigests, ChunkHasher
from distconv.moving.examine import examine
from distconv.moving.existing import is_finished, is_same, read_same
from distconv.moving.job import Job, Receipt
from distconv.moving.lane_devices import lane_device
from distconv.moving.sources import Sources
from distconv.moving.spans import DIGEST, WRITE, Spans
from distconv.storage.base import PartWriter, Writer, join


def make_unit(job: Job, unit: Unit, advance: Callable[[int], None], stopped: Callable[[], bool]) -> Receipt:
    """Write a file, or a part of one, make the MD5 of one, answer a question, or examine tensors.

    ``advance`` is told of output bytes as they are written or digested, or of INPUT's that are compared; ``stopped`` is asked between
    blocks, and Interrupted raised when it says so. OutputError where another conversion owns OUTPUT.
    """
    if isinstance(unit, Part):
        return _write_part(job, unit, advance, stopped)
    if isinstance(unit, Checksum):
        return digest_file(job, unit, advance, stopped)
    if isinstance(unit, Question):
        return answer(job, unit, advance, stopped)
    if isinstance(unit, Examination):
        return examine(job, unit, advance, stopped)
    return write_file(job, unit, advance, stopped)


def write_file(job: Job, file: File, advance: Callable[[int], None], stopped: Callable[[], bool]) -> Receipt:
    """Write one file, unless it is there already: whatever is raised, no file is left.

    It is there when a file has all that is planned around its tensors, and the digests that were recorded for it.
    """
    spans = Spans(kept=job.traced)
    path = join(job.output, file.name)
    recorded = job.recorded.get(file.name)
    if recorded is not None and file.name in job.vouched:
        return Receipt(file.name, recorded, 0, 0, kept=True, work=spans.finish())
    if recorded is not None and is_finished(job.storage, path, file):
        with spans.during(DIGEST, file.size_bytes):
            kept = is_same(job.storage, path, file, recorded, advance, stopped)
        if kept:
            return Receipt(file.name, recorded, 0, 0, kept=True, work=spans.finish())
        advance(-file.size_bytes)
    with spans.during(WRITE, 0):
        writer = job.storage.begin(path, file.size_bytes)
    try:
        with Sources(job.storage, spans) as sources, lane_device(job.device) as device:
            hasher = ChunkHasher(file.plain_head)
            checksums, became_infinite = _write_pieces(
                job, file, writer, sources, device, hasher, advance, stopped
            )
            if file.seal is not None:
                writer.write_at(file.seal.offset_bytes, file.seal.make(checksums))
                advance(file.seal.size_bytes)
        digests = hasher.finish()
        with spans.during(WRITE, 0):
            version = publish(job, file, writer, digests, stopped)
    finally:
        writer.abort()
    return Receipt(
        file.name, digests, sources.bytes_read, file.size_bytes, became_infinite, version, work=spans.finish()
    )


def _write_part(job: Job, part: Part, advance: Callable[[int], None], stopped: Callable[[], bool]) -> Receipt:
    """Write a part of a file that somebody else commits; what was written is durable at the end."""
    spans = Spans(kept=job.traced)
    with spans.during(WRITE, 0):
        if job.preconditions.owner is not None:
            job.preconditions.owner.check(job.storage)
        path, attempt = join(job.output, part.file), job.attempts[part.file]
        writer = job.storage.open_attempt(path, attempt, part.file_bytes)
    try:
        if (kept := _keep_part(job, part, writer, spans, advance, stopped)) is not None:
            return kept
        with Sources(job.storage, spans) as sources, lane_device(job.device) as device:
            hasher = ChunkHasher(part.plain_head)
            checksums, became_infinite = _write_pieces(
                job, part, writer, sources, device, hasher, advance, stopped
            )
        with spans.during(WRITE, 0):
            version = writer.finish()
    finally:
        writer.close()
    return Receipt(
        part.name, hasher.finish(), sources.bytes_read, part.size_bytes, became_infinite, version,
        checksums=checksums, work=spans.finish(),
    )  # fmt: skip


def _keep_part(
    job: Job,
    part: Part,
    writer: PartWriter,
    spans: Spans,
    advance: Callable[[int], None],
    stopped: Callable[[], bool],
) -> Receipt | None:
    """Keep a part that an earlier run wrote; None where it must be written."""
    recorded = job.parts.get(part.name)
    if recorded is None:
        return None
    digests = ChunkDigests(None, recorded.tensors)
    checksums: tuple[int, ...] | None
    with spans.during(DIGEST, part.size_bytes):
        if recorded.version is None:
            checksums = read_same(job.storage, job.attempts[part.file], part, digests, advance, stopped)
        else:
            advance(part.size_bytes)
            first = part.first_byte
            is_same = writer.holds(first, first + part.size_bytes, recorded.version)
            checksums = recorded.checksums if is_same else None
    if checksums is None:
        advance(-part.size_bytes)
        return None
    return Receipt(
        part.name,
        digests,
        0,
        0,
        version=recorded.version,
        kept=True,
        checksums=checksums,
        work=spans.finish(),
    )


def _write_pieces(
    job: Job,
    unit: Section,
    writer: PartWriter,
    sources: Sources,
    device: Device,
    hasher: ChunkHasher,
    advance: Callable[[int], None],
    stopped: Callable[[], bool],
) -> tuple[tuple[int, ...], int]:
    """Write a unit from its first byte to its last, but for a seal.

    Gives the CRC32s of its tensors if there are trailers, and how many elements became infinite.
    """
    contents = Contents(unit.tensors, unit.offsets_bytes, sources, device, job.block_bytes, stopped)
    checksums, became_infinite = [], 0
    for piece in list_in_order(unit):
        if isinstance(piece, Literal):
            writer.write_at(piece.offset_bytes, piece.content)
            advance(len(piece.content))
            continue
        tensor, start, checksum = unit.tensors[piece], unit.offsets_bytes[piece], 0
        for block, content, infinite in contents.of(piece):
            if stopped():
                raise Interrupted("stopped")
            with sources.spans.during(WRITE, len(content)):
                writer.write_at(start + block.target_offset * tensor.dtype.size_bytes, content)
            with sources.spans.during(DIGEST, len(content)):
                hasher.update(content)
                if unit.trailers:
                    checksum = update_crc32(checksum, content)
            advance(len(content))
            became_infinite += infinite
        hasher.end_tensor()
        if unit.trailers:
            trailer = unit.trailers[piece].make(checksum)
            writer.write_at(start + tensor.size_bytes, trailer)
            advance(len(trailer))
            checksums.append(checksum)
    return tuple(checksums), became_infinite


def publish(
    job: Job, chunk: File, writer: Writer, digests: ChunkDigests, stopped: Callable[[], bool]
) -> str | None:
    """Give a file its name; what has the name already stays only where it is the same.

    Gives its version, where that vouches for what is in it.
    """
    if job.commit(writer):
        return writer.find_version()
    # An attempt of this run that was taken for dead made it; or it is damaged, or nobody recorded it.
    path = join(job.output, chunk.name)
    if not is_finished(job.storage, path, chunk) or not is_same(
        job.storage, path, chunk, digests, lambda _size_bytes: None, stopped
    ):
        job.commit(writer, replace=True)
        return writer.find_version()
    return None
