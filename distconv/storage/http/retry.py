"""What may pass is tried again, for a time and not for a number of times."""

import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

Result = TypeVar("Result")

_FIRST_SECONDS = 0.1
_LONGEST_SECONDS = 10.0
_DOUBLINGS = 30
"""More than lead to the longest pause: a number of any size is no float."""
_LONGEST_ASKED_SECONDS = 900.0
"""Rate limits are counted over minutes (the hub's over five); who asks for more in all is not waited for."""

_random = random.SystemRandom()
"""Processes that were forked from one do not draw the same of it."""


class TransientError(OSError):
    """What a store or the way to it failed in, and may do the next time; whether it was done is unknown."""

    at_once = False
    """Whether there is no reason to wait."""
    after_seconds = 0.0
    """For how long the server asks to be left alone (``Retry-After``)."""


def persist(
    attempt: Callable[[], Result],
    patience_seconds: float,
    progress: Callable[[], object] = lambda: None,
) -> Result:
    """Try until it succeeds, with pauses drawn from zero to twice what they were drawn from before.

    What a server asks for comes on top of a pause, and of the time.
    Once so much time has passed without ``progress`` changing, the last TransientError is raised as the plain
    OSError that its number stands for.
    """
    failures, deadline, seen, left = 0, 0.0, progress(), _LONGEST_ASKED_SECONDS
    while True:
        try:
            return attempt()
        except TransientError as error:
            now, reached = time.monotonic(), progress()
            if failures == 0 or reached != seen:
                failures, deadline, seen = 0, now + patience_seconds, reached
            pause = _random.uniform(0, min(_LONGEST_SECONDS, _FIRST_SECONDS * 2 ** min(failures, _DOUBLINGS)))
            if error.at_once and failures == 0:
                pause = 0.0
            failures += 1
            asked = min(error.after_seconds, left)
            left, pause, deadline = left - asked, pause + asked, deadline + asked
            if now + pause > deadline:
                raise OSError(error.errno, error.strerror, error.filename) from error
            time.sleep(pause)


class Window:
    """How many requests a process has under way: halved where a store asks for less, and growing again."""

    def __init__(self, largest: int) -> None:
        """Begin with as many as may be."""
        self._largest = largest
        self._limit = float(largest)
        self._running = 0
        self._halved = 0.0
        self._changed = threading.Condition()

    @property
    def limit(self) -> int:
        """How many there may be now."""
        return int(self._limit)

    @contextmanager
    def entered(self) -> Iterator[Callable[[], None]]:
        """Wait for room, and take it for the block; gives whom to tell that the store asks for less."""
        with self._changed:
            self._changed.wait_for(lambda: self._running < int(self._limit))
            self._running += 1
        began, slow = time.monotonic(), [False]
        try:
            yield lambda: slow.__setitem__(0, True)
        finally:
            with self._changed:
                self._running -= 1
                if not slow[0]:
                    self._limit = min(self._largest, self._limit + 1 / self._limit)
                elif began >= self._halved:
                    # Those that were under way when it was halved tell of the same congestion.
                    self._limit, self._halved = max(1.0, self._limit / 2), time.monotonic()
                self._changed.notify_all()
