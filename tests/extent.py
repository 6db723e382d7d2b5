"""How much of a kind without end is tried: some of it by who waits, more where continuous integration does."""

import os

THOROUGH = os.environ.get("CI") == "true"


def share(most: int) -> int:
    """Give how many of so many are tried: all, or a quarter."""
    return most if THOROUGH else -(-most // 4)
