"""How a target tensor is cut into blocks that fit in memory: pure arithmetic.

A block is some rows of the target, contiguous in it, or of several that are stacked, one behind the
other. It is what one gather fills, and what its pieces read together is no larger than itself, whatever
the strides of the sources.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from distconv.layout.copies import Copy, cut_copy
from distconv.layout.dtypes import contiguous_strides
from distconv.layout.files import OutputTensor
from distconv.layout.reshape import add_axis
from distconv.layout.rows import list_rows
from distconv.moving.pieces import PAGE_BYTES, Piece, make_piece


@dataclass(frozen=True, slots=True)
class Block:
    """A contiguous run of a target tensor's elements, and the pieces that fill it.

    Of stacked tensors it is a run of each, of as many elements, in their order.
    """

    target_offset: int
    elements: int
    pieces: tuple[Piece, ...]
    scales: tuple[Piece, ...] = ()
    """What the elements are multiplied by, in elements of the scale's; together these fill the block as well."""


def make_blocks(
    tensor: OutputTensor, block_bytes: int, largest_bytes: int = 0, gap_bytes: int = 0
) -> Iterator[Block]:
    """Cut a tensor into blocks of at most ``block_bytes``, for which no more is read at once.

    Up to ``largest_bytes`` they grow where otherwise less than a page would be read at a time,
    as of transposed sources. A step that is larger by itself (one row, one head) is a block of
    its own, a larger matrix (one expert) a tensor of its own. Gaps of up to ``gap_bytes`` are read, whosever they are.
    """
    if not tensor.copies:
        return
    if not tensor.shape:
        tensor = tensor.of(add_axis(tensor.whole))
    row = math.prod(tensor.shape[1:])
    is_large = row * tensor.unit_bytes > block_bytes
    # Of stacked tensors a row is one of each.
    if is_large and len(tensor.shape) > 2 and tensor.stacked == 1:
        for number, part in enumerate(list_rows(tensor)):
            for block in make_blocks(part, block_bytes, largest_bytes, gap_bytes):
                yield replace(block, target_offset=block.target_offset + number * row)
        return
    step = max((loop.step for copy in tensor.copies for loop in copy.loops if loop.axis == 0), default=1)
    scales = () if tensor.scale is None else tensor.scale.copies
    edges = {min(edge, tensor.shape[0]) for copy in (*tensor.copies, *scales) for edge in _edges(copy, step)}
    for first, end in pairwise(sorted(edges)):
        copies, factors = _find_touched(tensor.copies, first, end), _find_touched(scales, first, end)
        cutter = _Cutter(tensor, copies, factors, step, gap_bytes)
        rows, through_gaps = cutter.choose(first, end, block_bytes, largest_bytes)
        yield from cutter.cut_all(first, end, rows, through_gaps=through_gaps)


def _find_touched(copies: Sequence[Copy], first: int, end: int) -> list[Copy]:
    return [copy for copy in copies if copy.start[0] < end and first < copy.end(0)]


def _edges(copy: Copy, step: int) -> tuple[int, int]:
    """Rows at which a block ends, as other copies begin: around whole steps."""
    return copy.start[0] // step * step, -(-copy.end(0) // step) * step


class _Cutter:
    """Cuts rows between two edges, all of which are filled by the same copies."""

    def __init__(
        self,
        tensor: OutputTensor,
        copies: Sequence[Copy],
        scales: Sequence[Copy],
        step: int,
        gap_bytes: int,
    ) -> None:
        self._copies, self._scales = copies, scales
        self._step = step
        self._gap_bytes = gap_bytes
        self._row = math.prod(tensor.shape[1:])
        self._shape, self._is_stacked = tensor.shape, tensor.stacked > 1
        self._stored_bytes = tensor.stored.size_bytes
        self._scale_bytes = 0 if tensor.scale is None else tensor.scale.dtype.size_bytes
        self._unit_bytes = tensor.unit_bytes

    def cut_all(self, first: int, end: int, rows: int, *, through_gaps: bool) -> Iterator[Block]:
        """Make all blocks of so many rows, and a last one of what is left."""
        block = self.cut(first, first + rows, through_gaps=through_gaps)
        yield block
        strides = self._strides_until(end, self._copies)
        scale_strides = self._strides_until(end, self._scales)
        for start in range(first + rows, end, rows):
            if strides is None or scale_strides is None or start + rows > end:
                yield self.cut(start, min(start + rows, end), through_gaps=through_gaps)
                continue
            # The same pieces, further on: much faster than to cut them again.
            steps = (start - first) // self._step
            yield Block(
                start * self._row,
                block.elements,
                _move(block.pieces, steps, strides),
                _move(block.scales, steps, scale_strides),
            )

    def _strides_until(self, end: int, copies: Sequence[Copy]) -> list[int] | None:
        """How far a step leads in each copy's storage; None where not each step has one box of each copy."""
        strides = []
        for copy in copies:
            outer = next((loop for loop in copy.loops if loop.axis == 0), None)
            # No copy begins at a whole step within these rows: they would end there.
            whole = copy.start[0] % self._step == 0 and end <= copy.end(0)
            if outer is None or outer.step != self._step or not whole:
                return None
            strides.append(outer.source_step)
        return strides

    def cut(self, first: int, end: int, *, through_gaps: bool) -> Block:
        """Make the block of these rows."""
        strides = self._find_strides(end - first)

        def make_pieces(copies: Sequence[Copy], unit_bytes: int) -> tuple[Piece, ...]:
            return tuple(
                make_piece(
                    part,
                    strides,
                    first * strides[0],
                    unit_bytes,
                    through_gaps=through_gaps,
                    gap_bytes=self._gap_bytes,
                )
                for copy in copies
                for part in cut_copy(copy, 0, first, end)
            )

        return Block(
            first * self._row,
            (end - first) * self._row,
            make_pieces(self._copies, self._stored_bytes),
            make_pieces(self._scales, self._scale_bytes),
        )

    def _find_strides(self, rows: int) -> tuple[int, ...]:
        """Give how far a step along each axis leads within a block of so many rows."""
        if not self._is_stacked:
            return contiguous_strides(self._shape)
        _rows, tensors, *others = self._shape
        between, row, *inner = contiguous_strides((tensors, rows, *others))
        return (row, between, *inner)

    def choose(self, first: int, end: int, block_bytes: int, largest_bytes: int) -> tuple[int, bool]:
        """Give the rows of a block, and whether to read through gaps that are no block's."""
        rows, through_gaps, run_bytes = self._fit(first, end, block_bytes)
        while run_bytes < PAGE_BYTES and block_bytes < largest_bytes:
            block_bytes = min(2 * block_bytes, largest_bytes)
            more, through, longer = self._fit(first, end, block_bytes)
            if longer <= run_bytes:
                break
            rows, through_gaps, run_bytes = more, through, longer
        return rows, through_gaps

    def _fit(self, first: int, end: int, block_bytes: int) -> tuple[int, bool, int]:
        """Give also the shortest range that is read beside others, in bytes."""
        row_bytes = self._row * self._unit_bytes
        largest = min(end - first, self._whole_steps(block_bytes // row_bytes))
        room = max(block_bytes // self._stored_bytes, self._step * self._row)
        for through_gaps in (True, False):
            rows = largest
            block = self.cut(first, first + rows, through_gaps=through_gaps)
            while _read(block) > room and rows > self._step:
                rows = min(rows - self._step, self._whole_steps(rows * room // _read(block)))
                block = self.cut(first, first + rows, through_gaps=through_gaps)
            if _read(block) <= room:
                break
        runs = [piece.run * self._stored_bytes for piece in block.pieces if piece.repeats]
        return rows, through_gaps, min(runs, default=PAGE_BYTES)

    def _whole_steps(self, rows: int) -> int:
        return max(1, rows // self._step) * self._step


def _move(pieces: Sequence[Piece], steps: int, strides: Sequence[int]) -> tuple[Piece, ...]:
    return tuple(piece.moved(steps * stride) for piece, stride in zip(pieces, strides, strict=True))


def _read(block: Block) -> int:
    return sum(piece.span for piece in block.pieces)
