"""Files and parts of files that are written together, each from its first byte to its last."""

from collections.abc import Callable, Iterator, Sequence

from distconv.errors import Interrupted
from distconv.formats.meta.checksums import update_crc32
from distconv.layout.files import Literal, Section, list_in_order
from distconv.layout.stripes import Step, list_steps
from distconv.moving.bands import Block
from distconv.moving.contents import Contents
from distconv.moving.digests import make_hasher
from distconv.moving.job import Job
from distconv.moving.lane_devices import lane_device
from distconv.moving.sources import Sources
from distconv.moving.spans import DIGEST, WRITE, Spans
from distconv.moving.trails import Trail
from distconv.storage.base import PartWriter


class SectionWriter:
    """A file, or a part of one, on its way: its tensors come in their order, all else is written around them."""

    def __init__(
        self,
        section: Section,
        writer: PartWriter,
        spans: Spans,
        advance: Callable[[int], None],
        trail: Trail | None = None,
    ) -> None:
        """Begin with nothing written; ``advance`` is told of bytes as they are, and ``trail`` goes along."""
        self.section, self.trail = section, trail
        self.hasher = make_hasher(section, trail)
        self.checksums: list[int] = []
        """CRC32s of the tensors that are written, or of rows of them, if there are trailers."""
        self._writer, self._spans, self._advance = writer, spans, advance
        self._left = list_in_order(section)
        self._start = self._checksum = 0

    def begin_tensor(self, place: int) -> None:
        """Write what stands before the next tensor, which is the one of this place."""
        self._write_literals()
        self._start, self._checksum = self.section.offsets_bytes[place], 0

    def write(self, offset_bytes: int, content: memoryview) -> None:
        """Write the next bytes of the tensor, which belong so far behind its first one."""
        with self._spans.during(WRITE, len(content)):
            self._writer.write_at(self._start + offset_bytes, content)
        with self._spans.during(DIGEST, len(content)):
            self.hasher.update(content)
            if self.section.trailers:
                self._checksum = update_crc32(self._checksum, content)
        self._advance(len(content))

    def end_tensor(self, place: int) -> None:
        """Write what is made of the tensor of this place, which is whole."""
        self.hasher.end_tensor()
        if not self.section.trailers:
            return
        self.checksums.append(self._checksum)
        trailer = self.section.trailers[place]
        if trailer is not None:
            content = trailer.make(self._checksum)
            self._writer.write_at(self._start + self.section.tensors[place].size_bytes, content)
            self._advance(len(content))

    def end(self) -> None:
        """Write what stands behind the last tensor, but for a seal."""
        self._write_literals()

    def _write_literals(self) -> None:
        for piece in self._left:
            if not isinstance(piece, Literal):
                return
            self._writer.write_at(piece.offset_bytes, piece.content)
            self._advance(len(piece.content))


def write_sections(
    job: Job, writers: Sequence[SectionWriter], sources: Sources, stopped: Callable[[], bool]
) -> int:
    """Write sections with as many tensors, but for seals; gives how many elements became infinite."""
    steps = list(list_steps([writer.section for writer in writers]))
    starts = [writers[step.sections[0]].section.offsets_bytes[step.place] for step in steps]
    tensors = [step.tensor for step in steps]
    with lane_device(job.device) as device:
        contents = Contents(tensors, starts, sources, device, job.block_bytes, stopped)
        became_infinite = sum(
            _write_step(step, [writers[section] for section in step.sections], contents.of(number), stopped)
            for number, step in enumerate(steps)
        )
    for writer in writers:
        writer.end()
    return became_infinite


def _write_step(
    step: Step,
    writers: Sequence[SectionWriter],
    blocks: Iterator[tuple[Block, memoryview, int]],
    stopped: Callable[[], bool],
) -> int:
    for writer in writers:
        writer.begin_tensor(step.place)
    became_infinite = 0
    for block, content, infinite in blocks:
        if stopped():
            raise Interrupted("stopped")
        offset = block.target_offset * step.tensor.dtype.size_bytes // len(writers)
        share = len(content) // len(writers)
        for place, writer in enumerate(writers):
            writer.write(offset, content[place * share : (place + 1) * share])
        became_infinite += infinite
    for writer in writers:
        writer.end_tensor(step.place)
    return became_infinite
