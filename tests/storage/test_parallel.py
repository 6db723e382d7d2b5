"""What is done ahead comes in order, no further ahead than was asked for, and ends with whoever wanted it."""

import threading
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distconv.storage.parallel import map_ahead


@given(st.lists(st.integers(), max_size=20), st.integers(0, 6))
def test_results_come_in_the_order_of_the_items(items: list[int], ahead: int) -> None:
    assert list(map_ahead(lambda item: item + 1, items, ahead)) == [item + 1 for item in items]


@pytest.mark.parametrize("ahead", [0, 1, 3])
def test_no_more_is_begun_than_is_to_be_done_ahead(ahead: int) -> None:
    begun: list[int] = []

    def items() -> Iterator[int]:
        for number in range(10):
            begun.append(number)
            yield number

    for number in map_ahead(lambda item: item, items(), ahead):
        assert len(begun) == min(10, number + 1 + ahead)


def test_the_next_ones_are_done_meanwhile() -> None:
    all_begun = threading.Barrier(4)
    # Each waits for the others: by itself none would come to its end.
    assert list(map_ahead(lambda _item: all_begun.wait(60) is not None, range(4), 3)) == [True] * 4


@pytest.mark.parametrize("ahead", [0, 2])
def test_an_error_is_raised_at_its_item(ahead: int) -> None:
    found = map_ahead(lambda item: 1 // item, [1, 1, 0, 1], ahead)
    assert [next(found), next(found)] == [1, 1]
    with pytest.raises(ZeroDivisionError):
        next(found)
