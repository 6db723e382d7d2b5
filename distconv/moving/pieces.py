"""How the part of a copy that a block needs is read: few requests, and little that is of no use."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from distconv.layout.copies import Copy, Loop
from distconv.layout.dtypes import contiguous_strides
from distconv.layout.regions import Region

PAGE_BYTES = 4096
"""What costs no more than another read does: the kernel reads by pages anyway."""
_WASTE = 32
"""Of a range, one part in so many may be what another block reads."""


@dataclass(frozen=True, slots=True)
class Piece:
    """What is read, and its strided copy into the block; all in elements.

    ``span`` elements are read: one range of the storage from ``source_offset`` on or, with
    ``repeats`` (extents and strides in the storage, the widest first), several of one length,
    which lie one behind the other where they were read. There, too, lies the box.
    """

    region: Region
    source_offset: int
    span: int
    extents: tuple[int, ...]
    source_strides: tuple[int, ...]
    target_offset: int
    target_strides: tuple[int, ...]
    repeats: tuple[tuple[int, int], ...] = ()

    @property
    def is_straight(self) -> bool:
        """Whether source and target are contiguous alike, so that reading is all there is to do."""
        dense = contiguous_strides(self.extents)
        return self.source_strides == dense and self.target_strides == dense

    @property
    def run(self) -> int:
        """Length of each range."""
        return self.span // math.prod(extent for extent, _stride in self.repeats)

    def offsets(self) -> Iterator[int]:
        """Give where in the storage each range begins."""
        found: Iterator[int] = iter((self.source_offset,))
        for extent, stride in self.repeats:
            found = _repeat(found, extent, stride)
        return found

    def moved(self, elements: int) -> "Piece":
        """Give the same, read further on in the storage."""
        return Piece(
            self.region, self.source_offset + elements, self.span, self.extents, self.source_strides,
            self.target_offset, self.target_strides, self.repeats,
        )  # fmt: skip


def _repeat(offsets: Iterator[int], extent: int, stride: int) -> Iterator[int]:
    for offset in offsets:
        yield from range(offset, offset + extent * stride, stride)


def make_piece(
    copy: Copy,
    strides: tuple[int, ...],
    block_offset: int,
    unit_bytes: int,
    *,
    through_gaps: bool,
    gap_bytes: int = 0,
) -> Piece:
    """Read a copy for a block that begins at ``block_offset`` of a target with these strides.

    Ranges are joined where hardly anything lies between them and, where ``through_gaps`` says
    so, where it is no more than a page that no other block reads. What other blocks read is
    theirs: however a storage is strided, it is read about once. But where a request costs as much
    as ``gap_bytes`` do, ranges are joined through that much of whatever it is.
    """
    loops = [loop for loop in copy.loops if loop.extent > 1]
    source_strides = [loop.source_step for loop in loops]
    span, apart = _join(loops, unit_bytes, gap_bytes, through_gaps=through_gaps)
    for place in apart:
        source_strides[place] = span
        span *= loops[place].extent
    return Piece(
        copy.region,
        copy.source_offset,
        span,
        tuple(loop.extent for loop in loops),
        tuple(source_strides),
        sum(at * stride for at, stride in zip(copy.start, strides, strict=True)) - block_offset,
        tuple(loop.step * strides[loop.axis] for loop in loops),
        tuple((loops[place].extent, loops[place].source_step) for place in reversed(apart)),
    )


def _join(
    loops: Sequence[Loop], unit_bytes: int, gap_bytes: int, *, through_gaps: bool
) -> tuple[int, list[int]]:
    """Give the length of a range, and which loops repeat it, from the closest to the widest."""
    run, apart = 1, list[int]()
    for place in sorted(range(len(loops)), key=lambda place: loops[place].source_step):
        loop = loops[place]
        between = loop.source_step - run
        wasted = between
        if through_gaps and between * unit_bytes <= PAGE_BYTES:
            wasted -= loop.gap
        if apart or (wasted > run // _WASTE and between * unit_bytes > gap_bytes):
            apart.append(place)
        else:
            run += (loop.extent - 1) * loop.source_step
    return run, apart
