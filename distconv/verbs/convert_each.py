"""Convert all checkpoints of a run, each into a folder of its own; the same command again goes on."""

import os
import re
from collections.abc import Callable
from dataclasses import dataclass, replace

from distconv.errors import DistconvError, InputError, OutputError
from distconv.humanize import list_some, shorten
from distconv.moving.progress import Progress, SilentProgress
from distconv.storage.base import PathLike, Storage, join
from distconv.storage.places import read_place
from distconv.verbs.conversion_report import ConversionReport
from distconv.verbs.options import Options, open_storage, read_place_or_none
from distconv.verbs.reports import Report
from distconv.verbs.trained_input import is_being_saved, is_trained

_MOST_FINDINGS = 8
"""Of one checkpoint."""
_MOST_SHOWN = 8


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
    progress: Progress | None = None,
) -> EachReport:
    """Convert every checkpoint directly below ``source`` into a folder of its name.

    One that was not saved to its end is left out, which ``progress`` is told. One that cannot be converted keeps no other
    from it: InputError with what is wrong with each comes last. InputError also where there is none to convert.
    """
    options = Options(read_place(source), "", like=read_place_or_none(like), endpoint_url=endpoint_url)
    names = _list_steps(open_storage(options), options, progress or SilentProgress())
    reports: list[ConversionReport] = []
    findings: list[str] = []
    for name in names:
        step, out = join(options.source, name), join(os.fspath(output), name)
        try:
            reports.append(convert(step, out))
        except (InputError, OutputError) as error:
            findings += shorten(_name_step(step, out, error), _MOST_FINDINGS)
        except DistconvError as error:
            raise type(error)("\n".join(_name_step(step, out, error))) from error
    if findings:
        failed = len(names) - len(reports)
        done = (
            f"; done are {list_some([os.path.basename(one.output) for one in reports], _MOST_SHOWN)}"
            if reports
            else ""
        )
        raise InputError.of(
            [*findings, f"{options.source}: {failed} of {len(names)} checkpoints were not converted{done}"]
        )
    return EachReport(tuple(reports))


def _name_step(step: str, out: str, error: DistconvError) -> list[str]:
    """Give an error's lines, which name the step."""
    lines = str(error).splitlines()
    return (
        lines if any(step in line or out in line for line in lines) else [f"{step}: {line}" for line in lines]
    )


def _list_steps(storage: Storage, options: Options, progress: Progress) -> list[str]:
    """Give the names of whole checkpoints in their order; InputError where there is none."""
    found: list[str] = []
    unfinished: list[str] = []
    for entry in storage.list_folder(options.source):
        one = replace(options, source=join(options.source, entry.name))
        if entry.is_folder and is_trained(storage, one):
            (unfinished if is_being_saved(storage, one) else found).append(entry.name)
    left = (
        f"{options.source}: {list_some(sorted(unfinished, key=_order), _MOST_SHOWN)}: no .metadata, which is written last: not "
        "saved to its end yet, and left out; run the same command again when it is"
    )
    if not found:
        words = f"{options.source}: no trainer's checkpoint directly below it; give the folder in which those of the steps lie"
        raise InputError.of([words, *([left] if unfinished else [])])
    if unfinished:
        progress.note(f"note: {left}")
    return sorted(found, key=_order)


def _order(name: str) -> list[tuple[int, str]]:
    """Order by the numbers in names, so that step 900 is before step 1000."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name)]
