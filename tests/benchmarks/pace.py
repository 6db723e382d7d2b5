"""Convert in this process and print, as JSON, the speed of the moving, all workers being up."""

import json
import os
import sys
import time

import distconv
from distconv.moving.progress import SilentProgress
from tests.benchmarks.measure import core_seconds, tree

SETTLE_SECONDS = 1.0
REST = 0.2
"""Of a core; Ray's own processes take a tenth when nothing is to be done."""


class Pace(SilentProgress):
    """Notes when the moving began and ended."""

    def __init__(self) -> None:
        self._total_bytes = 0
        self._began = self._ended = 0.0

    def begin(self, total_bytes: int, units: int, kind: str = "chunks") -> None:
        # Ray tells of the first worker; the second one may still be importing.
        wait_for_rest()
        self._total_bytes = total_bytes
        self._began = time.monotonic()

    def unit_done(self, name: str) -> None:
        self._ended = time.monotonic()

    def bytes_per_second(self) -> float:
        """Give the speed of the moving."""
        return self._total_bytes / (self._ended - self._began)


def wait_for_rest() -> None:
    """Wait until the processes that this one started do nothing any more."""
    before = descendants_core_seconds()
    while True:
        time.sleep(SETTLE_SECONDS)
        after = descendants_core_seconds()
        if after - before < REST * SETTLE_SECONDS:
            return
        before = after


def descendants_core_seconds() -> float:
    """Add up the processor time of this process's descendants."""
    return sum(map(core_seconds, tree(os.getpid())[1:]))


def main(source: str, output: str, workers: str) -> None:
    """Convert inline where ``workers`` is 0."""
    pace = Pace()
    distconv.convert(source, output, workers=int(workers) or None, progress=pace)
    sys.stdout.write(json.dumps({"gigabytes_per_second": pace.bytes_per_second() / 1e9}) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
