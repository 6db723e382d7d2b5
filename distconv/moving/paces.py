"""How fast workers move bytes, by what they have moved so far."""

from collections import Counter


class Paces:
    """The mean paces of a run's workers."""

    def __init__(self) -> None:
        """Begin with nothing known."""
        self._seconds: dict[int, float] = {}
        self._sizes_bytes: Counter[int] = Counter()

    def count(self, worker: int, size_bytes: int, seconds: float) -> None:
        """Count a unit that a worker has moved."""
        self._seconds[worker] = self._seconds.get(worker, 0.0) + seconds
        self._sizes_bytes[worker] += size_bytes

    def of(self, worker: int) -> float:
        """Give a worker's seconds a byte, the mean over its units; 0 while nothing is known."""
        size_bytes = self._sizes_bytes[worker]
        return self._seconds[worker] / size_bytes if size_bytes else 0.0

    def expect(self, worker: int, size_bytes: int, began_at: float, now: float) -> tuple[float, float]:
        """Give the moment at which a worker will be free that began so large a unit, and its pace, 0 if unknown.

        Who takes longer for its unit than expected is thought to stay as slow.
        """
        pace = self.of(worker)
        if pace and size_bytes:
            pace = max(pace, (now - began_at) / size_bytes)
        return max(now, began_at + size_bytes * pace), pace
