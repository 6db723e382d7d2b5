"""Units that go on where others ended, as parts of one file do: who did those best goes on with them."""

from collections.abc import Iterable, Iterator, Mapping, Sequence


class Chains:
    """What each worker did last, and what goes on there."""

    def __init__(self, follows: Mapping[str, str]) -> None:
        """Take, by the names of units that follow others, the names of these."""
        self._follows = follows
        self._last: dict[int, str] = {}
        self._ended: set[str] = set()

    def done(self, worker: int, unit: str) -> None:
        """Tell that a worker did a unit."""
        self._last[worker] = unit
        self._ended.add(unit)

    def choose(self, worker: int, todo: Sequence[str], free: Iterable[int]) -> str | None:
        """Choose what goes on where this worker ended, else the first that goes on nowhere, else the very last.

        None where that goes on where another one of the ``free`` workers ended.
        """
        if not self._follows:
            return todo[0]
        last = self._last.get(worker)
        fresh = None
        for unit in todo:
            if unit not in self._follows:
                fresh = fresh or unit
            elif last is not None and last in self._list_before(unit):
                return unit
        if fresh is not None:
            return fresh
        others = {self._last.get(other) for other in free if other != worker}
        return next((unit for unit in reversed(todo) if others.isdisjoint(self._list_before(unit))), None)

    def _list_before(self, unit: str) -> Iterator[str]:
        """Give what a unit follows, and what that follows, as far as it is done."""
        before = self._follows.get(unit)
        while before is not None:
            yield before
            before = self._follows.get(before) if before in self._ended else None
