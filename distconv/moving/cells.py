"""Memory in cells of one size: what lies in several is given back cell by cell, as it is used up."""

from collections.abc import Sequence

from distconv.storage.memory import give_back, take_buffer

_CELL_BYTES = (1 << 20) + 640
"""A connection of 80 MB/s fills it in 13 ms; ranges are of whole megabytes, and of a record's header."""
_LEAST_CELLS = 64
ALIGNMENT_BYTES = 64


class Cells:
    """Memory of a lane, of which pieces of any size are taken."""

    def __init__(self, size_bytes: int) -> None:
        """Take so much, or hardly less."""
        aligned = size_bytes // _LEAST_CELLS // ALIGNMENT_BYTES * ALIGNMENT_BYTES
        self.cell_bytes = max(ALIGNMENT_BYTES, min(_CELL_BYTES, aligned))
        count = size_bytes // self.cell_bytes
        self._memory = take_buffer(count * self.cell_bytes)
        self._free = set(range(count))

    def take(self, size_bytes: int) -> list[int] | None:
        """Take cells for so many bytes, in order; None where too few are free, until more are given back."""
        count = -(-size_bytes // self.cell_bytes)
        if count > len(self._free):
            return None
        # The first ones: neighbours are one run of memory.
        taken = sorted(self._free)[:count]
        self._free.difference_update(taken)
        return taken

    def list_runs(self, cells: Sequence[int]) -> list[memoryview]:
        """Give the memory of cells, one behind the other."""
        runs: list[tuple[int, int]] = []
        for cell in cells:
            if runs and runs[-1][1] == cell:
                runs[-1] = runs[-1][0], cell + 1
            else:
                runs.append((cell, cell + 1))
        size = self.cell_bytes
        return [self._memory[first * size : end * size] for first, end in runs]

    def give_back(self, cell: int) -> None:
        """Give a cell back; nobody may be reading into it."""
        self._free.add(cell)

    def close(self) -> None:
        """Let others of this thread use the memory; nobody may be reading into it."""
        give_back(self._memory)


def cut(runs: Sequence[memoryview], first: int, size_bytes: int) -> list[memoryview]:
    """Give so many bytes, from one of them on, of runs that lie one behind the other."""
    found = []
    for run in runs:
        if first < len(run) and size_bytes > 0:
            part = run[first : first + size_bytes]
            found.append(part)
            size_bytes -= len(part)
        first = max(0, first - len(run))
    return found
