"""How a target tensor is cut into blocks that fit in memory: pure arithmetic.

A block is a run of whole steps along the copies' first axis. It is what one read of each
source covers and what one gather fills, contiguous in the target.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

from distconv.families.gather import StridedCopy
from distconv.planning.plan import TargetTensor
from distconv.source.archive import Record
from distconv.tensors import contiguous_strides, extent_elements


@dataclass(frozen=True, slots=True)
class Piece:
    """One read and its strided copy into the block; all in elements.

    ``source_offset`` and ``span`` are the range of the storage that is read; the box then
    lies at the range's first element.
    """

    record: Record
    source_offset: int
    span: int
    extents: tuple[int, ...]
    source_strides: tuple[int, ...]
    target_offset: int
    target_strides: tuple[int, ...]

    @property
    def is_straight(self) -> bool:
        """Whether source and target are contiguous alike, so that reading is all there is to do."""
        dense = contiguous_strides(self.extents)
        return self.source_strides == dense and self.target_strides == dense


@dataclass(frozen=True, slots=True)
class Block:
    """A contiguous run of a target tensor's elements, and the pieces that fill it."""

    target_offset: int
    elements: int
    pieces: tuple[Piece, ...]


def make_blocks(tensor: TargetTensor, block_bytes: int) -> Iterator[Block]:
    """Cut a tensor into blocks whose target, and whose every read, is at most ``block_bytes``.

    A step that is larger by itself (one row, one head) is a block of its own; reads that
    would still be larger, as of a transposed view, are cut further.
    """
    if not tensor.copies:
        return
    step = tensor.copies[0].target_strides[0]
    edges = sorted({edge for copy in tensor.copies for edge in _steps(copy, step)})
    limit = max(1, block_bytes // max(tensor.stored.size_bytes, tensor.dtype.size_bytes))
    for first, last in pairwise(edges):
        copies = [copy for copy in tensor.copies if _covers(copy, step, first, last)]
        longest = max(step, *(copy.source_strides[0] for copy in copies))
        count = max(1, limit // longest)
        for start in range(first, last, count):
            end = min(start + count, last)
            pieces = (piece for copy in copies for piece in _cut(copy, step, start, end, limit))
            yield Block(start * step, (end - start) * step, tuple(pieces))


def _steps(copy: StridedCopy, step: int) -> tuple[int, int]:
    first = copy.target_offset // step
    return first, first + copy.extents[0]


def _covers(copy: StridedCopy, step: int, first: int, last: int) -> bool:
    start, end = _steps(copy, step)
    return start <= first and last <= end


def _cut(copy: StridedCopy, step: int, start: int, end: int, limit: int) -> Iterator[Piece]:
    """Take the steps from ``start`` to ``end`` of a copy, as pieces of bounded span."""
    begins = copy.target_offset // step
    yield from _split(
        Piece(
            copy.record,
            copy.source_offset + (start - begins) * copy.source_strides[0],
            0,
            (end - start, *copy.extents[1:]),
            copy.source_strides,
            copy.target_offset - begins * step,
            copy.target_strides,
        ),
        limit,
    )


def _split(piece: Piece, limit: int) -> Iterator[Piece]:
    """Halve a piece along its longest source axis until what it reads is within the limit."""
    span = extent_elements(piece.extents, piece.source_strides)
    axis = max(
        range(len(piece.extents)), key=lambda axis: piece.source_strides[axis] * (piece.extents[axis] > 1)
    )
    whole = piece.extents[axis]
    # A row that is dense in itself is read at once, however long: it is no larger than its step.
    if span <= max(limit, math.prod(piece.extents)) or whole < 2:
        yield Piece(
            piece.record, piece.source_offset, span, piece.extents, piece.source_strides,
            piece.target_offset, piece.target_strides,
        )  # fmt: skip
        return
    half = whole // 2
    for first, size in ((0, half), (half, whole - half)):
        extents = (*piece.extents[:axis], size, *piece.extents[axis + 1 :])
        yield from _split(
            Piece(
                piece.record,
                piece.source_offset + first * piece.source_strides[axis],
                0,
                extents,
                piece.source_strides,
                piece.target_offset + first * piece.target_strides[axis],
                piece.target_strides,
            ),
            limit,
        )
