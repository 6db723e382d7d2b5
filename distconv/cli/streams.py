"""Standard streams that are closed, broken or full: work goes on, and its exit code stays true.

Where nobody reads any more, what is said is dropped: a conversion does not fail after hours because a
log's disk is full or a terminal has gone. Only standard output that is kept somewhere must arrive.
"""

import errno
import io
import os
import stat
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer


def mend_streams() -> None:
    """Open what is closed, and let this process's own streams bear it when nobody reads them."""
    for descriptor in range(3):
        _occupy(descriptor)
    # Somebody who runs a command in his own process may have put other streams in their place.
    if sys.stdin is None:
        sys.stdin = open(0, encoding="utf-8", closefd=False)  # noqa: SIM115
    if sys.stdout is sys.__stdout__:
        sys.stdout = _make_stream(1, sys.stdout, is_dispensable=False)
    if sys.stderr is sys.__stderr__:
        sys.stderr = _make_stream(2, sys.stderr, is_dispensable=True)


def _occupy(descriptor: int) -> None:
    """Give a closed descriptor to the null device: else the next file that is opened would get it."""
    try:
        os.fstat(descriptor)
    except OSError:
        opened = os.open(os.devnull, os.O_RDWR)
        if opened == descriptor:
            os.set_inheritable(descriptor, True)
        else:
            os.dup2(opened, descriptor)
            os.close(opened)


def _make_stream(descriptor: int, before: io.TextIOBase | None, *, is_dispensable: bool) -> io.TextIOWrapper:
    raw: io.FileIO = _Bearing(descriptor, is_dispensable=is_dispensable)
    encoding = before.encoding if before is not None else None
    return io.TextIOWrapper(
        io.BufferedWriter(raw),
        encoding=encoding or "utf-8",
        # A file's name may hold what no encoding has a sign for.
        errors="backslashreplace",
        line_buffering=is_dispensable or raw.isatty(),
    )


class _Bearing(io.FileIO):
    """A descriptor that takes what is written to it as written where nobody can read it."""

    def __init__(self, descriptor: int, *, is_dispensable: bool) -> None:
        super().__init__(descriptor, "w", closefd=False)
        self._is_dispensable = is_dispensable

    def write(self, content: "ReadableBuffer", /) -> int:
        try:
            return super().write(content) or 0
        except OSError as error:
            # A terminal that has gone does not even say any more that it is one.
            hung_up = error.errno == errno.EIO and stat.S_ISCHR(os.fstat(self.fileno()).st_mode)
            if not (self._is_dispensable or hung_up or isinstance(error, BrokenPipeError)):
                error.filename = "standard output"
                # It is told of once; what is still in the buffer would fail at the end as well.
                self._is_dispensable = True
                raise
            return len(memoryview(content))
