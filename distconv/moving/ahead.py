"""Blocks that are read before they are needed: where an answer takes time, many requests are on their way.

What ``ranges`` puts together is asked for as long as there is room, which is given back as blocks are used up.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from distconv.formats.meta.archive import LOCAL_HEADER_BYTES, find_data
from distconv.layout.regions import Region
from distconv.moving.arrivals import Arrival, Arrivals
from distconv.moving.cells import ALIGNMENT_BYTES, Cells, cut
from distconv.moving.ranges import Range, Ranges, Run, Wanted, split_range
from distconv.moving.sources import Sources
from distconv.storage.base import Access, Reader
from distconv.storage.memory import make_buffer

_SLACK_BYTES = 512
"""More than a zip record's local header takes, with the name and the padding that torch gives it."""


@dataclass(slots=True)
class _Reading:
    """A range on its way into memory, which begins as many bytes before it as a record's header takes, if any."""

    range: Range
    reader: Reader
    runs: list[memoryview]
    """The memory, one behind the other."""
    skipped: int | None
    """How many bytes come before the range; None until that is known."""
    header: list[memoryview] | None
    """Where the region's local header comes to lie; None where somebody else reads it, or there is none."""
    arrivals: list[Arrival]
    held: list[tuple[int, int, int]]
    """The cells of the memory, the first to go last: number of the last block that wants it, where it ends, which one."""

    def has_come(self, end: int) -> bool:
        """Whether all is there before this place in the memory."""
        return all(arrival.has_come(end) for arrival in self.arrivals)

    def locate(self, sources: Sources) -> int:
        """Give how many bytes come before the range, once they are there."""
        if self.skipped is None:
            region = self.range.region
            if self.header is not None and region not in sources.data_offsets:
                header = b"".join(self.header)
                sources.data_offsets[region] = find_data(header, region, self.reader.size_bytes)
            start, size = sources.locate(region), self.range.size_bytes
            self.skipped = start - region.offset_bytes
            if self.skipped + size > sum(map(len, self.runs)):
                memory = make_buffer(size)
                self.reader.read_into(start + self.range.first, memory)
                self.runs, self.skipped = [memory], 0
        return self.skipped


class Ahead:
    """What a unit reads ahead of its need."""

    def __init__(self, sources: Sources, access: Access, stopped: Callable[[], bool]) -> None:
        """Begin with nothing; ``stopped`` is asked while an answer is waited for, and Interrupted raised."""
        self._sources, self._access = sources, access
        self._arrivals = Arrivals(stopped)
        self._cells = Cells(access.ahead_bytes)
        self._ranges = Ranges(access)
        self._headers: set[Region] = set()
        self._planned: deque[tuple[Wanted, list[Run]]] = deque()
        self._upcoming: deque[Range] = deque()
        """In the order in which they are needed first; none of those that are asked for."""
        self._started: dict[Range, _Reading] = {}
        """In the same order."""

    def read(self, blocks: Iterable[Wanted]) -> Iterator[tuple[Wanted, list[memoryview]]]:
        """Give each block with the runs of bytes that its pieces read, good until the next is asked for.

        They come one behind the other, each in one or several.
        """
        left = iter(blocks)
        number = 0
        try:
            self._ask_ahead(left)
            while self._planned:
                wanted, runs = self._planned.popleft()
                self._ask_for(runs)
                yield wanted, [part for one, first, size in runs for part in self._await(one, first, size)]
                self._give_back(number)
                number += 1
                self._ask_ahead(left)
            for reading in self._started.values():
                self._wait(reading, reading.range.size_bytes + _SLACK_BYTES)
            self._cells.close()
        finally:
            for reading in self._started.values():
                for arrival in reading.arrivals:
                    arrival.future.cancel()

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
            cells = self._cells.take(_need(self._upcoming[0]))
            if cells is None:
                return
            self._start(self._upcoming.popleft(), self._cells.list_runs(cells), cells)

    def _ask_for(self, runs: Sequence[Run]) -> None:
        """Ask for what a block wants and there was no room for, before any of it is waited for."""
        for one, _first, _size in runs:
            while one not in self._started:
                # One block wants more than there is room for, or what it wants lies behind what stays.
                upcoming = self._upcoming.popleft()
                self._ranges.close(upcoming)
                self._start(upcoming, [make_buffer(_need(upcoming))], ())

    def _await(self, one: Range, first: int, size_bytes: int) -> list[memoryview]:
        """Give some of a range's bytes."""
        reading = self._started[one]
        # A header tells where the range begins, and comes before it.
        if reading.skipped is None:
            self._wait(reading, LOCAL_HEADER_BYTES)
        skipped = reading.locate(self._sources)
        self._wait(reading, skipped + first + size_bytes)
        return cut(reading.runs, skipped + first, size_bytes)

    def _wait(self, reading: _Reading, end: int) -> None:
        """Wait until all has come before this place in a range's memory."""
        for arrival in reading.arrivals:
            self._arrivals.wait(arrival, end)

    def _give_back(self, number: int) -> None:
        """Give back what no block after this one wants."""
        for one, reading in list(self._started.items()):
            while reading.held and reading.held[-1][0] <= number and reading.has_come(reading.held[-1][1]):
                self._cells.give_back(reading.held.pop()[2])
            if one.wants[-1].block <= number and not reading.held:
                del self._started[one]

    def _start(self, one: Range, memory: list[memoryview], cells: Sequence[int]) -> None:
        """Ask for a range, and for the header of its record where that has not been asked for."""
        region = one.region
        reader = self._sources.open(region.path)
        known = region.offset_bytes if not region.zipped else self._sources.data_offsets.get(region)
        start = (region.offset_bytes if known is None else known) + one.first
        slack = 0 if known is not None else min(_SLACK_BYTES, reader.size_bytes - start - one.size_bytes)
        # As it lies in the file, so do elements lie at multiples of their size.
        phase = start % ALIGNMENT_BYTES
        runs = cut(memory, phase, one.size_bytes + slack)
        arrivals = list(self._ask(reader, start, runs))
        header = None
        if known is None and region not in self._headers:
            self._headers.add(region)
            header = cut(runs, 0, LOCAL_HEADER_BYTES)
            if one.first:
                header = [make_buffer(LOCAL_HEADER_BYTES)]
                arrivals += self._ask(reader, region.offset_bytes, header)
        self._sources.count(region, one.size_bytes + slack)
        held = _list_held(one, phase, slack, cells, self._cells.cell_bytes)
        skipped = None if known is None else 0
        self._started[one] = _Reading(one, reader, runs, skipped, header, arrivals, held)

    def _ask(self, reader: Reader, start: int, runs: Sequence[memoryview]) -> Iterator[Arrival]:
        """Ask for a run of bytes, in several requests where it is long."""
        size = sum(map(len, runs))
        step = -(-size // split_range(size, self._access))
        for first in range(0, size, max(1, step)):
            yield self._arrivals.ask(reader, start + first, cut(runs, first, step), first)


def _list_held(
    one: Range, phase: int, slack: int, cells: Sequence[int], cell_bytes: int
) -> list[tuple[int, int, int]]:
    """Give cells as a reading holds them: those that go first come last."""
    last = [-1] * len(cells)
    if cells:
        for want in one.wants:
            low, high = phase + want.first - one.first, phase + want.end - one.first + slack
            for place in range(low // cell_bytes, -(-high // cell_bytes)):
                last[place] = want.block
    ends = [number * cell_bytes - phase for number in range(1, len(cells) + 1)]
    return sorted(zip(last, ends, cells, strict=True), reverse=True)


def _need(one: Range) -> int:
    return one.size_bytes + _SLACK_BYTES + ALIGNMENT_BYTES
