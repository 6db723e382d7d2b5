"""Units that go on where others end, as parts of one file do: one worker does them all, unless others have nothing else."""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence


class Chains:
    """Which units are of one chain, and which worker began it."""

    def __init__(
        self, follows: Mapping[str, str], sizes_bytes: Mapping[str, int], ends: Collection[str]
    ) -> None:
        """Take, by the names of units that follow others, the names of these; ``ends`` end chains."""
        self._first: dict[str, str] = {}
        for unit in follows:
            first = unit
            while first in follows:
                first = follows[first]
            self._first[unit] = self._first[first] = first
        self._bytes = Counter[str]()
        for unit, first in self._first.items():
            self._bytes[first] += sizes_bytes[unit]
        self._ends = ends
        self._owners: dict[str, int] = {}

    def weigh(self, unit: str, size_bytes: int) -> int:
        """Give the size of all that whoever begins a unit will do."""
        first = self._first.get(unit)
        return size_bytes if first is None else self._bytes[first]

    def choose(self, worker: int, todo: Sequence[str], workers: Collection[int]) -> str | None:
        """Choose a unit for one of the ``workers``: of a chain that it began, or the first where none of them is.

        Where there is none it helps others, from behind, but for what ends a chain: who began that reads what others
        did of it, half as much as they read and wrote. So it does where there are twice as many workers as chains.
        """
        if not self._first:
            return todo[0]
        fresh = None
        for unit in todo:
            owner = self._owners.get(self._first.get(unit, unit))
            if owner == worker:
                return unit
            if fresh is None and owner not in workers:
                fresh = unit
        if fresh is not None:
            self._owners[self._first.get(fresh, fresh)] = worker
            return fresh
        helped = [unit for unit in todo if unit not in self._ends]
        chains = {self._first[unit] for unit in helped}
        return helped[-1] if helped and len(workers) >= 2 * len(chains) else None
