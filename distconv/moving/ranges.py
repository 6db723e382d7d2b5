"""Which bytes of INPUT are read together: few requests of several megabytes, whatever files a tensor is cut into."""

from collections.abc import Iterable
from dataclasses import dataclass, field

from distconv.layout.regions import Region
from distconv.moving.bands import Block
from distconv.storage.base import Access

_ON_THEIR_WAY = 4
"""So many ranges are to be on their way while others are used up."""
_MOST_HALVED = 8
"""Of so many files ranges are of many cells, so that hardly more is held than is left of them."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """A block of one of a unit's tensors, and the size of an element that is stored."""

    place: int
    block: Block
    unit_bytes: int


@dataclass(slots=True)
class Want:
    """What a block wants of a range: bytes between these two of its region."""

    block: int
    """Its number."""
    first: int
    end: int


@dataclass(slots=True, eq=False)
class Range:
    """Bytes of a region that are read together; offsets count from the first byte of its data."""

    region: Region
    first: int
    end: int
    good_bytes: int
    """At about this size it is read."""
    used: int
    """How many bytes blocks had read when one wanted some of it the last time."""
    wants: list[Want] = field(default_factory=list)
    """In the order of the blocks."""
    is_open: bool = True
    """Whether further blocks may want some of it."""

    @property
    def size_bytes(self) -> int:
        """What is read of the region."""
        return self.end - self.first

    def want(self, block: int, first: int, end: int) -> None:
        """Let a block want some bytes of the region."""
        self.end = max(self.end, end)
        if self.wants and self.wants[-1].block == block:
            last = self.wants[-1]
            last.first, last.end = min(last.first, first), max(last.end, end)
        else:
            self.wants.append(Want(block, first, end))


Run = tuple[Range, int, int]
"""A range, and where in it a run of bytes begins and how long it is."""


class Ranges:
    """Cuts what blocks read, one after the other, into ranges of a good size.

    Of a tensor whose columns lie in many files each block reads a little of all. While the range of one file is used up,
    what is left of those of the others must stay: with S bytes each, about half of S of every file at once; of many files
    nearly all, as memory is given back by cells. So the more files, the smaller ranges are; and the first ones are of
    different sizes, so that afterwards one ends where another is in its middle.
    """

    def __init__(self, access: Access) -> None:
        """Begin with none."""
        self._access = access
        self._open: dict[Region, Range] = {}
        self._known: set[Region] = set()
        self._place = -1
        self._blocks = self._bytes = 0

    def add(self, wanted: Wanted) -> tuple[list[Run], list[Range]]:
        """Add a block: gives where its runs of bytes lie, and the ranges that begin with it."""
        if wanted.place != self._place:
            self.end()
            self._place = wanted.place
        begun: list[Range] = []
        streams = len({piece.region for piece in wanted.block.pieces})
        runs = []
        for piece in wanted.block.pieces:
            size = piece.run * wanted.unit_bytes
            for offset in piece.offsets():
                first = offset * wanted.unit_bytes
                found = self._find(piece.region, first, size)
                if found is None:
                    found = self._begin(piece.region, first, streams, len(begun))
                    begun.append(found)
                found.want(self._blocks, first, first + size)
                found.used = self._bytes
                runs.append((found, first - found.first, size))
                self._bytes += size
        self._blocks += 1
        for one in list(self._open.values()):
            # No other block wants of it what is near.
            if one.used + self._access.ahead_bytes < self._bytes:
                self.close(one)
        return runs, begun

    def end(self) -> None:
        """Let nothing more be wanted of the ranges that there are."""
        for one in list(self._open.values()):
            self.close(one)
        self._known.clear()

    def close(self, one: Range) -> None:
        """Let nothing more be wanted of a range."""
        if one.is_open:
            one.is_open = False
            del self._open[one.region]

    def _find(self, region: Region, first: int, size: int) -> Range | None:
        """Give the range that a run of bytes lies in, or behind which it is read; None where it begins another."""
        one = self._open.get(region)
        if one is None:
            return None
        begins_inside = one.first <= first < one.end
        goes_on = one.end <= first <= one.end + self._access.gap_bytes
        is_small = one.size_bytes + size // 2 < one.good_bytes
        is_bounded = first + size - one.first <= max(one.good_bytes, self._access.ahead_bytes // 2)
        if (begins_inside or (goes_on and is_small)) and is_bounded:
            return one
        self.close(one)
        return None

    def _begin(self, region: Region, first: int, streams: int, number: int) -> Range:
        share = self._access.ahead_bytes // (streams + _ON_THEIR_WAY)
        if streams <= _MOST_HALVED:
            share = 2 * self._access.ahead_bytes // (streams + 2 * _ON_THEIR_WAY)
        size = min(self._access.request_bytes, share)
        left = max(0, region.size_bytes - first)
        good = -(-left // max(1, round(left / max(1, size))))
        if streams > 1 and left > size and region not in self._known:
            good = size * (number + 1) // streams
        self._known.add(region)
        one = self._open[region] = Range(region, first, first, good, self._bytes)
        return one


def cut_ranges(blocks: Iterable[Wanted], access: Access) -> list[Range]:
    """Give the ranges in which blocks would be read."""
    ranges = Ranges(access)
    return [one for wanted in blocks for one in ranges.add(wanted)[1]]


def split_range(size_bytes: int, access: Access) -> int:
    """Tell by how many requests so many bytes are read."""
    return max(1, round(size_bytes / access.request_bytes))
