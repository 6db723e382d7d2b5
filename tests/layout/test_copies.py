"""Copies count what lies between their elements, whatever was cut off them."""

import math

from hypothesis import given
from hypothesis import strategies as st

from distconv.families.operations import ROTARY
from distconv.layout.copies import Copy
from distconv.layout.dtypes import FLOAT32
from distconv.layout.regions import Region
from distconv.layout.tensors import Tensor, cut, view_tensor
from tests.views import places


@st.composite
def views(draw: st.DrawFn) -> Tensor:
    """A view whose axes lie in any order in its storage, each apart from the next one or not."""
    shape = tuple(draw(st.lists(st.integers(1, 4), min_size=1, max_size=3)))
    strides = [0] * len(shape)
    covered = 1
    for axis in draw(st.permutations(range(len(shape)))):
        strides[axis] = covered + draw(st.integers(0, 3))
        covered = strides[axis] * shape[axis]
    region = Region("shard", 0, 1 << 20, 0, zipped=False)
    return view_tensor("tensor", FLOAT32, region, draw(st.integers(0, 9)), shape, tuple(strides))


def taken(copy: Copy) -> set[int]:
    extents = tuple(loop.extent for loop in copy.loops)
    return set(places(copy.source_offset, extents, tuple(loop.source_step for loop in copy.loops)).tolist())


def count_between(copy: Copy) -> int:
    """How many elements between its first and last one a copy says are not its own."""
    return sum(
        loop.gap
        * (loop.extent - 1)
        * math.prod(other.extent for other in copy.loops if other.source_step > loop.source_step)
        for loop in copy.loops
        if loop.extent > 1
    )


@given(views(), st.data())
def test_the_gaps_of_a_copy_are_what_lies_between_its_elements(tensor: Tensor, data: st.DataObject) -> None:
    axis = data.draw(st.integers(0, len(tensor.shape) - 1))
    first = data.draw(st.integers(0, tensor.shape[axis] - 1))
    end = data.draw(st.integers(first + 1, tensor.shape[axis]))
    for copy in (*tensor.copies, *cut(tensor, axis, first, end).copies):
        addresses = taken(copy)
        span = max(addresses) - min(addresses) + 1
        assert (copy.source_offset, copy.last_source) == (min(addresses), max(addresses))
        assert count_between(copy) == span - len(addresses)


@given(st.integers(1, 3), st.sampled_from([2, 4, 6]), st.integers(1, 3), st.integers(0, 3))
def test_the_gaps_of_whole_heads_that_are_permuted_are_those_between_their_rows(
    heads: int, head_dim: int, columns: int, apart: int
) -> None:
    region = Region("shard", 0, 1 << 20, 0, zipped=False)
    shape = (heads * head_dim, columns)
    tensor = view_tensor("tensor", FLOAT32, region, 0, shape, (columns + apart, 1))
    (copy,) = ROTARY.apply(tensor, head_dim).copies
    assert count_between(copy) == apart * (heads * head_dim - 1)
