"""What is done to a whole tensor on its way from Meta's dialect to Transformers', and back.

Source of the rotary permutation: ``modeling_llama.py`` rotates the halves of a head where Meta's
``model.py`` rotates pairs of neighbours, so row (head, pair, member) becomes (head, member, pair).
"""

from typing import Protocol

from distconv.errors import InputError
from distconv.layout.tensors import Digit, Tensor, regroup


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


SAME: Operation = Same()
ROTARY: Operation = Rotary()
