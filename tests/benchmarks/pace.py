"""Convert in this process and print, as JSON, the speed between 30 and 85 % of the bytes.

By then all of Ray's workers are up, and neither the first pages nor the last chunks count.
"""

import json
import sys
import time

import distconv
from distconv.progress import SilentProgress
from tests.benchmarks.measure import take_free_memory

FIRST, LAST = 0.30, 0.85


class Pace(SilentProgress):
    """Notes when how many bytes had moved."""

    def __init__(self) -> None:
        self._memory = take_free_memory()
        self.samples = [(0.0, 0)]
        self.total_bytes = 0

    def begin(self, total_bytes: int, units: int, kind: str = "chunks") -> None:
        self.total_bytes = total_bytes
        # Whoever takes long to start finds the same memory free as who starts at once.
        self._memory.close()

    def advance(self, size_bytes: int, worker: str = "") -> None:
        self.samples.append((time.monotonic(), self.samples[-1][1] + size_bytes))

    def bytes_per_second(self) -> float:
        """Give the speed in the middle."""
        ends = [
            next(sample for sample in self.samples if sample[1] >= share * self.total_bytes)
            for share in (FIRST, LAST)
        ]
        return (ends[1][1] - ends[0][1]) / (ends[1][0] - ends[0][0])


def main(source: str, output: str, workers: str) -> None:
    """Convert inline where ``workers`` is 0."""
    pace = Pace()
    distconv.convert(source, output, workers=int(workers) or None, progress=pace)
    sys.stdout.write(json.dumps({"gigabytes_per_second": pace.bytes_per_second() / 1e9}) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
