"""What is done to a whole tensor on its way from Meta's dialect to Transformers', and back.

Source of the rotary permutation: ``modeling_llama.py`` rotates the halves of a head where Meta's
``model.py`` rotates pairs of neighbours, so row (head, pair, member) becomes (head, member, pair).
"""

from dataclasses import dataclass
from typing import Protocol

from distconv.errors import InputError
from distconv.layout.reshape import merge_axes, split_axis, transpose, zeros
from distconv.layout.tensors import Digit, Tensor, cut, join, regroup


class Operation(Protocol):
    """One way of making a tensor of one dialect of one of the other; ``head_dim`` in rows."""

    def apply(self, tensor: Tensor, head_dim: int) -> Tensor:
        """Make Transformers' tensor of Meta's."""

    def invert(self, tensor: Tensor, head_dim: int) -> Tensor:
        """Make Meta's tensor of Transformers'."""


class Same:
    """The tensors are the same."""

    def apply(self, tensor: Tensor, head_dim: int) -> Tensor:  # noqa: ARG002
        """Give the tensor."""
        return tensor

    def invert(self, tensor: Tensor, head_dim: int) -> Tensor:  # noqa: ARG002
        """Give the tensor."""
        return tensor


class Rotary:
    """Rows of heads that are rotated: pairs of neighbours in one dialect, halves in the other."""

    def apply(self, tensor: Tensor, head_dim: int) -> Tensor:
        """Bring the first members of all pairs of a head before the second ones; InputError for parts of heads."""
        heads, pairs = _count_heads(tensor, head_dim)
        digits = (Digit(heads, 0, head_dim), Digit(pairs, 0, 1), Digit(2, 0, pairs))
        return regroup(tensor, 0, digits, _AXES, tensor.shape)

    def invert(self, tensor: Tensor, head_dim: int) -> Tensor:
        """Bring the members of a pair beside each other; InputError for parts of heads."""
        heads, pairs = _count_heads(tensor, head_dim)
        digits = (Digit(heads, 0, head_dim), Digit(2, 0, 1), Digit(pairs, 0, 2))
        return regroup(tensor, 0, digits, _AXES, tensor.shape)


_AXES = (0, 1)


def _count_heads(tensor: Tensor, head_dim: int) -> tuple[int, int]:
    """Give the number of heads, and of pairs in each."""
    if tensor.shape[0] % head_dim or head_dim % 2:
        raise InputError(
            f"{tensor.name}: {tensor.shape[0]} rows in all shards, expected whole heads of {head_dim}, in pairs"
        )
    return tensor.shape[0] // head_dim, head_dim // 2


class Transposed:
    """Rows of one dialect are columns of the other."""

    def apply(self, tensor: Tensor, head_dim: int) -> Tensor:  # noqa: ARG002
        """Let rows be columns."""
        return transpose(tensor)

    def invert(self, tensor: Tensor, head_dim: int) -> Tensor:  # noqa: ARG002
        """Let rows be columns."""
        return transpose(tensor)


@dataclass(frozen=True, slots=True)
class Split:
    """One axis of Meta's is several of Transformers', the outermost first; the order of elements is the same."""

    axis: int
    extents: tuple[int, ...]

    def apply(self, tensor: Tensor, head_dim: int) -> Tensor:  # noqa: ARG002
        """Split the axis."""
        return split_axis(tensor, self.axis, self.extents)

    def invert(self, tensor: Tensor, head_dim: int) -> Tensor:  # noqa: ARG002
        """Merge the axes."""
        for place in reversed(range(self.axis, self.axis + len(self.extents) - 1)):
            tensor = merge_axes(tensor, place)
        return tensor


def list_ratios(tiles: int) -> list[tuple[int, int]]:
    """Give rows and columns of at most so many tiles, in the order of the ratios' ids from 1 on."""
    return [(rows, columns) for rows in range(1, tiles + 1) for columns in range(1, tiles // rows + 1)]


@dataclass(frozen=True, slots=True)
class TileTable:
    """An embedding by a tile's place, (rows, columns, positions, width), and by an image's ratio of sides.

    Transformers has a row for each ratio of rows and columns of at most ``tiles`` in all, and a first one, of zeros,
    for no image; a row holds its tiles' embeddings in reading order, and zeros behind them. Source:
    ``modeling_mllama.py`` and ``image_processing_mllama.py`` (``get_all_supported_aspect_ratios``).
    """

    tiles: int
    positions: int

    @property
    def ratios(self) -> list[tuple[int, int]]:
        """Rows and columns of tiles, in the order of the ratios' ids from 1 on."""
        return list_ratios(self.tiles)

    def apply(self, tensor: Tensor, head_dim: int) -> Tensor:  # noqa: ARG002
        """Give each ratio its tiles."""
        size = tensor.shape[2] * tensor.shape[3]
        flat = merge_axes(tensor, 2)  # (rows, columns, positions · width)
        found = [zeros(tensor.name, tensor.dtype, (1, self.tiles * size))]
        for rows, columns in self.ratios:
            tiles = merge_axes(merge_axes(cut(cut(flat, 0, 0, rows), 1, 0, columns), 0), 0)
            rest = zeros(tensor.name, tensor.dtype, ((self.tiles - rows * columns) * size,))
            found.append(split_axis(join([tiles, rest], 0), 0, (1, self.tiles * size)))
        return join(found, 0)

    def invert(self, tensor: Tensor, head_dim: int) -> Tensor:  # noqa: ARG002
        """Take each place from the first ratio that has it; zeros where none has.

        Meta's code reads no other places. Rows of other ratios must hold the same, which ``apply`` would make.
        """
        size = tensor.shape[1] // self.tiles
        flat = split_axis(tensor, 1, (self.tiles, size))  # (ratios, tiles, positions · width)
        sides = range(self.tiles)
        rows = [join([self._place(flat, row, column) for column in sides], 1) for row in sides]
        return split_axis(join(rows, 0), 2, (self.positions, size // self.positions))

    def _place(self, flat: Tensor, row: int, column: int) -> Tensor:
        """Give a place's embedding: (1, 1, positions · width)."""
        for number, (rows, columns) in enumerate(self.ratios, 1):
            if row < rows and column < columns:
                tile = row * columns + column
                return cut(cut(flat, 0, number, number + 1), 1, tile, tile + 1)
        return zeros(flat.name, flat.dtype, (1, 1, flat.shape[2]))


SAME: Operation = Same()
TRANSPOSED: Operation = Transposed()
ROTARY: Operation = Rotary()
