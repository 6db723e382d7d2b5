"""How much is tried of what has many cases: some of it by who waits, more where continuous integration does."""

import os
from collections.abc import Iterable, Sequence

THOROUGH = os.environ.get("CI") == "true"


def share(most: int) -> int:
    """Give how many of so many are tried: all, or a quarter."""
    return most if THOROUGH else -(-most // 4)


def one_of_each(cases: Iterable[Sequence[str]]) -> set[int]:
    """Give the places of few of a product's cases, among which each factor has each of its values."""
    left = [set(enumerate(case)) for case in cases]
    missing, chosen = set().union(*left), set[int]()
    while missing:
        best = max(range(len(left)), key=lambda place: len(left[place] & missing))
        chosen.add(best)
        missing -= left[best]
    return chosen
