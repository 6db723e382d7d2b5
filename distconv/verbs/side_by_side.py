"""OUTPUT's tensors that are compared with INPUT's, by several lanes of this process at once."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

from distconv.errors import Interrupted
from distconv.formats.written import Headers, Written
from distconv.layout.units import Examination, Unit
from distconv.moving.digests import NO_DIGESTS
from distconv.moving.job import Job, Receipt
from distconv.moving.progress import Progress
from distconv.moving.running import run_here
from distconv.moving.sources import Sources
from distconv.output.contents import take_written
from distconv.output.findings import Finding
from distconv.storage.base import Reader, Storage


@dataclass(frozen=True, slots=True)
class Reading:
    """What one comparison reads INPUT and OUTPUT through, and whom it tells of the bytes that it has compared."""

    sources: Sources
    told: Callable[[int], None]
    stopped: Callable[[], bool]

    def open(self, written: Written) -> Reader:
        """Open the file that holds a tensor of OUTPUT, once."""
        return self.sources.open(written.path)

    def advance(self, size_bytes: int) -> None:
        """Tell of bytes that are compared; Interrupted where no more are wanted."""
        if self.stopped():
            raise Interrupted("stopped")
        self.told(size_bytes)


Compare = Callable[[Reading], list[Finding]]
Wanted = TypeVar("Wanted")
"""What one tensor of OUTPUT is compared with."""


def ask_for(name: str, written: Mapping[str, Written], *, is_part: bool = False) -> Examination:
    """Name tensors, as OUTPUT has them, that are compared by one lane."""
    runs = tuple(take_written(tensor, place) for tensor, place in written.items())
    return Examination(name, runs, is_part=is_part)


def compare_files(
    storage: Storage,
    headers: Headers,
    take: Callable[[str], Wanted],
    compare: Callable[[Reading, Wanted, str, Written], str | None],
    progress: Progress,
) -> list[Finding]:
    """Compare each file's tensors with what is taken by their names, in the order of the files; tell what is wrong with them."""
    asked: list[tuple[Examination, Compare]] = []
    for file, written in headers.items():
        wanted = [(take(name), name, place) for name, place in written.items()]
        asked.append((ask_for(file, written), partial(_compare_file, file, wanted, compare)))
    return compare_side_by_side(storage, asked, progress)


def _compare_file(
    file: str,
    wanted: Sequence[tuple[Wanted, str, Written]],
    compare: Callable[[Reading, Wanted, str, Written], str | None],
    reading: Reading,
) -> list[Finding]:
    found = (compare(reading, *one) for one in wanted)
    return [Finding(words, file) for words in found if words is not None]


def compare_side_by_side(
    storage: Storage, asked: Sequence[tuple[Examination, Compare]], progress: Progress
) -> list[Finding]:
    """Do all comparisons; their findings come in the order in which they were asked for."""
    compares = {unit.name: compare for unit, compare in asked}
    found: dict[str, list[Finding]] = {}

    def convert(job: Job, unit: Unit, advance: Callable[[int], None], stopped: Callable[[], bool]) -> Receipt:
        with Sources(job.storage) as sources:
            found[unit.name] = compares[unit.name](Reading(sources, advance, stopped))
        return Receipt(unit.name, NO_DIGESTS, sources.bytes_read, 0)

    run_here(Job(storage, "", "cpu"), [unit for unit, _compare in asked], progress, convert=convert)
    return [finding for name in compares for finding in found[name]]
