"""Axes that are split, merged and turned, and zeros, against numpy."""

import math
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from distconv.layout.dtypes import FLOAT32
from distconv.layout.regions import ZEROS
from distconv.layout.reshape import merge_axes, split_axis, transpose, zeros
from distconv.layout.tensors import Tensor, cut, join
from distconv.layout.tiling import find_untiled
from tests.layout.test_algebra import Contents, edges, fill, numbered, store


@st.composite
def stored(draw: st.DrawFn, axes: int) -> tuple[Contents, Tensor, np.ndarray]:
    """An array of so many axes, in slabs along one of them, each in a storage of its own."""
    whole = numbered(tuple(draw(st.lists(st.integers(1, 6), min_size=axes, max_size=axes))))
    axis = draw(st.integers(0, axes - 1))
    contents: Contents = {}
    parts = [
        store(contents, np.take(whole, range(first, end), axis))
        for first, end in pairwise(draw(edges(whole.shape[axis])))
    ]
    return contents, join(parts, axis), whole


@given(st.data())
def test_axes_are_merged_as_numpy_reshapes(data: st.DataObject) -> None:
    contents, tensor, whole = data.draw(stored(3))
    axis = data.draw(st.sampled_from([0, 1]))
    shape = (*whole.shape[:axis], -1, *whole.shape[axis + 2 :])
    np.testing.assert_array_equal(fill(merge_axes(tensor, axis), contents), whole.reshape(shape))
    if axis:
        flat = merge_axes(merge_axes(tensor, 1), 0)
        np.testing.assert_array_equal(fill(flat, contents), whole.reshape(-1))


@given(st.data())
def test_an_axis_is_split_as_numpy_reshapes(data: st.DataObject) -> None:
    contents, tensor, whole = data.draw(stored(2))
    axis = data.draw(st.sampled_from([0, 1]))
    size = whole.shape[axis]
    outer = data.draw(st.sampled_from([n for n in range(1, size + 1) if size % n == 0]))
    found = split_axis(tensor, axis, (outer, size // outer))
    shape = (*whole.shape[:axis], outer, size // outer, *whole.shape[axis + 1 :])
    np.testing.assert_array_equal(fill(found, contents), whole.reshape(shape))
    np.testing.assert_array_equal(fill(merge_axes(found, axis), contents), whole)


@given(st.data())
def test_slabs_of_several_shapes_are_cut_out_of_what_was_merged_and_split(data: st.DataObject) -> None:
    contents, tensor, whole = data.draw(stored(3))
    flat, expected = merge_axes(merge_axes(tensor, 1), 0), whole.reshape(-1)
    first = data.draw(st.integers(0, flat.shape[0] - 1))
    end = data.draw(st.integers(first + 1, flat.shape[0]))
    np.testing.assert_array_equal(fill(cut(flat, 0, first, end), contents), expected[first:end])


@given(st.data())
def test_rows_become_columns(data: st.DataObject) -> None:
    contents, tensor, whole = data.draw(stored(2))
    np.testing.assert_array_equal(fill(transpose(tensor), contents), whole.T)


@given(st.data())
def test_what_is_filled_with_zeros_is_tiled_and_what_is_not_is_told(data: st.DataObject) -> None:
    contents, tensor, whole = data.draw(stored(2))
    rows, columns = whole.shape
    more = data.draw(st.integers(1, 4))
    rest = zeros("rest", FLOAT32, (rows, more))
    found = join([tensor, rest], 1)
    contents[ZEROS] = np.zeros(math.prod(rest.shape), dtype=int)
    np.testing.assert_array_equal(fill(found, contents), np.pad(whole, ((0, 0), (0, more))))
    assert find_untiled((rows, columns + more), tensor.copies, 4) is not None
    assert find_untiled((rows, columns), found.copies, 4) is not None


def test_an_axis_is_not_split_into_what_it_has_not() -> None:
    with pytest.raises(ValueError, match="6 places along axis 0, expected 8"):
        split_axis(store({}, numbered((6, 2))), 0, (2, 4))
