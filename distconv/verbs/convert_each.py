"""Convert all checkpoints of a run, each into a folder of its own; the same command again goes on."""

import os
import posixpath
from collections.abc import Callable
from dataclasses import dataclass, replace

from distconv.errors import DistconvError, InputError, OutputError
from distconv.formats.meta.foreign import describe_folder
from distconv.humanize import list_some, shorten
from distconv.moving.progress import Progress, SilentProgress
from distconv.storage.base import PathLike, Storage, join
from distconv.storage.given import find_given
from distconv.storage.places import read_place
from distconv.verbs.conversion_report import ConversionReport
from distconv.verbs.options import Options, open_storage, read_place_or_none
from distconv.verbs.reports import Report
from distconv.verbs.trained_input import by_numbers, is_being_saved, is_trained

_MOST_FINDINGS = 8
"""Of one checkpoint."""
_MOST_SHOWN = 8


@dataclass(frozen=True, slots=True)
class FailedStep:
    """A step that was not converted, and what is wrong with it."""

    source: str
    output: str
    findings: tuple[str, ...]

    def to_json(self) -> dict[str, object]:
        """Give the same as plain values."""
        return {"source": self.source, "output": self.output, "findings": list(self.findings)}


@dataclass(frozen=True, slots=True, repr=False)
class EachReport(Report):
    """What was made of each step, in their order, and what was not."""

    source: str
    reports: tuple[ConversionReport, ...]
    failed: tuple[FailedStep, ...] = ()

    @property
    def notes(self) -> tuple[str, ...]:
        """What was said of each."""
        return tuple(dict.fromkeys(note for report in self.reports for note in report.notes))

    def to_json(self) -> dict[str, object]:
        """Give the same as plain values."""
        return {
            "steps": [report.to_json() for report in self.reports],
            "failed": [step.to_json() for step in self.failed],
        }

    def lines(self) -> tuple[str, ...]:
        """Give what was made for people; ``check`` tells what was not."""
        return tuple(line for report in self.reports for line in report.lines())

    def check(self) -> None:
        """Raise InputError with what is wrong with each step that was not converted, if there is one."""
        if not self.failed:
            return
        done = list_some([os.path.basename(one.output) for one in self.reports], _MOST_SHOWN)
        count = f"{len(self.failed)} of {len(self.failed) + len(self.reports)} checkpoints were not converted"
        raise InputError.of(
            [
                *(words for step in self.failed for words in shorten(step.findings, _MOST_FINDINGS)),
                f"{self.source}: {count}{f'; done are {done}' if done else ''}",
            ]
        )


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
    from it, and stands in the report. InputError where there is none to convert.
    """
    options = Options(read_place(source), "", like=read_place_or_none(like), endpoint_url=endpoint_url)
    reports: list[ConversionReport] = []
    failed: list[FailedStep] = []
    for name in _list_steps(open_storage(options), options, progress or SilentProgress()):
        step, out = join(options.source, name), join(os.fspath(output), name)
        try:
            reports.append(convert(step, out))
        except (InputError, OutputError) as error:
            failed.append(FailedStep(step, out, tuple(_name_step(step, out, error))))
        except DistconvError as error:
            raise type(error)("\n".join(_name_step(step, out, error))) from error
    return EachReport(options.source, tuple(reports), tuple(failed))


def _name_step(step: str, out: str, error: DistconvError) -> list[str]:
    """Give an error's lines, which name the step."""
    lines = str(error).splitlines()
    return (
        lines if any(step in line or out in line for line in lines) else [f"{step}: {line}" for line in lines]
    )


def _list_steps(storage: Storage, options: Options, progress: Progress) -> list[str]:
    """Give the names of whole checkpoints in their order; InputError where there is none."""
    if not find_given(storage, options.source).is_folder:
        raise InputError(
            f"{options.source}: a file, expected the folder in which the checkpoints of the steps lie"
        )
    found: list[str] = []
    unfinished: list[str] = []
    for name, links in _find_steps(storage, options).items():
        is_unfinished = is_being_saved(storage, replace(options, source=join(options.source, name)))
        (unfinished if is_unfinished else found).append(name)
        if links and not is_unfinished:
            progress.note(
                f"note: {options.source}: {list_some(links, _MOST_SHOWN)}: another name of {name}, left out"
            )
    if unfinished:
        left = (
            f"{options.source}: {list_some(sorted(unfinished, key=by_numbers), _MOST_SHOWN)}: no .metadata, which is written last: "
            f"not saved to its end yet, and {'left out' if found else 'there is no other checkpoint'}; run the same command "
            "again when it is"
        )
        if not found:
            raise InputError(left)
        progress.note(f"note: {left}")
    if not found:
        raise InputError(
            f"{options.source}: no trainer's checkpoint directly below it; {describe_folder(storage, options.source)}"
        )
    return sorted(found, key=by_numbers)


def _find_steps(storage: Storage, options: Options) -> dict[str, list[str]]:
    """Give the names of checkpoints, each with its other names here, as a link to the latest one is."""
    alike: dict[str, list[str]] = {}
    for entry in storage.list_folder(options.source):
        one = replace(options, source=join(options.source, entry.name))
        # A hidden one is a trainer's while it saves, or a tool's.
        if entry.is_folder and not entry.name.startswith(".") and is_trained(storage, one):
            alike.setdefault(storage.real_path(one.source), []).append(entry.name)
    steps = {}
    for real, names in alike.items():
        own = posixpath.basename(real)
        name = own if own in names else min(names, key=by_numbers)
        steps[name] = sorted(set(names) - {name})
    return steps
