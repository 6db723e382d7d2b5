"""Where a tensor's elements lie: boxes of a storage's elements at coordinates of the tensor."""

from collections.abc import Iterator
from functools import lru_cache
from typing import NamedTuple

from distconv.layout.regions import Region


class Loop(NamedTuple):
    """One way through a copy's box: ``extent`` steps, each so far in the storage and along the tensor's axis.

    ``gap`` is how many of the storage's elements before the next step are no part of the
    tensor: what is read along with them is read in vain.
    """

    extent: int
    source_step: int
    axis: int
    step: int = 1
    gap: int = 0


class Copy(NamedTuple):
    """Elements of one storage, and the coordinates of the tensor at which they land.

    The first element is read at ``source_offset``, counted in elements, and lands at ``start``.
    Along one axis each loop steps over all that the later ones of that axis cover.
    """

    region: Region
    source_offset: int
    start: tuple[int, ...]
    loops: tuple[Loop, ...]

    @property
    def last_source(self) -> int:
        """Offset of the last element that is read."""
        return self.source_offset + _find_last(self.loops)

    def end(self, axis: int) -> int:
        """Coordinate behind the last one along an axis."""
        return 1 + self.start[axis] + _reach(self.loops, axis)

    def take(self, place: int, first: int, end: int) -> "Copy":
        """Keep the steps from ``first`` to before ``end`` of the loop at ``place``."""
        loop = self.loops[place]
        start = list(self.start)
        start[loop.axis] += first * loop.step
        return Copy(
            self.region,
            self.source_offset + first * loop.source_step,
            tuple(start),
            (*self.loops[:place], loop._replace(extent=end - first), *self.loops[place + 1 :]),
        )

    def shifted(self, axis: int, distance: int) -> "Copy":
        """Let it land so much further along an axis."""
        start = (*self.start[:axis], self.start[axis] + distance, *self.start[axis + 1 :])
        return Copy(self.region, self.source_offset, start, self.loops)


@lru_cache(maxsize=1024)
def _find_last(loops: tuple[Loop, ...]) -> int:
    """Give how far behind the first element the last one is read; thousands of copies have the same few loops."""
    return sum((loop.extent - 1) * loop.source_step for loop in loops)


def cut_copy(copy: Copy, axis: int, first: int, end: int) -> Iterator[Copy]:
    """Give what of a copy lands from ``first`` to before ``end`` along an axis: one box, or a few."""
    begins, ends = copy.start[axis], copy.end(axis)
    if ends <= first or end <= begins:
        return
    if first <= begins and ends <= end:
        yield copy
        return
    place = next(n for n, loop in enumerate(copy.loops) if loop.axis == axis and loop.extent > 1)
    loop = copy.loops[place]
    rest = _reach(copy.loops[place + 1 :], axis)  # what a step covers beyond its first coordinate
    # The steps that touch the slab, and of these the ones that lie in it as a whole.
    low = max(0, -((begins + rest - first) // loop.step))
    high = min(loop.extent, (end - 1 - begins) // loop.step + 1)
    whole_low = max(low, -((begins - first) // loop.step))
    whole_high = max(whole_low, min(high, (end - 1 - rest - begins) // loop.step + 1))
    for step in range(low, min(whole_low, high)):
        yield from cut_copy(copy.take(place, step, step + 1), axis, first, end)
    if whole_low < whole_high:
        yield copy.take(place, whole_low, whole_high)
    for step in range(whole_high, high):
        yield from cut_copy(copy.take(place, step, step + 1), axis, first, end)


def with_gaps(loops: tuple[Loop, ...]) -> tuple[Loop, ...]:
    """Say of each loop how much between its steps is not read by the others of the copy."""
    gaps = [0] * len(loops)
    covered = 1
    for place in sorted(range(len(loops)), key=lambda place: loops[place].source_step):
        gaps[place] = max(0, loops[place].source_step - covered)
        covered += (loops[place].extent - 1) * loops[place].source_step
    return tuple(loop._replace(gap=gap) for loop, gap in zip(loops, gaps, strict=True))


def _reach(loops: tuple[Loop, ...], axis: int) -> int:
    return sum((loop.extent - 1) * loop.step for loop in loops if loop.axis == axis)
