"""Files are cut into units that a worker does at a time."""

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from distconv.layout.files import group_runs


@given(st.lists(st.integers(0, 20), max_size=12), st.integers(1, 40))
def test_runs_hold_no_more_than_asked_for_and_no_neighbour_that_fits_is_left_out(
    sizes: list[int], limit: int
) -> None:
    runs = group_runs(sizes, limit)
    assert [place for run in runs for place in run] == list(range(len(sizes)))
    sums = [sum(sizes[place] for place in run) for run in runs]
    for run, held in zip(runs, sums, strict=True):
        assert held <= limit or sum(sizes[place] > 0 for place in run) == 1
    for (run, following), held in zip(pairwise(runs), sums, strict=False):
        assert held + sizes[following.start] > limit, (run, following)


def test_no_tensors_are_one_run() -> None:
    assert group_runs([], 5) == (range(0),)
