"""Do one unit: make a file or parts of several (read spans, put them together, write), digest a file, compare, examine.

Memory is bounded by a few blocks, whatever the model's size.
"""

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace

from distconv.layout.files import File, Part
from distconv.layout.stripes import Stripe
from distconv.layout.units import Checksum, Examination, Question, Unit
from distconv.moving.checksums import digest_file
from distconv.moving.compare import answer
from distconv.moving.digests import NO_DIGESTS, ChunkDigests, PartDigests
from distconv.moving.examine import examine
from distconv.moving.existing import is_finished, is_same, read_same
from distconv.moving.job import Job, PartReceipt, Receipt
from distconv.moving.sections import SectionWriter, write_sections
from distconv.moving.sources import Sources
from distconv.moving.spans import DIGEST, WRITE, Spans
from distconv.moving.trails import TRAILS
from distconv.storage.base import PartWriter, Writer, join


def make_unit(job: Job, unit: Unit, advance: Callable[[int], None], stopped: Callable[[], bool]) -> Receipt:
    """Write a file, or parts of several, make the MD5 of one, answer a question, or examine tensors.

    ``advance`` is told of output bytes as they are written or digested, or of INPUT's that are compared; ``stopped`` is asked between
    blocks, and Interrupted raised when it says so. OutputError where another conversion owns OUTPUT.
    """
    if isinstance(unit, Stripe):
        return _write_stripe(job, unit, advance, stopped)
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
        with Sources(job.storage, spans) as sources:
            section = SectionWriter(file, writer, spans, advance)
            became_infinite = write_sections(job, [section], sources, stopped)
            if file.seal is not None:
                writer.write_at(file.seal.offset_bytes, file.seal.make(section.checksums))
                advance(file.seal.size_bytes)
        digests = section.hasher.finish()
        with spans.during(WRITE, 0):
            version = publish(job, file, writer, digests, stopped)
    finally:
        writer.abort()
    return Receipt(
        file.name, digests, sources.bytes_read, file.size_bytes, became_infinite, version, work=spans.finish()
    )


def _write_stripe(
    job: Job, stripe: Stripe, advance: Callable[[int], None], stopped: Callable[[], bool]
) -> Receipt:
    """Write parts of files that somebody else commits; what was written is durable at the end.

    Those that an earlier run wrote are kept.
    """
    spans = Spans(kept=job.traced)
    with spans.during(WRITE, 0):
        if job.preconditions.owner is not None:
            job.preconditions.owner.check(job.storage)
    done: dict[str, PartReceipt] = {}
    with ExitStack() as stack, Sources(job.storage, spans) as sources:
        written: list[tuple[Part, PartWriter, SectionWriter]] = []
        for part in stripe.parts:
            with spans.during(WRITE, 0):
                path, attempt = join(job.output, part.file), job.attempts[part.file]
                writer = job.storage.open_attempt(path, attempt, part.file_bytes)
            stack.callback(writer.close)
            if (kept := _keep_part(job, part, writer, spans, advance, stopped)) is not None:
                done[part.name] = kept
            else:
                trail = TRAILS.follow(attempt, part)
                written.append((part, writer, SectionWriter(part, writer, spans, advance, trail)))
        sections = [section for _part, _writer, section in written]
        became_infinite = write_sections(job, sections, sources, stopped) if sections else 0
        for part, writer, section in written:
            with spans.during(WRITE, 0):
                version = writer.finish()
            TRAILS.keep(job.attempts[part.file], section.trail)
            tensors = section.hasher.finish().tensors
            done[part.name] = PartReceipt(part.name, PartDigests(tensors, version, tuple(section.checksums)))
    return Receipt(
        stripe.name, NO_DIGESTS, sources.bytes_read, sum(part.size_bytes for part, *_ in written),
        became_infinite, kept=not written, parts=tuple(done[part.name] for part in stripe.parts),
        work=spans.finish(),
    )  # fmt: skip


def _keep_part(
    job: Job,
    part: Part,
    writer: PartWriter,
    spans: Spans,
    advance: Callable[[int], None],
    stopped: Callable[[], bool],
) -> PartReceipt | None:
    """Keep a part that an earlier run wrote; None where it must be written."""
    recorded = job.parts.get(part.name)
    if recorded is None:
        return None
    checksums: tuple[int, ...] | None
    with spans.during(DIGEST, part.size_bytes):
        if recorded.version is None:
            digests, attempt = ChunkDigests(None, recorded.tensors), job.attempts[part.file]
            trail = TRAILS.follow(attempt, part)
            checksums = read_same(job.storage, attempt, part, digests, advance, stopped, trail)
            if checksums is not None:
                TRAILS.keep(attempt, trail)
        else:
            advance(part.size_bytes)
            first = part.first_byte
            is_same = writer.holds(first, first + part.size_bytes, recorded.version)
            checksums = recorded.checksums if is_same else None
    if checksums is None:
        advance(-part.size_bytes)
        return None
    return PartReceipt(part.name, replace(recorded, checksums=checksums), kept=True)


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
