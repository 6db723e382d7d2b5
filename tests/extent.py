"""How much is tried of what has many cases: some of it by who waits, more where continuous integration does."""

import os
from collections.abc import Iterable, Sequence

VOCABULARIES = tuple(
    f"sidecars/test_{name}.py"
    for name in ("image_tokenizers", "tokenizer", "chat", "image_chat", "meta_tokenizer")
)
META_CODE = tuple(
    f"test_{name}.py" for name in ("meta_model", "to_meta_in_meta_code", "image_forward", "to_meta_stories")
)
TOGETHER = (VOCABULARIES, META_CODE)
"""Files that share what takes seconds to make, so that one process runs them."""

LONGEST = (
    *VOCABULARIES, "test_stores.py", "moving/test_ray.py", *META_CODE, "test_nothing_lost.py", "test_download.py", "test_cli.py",
    "formats/test_archive.py", "test_verify_pairs.py", "test_image_models.py", "test_to_meta.py", "test_malformed.py",
    "test_json.py", "test_whole_meta.py", "test_same_bytes.py", "test_end_to_end.py", "storage/web/test_servers.py",
    "storage/web/test_hub.py", "test_to_meta_interrupted.py", "test_to_meta_round_trips.py", "moving/test_ahead.py",
    "test_broken_folders.py", "test_ownership.py", "test_in_parts.py", "moving/test_torch_device.py", "moving/test_strided.py",
)  # fmt: skip
"""Files that take longest, the longest first: begun last, one of them would keep the others waiting at the end."""

THOROUGH = os.environ.get("CI") == "true"


def share(most: int) -> int:
    """Give how many of so many are tried: all, or an eighth."""
    return most if THOROUGH else -(-most // 8)


def one_of_each(cases: Iterable[Sequence[str]]) -> set[int]:
    """Give the places of few of a product's cases, among which each factor has each of its values."""
    left = [set(enumerate(case)) for case in cases]
    missing, chosen = set().union(*left), set[int]()
    while missing:
        best = max(range(len(left)), key=lambda place: len(left[place] & missing))
        chosen.add(best)
        missing -= left[best]
    return chosen
