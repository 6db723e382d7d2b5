"""Digests of whole files of OUTPUT, and of tensors of which several workers wrote rows."""

import hashlib
from collections.abc import Callable, Iterator

from xxhash import xxh3_128

from distconv.layout.units import Checksum
from distconv.moving.digests import ChunkDigests
from distconv.moving.job import Job, Receipt
from distconv.moving.spans import DIGEST, Spans
from distconv.moving.trails import TRAILS, Trail
from distconv.storage.base import join, opened
from distconv.storage.blocks import read_blocks


def digest_file(
    job: Job, unit: Checksum, advance: Callable[[int], None], stopped: Callable[[], bool]
) -> Receipt:
    """Read a file to its last byte, from where this process has seen it up to, telling of bytes as they are digested."""
    spans = Spans(kept=job.traced)
    path = job.attempts[unit.file] if unit.is_open else join(job.output, unit.file)
    md5 = hashlib.md5(usedforsecurity=False) if unit.md5 else None
    trail = TRAILS.take(path) if unit.whole and not unit.md5 else Trail()
    whole = trail.whole if unit.whole else None
    tensors = []
    if trail.end_bytes:
        advance(trail.end_bytes)
    with spans.during(DIGEST, unit.size_bytes), opened(job.storage, path) as reader:
        for first, end, is_tensor in _list_runs(unit):
            start = max(first, min(end, trail.end_bytes))
            own = trail.tensor if first < start < end else xxh3_128()
            wanted = [digest for digest in (md5, whole, own if is_tensor else None) if digest is not None]
            for block in read_blocks(reader, start, end, stopped):
                for digest in wanted:
                    digest.update(block)
                advance(len(block))
            if is_tensor:
                tensors.append(trail.find_tensor(end) if start == end else own.hexdigest())
    digests = ChunkDigests(None if whole is None else whole.hexdigest(), tuple(tensors))
    found = None if md5 is None else md5.hexdigest()
    return Receipt(unit.name, digests, 0, 0, md5=found, work=spans.finish())


def _list_runs(unit: Checksum) -> Iterator[tuple[int, int, bool]]:
    """Give runs that cover the file, by where they begin and end, and whether each is one of its tensors."""
    position = 0
    for first, end in unit.tensors:
        yield position, first, False
        yield first, end, True
        position = end
    yield position, unit.size_bytes, False
