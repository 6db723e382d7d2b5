"""Types, strides and extents against torch's own."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from distconv.layout.dtypes import DTYPES, STORABLE, contiguous_strides, extent_elements

SHAPES = st.lists(st.integers(1, 5), max_size=4).map(tuple)


@pytest.mark.parametrize("name", DTYPES)
def test_a_type_has_the_size_that_torch_says(name: str) -> None:
    assert DTYPES[name].size_bytes == getattr(torch, name).itemsize
    assert str(DTYPES[name]) == name


def test_weights_are_stored_in_the_floating_point_types_of_16_bits_or_more() -> None:
    wide = {name for name in DTYPES if (it := getattr(torch, name)).is_floating_point and it.itemsize >= 2}
    assert {dtype.name for dtype in STORABLE} == wide
    assert all(dtype.is_float for dtype in STORABLE)


@given(SHAPES)
def test_strides_of_a_row_major_tensor_are_those_of_torch(shape: tuple[int, ...]) -> None:
    assert contiguous_strides(shape) == torch.empty(shape).stride()


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 9)), max_size=4))
def test_a_view_reaches_as_far_into_its_storage_as_torch_says(axes: list[tuple[int, int]]) -> None:
    shape, strides = tuple(size for size, _ in axes), tuple(stride for _, stride in axes)
    storage = torch.empty_strided(shape, strides, dtype=torch.uint8).untyped_storage()
    assert extent_elements(shape, strides) == storage.nbytes()
    assert (extent_elements(shape, strides) == 0) == (math.prod(shape) == 0)


def test_a_stride_too_few_or_too_many_is_no_view() -> None:
    for strides in ((1,), (1, 1, 1)):
        with pytest.raises(ValueError, match="zip"):
            extent_elements((2, 3), strides)
