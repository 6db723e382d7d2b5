"""Where the time of a unit goes: spans of reading, gathering, digesting and writing, and their sums."""

import contextlib
import os
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass

from distconv.storage.requests import count_requests

READ, GATHER, DIGEST, WRITE = STAGES = ("read", "gather", "digest", "write")


@dataclass(frozen=True, slots=True)
class Span:
    """One stretch of work; ``began`` is in seconds since its unit began."""

    stage: str
    began: float
    seconds: float
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Work:
    """Who did a unit, when, and where the time went.

    ``began`` is in seconds since the epoch, as the clocks of several hosts agree on nothing else.
    """

    host: str = ""
    worker: str = ""
    began: float = 0.0
    seconds: float = 0.0
    stage_seconds: tuple[float, ...] = (0.0,) * len(STAGES)
    """In the order of STAGES; a CUDA gather counts as the wait for its end."""
    spans: tuple[Span, ...] = ()
    """Kept on request."""
    process: int = 0
    requests: tuple[tuple[str, int], ...] = ()
    """What the whole process had sent to other hosts by the end, by operation."""


class Spans:
    """Measures the stages of one unit, and keeps each span where ``kept`` asks for it."""

    def __init__(self, *, kept: bool = False) -> None:
        """Start the clocks."""
        self._kept = kept
        self._seconds = dict.fromkeys(STAGES, 0.0)
        self._spans: list[Span] = []
        self._began, self._started = time.time(), time.monotonic()

    @contextlib.contextmanager
    def during(self, stage: str, size_bytes: int) -> Iterator[None]:
        """Count the block's time for a stage."""
        began = time.monotonic()
        try:
            yield
        finally:
            seconds = time.monotonic() - began
            self._seconds[stage] += seconds
            if self._kept:
                self._spans.append(Span(stage, began - self._started, seconds, size_bytes))

    def finish(self) -> Work:
        """Give what was measured, with the names of host, process and thread."""
        return Work(
            socket.gethostname(),
            f"{threading.current_thread().name} of process {os.getpid()}",
            self._began,
            time.monotonic() - self._started,
            tuple(self._seconds.values()),
            tuple(self._spans),
            os.getpid(),
            tuple(count_requests().items()),
        )
