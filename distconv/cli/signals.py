"""How a command ends when somebody asks it to: by one exception, and without it where that takes too long.

The first SIGINT or SIGTERM raises in the main thread. Nothing that comes after it raises again,
so that what cleans up is not cut off; a thread of its own counts and ends the process when
somebody asks again or the clean-up hangs, also while the main thread waits in a dead file system.
"""

# Until handlers are installed, signals end the process as they like: imports here are few and quick.
import atexit
import contextlib
import os
import select
import signal
import sys
import threading
import time
from functools import partial

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType
    from typing import NoReturn

    from distconv.errors import Stopped

NUMBERS = (signal.SIGINT, signal.SIGTERM)
BURST_SECONDS = 1.0
"""Signals that come so soon after the first are taken for the same wish."""
GRACE_SECONDS = 10.0
"""Longer than Ray takes to go, when nothing hangs."""
_AGAIN = 0
_AGAIN_SECONDS = 0.02

_SHOW_CURSOR = "\x1b[?25h\r\n"


class _CtrlC(KeyboardInterrupt):
    """The class itself, raised within exec, would make CPython end by the signal though it is caught later."""


class Signals:
    """The signal handlers of one command."""

    def __init__(self, *, resumes: bool = True) -> None:
        """Install nothing yet; ``resumes`` says whether the command, run again, goes on where it stopped."""
        self._advice = "run the same command again to go on" if resumes else "run it again"
        self.asked: int | None = None
        """The signal that was raised, if one was."""
        self.told = False
        """Whether a person was told that it ends."""
        self._settled = False
        self._writer = -1
        self._restore = contextlib.ExitStack()

    def install(self) -> None:
        """Take the signals over, but for those that the caller's shell wants ignored."""
        reader, self._writer = os.pipe()
        os.set_blocking(self._writer, False)
        threading.Thread(target=self._watch, args=(reader,), daemon=True, name="signals").start()
        # The end of what is written ends the thread.
        self._restore.callback(os.close, self._writer)
        wakeup = signal.set_wakeup_fd(self._writer, warn_on_full_buffer=False)
        self._restore.callback(signal.set_wakeup_fd, wakeup)
        self._restore.callback(setattr, sys, "unraisablehook", sys.unraisablehook)
        sys.unraisablehook = partial(self._catch_unraisable, sys.unraisablehook)
        for number in NUMBERS:
            handler = signal.getsignal(number)
            if handler is not None and handler != signal.SIG_IGN:
                self._restore.callback(signal.signal, number, handler)
                signal.signal(number, self._take)

    def restore(self) -> None:
        """Give the signals back."""
        self._restore.close()

    def settle(self) -> None:
        """Say that the command is over: no signal raises any more."""
        self._settled = True

    def keep(self) -> None:
        """Stay installed until the process ends."""
        # The interpreter's last step would put the system's handlers back, which end the process by the signal.
        atexit.register(_ignore_signals)

    def tell(self, stopped: "Stopped") -> str:
        """Give the words for a person, who is told once."""
        self.told = True
        return f"{stopped}; {self._advice}"

    def _take(self, number: int, _frame: "FrameType | None") -> None:
        """Raise, once."""
        if self.asked is None and not self._settled:
            self.asked = number
            raise _CtrlC if number == signal.SIGINT else make_stop(number)

    def _catch_unraisable(
        self, other: "Callable[[sys.UnraisableHookArgs], object]", unraisable: "sys.UnraisableHookArgs"
    ) -> None:
        """Raise once more what was raised where nothing can be raised, in a destructor for instance."""
        from distconv.errors import Stopped

        if issubclass(unraisable.exc_type, KeyboardInterrupt | Stopped):
            self.asked = None
            os.write(self._writer, bytes([_AGAIN]))
        else:
            other(unraisable)

    def _watch(self, reader: int) -> None:
        """Count signals; Python writes the number of each as it comes, whoever handles it."""
        first: int | None = None
        asked_at = 0.0
        while True:
            left = None if first is None else max(0.0, asked_at + GRACE_SECONDS - time.monotonic())
            if not select.select([reader], [], [], left)[0]:
                self._end(first)
            content = os.read(reader, 1)
            if not content:
                os.close(reader)
                return
            (number,) = content
            if number == _AGAIN and first is not None:
                # By then the main thread has left the place where nothing can be raised.
                time.sleep(_AGAIN_SECONDS)
                os.kill(os.getpid(), first)
                first = None
            elif number in NUMBERS and first is None:
                first, asked_at = number, time.monotonic()
            elif number in NUMBERS and time.monotonic() - asked_at > BURST_SECONDS:
                self._end(first)

    def _end(self, number: int | None) -> "NoReturn":
        """End the process at once; what it leaves behind has no final name."""
        stopped = make_stop(number)
        if sys.stderr.isatty():
            write_error(_SHOW_CURSOR)
        if not self.told:
            write_error(f"error: {self.tell(stopped)}\n")
        os._exit(stopped.exit_code)


def make_stop(number: int | None) -> "Stopped":
    """Give the error that a signal stands for."""
    from distconv.errors import Interrupted, Terminated

    return Interrupted("interrupted") if number == signal.SIGINT else Terminated("terminated")


def _ignore_signals() -> None:
    for number in NUMBERS:
        signal.signal(number, signal.SIG_IGN)


def write_error(text: str) -> None:
    """Write to standard error without the locks and buffers of a stream, which may be taken."""
    with contextlib.suppress(OSError):
        os.write(2, text.encode())
