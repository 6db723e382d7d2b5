"""MD5s of whole files of OUTPUT."""

import hashlib
from collections.abc import Callable

from distconv.layout.units import Checksum
from distconv.moving.digests import NO_DIGESTS
from distconv.moving.job import Job, Receipt
from distconv.moving.spans import DIGEST, Spans
from distconv.storage.base import join, opened
from distconv.storage.blocks import read_blocks


def digest_file(
    job: Job, unit: Checksum, advance: Callable[[int], None], stopped: Callable[[], bool]
) -> Receipt:
    """Read a file from its first byte to its last one, telling of bytes as they are digested."""
    spans = Spans(kept=job.traced)
    found = hashlib.md5(usedforsecurity=False)
    with spans.during(DIGEST, unit.size_bytes), opened(job.storage, join(job.output, unit.file)) as reader:
        for block in read_blocks(reader, 0, unit.size_bytes, stopped):
            found.update(block)
            advance(len(block))
    return Receipt(unit.name, NO_DIGESTS, 0, 0, md5=found.hexdigest(), work=spans.finish())
