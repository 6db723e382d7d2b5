"""Check INPUT's own checksums before its bytes are trusted: MD5 by checklist, else CRC32 by record.

A model in Transformers' format has a checksum only where torch saved it; of the rest index, headers and
config.json are held against each other.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from distconv.errors import InputError
from distconv.formats.meta.checklist import compare_crc32, compare_md5
from distconv.humanize import format_count, pluralise
from distconv.moving.progress import Progress
from distconv.moving.progress_default import take_progress
from distconv.storage.base import PathLike, Storage
from distconv.storage.parallel import map_at_once
from distconv.storage.places import read_place
from distconv.verbs.checkable import Task, Work, look_at_checkpoint, look_at_model, look_at_trained
from distconv.verbs.kinds import Kind, reading_kind
from distconv.verbs.options import Options, open_storage, read_place_or_none
from distconv.verbs.reports import Report

_FILES_AT_ONCE = 16


@dataclass(frozen=True, slots=True, repr=False)
class CheckReport(Report):
    """What was checked, how, and what is wrong."""

    source: str
    by_md5: int
    by_crc32: int
    by_headers: int
    """Files of a model in Transformers' format whose data has nothing that it could be compared with."""
    size_bytes: int
    findings: tuple[str, ...]
    notes: tuple[str, ...]

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong."""
        return not self.findings

    def __bool__(self) -> bool:
        """Whether nothing is wrong."""
        return self.ok

    def to_json(self) -> dict[str, object]:
        """Give the same as plain values."""
        return {
            "source": self.source,
            "ok": self.ok,
            "files_by_md5": self.by_md5,
            "files_by_crc32": self.by_crc32,
            "files_by_headers": self.by_headers,
            "size_bytes": self.size_bytes,
            "findings": list(self.findings),
            "notes": list(self.notes),
        }

    def lines(self) -> tuple[str, ...]:
        """Give the same for people."""
        headers = f", {self.by_headers} by headers alone" if self.by_headers else ""
        checked = f"{format_count(self.by_md5, 'file')} by MD5, {self.by_crc32} by CRC32{headers}"
        if self.ok and not (self.by_md5 or self.by_crc32 or self.by_headers):
            return (f"{self.source}: headers fit; there are no checksums to compare with",)
        if self.ok:
            return (f"{self.source}: {checked}, all as they should be",)
        return (f"{self.source}: {checked}, {format_count(len(self.findings), 'finding')}", *self.findings)


def check(
    source: PathLike, *, family: str | None = None, instruct: bool | None = None,
    tokenizer: PathLike | None = None, params: PathLike | None = None, like: PathLike | None = None,
    dialect: str | None = None, fill_from_like: bool = False, endpoint_url: str | None = None,
    progress: Progress | None = None,
) -> CheckReport:  # fmt: skip
    """Read the headers of ``source`` and compare every file with its checksum; all findings come together.

    Files that a checklist names are compared by MD5, other zipped shards by the CRC32 of their records where one is
    recorded. Takes what is said of ``source`` as ``convert`` does, and ``progress``. Raises InputError only where no
    model is found at all, UsageError for what was asked.
    """
    options = Options(
        source=read_place(source), output="", family=family, instruct=instruct,
        tokenizer=read_place_or_none(tokenizer),
        params=read_place_or_none(params), like=read_place_or_none(like), dialect=dialect,
        fill_from_like=fill_from_like, endpoint_url=endpoint_url,
    )  # fmt: skip
    return check_input(options, take_progress(progress))


def check_input(options: Options, progress: Progress) -> CheckReport:
    """Check as ``check`` does."""
    storage = open_storage(options)
    work = _look(storage, options)
    tasks, findings = work.tasks, list(work.findings)
    if tasks:
        kind = pluralise(len(tasks), "file")
        progress.begin(sum(task.size_bytes for task in tasks), len(tasks), kind)
        try:
            findings += _run(storage, tasks, progress)
        finally:
            progress.end()
    return CheckReport(
        source=options.source,
        by_md5=sum(task.listed is not None for task in tasks),
        by_crc32=sum(task.listed is None for task in tasks),
        by_headers=work.by_headers,
        size_bytes=sum(task.size_bytes for task in tasks),
        findings=tuple(dict.fromkeys(findings)),
        notes=tuple(work.notes),
    )


def _look(storage: Storage, options: Options) -> Work:
    with reading_kind(storage, options) as kind:
        return _LOOK[kind](storage, options)


_LOOK = {
    Kind.TRAINED: look_at_trained,
    Kind.TRANSFORMERS: look_at_model,
    Kind.META: look_at_checkpoint,
}


def _run(storage: Storage, tasks: Sequence[Task], progress: Progress) -> list[str]:
    """Check many files at once; an interruption stops all of them."""

    def run(task: Task, stopped: Callable[[], bool]) -> list[str]:
        try:
            found = list(_check_file(storage, task, progress.advance, stopped))
        except InputError as error:
            found = [str(error)]
        progress.unit_done(task.path)
        return found

    return [finding for found in map_at_once(run, tasks, _FILES_AT_ONCE) for finding in found]


def _check_file(
    storage: Storage, task: Task, advance: Callable[[int], None], stopped: Callable[[], bool]
) -> Iterator[str]:
    if task.listed is None:
        yield from compare_crc32(storage, task.path, task.records, advance, stopped)
        return
    difference = compare_md5(storage, task.listed, advance, stopped)
    if difference is not None:
        yield difference
