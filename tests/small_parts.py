"""Chunks written in parts as those above 5 GB are, at the sizes of small models.

``python -m tests.small_parts convert …`` is ``distconv`` that does so.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from distconv.cli import main
from distconv.planning import plan

WHOLE_BYTES, PART_BYTES = 600_000, 100_000
"""Of tortured models' chunks some are above it, and others are not."""


@contextmanager
def small_parts(whole_bytes: int, part_bytes: int) -> Iterator[None]:
    """Write chunks of more than so many bytes of tensors in parts of at most so many."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plan, "LARGEST_CHUNK_BYTES", whole_bytes)
        patch.setattr(plan, "default_part_bytes", lambda _total_bytes: part_bytes)
        yield


if __name__ == "__main__":
    with small_parts(WHOLE_BYTES, PART_BYTES):
        main()
