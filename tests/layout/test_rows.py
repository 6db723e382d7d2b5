"""Tensors cut into runs of their bytes: what numpy has there, wherever the tensor's elements lie."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from distconv.layout.dtypes import FLOAT16, FLOAT32
from distconv.layout.files import OutputTensor
from distconv.layout.reshape import split_axis, transpose
from distconv.layout.rows import list_rows, list_runs
from distconv.layout.tensors import Tensor
from tests.layout.test_algebra import Contents, boxes, fill, numbered, store


def fill_runs(runs: list[OutputTensor], contents: Contents) -> np.ndarray:
    """Carry out the copies of all runs, one behind the other."""
    tensors = [Tensor(run.name, run.stored, run.shape, run.copies) for run in runs]
    return np.concatenate([fill(tensor, contents).reshape(-1) for tensor in tensors])


@given(st.data(), st.integers(1, 4), st.integers(1, 4), st.integers(1, 5), st.booleans(), st.integers(1, 300))
def test_runs_are_the_bytes_of_the_tensor_in_their_order_whatever_their_size(
    data: st.DataObject, experts: int, rows: int, columns: int, turned: bool, limit: int
) -> None:
    whole = numbered((experts * rows, columns))
    contents, tensor = data.draw(boxes(whole))
    if turned:
        whole, tensor = whole.T, transpose(tensor)
    else:
        # As a Llama 4 has its experts below each other.
        tensor = split_axis(tensor, 0, (experts, rows))
    target = OutputTensor("t", "s", tensor.shape, FLOAT32, FLOAT32, tensor.copies)
    runs = list(list_runs(target, limit))
    np.testing.assert_array_equal(fill_runs(runs, contents), whole.reshape(-1))
    assert all(run.size_bytes <= max(4, limit) for run in runs)
    assert {(run.name, run.source, run.dtype) for run in runs} == {("t", "s", FLOAT32)}
    if target.size_bytes <= limit:
        assert runs == [target]


@pytest.mark.parametrize(
    ("limit", "expected"),
    [
        (84, [(7, 2, 3)]),
        (83, [(4, 2, 3), (3, 2, 3)]),
        (36, [(3, 2, 3), (3, 2, 3), (1, 2, 3)]),
        (12, [(1, 2, 3)] * 7),
        (11, [(1, 3)] * 14),
        (5, [(2,), (1,)] * 14),
    ],
)
def test_runs_are_of_as_many_whole_rows_as_fit_and_about_alike(
    limit: int, expected: list[tuple[int, ...]]
) -> None:
    stored = store({}, numbered((7, 2, 3)))
    runs = list(list_runs(OutputTensor("t", "s", (7, 2, 3), FLOAT32, FLOAT16, stored.copies), limit))
    assert [run.shape for run in runs] == expected
    assert sum(math.prod(run.shape) for run in runs) == 42


def test_what_has_no_axes_or_no_elements_is_one_run() -> None:
    scalar = OutputTensor("t", "s", (), FLOAT32, FLOAT32, store({}, numbered(())).copies)
    empty = OutputTensor("t", "s", (0, 3), FLOAT32, FLOAT32, ())
    for tensor in (scalar, empty):
        assert list(list_runs(tensor, 1)) == [tensor]
    assert list(list_rows(empty)) == []
