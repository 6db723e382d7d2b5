"""Odd values are counted as torch counts them, however the bytes come."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from distconv.layout.dtypes import DTYPES
from distconv.moving.values import Tally, Tallying

FLOATS = ["bfloat16", "float16", "float32", "float64", "float8_e5m2", "float8_e4m3fn"]
ODD = st.sampled_from(
    [0.0, -0.0, 1.0, -1.5, 3.0, -7e3, float("nan"), -float("nan"), float("inf"), -float("inf")]
)


def tally(tensor: torch.Tensor, cuts: list[int]) -> Tally:
    """Count, block by block."""
    counting = Tallying(DTYPES[str(tensor.dtype).removeprefix("torch.")])
    content = memoryview(tensor.contiguous().view(torch.uint8).numpy().tobytes())
    edges = sorted({0, len(content), *(cut * tensor.element_size() % (len(content) + 1) for cut in cuts)})
    edges = [edge // tensor.element_size() * tensor.element_size() for edge in edges]
    for first, end in itertools.pairwise(edges):
        counting.update(content[first:end])
    return counting.finish()


def count(tensor: torch.Tensor) -> Tally:
    """Count as torch does, in a type that it can count in."""
    wide = tensor.double()
    zero = bool(tensor.numel() and (wide == 0).all())
    return Tally(int(wide.isnan().sum()), int(wide.isinf().sum()), zero=zero)


@pytest.mark.parametrize("dtype", FLOATS)
@given(values=st.lists(ODD, max_size=40), cuts=st.lists(st.integers(0, 40), max_size=3))
def test_odd_values_are_those_that_torch_finds(dtype: str, values: list[float], cuts: list[int]) -> None:
    tensor = torch.tensor(values, dtype=torch.float64).to(getattr(torch, dtype))
    assert tally(tensor, cuts) == count(tensor)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
@given(content=st.binary(max_size=64))
def test_any_bit_pattern_is_counted_as_torch_counts_it(dtype: str, content: bytes) -> None:
    size = getattr(torch, dtype).itemsize
    raw = np.frombuffer(content[: len(content) // size * size], np.uint8).copy()
    tensor = (
        torch.from_numpy(raw).view(getattr(torch, dtype))
        if len(raw)
        else torch.empty(0, dtype=getattr(torch, dtype))
    )
    assert tally(tensor, [3]) == count(tensor)


@pytest.mark.parametrize("dtype", ["int8", "int32", "int64", "bool", "uint8"])
def test_whole_numbers_are_zero_or_not_and_nothing_else(dtype: str) -> None:
    assert tally(torch.zeros(5, dtype=getattr(torch, dtype)), [2]) == Tally(zero=True)
    assert tally(torch.ones(5, dtype=getattr(torch, dtype)), [2]) == Tally()
    if dtype != "bool":
        assert tally(torch.tensor([0, 0, 0, 64], dtype=getattr(torch, dtype)), []) == Tally()


@pytest.mark.parametrize("place", [0, 1, 999_999, 2_000_000, 4_194_303])
def test_one_odd_value_among_millions_is_counted(place: int) -> None:
    tensor = torch.full((1 << 22,), 0.02, dtype=torch.bfloat16)
    tensor[place] = float("-inf")
    assert tally(tensor, [1 << 21]) == Tally(infinite=1)
