"""How Meta cuts a tensor into the parts of model-parallel ranks.

Source: ``model.py`` of llama-models, whose column-parallel layers hold rows of a weight and
row-parallel layers columns of it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from distconv.formats.views import TensorView
from distconv.layout.reshape import merge_axes, split_axis
from distconv.layout.tensors import Tensor, cut, join


@dataclass(frozen=True, slots=True)
class Cut:
    """The axis that is cut, None where every rank holds the whole.

    ``heads`` says that rows are those of heads; key and value heads may be stored more than once.
    """

    axis: Literal[0, 1] | None
    heads: Literal["query", "key"] | None = None
    unit: int = 1
    """So many rows or columns go together, as those of a head do; where ``heads`` says so their size counts."""
    groups: int = 1
    """The axis is so many runs of one length, each of which is cut, as each expert is."""

    def join(self, views: Sequence[TensorView], replication: int = 1) -> Tensor:
        """Put the parts of all ranks, in their order, together.

        Of key heads that are stored ``replication`` times the first is taken.
        """
        if self.axis is None:
            return views[0].whole()
        if self.heads == "key":
            views = views[::replication]
        if self.groups == 1:
            return join([view.whole() for view in views], self.axis)
        parts = [self._split(view.whole(), self.axis) for view in views]
        return merge_axes(join(parts, self.axis + 1), self.axis)

    def part(self, tensor: Tensor, rank: int, ranks: int, head_dim: int) -> Tensor:
        """Give a rank's part of a whole tensor; key heads that are fewer than ranks are in several parts."""
        if self.axis is None:
            return tensor
        if self.groups > 1:
            tensor = self._split(tensor, self.axis)
            size = tensor.shape[self.axis + 1]
            part = cut(tensor, self.axis + 1, rank * size // ranks, (rank + 1) * size // ranks)
            return merge_axes(part, self.axis)
        size = tensor.shape[self.axis]
        if self.heads == "key" and size < ranks * head_dim:
            first = rank * (size // head_dim) // ranks * head_dim
            return cut(tensor, 0, first, first + head_dim)
        return cut(tensor, self.axis, rank * size // ranks, (rank + 1) * size // ranks)

    def _split(self, tensor: Tensor, axis: int) -> Tensor:
        return split_axis(tensor, axis, (self.groups, tensor.shape[axis] // self.groups))


ROWS = Cut(0)
COLUMNS = Cut(1)
REPLICATED = Cut(None)
QUERY_HEADS = Cut(0, "query")
KEY_HEADS = Cut(0, "key")
