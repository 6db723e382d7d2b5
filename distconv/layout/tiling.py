"""Proof, by coordinates alone, that copies fill a tensor: each element once, from what is stored."""

from collections import defaultdict
from collections.abc import Sequence
from functools import lru_cache

from distconv.layout.copies import Copy, Loop

_Runs = list[tuple[int, int]]
"""Coordinates along one axis, as runs of (first, end)."""


def find_untiled(shape: tuple[int, ...], copies: Sequence[Copy], unit_bytes: int) -> str | None:
    """Say where copies miss an element of a tensor, fill it twice or read what is not stored, if they do.

    A copy lands on the product of what its loops reach along each axis. Between two edges
    along an axis the same copies lie side by side, and these must fill the remaining axes.
    """
    if 0 in shape:
        return "it has no elements, and yet there are copies" if copies else None
    for copy in copies:
        if _follow(copy.loops, len(shape)) is None or len(copy.start) != len(shape):
            return f"{_name(copy)} has no box of coordinates of its own"
        end_bytes = (copy.last_source + 1) * unit_bytes
        if copy.source_offset < 0 or end_bytes > copy.region.size_bytes:
            return (
                f"{_name(copy)} reads to byte {end_bytes:,} of a storage of {copy.region.size_bytes:,} bytes"
            )
    return _find_untiled(shape, tuple([(copy.start, copy.loops) for copy in copies]))


@lru_cache(maxsize=64)
def _find_untiled(
    shape: tuple[int, ...], places: Sequence[tuple[tuple[int, ...], tuple[Loop, ...]]]
) -> str | None:
    """Look where copies land, by start and loops; the layers of a model are cut in the same few ways."""
    boxes = []
    for start, loops in places:
        runs = _follow(loops, len(shape))
        assert runs is not None  # noqa: S101  of no other copy it is asked where it lands
        boxes.append(
            [[(at + first, at + end) for first, end in along] for at, along in zip(start, runs, strict=True)]
        )
    return _find_gap(shape, boxes, ())


def _name(copy: Copy) -> str:
    return f"the part that begins at element {copy.source_offset:,} in {copy.region.path}"


@lru_cache(maxsize=256)
def _follow(loops: tuple[Loop, ...], axes: int) -> list[_Runs] | None:
    """Give the runs along each axis, from 0 on; None where loops turn no axis, or lead to a place twice."""
    if any(loop.extent < 1 or loop.source_step < 0 or not 0 <= loop.axis < axes for loop in loops):
        return None
    box = []
    for axis in range(axes):
        runs = _make_runs([loop for loop in loops if loop.axis == axis and loop.extent > 1])
        if runs is None:
            return None
        box.append(runs)
    return box


def _make_runs(loops: list[Loop]) -> _Runs | None:
    """Follow loops along their axis, the last one first; None where one does not step over the later ones."""
    runs = [(0, 1)]
    for loop in reversed(loops):
        covered = runs[-1][1]
        if loop.step < covered:
            return None
        if len(runs) == 1 and loop.step == covered:
            runs = [(0, loop.extent * covered)]
        else:
            steps = range(0, loop.extent * loop.step, loop.step)
            runs = [(first + step, end + step) for step in steps for first, end in runs]
    return runs


def _find_gap(shape: tuple[int, ...], boxes: Sequence[list[_Runs]], at: tuple[int, ...]) -> str | None:
    """Look along the axis behind the coordinates ``at``, at which all these boxes lie."""
    axis = len(at)
    if len(boxes) == 1 and all(
        runs == [(0, size)] for runs, size in zip(boxes[0][axis:], shape[axis:], strict=True)
    ):
        return None
    if axis < len(shape) and _are_slabs(shape, boxes, axis):
        return None
    if axis == len(shape):
        return f"element {list(at)} is filled {len(boxes)} times"
    begins, ends = defaultdict(list), defaultdict(list)
    for number, box in enumerate(boxes):
        for first, end in box[axis]:
            begins[first].append(number)
            ends[end].append(number)
    edges = sorted({0, shape[axis], *begins, *ends})
    if edges[0] < 0 or edges[-1] > shape[axis]:
        return f"axis {axis} has {shape[axis]:,} places, the parts reach from {edges[0]:,} to {edges[-1]:,}"
    lying: set[int] = set()
    proved: set[frozenset[int]] = set()
    for edge in edges[:-1]:
        lying.difference_update(ends[edge])
        lying.update(begins[edge])
        here = frozenset(lying)
        if here not in proved:
            gap = _find_gap(shape, [boxes[number] for number in here], (*at, edge))
            if gap is not None:
                return gap
            proved.add(here)
    return None


def _are_slabs(shape: tuple[int, ...], boxes: Sequence[list[_Runs]], axis: int) -> bool:
    """Whether boxes that reach over all later axes follow each other along this one, as those of most ranks do."""
    later = [[(0, size)] for size in shape[axis + 1 :]]
    end = 0
    for box in sorted(boxes, key=lambda box: box[axis]):
        if len(box[axis]) > 1 or box[axis + 1 :] != later or box[axis][0][0] != end:
            return False
        end = box[axis][0][1]
    return end == shape[axis]
