"""Blocks that are read before they are needed: where an answer takes time, many requests are on their way.

What neighbouring blocks read of a storage is asked for together, in memory that is used in a ring.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass, field

from distconv.formats.meta.archive import LOCAL_HEADER_BYTES, find_data
from distconv.layout.regions import ZEROS, Region
from distconv.moving.bands import Block
from distconv.moving.sources import Sources
from distconv.storage.base import Access, Reader
from distconv.storage.blocks import wait_for
from distconv.storage.memory import make_buffer
from distconv.storage.parallel import submit

_SLACK_BYTES = 512
"""More than a zip record's local header takes, with the name and the padding that torch gives it."""
_ALIGNMENT_BYTES = 64


@dataclass(frozen=True, slots=True)
class Wanted:
    """A block of one of a unit's tensors, and the size of an element that is stored."""

    place: int
    block: Block
    unit_bytes: int


@dataclass(slots=True)
class Range:
    """Bytes of a region that are read together; offsets count from the first byte of its data."""

    region: Region
    first: int
    end: int


@dataclass(slots=True)
class Group:
    """Blocks that are read together, each with where its runs of bytes lie: range, offset in it, size."""

    blocks: list[tuple[Wanted, list[tuple[Range, int, int]]]] = field(default_factory=list)
    ranges: list[Range] = field(default_factory=list)

    @property
    def size_bytes(self) -> int:
        """What is read."""
        return sum(one.end - one.first for one in self.ranges)

    def add(self, wanted: Wanted, gap_bytes: int) -> None:
        """Add a block; what it reads behind what is read of the same region, or near it, is read with that."""
        runs = []
        for piece in wanted.block.pieces:
            size = piece.run * wanted.unit_bytes
            for offset in piece.offsets():
                first = offset * wanted.unit_bytes
                found = self._find(piece.region, first, gap_bytes)
                found.end = max(found.end, first + size)
                runs.append((found, first - found.first, size))
        self.blocks.append((wanted, runs))

    def _find(self, region: Region, first: int, gap_bytes: int) -> Range:
        for one in reversed(self.ranges):
            if one.region is region or one.region == region:
                if one.first <= first <= one.end + gap_bytes:
                    return one
                break
        self.ranges.append(Range(region, first, first))
        return self.ranges[-1]


def group_blocks(blocks: Iterable[Wanted], access: Access) -> Iterator[Group]:
    """Group blocks until the requests for them are of a good size, or half of what is read ahead is reached."""
    group = Group()
    for wanted in blocks:
        group.add(wanted, access.gap_bytes)
        size = group.size_bytes
        if size >= access.request_bytes * len(group.ranges) or size >= access.ahead_bytes // 2:
            yield group
            group = Group()
    if group.blocks:
        yield group


class Ring:
    """Memory of which pieces are taken, and given back in the same order."""

    def __init__(self, size_bytes: int) -> None:
        """Take so much."""
        self._memory = make_buffer(size_bytes)
        self._taken: deque[tuple[int, int]] = deque()

    def take(self, size_bytes: int) -> memoryview | None:
        """Take the next piece; None until more is given back. What is larger than all is memory of its own."""
        if not self._taken and size_bytes > len(self._memory):
            self._taken.append((0, 0))
            return make_buffer(size_bytes)
        end = self._taken[-1][1] if self._taken else 0
        oldest = self._taken[0][0] if self._taken else 0
        wrapped = bool(self._taken) and end <= oldest
        start = end if wrapped or end + size_bytes <= len(self._memory) else 0
        limit = oldest if self._taken and start <= oldest and (wrapped or start == 0) else len(self._memory)
        if start + size_bytes > limit:
            return None
        self._taken.append((start, start + size_bytes))
        return self._memory[start : start + size_bytes]

    def give_back(self) -> None:
        """Give the piece back that was taken first."""
        self._taken.popleft()


@dataclass(slots=True)
class _Reading:
    """A range on its way into memory, which begins as many bytes before it as a record's header takes, if any."""

    range: Range
    reader: Reader
    memory: memoryview
    header: memoryview | None
    """Where the region's local header comes to lie; None where somebody else reads it, or there is none."""
    is_located: bool
    """Whether the memory begins with the range itself."""

    def locate(self, sources: Sources) -> memoryview:
        """Give the range's bytes once they are there."""
        if self.is_located:
            return self.memory
        region = self.range.region
        if self.header is not None and region not in sources.data_offsets:
            sources.data_offsets[region] = find_data(self.header, region, self.reader.size_bytes)
        start, size = sources.locate(region), self.range.end - self.range.first
        skipped = start - region.offset_bytes
        if skipped + size > len(self.memory):
            self.memory = make_buffer(skipped + size)
            self.reader.read_into(start + self.range.first, self.memory[skipped:])
        return self.memory[skipped : skipped + size]


class Ahead:
    """What a unit reads ahead of its need."""

    def __init__(self, sources: Sources, access: Access, stopped: Callable[[], bool]) -> None:
        """Begin with nothing; ``stopped`` is asked while an answer is waited for, and Interrupted raised."""
        self._sources, self._access, self._stopped = sources, access, stopped
        self._ring = Ring(access.ahead_bytes)
        self._headers: set[Region] = set()
        self._started: deque[tuple[Group, dict[int, _Reading], list[Future[None]]]] = deque()

    def read(self, blocks: Iterable[Wanted]) -> Iterator[tuple[Wanted, list[memoryview]]]:
        """Give each block with the runs of bytes that its pieces read, good until the next is asked for."""
        groups = group_blocks(blocks, self._access)
        upcoming = next(groups, None)
        try:
            while self._started or upcoming is not None:
                while upcoming is not None and (memory := self._ring.take(_need(upcoming))) is not None:
                    self._start(upcoming, memory)
                    upcoming = next(groups, None)
                group, readings, futures = self._started[0]
                wait_for(futures, self._stopped)
                found = {key: reading.locate(self._sources) for key, reading in readings.items()}
                for wanted, runs in group.blocks:
                    yield wanted, [found[id(one)][first : first + size] for one, first, size in runs]
                self._started.popleft()
                self._ring.give_back()
        finally:
            for _group, _readings, futures in self._started:
                for future in futures:
                    future.cancel()

    def _start(self, group: Group, memory: memoryview) -> None:
        readings, futures, used = {}, list[Future[None]](), 0
        for one in group.ranges:
            size = one.end - one.first
            # As it lies in the file, so do elements lie at multiples of their size.
            reading, start = self._place(one, memory[used : used + size + _SLACK_BYTES + _ALIGNMENT_BYTES])
            used += size + _SLACK_BYTES + _ALIGNMENT_BYTES
            readings[id(one)] = reading
            self._sources.bytes_read += len(reading.memory) if one.region.path != ZEROS.path else 0
            futures += self._ask(reading.reader, start, reading.memory)
            if reading.header is not None and one.first:
                futures += self._ask(reading.reader, one.region.offset_bytes, reading.header)
        self._started.append((group, readings, futures))

    def _place(self, one: Range, memory: memoryview) -> tuple[_Reading, int]:
        """Give what is read, and from where in the file."""
        region, size = one.region, one.end - one.first
        reader = self._sources.open(region.path)
        known = region.offset_bytes if not region.zipped else self._sources.data_offsets.get(region)
        start = (region.offset_bytes if known is None else known) + one.first
        if known is None:
            size = min(size + _SLACK_BYTES, max(0, reader.size_bytes - start))
        phase = start % _ALIGNMENT_BYTES
        memory = memory[phase : phase + size]
        header = None
        if known is None and region not in self._headers:
            self._headers.add(region)
            header = memory[:LOCAL_HEADER_BYTES] if not one.first else make_buffer(LOCAL_HEADER_BYTES)
        return _Reading(one, reader, memory, header, known is not None), start

    def _ask(self, reader: Reader, start: int, memory: memoryview) -> Iterator[Future[None]]:
        """Ask for a run of bytes, in several requests where it is long."""
        count = max(1, round(len(memory) / self._access.request_bytes))
        step = -(-len(memory) // count)
        for first in range(0, len(memory), max(1, step)):
            yield submit(reader.read_into, start + first, memory[first : first + step])


def _need(group: Group) -> int:
    return group.size_bytes + len(group.ranges) * (_SLACK_BYTES + _ALIGNMENT_BYTES)
