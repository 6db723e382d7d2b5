"""The same done to many files at once."""

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def map_at_once(
    work: Callable[[Item, Callable[[], bool]], Result], items: Sequence[Item], threads: int
) -> list[Result]:
    """Give what ``work`` makes of each item, in their order, so many at a time.

    ``work`` is also given what it asks whether to stop: the first error, and whatever a signal handler
    raises in the calling thread, stops all and is raised.
    """
    stop = threading.Event()
    with ThreadPoolExecutor(threads) as pool:
        try:
            return list(pool.map(lambda item: work(item, stop.is_set), items))
        except BaseException:
            stop.set()
            raise
