"""How much is tried of what has many cases: some of it by who waits, more where continuous integration does."""

import os
from collections.abc import Iterable, Sequence

LONGEST = (
    "moving/test_ray.py", "test_stores.py", "test_cli.py", "test_nothing_lost.py", "moving/test_cluster.py",
    "test_verify_pairs.py", "test_download.py", "sidecars/test_image_tokenizers.py", "test_to_meta_round_trips.py",
    "test_to_meta_interrupted.py", "test_to_meta.py", "test_to_meta_in_meta_code.py", "sidecars/test_apart.py",
    "sidecars/test_tokenizer.py", "test_json.py", "test_meta_model.py", "test_same_bytes.py", "test_streams.py",
    "test_scale.py", "test_recipes.py", "test_screen.py", "test_imports.py",
)  # fmt: skip
"""Files that take longest, the longest first: begun last, one of them would keep the others waiting at the end."""

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
