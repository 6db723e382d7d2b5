"""Tensors looked at as they are stored: digests, checksums and odd values, all in one reading.

Digests are of a tensor's elements in their order, wherever in files they lie: neither the size of files nor of
blocks changes them, nor who makes them.
"""

import hashlib
from collections.abc import Callable, Iterator

from xxhash import xxh3_128

from distconv.errors import InputError
from distconv.formats.meta.checksums import update_crc32
from distconv.layout.files import OutputTensor
from distconv.layout.units import Examination
from distconv.moving.digests import NO_DIGESTS
from distconv.moving.job import Found, Job, Receipt
from distconv.moving.lane_devices import lane_device
from distconv.moving.runs import read_runs
from distconv.moving.sources import Sources
from distconv.moving.spans import DIGEST, Spans
from distconv.moving.values import Tallying


def examine(
    job: Job, unit: Examination, advance: Callable[[int], None], stopped: Callable[[], bool]
) -> Receipt:
    """Read all runs, telling of bytes as they are looked at; memory is bounded by a few blocks.

    A file that is not what its header says any more is told as a problem, so that others are looked at still.
    """
    spans = Spans(kept=job.traced)
    with Sources(job.storage, spans) as sources, lane_device(job.device) as device:
        try:
            found = _look(unit, read_runs(unit.runs, sources, device, stopped), spans, advance)
        except InputError as error:
            found = Found(problem=str(error))
    return Receipt(unit.name, NO_DIGESTS, sources.bytes_read, 0, found=found, work=spans.finish())


class _Look:
    """What one run's bytes are."""

    def __init__(self, tensor: OutputTensor) -> None:
        self.digest, self.checksum = xxh3_128(), 0
        self.tallying = Tallying(tensor.dtype)


def _look(
    unit: Examination, blocks: Iterator[tuple[int, memoryview]], spans: Spans, advance: Callable[[int], None]
) -> Found:
    looks = [_Look(run) if isinstance(run, OutputTensor) else None for run in unit.runs]
    whole = xxh3_128() if unit.whole else None
    md5 = hashlib.md5(usedforsecurity=False) if unit.md5 else None
    for place, content in blocks:
        with spans.during(DIGEST, len(content)):
            for sum_of_all in (whole, md5):
                if sum_of_all is not None:
                    sum_of_all.update(content)
            look = looks[place]
            if look is not None:
                if unit.digests:
                    look.digest.update(content)
                look.tallying.update(content)
                if unit.checksums:
                    look.checksum = update_crc32(look.checksum, content)
        advance(len(content))
    found = [look for look in looks if look is not None]
    return Found(
        tuple(look.digest.hexdigest() for look in found) if unit.digests else (),
        tuple(look.tallying.finish() for look in found),
        tuple(look.checksum for look in found) if unit.checksums else (),
        None if whole is None else whole.hexdigest(),
        None if md5 is None else md5.hexdigest(),
    )
