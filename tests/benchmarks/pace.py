"""Convert in this process and print, as JSON, the speed of the moving, all workers being up."""

import json
import sys
import time

import distconv
from distconv.progress import SilentProgress

SETTLE_SECONDS = 3.0


class Pace(SilentProgress):
    """Notes when the moving began and ended."""

    def __init__(self) -> None:
        self._total_bytes = 0
        self._began = self._ended = 0.0

    def begin(self, total_bytes: int, units: int, kind: str = "chunks") -> None:
        # Ray tells of the first worker; by then the second one is up too.
        time.sleep(SETTLE_SECONDS)
        self._total_bytes = total_bytes
        self._began = time.monotonic()

    def unit_done(self, name: str) -> None:
        self._ended = time.monotonic()

    def bytes_per_second(self) -> float:
        """Give the speed of the moving."""
        return self._total_bytes / (self._ended - self._began)


def main(source: str, output: str, workers: str) -> None:
    """Convert inline where ``workers`` is 0."""
    pace = Pace()
    distconv.convert(source, output, workers=int(workers) or None, progress=pace)
    sys.stdout.write(json.dumps({"gigabytes_per_second": pace.bytes_per_second() / 1e9}) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
