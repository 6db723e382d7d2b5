"""Ask again after a while where it may help."""

import threading
from collections.abc import Callable
from typing import TypeVar

from tenacity import (
    RetryCallState,
    Retrying,
    retry_if_exception_type,
    sleep_using_event,
    stop_after_attempt,
    stop_when_event_set,
    wait_random_exponential,
)

from distconv.downloads.server import PassingError
from distconv.errors import ConversionError, Interrupted

_T = TypeVar("_T")


class Patience:
    """How often, and how long, one waits for a server that is in trouble."""

    def __init__(
        self, tries: int, longest_wait_seconds: float, stop: threading.Event, tell: Callable[[str], None]
    ) -> None:
        """Take the limits, what ends all waiting, and whom to tell of it."""
        self._tries, self._longest_wait_seconds = tries, longest_wait_seconds
        self._stop, self._tell = stop, tell

    def ask(self, ask: Callable[[], _T], name: str) -> _T:
        """Ask until an answer comes; ConversionError after too many tries, Interrupted when stopped."""
        backoff = wait_random_exponential(0.5, max=self._longest_wait_seconds)

        def wait(state: RetryCallState) -> float:
            error = state.outcome.exception() if state.outcome is not None else None
            after = error.after_seconds if isinstance(error, PassingError) else 0.0
            return min(max(after, backoff(state)), self._longest_wait_seconds)

        def tell(state: RetryCallState) -> None:
            if state.outcome is not None and state.next_action is not None:
                seconds = round(state.next_action.sleep)
                when = f"in {seconds} s" if seconds else "at once"
                self._tell(f"{name}: {state.outcome.exception()}; trying again {when}")

        retrying = Retrying(
            retry=retry_if_exception_type(PassingError),
            stop=stop_after_attempt(self._tries) | stop_when_event_set(self._stop),
            wait=wait,
            sleep=sleep_using_event(self._stop),
            before_sleep=tell,
            reraise=True,
        )
        try:
            return retrying(ask)
        except PassingError as error:
            if self._stop.is_set():
                raise Interrupted("stopped") from None
            raise ConversionError(
                f"{name}: {error}, {self._tries} times in a row; run the same command again to go on"
            ) from None
