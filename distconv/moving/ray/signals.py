"""Signals beside Ray: it installs handlers of its own, and swallows what other handlers raise."""

import contextlib
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from types import FrameType

NUMBERS = (signal.SIGINT, signal.SIGTERM)


@contextlib.contextmanager
def handlers_kept() -> Iterator[None]:
    """Put back, after the block, the handlers that stood before it."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = [(number, signal.getsignal(number)) for number in NUMBERS]
    try:
        yield
    finally:
        for number, handler in before:
            # None stands for a handler that was not installed from Python.
            if handler is not None:
                signal.signal(number, handler)


@contextlib.contextmanager
def redelivered() -> Iterator[None]:
    """Let a block have handlers of its own, and deliver SIGTERM to the caller's after it.

    Ray's ends the process with a code of its own, or is swallowed; the wakeup descriptor
    tells of every signal, whoever handled it.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    reader, writer = socket.socketpair()
    with reader, writer:
        reader.setblocking(False)
        writer.setblocking(False)
        before = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
        try:
            with handlers_kept():
                yield
        except SystemExit:
            _deliver_terminations(reader)
            raise
        finally:
            signal.set_wakeup_fd(before)
        _deliver_terminations(reader)


def _deliver_terminations(reader: socket.socket) -> None:
    with contextlib.suppress(BlockingIOError):
        if signal.SIGTERM in reader.recv(4096):
            signal.raise_signal(signal.SIGTERM)


@contextlib.contextmanager
def held_back() -> Iterator[Callable[[], None]]:
    """Keep signals from interrupting the block; the function it gives delivers what came.

    While Ray waits it prints exceptions of signal handlers and goes on, all but
    KeyboardInterrupt. Here the caller's handlers run, and raise, where the function is called.
    """
    pending: list[Callable[[], object]] = []

    def deliver() -> None:
        while pending:
            pending.pop(0)()

    with handlers_kept():
        if threading.current_thread() is threading.main_thread():
            for number in NUMBERS:
                handler = signal.getsignal(number)
                if callable(handler):
                    signal.signal(number, _postpone(handler, pending))
        yield deliver
    # What came while the last unit ended, or while the workers were closed.
    deliver()


def _postpone(
    handler: Callable[[int, FrameType | None], object], pending: list[Callable[[], object]]
) -> Callable[[int, FrameType | None], None]:
    """Make a handler that only notes what is to be done."""

    def note(number: int, frame: FrameType | None) -> None:
        pending.append(lambda: handler(number, frame))

    return note
