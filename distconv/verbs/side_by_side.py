"""OUTPUT's tensors that are compared with INPUT's, by several lanes of this process at once."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from distconv.errors import Interrupted
from distconv.formats.written import Written
from distconv.layout.units import Examination, Unit
from distconv.moving.digests import NO_DIGESTS
from distconv.moving.job import Job, Receipt
from distconv.moving.progress import Progress
from distconv.moving.running import run_here
from distconv.moving.sources import Sources
from distconv.output.contents import take_written
from distconv.output.findings import Finding
from distconv.storage.base import Storage


@dataclass(frozen=True, slots=True)
class Reading:
    """What one comparison reads INPUT and OUTPUT through, and whom it tells of the bytes that it has compared."""

    storage: Storage
    sources: Sources
    told: Callable[[int], None]
    stopped: Callable[[], bool]

    def advance(self, size_bytes: int) -> None:
        """Tell of bytes that are compared; Interrupted where no more are wanted."""
        if self.stopped():
            raise Interrupted("stopped")
        self.told(size_bytes)


Compare = Callable[[Reading], list[Finding]]


def ask_for(name: str, written: Mapping[str, Written], *, is_part: bool = False) -> Examination:
    """Name tensors, as OUTPUT has them, that are compared by one lane."""
    runs = tuple(take_written(tensor, place) for tensor, place in written.items())
    return Examination(name, runs, is_part=is_part)


def compare_side_by_side(
    storage: Storage, asked: Mapping[Examination, Compare], progress: Progress
) -> list[Finding]:
    """Do all comparisons; their findings come in the order in which they were asked for."""
    compares = {unit.name: compare for unit, compare in asked.items()}
    found: dict[str, list[Finding]] = {}

    def convert(job: Job, unit: Unit, advance: Callable[[int], None], stopped: Callable[[], bool]) -> Receipt:
        with Sources(job.storage) as sources:
            found[unit.name] = compares[unit.name](Reading(job.storage, sources, advance, stopped))
        return Receipt(unit.name, NO_DIGESTS, sources.bytes_read, 0)

    run_here(Job(storage, "", "cpu"), tuple(asked), progress, convert=convert)
    return [finding for name in compares for finding in found[name]]
