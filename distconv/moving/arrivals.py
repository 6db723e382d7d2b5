"""Answers that are used while they still come in."""

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field

from distconv.errors import Interrupted
from distconv.storage.base import Reader
from distconv.storage.parallel import submit

_ASK_SECONDS = 0.2


@dataclass(slots=True, eq=False)
class Arrival:
    """Bytes that one request brings into memory, and how many of them have come."""

    first: int
    """Where they begin in that memory."""
    size_bytes: int
    came: int = 0
    wanted: int = 0
    """How many are waited for."""
    future: Future[None] = field(default_factory=Future)

    def has_come(self, end: int) -> bool:
        """Whether all is there that it brings before this place in the memory."""
        return self.came >= min(end - self.first, self.size_bytes)


class Arrivals:
    """What one thread asks for, and waits for."""

    def __init__(self, stopped: Callable[[], bool]) -> None:
        """Begin with nothing; ``stopped`` is asked while something is waited for."""
        self._stopped = stopped
        self._changed = threading.Condition()

    def ask(self, reader: Reader, offset_bytes: int, runs: Sequence[memoryview], first: int) -> Arrival:
        """Ask for as many bytes of a file, from an offset on, as these runs of memory have from ``first`` on."""
        arrival = Arrival(first, sum(map(len, runs)))

        def told(size_bytes: int) -> None:
            arrival.came = size_bytes
            # Nobody is woken for what is not enough.
            if 0 < arrival.wanted <= size_bytes:
                self._tell()

        arrival.future = submit(reader.read_vector, offset_bytes, runs, told)
        arrival.future.add_done_callback(lambda _future: self._tell())
        return arrival

    def wait(self, arrival: Arrival, end: int) -> None:
        """Wait until all is there that a request brings before this place in the memory; Interrupted where that is not wanted."""
        arrival.wanted = min(end - arrival.first, arrival.size_bytes)
        while arrival.came < arrival.wanted:
            if self._stopped():
                raise Interrupted("stopped")
            with self._changed:
                if not arrival.future.done() and arrival.came < arrival.wanted:
                    self._changed.wait(_ASK_SECONDS)
            if arrival.future.done():
                arrival.future.result()
                arrival.came = arrival.size_bytes

    def _tell(self) -> None:
        with self._changed:
            self._changed.notify_all()
