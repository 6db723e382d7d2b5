"""The same done to many files at once, and requests that are on their way at once."""

import os
import queue
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

from distconv.errors import InputError
from distconv.humanize import shorten

Item = TypeVar("Item")
Result = TypeVar("Result")

REQUESTS = 64
"""So many of this process's may be on their way at once."""
_MOST_FINDINGS = 16


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


def read_at_once(
    read: Callable[[Item, Callable[[], bool]], Result],
    items: Sequence[Item],
    threads: int,
    findings: Sequence[str] = (),
) -> list[Result]:
    """Do as ``map_at_once`` does; InputError with ``findings``, and all that is wrong with any of the items."""

    def attempt(item: Item, stopped: Callable[[], bool]) -> Result | InputError:
        try:
            return read(item, stopped)
        except InputError as error:
            return error

    outcomes = map_at_once(attempt, items, max(1, min(threads, len(items))))
    wrong = [*findings, *(str(outcome) for outcome in outcomes if isinstance(outcome, InputError))]
    if wrong:
        raise InputError.of(shorten(list(dict.fromkeys(wrong)), _MOST_FINDINGS))
    return [outcome for outcome in outcomes if not isinstance(outcome, InputError)]


def map_ahead(work: Callable[[Item], Result], items: Iterable[Item], ahead: int) -> Iterator[Result]:
    """Give what ``work`` makes of each item, in their order, while so many of the next ones are worked on.

    With none ahead it is done here, when it is asked for.
    """
    left, asked = iter(items), deque[Future[Result]]()
    if ahead == 0:
        yield from map(work, left)
        return
    try:
        while True:
            asked += (submit(work, item) for item in islice(left, ahead + 1 - len(asked)))
            if not asked:
                return
            yield asked.popleft().result()
    finally:
        for future in asked:
            future.cancel()


def submit(work: Callable[..., Result], *arguments: object) -> "Future[Result]":
    """Do something in a thread of this process that is kept for requests.

    The threads are daemons: one that waits for a dead network must not keep the process from ending.
    """
    return _pool.submit(work, *arguments)


def make_done(result: Result) -> "Future[Result]":
    """Give what is known already as what was submitted."""
    future: Future[Result] = Future()
    future.set_result(result)
    return future


class _Pool:
    """Threads that come up as they are needed."""

    def __init__(self) -> None:
        self._waiting: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._idle = threading.Semaphore(0)
        self._starting = threading.Lock()
        self._threads = 0

    def submit(self, work: Callable[..., Result], *arguments: object) -> "Future[Result]":
        future: Future[Result] = Future()

        def run() -> None:
            if not future.set_running_or_notify_cancel():
                return
            try:
                result = work(*arguments)
            except BaseException as error:  # noqa: BLE001  who waits for it decides
                future.set_exception(error)
            else:
                future.set_result(result)

        self._waiting.put(run)
        if not self._idle.acquire(blocking=False):
            self._start_thread()
        return future

    def _start_thread(self) -> None:
        with self._starting:
            if self._threads == REQUESTS:
                return
            self._threads += 1
            threading.Thread(target=self._work, daemon=True, name=f"request {self._threads}").start()

    def _work(self) -> None:
        while True:
            self._waiting.get()()
            self._idle.release()


_pool = _Pool()


def _forget() -> None:
    """Let a forked process make its own: threads do not survive a fork."""
    global _pool  # noqa: PLW0603
    _pool = _Pool()


os.register_at_fork(after_in_child=_forget)
