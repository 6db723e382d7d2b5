"""How Meta cuts a tensor into the parts of model-parallel ranks.

Source: ``model.py`` of llama-models, whose column-parallel layers hold rows of a weight and
row-parallel layers columns of it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from distconv.formats.views import TensorView
from distconv.layout.tensors import Tensor, cut, join


@dataclass(frozen=True, slots=True)
class Cut:
    """The axis that is cut, None where every rank holds the whole.

    ``heads`` says that rows are those of heads; key and value heads may be stored more than once.
    """

    axis: Literal[0, 1] | None
    heads: Literal["query", "key"] | None = None

    def join(self, views: Sequence[TensorView], replication: int = 1) -> Tensor:
        """Put the parts of all ranks, in their order, together.

        Of key heads that are stored ``replication`` times the first is taken.
        """
        if self.axis is None:
            return views[0].whole()
        if self.heads == "key":
            views = views[::replication]
        return join([view.whole() for view in views], self.axis)

    def part(self, tensor: Tensor, rank: int, ranks: int, head_dim: int) -> Tensor:
        """Give a rank's part of a whole tensor; key heads that are fewer than ranks are in several parts."""
        if self.axis is None:
            return tensor
        size = tensor.shape[self.axis]
        if self.heads == "key" and size < ranks * head_dim:
            first = rank * (size // head_dim) // ranks * head_dim
            return cut(tensor, 0, first, first + head_dim)
        return cut(tensor, self.axis, rank * size // ranks, (rank + 1) * size // ranks)


ROWS = Cut(0)
COLUMNS = Cut(1)
REPLICATED = Cut(None)
QUERY_HEADS = Cut(0, "query")
KEY_HEADS = Cut(0, "key")
