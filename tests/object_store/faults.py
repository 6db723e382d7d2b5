"""What is to go wrong, at which request, and gates that hold requests until they are released."""

import fnmatch
import random
import threading
from dataclasses import dataclass

from tests.object_store.errors import STATUS_OF

ACTIONS = ("error", "error in 200", "reset", "cut", "cut request", "hold")
HOLD_LIMIT_S = 300.0


@dataclass(frozen=True, slots=True)
class Fault:
    """What happens to requests of one kind, counted from 1: to ``times`` of them from the ``first`` on.

    ``action``, and when (``after_effect``: the store has done it, the client is not told so):

    - ``error``: ``code`` is answered; ``error in 200`` the same, under the status 200 as at a completion;
    - ``reset``: the connection is reset without an answer;
    - ``cut``: the answer's body ends after ``bytes`` of it, and the connection with it;
    - ``cut request``: the connection is reset once ``bytes`` of the request's body have come (no effect);
    - ``hold``: the request waits until the gate of name ``gate`` is released.
    """

    action: str
    operation: str = "*"  # a pattern (fnmatch) of S3's names: GetObject, UploadPart, …
    key: str = "*"  # a pattern of "bucket/key"
    first: int = 1
    times: int | None = 1  # None: all that follow
    probability: float = 1.0  # of those; decided by the seed and the request's number
    seed: int = 0
    after_effect: bool = False
    code: str = "InternalError"
    bytes: int = 0
    gate: str = ""

    def __post_init__(self) -> None:
        if self.action not in ACTIONS or self.code not in STATUS_OF:
            raise ValueError(f"{self}: no such action or code")

    def fits(self, operation: str, name: str) -> bool:
        """Say whether a request is of the kind."""
        return fnmatch.fnmatchcase(operation, self.operation) and fnmatch.fnmatchcase(name, self.key)

    def falls_on(self, number: int) -> bool:
        """Say whether the n-th request of the kind is struck."""
        if number < self.first or (self.times is not None and number >= self.first + self.times):
            return False
        return self.probability >= 1 or random.Random(f"{self.seed} {number}").random() < self.probability


class Faults:
    """The faults that are set, each with its own count of requests, and the gates."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._set: list[tuple[Fault, list[int]]] = []
        self._held: dict[str, int] = {}
        self._released: set[str] = set()

    def add(self, fault: Fault) -> None:
        """Set a fault; a gate of its name is shut."""
        with self._changed:
            self._set.append((fault, [0]))
            self._released.discard(fault.gate)

    def clear(self) -> None:
        """Take all faults away, and release what is held."""
        with self._changed:
            self._set.clear()
            self._released.update(self._held)
            self._changed.notify_all()

    def falling_on(self, operation: str, name: str) -> list[Fault]:
        """Count a request, and give what strikes it, in the order in which it was set."""
        struck = []
        with self._changed:
            for fault, count in self._set:
                if fault.fits(operation, name):
                    count[0] += 1
                    if fault.falls_on(count[0]):
                        struck.append(fault)
        return struck

    def hold(self, gate: str) -> None:
        """Wait at a gate."""
        with self._changed:
            self._held[gate] = self._held.get(gate, 0) + 1
            self._changed.notify_all()
            self._changed.wait_for(lambda: gate in self._released, HOLD_LIMIT_S)
            self._held[gate] -= 1

    def wait_held(self, gate: str, count: int, limit_s: float) -> bool:
        """Wait until that many requests stand at a gate, and say whether they do."""
        with self._changed:
            return self._changed.wait_for(lambda: self._held.get(gate, 0) >= count, limit_s)

    def release(self, gate: str) -> None:
        """Open a gate for all who wait or come, until a new fault shuts it."""
        with self._changed:
            self._released.add(gate)
            self._changed.notify_all()
