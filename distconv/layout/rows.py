"""Output tensors cut into runs of their bytes: some of their rows, or of the rows of one of these."""

import math
from collections.abc import Iterator

from distconv.layout.files import OutputTensor
from distconv.layout.reshape import merge_axes
from distconv.layout.tensors import cut


def list_rows(tensor: OutputTensor) -> Iterator[OutputTensor]:
    """Give each step along the first axis as a tensor of the other ones."""
    whole = tensor.whole
    for number in range(tensor.shape[0]):
        yield tensor.of(merge_axes(cut(whole, 0, number, number + 1), 0))


def list_runs(tensor: OutputTensor, limit_bytes: int) -> Iterator[OutputTensor]:
    """Cut a tensor into runs of at most so many bytes, in their order; single elements may be larger.

    Of whole rows where these are no larger than that, and all but the last of as many.
    """
    if tensor.size_bytes <= limit_bytes or not tensor.shape:
        yield tensor
        return
    rows = tensor.shape[0]
    row_bytes = math.prod(tensor.shape[1:]) * tensor.dtype.size_bytes
    if row_bytes > limit_bytes and len(tensor.shape) > 1:
        for row in list_rows(tensor):
            yield from list_runs(row, limit_bytes)
        return
    each = -(-rows // -(-rows // max(1, limit_bytes // row_bytes)))
    whole = tensor.whole
    for first in range(0, rows, each):
        yield tensor.of(cut(whole, 0, first, min(first + each, rows)))
