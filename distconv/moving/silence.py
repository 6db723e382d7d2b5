"""How long a worker may say nothing: what tells one that is dead from one that waits for storage.

A hung worker is silent while the others speak. Storage that many share makes all of them silent, now
and again for longer than anybody could say beforehand, so their silences are compared with each other.
"""

COMMON_FACTOR = 2.0
"""A silence is a worker's own if it is so many times longer than those of the others."""
LONGEST_FACTOR = 6.0
"""After so many times ``stall_seconds`` a silent worker is dead, whatever the others do."""


class Silences:
    """The busy workers of a run, and when each was heard last; times in seconds of one clock."""

    def __init__(self, stall_seconds: float) -> None:
        """Take the silence that needs no excuse, however quick the others are."""
        self._stall_seconds = stall_seconds
        self._heard_at: dict[int, float] = {}
        self._longest_ended = 0.0

    def hear(self, worker: int, now: float) -> None:
        """Tell that a worker began a unit or said something of it."""
        silence = now - self._heard_at.get(worker, now)
        self._longest_ended = max(self._longest_ended, silence)
        self._heard_at[worker] = now

    def forget(self, worker: int) -> None:
        """Tell that a worker has nothing to do, or is gone."""
        self._heard_at.pop(worker, None)

    def excuse(self, seconds: float, now: float) -> None:
        """Tell that nobody listened for so long, which is nobody's silence."""
        for worker, heard_at in self._heard_at.items():
            self._heard_at[worker] = min(now, heard_at + seconds)

    def find_stalled(self, free: int, now: float) -> tuple[tuple[int, ...], float]:
        """Give the workers that are taken for dead, and how many seconds of silence were borne.

        That is ``stall_seconds``, or more where more is common: twice the longest silence that any
        worker has ended, or that more than half of the others keep now. ``free`` is how many workers
        have nothing to do; they keep none, and could take over.
        """
        ordered = sorted([0.0] * free + [now - heard_at for heard_at in self._heard_at.values()])
        # Of the others of one that is silent longest, the one in the middle.
        kept = ordered[(len(ordered) - 2) // 2] if len(ordered) > 1 else 0.0
        borne = max(self._stall_seconds, COMMON_FACTOR * max(self._longest_ended, kept))
        borne = min(borne, LONGEST_FACTOR * self._stall_seconds)
        return tuple(worker for worker, heard_at in self._heard_at.items() if now - heard_at > borne), borne
