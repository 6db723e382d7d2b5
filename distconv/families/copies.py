"""Where a tensor's elements lie: boxes of a storage's elements at coordinates of the target."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

from distconv.source.archive import Record


@dataclass(frozen=True, slots=True)
class Loop:
    """One way through a copy's box: ``extent`` steps, each so far in the storage and along the target's axis.

    ``gap`` is how many of the storage's elements before the next step are no part of the
    tensor: what is read along with them is read in vain.
    """

    extent: int
    source_step: int
    axis: int
    step: int = 1
    gap: int = 0


@dataclass(frozen=True, slots=True)
class StridedCopy:
    """Elements of one storage, and the coordinates of the target at which they land.

    The first element is read at ``source_offset``, counted in elements, and lands at ``start``.
    Along one axis each loop steps over all that the later ones of that axis cover.
    """

    record: Record
    source_offset: int
    start: tuple[int, ...]
    loops: tuple[Loop, ...]

    @property
    def elements(self) -> int:
        """Number of elements."""
        return math.prod(loop.extent for loop in self.loops)

    @property
    def last_source(self) -> int:
        """Offset of the last element that is read."""
        return self.source_offset + sum((loop.extent - 1) * loop.source_step for loop in self.loops)

    def end(self, axis: int) -> int:
        """Coordinate behind the last one along an axis."""
        return 1 + self.start[axis] + _reach(self.loops, axis)


def cut_rows(copy: StridedCopy, first: int, end: int) -> Iterator[StridedCopy]:
    """Give what of a copy lands in the rows from ``first`` to before ``end``: one box, or a few."""
    begins, ends = copy.start[0], copy.end(0)
    if ends <= first or end <= begins:
        return
    if first <= begins and ends <= end:
        yield copy
        return
    place = next(n for n, loop in enumerate(copy.loops) if loop.axis == 0 and loop.extent > 1)
    loop = copy.loops[place]
    rest = _reach(copy.loops[place + 1 :], 0)  # what a step covers beyond its first row
    # The steps that touch the rows, and of these the ones that lie in them as a whole.
    low = max(0, -((begins + rest - first) // loop.step))
    high = min(loop.extent, (end - 1 - begins) // loop.step + 1)
    whole_low = max(low, -((begins - first) // loop.step))
    whole_high = max(whole_low, min(high, (end - 1 - rest - begins) // loop.step + 1))
    for step in range(low, min(whole_low, high)):
        yield from cut_rows(_take(copy, place, step, step + 1), first, end)
    if whole_low < whole_high:
        yield _take(copy, place, whole_low, whole_high)
    for step in range(whole_high, high):
        yield from cut_rows(_take(copy, place, step, step + 1), first, end)


def _take(copy: StridedCopy, place: int, low: int, high: int) -> StridedCopy:
    """Keep some steps of one loop along the first axis."""
    loop = copy.loops[place]
    return StridedCopy(
        copy.record,
        copy.source_offset + low * loop.source_step,
        (copy.start[0] + low * loop.step, *copy.start[1:]),
        (*copy.loops[:place], replace(loop, extent=high - low), *copy.loops[place + 1 :]),
    )


def _reach(loops: tuple[Loop, ...], axis: int) -> int:
    return sum((loop.extent - 1) * loop.step for loop in loops if loop.axis == axis)
