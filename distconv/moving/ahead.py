"""Blocks that are read before they are needed: where an answer takes time, many requests are on their way.

What ``ranges`` puts together is asked for as long as there is room in memory that is used in a ring.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass

from distconv.formats.meta.archive import LOCAL_HEADER_BYTES, find_data
from distconv.layout.regions import Region
from distconv.moving.ranges import Range, Ranges, Run, Wanted, split_range
from distconv.moving.sources import Sources
from distconv.storage.base import Access, Reader
from distconv.storage.blocks import wait_for
from distconv.storage.memory import give_back, make_buffer, take_buffer
from distconv.storage.parallel import submit

_SLACK_BYTES = 512
"""More than a zip record's local header takes, with the name and the padding that torch gives it."""
_ALIGNMENT_BYTES = 64


class Ring:
    """Memory of which pieces are taken, and given back in the same order."""

    def __init__(self, size_bytes: int) -> None:
        """Take so much."""
        self._memory = take_buffer(size_bytes)
        self._taken: deque[tuple[int, int]] = deque()

    def take(self, size_bytes: int) -> memoryview | None:
        """Take the next piece; None where there is no room, until more is given back."""
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

    def close(self) -> None:
        """Let others of this thread use the memory; nobody may be reading into it."""
        give_back(self._memory)


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
    in_ring: bool
    futures: tuple[Future[None], ...] = ()

    def locate(self, sources: Sources) -> None:
        """Let the memory begin with the range, once that is there."""
        if self.is_located:
            return
        region = self.range.region
        if self.header is not None and region not in sources.data_offsets:
            sources.data_offsets[region] = find_data(self.header, region, self.reader.size_bytes)
        start, size = sources.locate(region), self.range.size_bytes
        skipped = start - region.offset_bytes
        if skipped + size > len(self.memory):
            self.memory = make_buffer(skipped + size)
            self.reader.read_into(start + self.range.first, self.memory[skipped:])
        self.memory = self.memory[skipped : skipped + size]
        self.is_located = True


class Ahead:
    """What a unit reads ahead of its need."""

    def __init__(self, sources: Sources, access: Access, stopped: Callable[[], bool]) -> None:
        """Begin with nothing; ``stopped`` is asked while an answer is waited for, and Interrupted raised."""
        self._sources, self._access, self._stopped = sources, access, stopped
        self._ring = Ring(access.ahead_bytes)
        self._ranges = Ranges(access)
        self._headers: set[Region] = set()
        self._planned: deque[tuple[Wanted, list[Run]]] = deque()
        self._upcoming: deque[Range] = deque()
        """In the order in which they are needed first; none of those that are asked for."""
        self._started: dict[Range, _Reading] = {}
        """In the same order."""

    def read(self, blocks: Iterable[Wanted]) -> Iterator[tuple[Wanted, list[memoryview]]]:
        """Give each block with the runs of bytes that its pieces read, good until the next is asked for."""
        left = iter(blocks)
        number = 0
        try:
            self._ask_ahead(left)
            while self._planned:
                wanted, runs = self._planned.popleft()
                yield wanted, [self._await(one)[first : first + size] for one, first, size in runs]
                self._give_back(number)
                number += 1
                self._ask_ahead(left)
            self._ring.close()
        finally:
            for reading in self._started.values():
                for future in reading.futures:
                    future.cancel()

    def _ask_ahead(self, left: Iterator[Wanted]) -> None:
        """Ask for what there is room for."""
        while True:
            while not self._upcoming or self._upcoming[0].is_open:
                wanted = next(left, None)
                if wanted is None:
                    self._ranges.end()
                    break
                runs, begun = self._ranges.add(wanted)
                self._planned.append((wanted, runs))
                self._upcoming += begun
            if not self._upcoming:
                return
            memory = self._ring.take(_need(self._upcoming[0]))
            if memory is None:
                return
            self._start(self._upcoming.popleft(), memory, in_ring=True)

    def _await(self, one: Range) -> memoryview:
        """Give a range's bytes."""
        while one not in self._started:
            # One block wants more than there is room for, or what it wants lies behind what stays.
            upcoming = self._upcoming.popleft()
            self._ranges.close(upcoming)
            self._start(upcoming, make_buffer(_need(upcoming)), in_ring=False)
        reading = self._started[one]
        if reading.futures:
            wait_for(reading.futures, self._stopped)
            reading.futures = ()
        reading.locate(self._sources)
        return reading.memory

    def _give_back(self, number: int) -> None:
        """Give back what no block after this one wants, as far as it was taken first."""
        for one, reading in list(self._started.items()):
            if one.last_block > number:
                return
            del self._started[one]
            if reading.in_ring:
                self._ring.give_back()

    def _start(self, one: Range, memory: memoryview, *, in_ring: bool) -> None:
        reading, start = self._place(one, memory, in_ring=in_ring)
        self._sources.count(one.region, len(reading.memory))
        futures = list(self._ask(reading.reader, start, reading.memory))
        if reading.header is not None and one.first:
            futures += self._ask(reading.reader, one.region.offset_bytes, reading.header)
        reading.futures = tuple(futures)
        self._started[one] = reading

    def _place(self, one: Range, memory: memoryview, *, in_ring: bool) -> tuple[_Reading, int]:
        """Give what is read, and from where in the file."""
        region, size = one.region, one.size_bytes
        reader = self._sources.open(region.path)
        known = region.offset_bytes if not region.zipped else self._sources.data_offsets.get(region)
        start = (region.offset_bytes if known is None else known) + one.first
        if known is None:
            size = min(size + _SLACK_BYTES, max(0, reader.size_bytes - start))
        # As it lies in the file, so do elements lie at multiples of their size.
        phase = start % _ALIGNMENT_BYTES
        memory = memory[phase : phase + size]
        header = None
        if known is None and region not in self._headers:
            self._headers.add(region)
            header = memory[:LOCAL_HEADER_BYTES] if not one.first else make_buffer(LOCAL_HEADER_BYTES)
        return _Reading(one, reader, memory, header, known is not None, in_ring), start

    def _ask(self, reader: Reader, start: int, memory: memoryview) -> Iterator[Future[None]]:
        """Ask for a run of bytes, in several requests where it is long."""
        count = split_range(len(memory), self._access)
        step = -(-len(memory) // count)
        for first in range(0, len(memory), max(1, step)):
            yield submit(reader.read_into, start + first, memory[first : first + step])


def _need(one: Range) -> int:
    return one.size_bytes + _SLACK_BYTES + _ALIGNMENT_BYTES
