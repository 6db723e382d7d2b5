"""How many requests this process has sent to other hosts: places bill and bound them."""

import os
import threading
from collections import Counter

_counts: Counter[str] = Counter()
_lock = threading.Lock()


def count_request(operation: str) -> None:
    """Count a request, by what its place calls it; tries count one by one."""
    with _lock:
        _counts[operation] += 1


def count_requests() -> dict[str, int]:
    """Give how many there were so far."""
    with _lock:
        return dict(_counts)


def _forget() -> None:
    """Let a forked process begin with none; its parent may have held the lock."""
    global _lock  # noqa: PLW0603
    _lock = threading.Lock()
    _counts.clear()


os.register_at_fork(after_in_child=_forget)
