"""Convert all checkpoints of a run, each into a folder of its own; the same command again goes on."""

import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from distconv.errors import DistconvError, InputError
from distconv.storage.base import PathLike, Storage, join
from distconv.storage.places import read_place
from distconv.verbs.conversion_report import ConversionReport
from distconv.verbs.options import Options, open_storage, read_place_or_none
from distconv.verbs.reports import Report
from distconv.verbs.trained_input import is_trained


@dataclass(frozen=True, slots=True, repr=False)
class EachReport(Report):
    """What was made of each step, in their order."""

    reports: tuple[ConversionReport, ...]

    @property
    def notes(self) -> tuple[str, ...]:
        """What was said of each."""
        return tuple(dict.fromkeys(note for report in self.reports for note in report.notes))

    def to_json(self) -> dict[str, object]:
        """Give the same as plain values."""
        return {"steps": [report.to_json() for report in self.reports]}

    def lines(self) -> tuple[str, ...]:
        """Give the same for people."""
        return tuple(line for report in self.reports for line in report.lines())


Convert = Callable[[str, str], ConversionReport]
"""Converts what is in one folder into another."""


def convert_each(
    source: PathLike,
    output: PathLike,
    convert: Convert,
    *,
    like: PathLike | None = None,
    endpoint_url: str | None = None,
) -> EachReport:
    """Convert every checkpoint directly below ``source`` into a folder of its name; InputError where there is none.

    The first that cannot be converted ends it; its error names it.
    """
    options = Options(read_place(source), "", like=read_place_or_none(like), endpoint_url=endpoint_url)
    names = sorted(_list_steps(open_storage(options), options), key=_order)
    if not names:
        raise InputError(
            f"{options.source}: no trainer's checkpoint directly below it; give the folder in which those of the steps lie"
        )
    reports: list[ConversionReport] = []
    for name in names:
        step, out = join(options.source, name), join(os.fspath(output), name)
        try:
            reports.append(convert(step, out))
        except DistconvError as error:
            if step in str(error) or out in str(error):
                raise
            raise type(error)(f"{step}: {error}") from error
    return EachReport(tuple(reports))


def _list_steps(storage: Storage, options: Options) -> Iterator[str]:
    for entry in storage.list_folder(options.source):
        if entry.is_folder and is_trained(storage, replace(options, source=join(options.source, entry.name))):
            yield entry.name


def _order(name: str) -> list[tuple[int, str]]:
    """Order by the numbers in names, so that step 900 is before step 1000."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name)]
