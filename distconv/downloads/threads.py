"""Threads that do tasks, and what follows from them, until one fails or somebody stops them."""

import queue
import threading
import time
from collections.abc import Callable, Sequence

Task = Callable[[], "list[Task]"]
"""Gives the tasks that follow from it."""
_JOIN_SECONDS = 2.0


def run_tasks(tasks: Sequence[Task], threads: int, stop: threading.Event) -> None:
    """Do tasks and what follows from them; the first error stops all and is raised."""
    inbox: queue.SimpleQueue[Task | None] = queue.SimpleQueue()
    outbox: queue.SimpleQueue[list[Task] | BaseException] = queue.SimpleQueue()
    # Daemons: one that waits for a dead server must not keep the process from ending.
    started = [
        threading.Thread(target=_work, args=(inbox, outbox, stop), daemon=True, name=f"connection {number}")
        for number in range(threads)
    ]
    try:
        for thread in started:
            thread.start()
        left = 0
        following = list(tasks)
        while True:
            for task in following:
                inbox.put(task)
            left += len(following)
            if not left:
                return
            outcome = outbox.get()
            if isinstance(outcome, BaseException):
                raise outcome
            following, left = outcome, left - 1
    finally:
        stop.set()
        for _thread in started:
            inbox.put(None)
        _join(started)


def _work(
    inbox: "queue.SimpleQueue[Task | None]",
    outbox: "queue.SimpleQueue[list[Task] | BaseException]",
    stop: threading.Event,
) -> None:
    """Do what comes in until None does."""
    while (task := inbox.get()) is not None and not stop.is_set():
        try:
            outbox.put(task())
        except BaseException as error:  # noqa: BLE001  it is raised by the caller
            outbox.put(error)


def _join(threads: Sequence[threading.Thread]) -> None:
    """Give threads a moment to write down how far they came."""
    deadline = time.monotonic() + _JOIN_SECONDS
    for thread in threads:
        if thread.ident is not None:
            thread.join(max(0.0, deadline - time.monotonic()))
