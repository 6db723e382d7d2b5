"""Tensors looked at as they are stored: digests, checksums and odd values, all in one reading.

Digests are of a tensor's elements in their order, wherever in files they lie: neither the size of files nor of
blocks changes them, nor who makes them.
"""

import hashlib
from collections.abc import Callable, Iterator

from xxhash import xxh3_128

from distconv.errors import InputError, Interrupted
from distconv.formats.meta.checksums import update_crc32
from distconv.layout.units import Examination, Gap
from distconv.moving.contents import Contents
from distconv.moving.devices import open_device
from distconv.moving.digests import ChunkDigests
from distconv.moving.job import Found, Job, Receipt
from distconv.moving.sources import Sources
from distconv.moving.spans import DIGEST, Spans
from distconv.moving.values import Tally, Tallying
from distconv.storage.blocks import read_blocks


def examine(
    job: Job, unit: Examination, advance: Callable[[int], None], stopped: Callable[[], bool]
) -> Receipt:
    """Read all runs, telling of bytes as they are looked at; memory is bounded by a few blocks.

    A file that is not what its header says any more is told as a problem, so that others are looked at still.
    """
    spans = Spans(kept=job.traced)
    with Sources(job.storage, spans) as sources:
        try:
            found = _Look(unit, sources, job, advance, stopped).finish()
        except InputError as error:
            found = Found(problem=str(error))
    nothing = ChunkDigests(None, ())
    return Receipt(unit.name, nothing, sources.bytes_read, 0, found=found, work=spans.finish())


class _Look:
    """One look at all runs of a unit."""

    def __init__(
        self,
        unit: Examination,
        sources: Sources,
        job: Job,
        advance: Callable[[int], None],
        stopped: Callable[[], bool],
    ) -> None:
        self._unit, self._sources, self._advance, self._stopped = unit, sources, advance, stopped
        tensors = unit.tensors
        self._contents = Contents(
            tensors, [0] * len(tensors), sources, open_device(job.device), job.block_bytes, stopped
        )
        self._whole = xxh3_128() if unit.whole else None
        self._md5 = hashlib.md5(usedforsecurity=False) if unit.md5 else None

    def finish(self) -> Found:
        """Look at everything."""
        digests: list[str] = []
        tallies: list[Tally] = []
        checksums: list[int] = []
        for run in self._unit.runs:
            if isinstance(run, Gap):
                for content in self._read(run):
                    self._take(content)
                continue
            digest, tallying, checksum = xxh3_128(), Tallying(run.dtype), 0
            for content in self._make(len(digests)):
                self._take(content)
                with self._sources.spans.during(DIGEST, len(content)):
                    digest.update(content)
                    tallying.update(content)
                    if self._unit.checksums:
                        checksum = update_crc32(checksum, content)
            digests.append(digest.hexdigest())
            tallies.append(tallying.finish())
            checksums.append(checksum)
        return Found(
            tuple(digests), tuple(tallies), tuple(checksums) if self._unit.checksums else (),
            None if self._whole is None else self._whole.hexdigest(),
            None if self._md5 is None else self._md5.hexdigest(),
        )  # fmt: skip

    def _read(self, gap: Gap) -> Iterator[memoryview]:
        reader = self._sources.open(gap.path)
        # A file may have become shorter since its end was looked up.
        return read_blocks(reader, gap.first, gap.end, self._stopped)

    def _make(self, place: int) -> Iterator[memoryview]:
        for _block, content, _infinite in self._contents.of(place):
            if self._stopped():
                raise Interrupted("stopped")
            yield content

    def _take(self, content: memoryview) -> None:
        with self._sources.spans.during(DIGEST, 0):
            if self._whole is not None:
                self._whole.update(content)
            if self._md5 is not None:
                self._md5.update(content)
        self._advance(len(content))
