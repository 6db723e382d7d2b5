"""Digests of files that are written in parts, carried on from part to part by who makes one behind the other.

XXH3 takes bytes in their order, so that digests of parts tell nothing of a file's. What a process has seen of a
file from its first byte on it need not read again; what others wrote is read once the file is complete.
"""

import threading
from collections.abc import Iterable

from xxhash import xxh3_128

from distconv.layout.files import Part
from distconv.storage.base import Buffer


class Trail:
    """Digests of a file's bytes from the first one to before ``end_bytes``."""

    def __init__(self, head: bytes = b"") -> None:
        """Begin with what stands before the tensors."""
        self.end_bytes = len(head)
        self.whole, self.tensor = xxh3_128(head), xxh3_128()
        self._place = -1
        self._tensors: dict[int, str] = {}

    def copy(self) -> "Trail":
        """Give one that goes on by itself."""
        found = Trail()
        found.end_bytes, found._place = self.end_bytes, self._place
        found.whole, found.tensor = self.whole.copy(), self.tensor.copy()
        found._tensors = dict(self._tensors)
        return found

    def turn_to(self, place: int) -> None:
        """Say which of the file's tensors the next bytes are of."""
        if place != self._place:
            # One of no bytes ends where the one before does.
            self._tensors.setdefault(self.end_bytes, self.tensor.hexdigest())
            self.tensor.reset()
            self._place = place

    def update(self, content: Buffer) -> None:
        """Add bytes."""
        self.whole.update(content)
        self.tensor.update(content)
        self.end_bytes += len(content)

    def find_tensor(self, end_bytes: int) -> str:
        """Give the digest of the tensor that ends there."""
        return self._tensors.get(end_bytes) or self.tensor.hexdigest()


class _Trails:
    """What this process has seen of each file that is written in parts."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._found: dict[str, Trail] = {}

    def follow(self, attempt: str, part: Part) -> Trail | None:
        """Give a copy of what is seen of a file where the part begins; None where that ends elsewhere."""
        if part.trailers:
            return None
        if part.number == 1:
            return Trail(b"".join(literal.content for literal in part.literals))
        with self._lock:
            found = self._found.get(attempt)
            return found.copy() if found is not None and found.end_bytes == part.first_byte else None

    def keep(self, attempt: str, trail: Trail | None) -> None:
        """Keep what reaches further than what is known."""
        with self._lock:
            known = self._found.get(attempt)
            if trail is not None and (known is None or known.end_bytes < trail.end_bytes):
                self._found[attempt] = trail

    def take(self, attempt: str) -> Trail:
        """Give what is seen of a file, and forget it."""
        with self._lock:
            return self._found.pop(attempt, None) or Trail()

    def forget(self, attempts: Iterable[str]) -> None:
        """Forget files."""
        for attempt in attempts:
            self.take(attempt)


TRAILS = _Trails()
