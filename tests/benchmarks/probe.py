"""Convert in this process and print, as JSON, what it took: memory and bytes while moving."""

import json
import sys
import threading

import numpy as np
import tokenizers

import distconv.verbs.convert
from distconv.moving.progress import SilentProgress
from tests.benchmarks.measure import anonymous_bytes, io_bytes

__all__ = ["np", "tokenizers"]

SAMPLE_SECONDS = 0.005


class Probe(SilentProgress):
    """Notes memory and system-call bytes between the beginning and the end of the moving."""

    def __init__(self) -> None:
        self.imported_bytes = anonymous_bytes("self")
        self.before: dict[str, int] = {}
        self.after: dict[str, int] = {}
        self.begun_bytes = 0
        self.peak_bytes = 0
        self._ended = threading.Event()
        self._watcher = threading.Thread(target=self._watch)

    def begin(self, total_bytes: int, units: int, kind: str = "chunks") -> None:
        self.begun_bytes = anonymous_bytes("self")
        self.before = io_bytes()
        self._watcher.start()

    def end(self) -> None:
        self._ended.set()
        self._watcher.join()
        self.after = io_bytes()

    def _watch(self) -> None:
        while not self._ended.wait(SAMPLE_SECONDS):
            self.peak_bytes = max(self.peak_bytes, anonymous_bytes("self"))


def main(source: str, output: str, *options: str) -> None:
    """Convert and report."""
    probe = Probe()
    tokenizer = options[0] if options else None
    report = distconv.verbs.convert.convert(source, output, progress=probe, tokenizer=tokenizer)
    found = report.to_json() | {
        "anonymous_after_imports": probe.imported_bytes,
        "anonymous_before_moving": probe.begun_bytes,
        "anonymous_peak_moving": probe.peak_bytes,
        "proc_read": probe.after["read"] - probe.before["read"],
        "proc_written": probe.after["written"] - probe.before["written"],
    }
    sys.stdout.write(json.dumps(found) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
