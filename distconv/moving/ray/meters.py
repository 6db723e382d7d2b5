"""What operators watch: counters that Ray exports to Prometheus, one set a worker process."""

from ray.util.metrics import Counter

from distconv.moving.job import Receipt
from distconv.moving.scheduler import Failure
from distconv.moving.spans import STAGES


class Meters:
    """Counts what a worker did; Ray puts ``ray_`` before each name and the worker's id beside it."""

    def __init__(self) -> None:
        """Register the counters with Ray."""
        self._read = Counter("distconv_read_bytes", "Bytes read from INPUT by units that were done.")
        self._written = Counter("distconv_written_bytes", "Bytes of chunks that were written.")
        self._units = Counter("distconv_units", "Units that ended, by how.", ("outcome",))
        self._seconds = Counter("distconv_stage_seconds", "Seconds spent, by stage.", ("stage",))

    def count(self, end: Receipt | Failure) -> None:
        """Count the end of a unit."""
        if isinstance(end, Failure):
            self._units.inc(1, {"outcome": "failed"})
            return
        self._units.inc(1, {"outcome": "kept" if end.kept else "done"})
        # Ray refuses to add nothing to a counter.
        for counter, amount in ((self._read, end.bytes_read), (self._written, end.bytes_written)):
            if amount:
                counter.inc(amount)
        for stage, seconds in zip(STAGES, end.work.stage_seconds, strict=True):
            if seconds:
                self._seconds.inc(seconds, {"stage": stage})
