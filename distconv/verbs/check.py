"""Check INPUT's own checksums before its bytes are trusted: MD5 by checklist, else CRC32 by record."""

import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from distconv.errors import InputError
from distconv.formats.meta.catalog import Catalog, read_catalog
from distconv.formats.meta.checklist import Listed, compare_crc32, compare_md5, read_checklists
from distconv.formats.meta.files import SourceFiles, find_files
from distconv.humanize import format_count
from distconv.layout.regions import Region
from distconv.moving.progress import Progress, SilentProgress
from distconv.storage.base import PathLike, Storage
from distconv.storage.local import LocalStorage
from distconv.verbs.checkpoint import read_checkpoint

_FILES_AT_ONCE = 16


@dataclass(frozen=True, slots=True)
class CheckReport:
    """What was checked, how, and what is wrong."""

    source: str
    by_md5: int
    by_crc32: int
    size_bytes: int
    findings: tuple[str, ...]
    notes: tuple[str, ...]

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong."""
        return not self.findings

    def to_json(self) -> dict[str, object]:
        """Give the same as plain values."""
        return {
            "source": self.source,
            "ok": self.ok,
            "files_by_md5": self.by_md5,
            "files_by_crc32": self.by_crc32,
            "size_bytes": self.size_bytes,
            "findings": list(self.findings),
            "notes": list(self.notes),
        }

    def lines(self) -> tuple[str, ...]:
        """Give the same for people."""
        checked = f"{format_count(self.by_md5, 'file')} by MD5, {self.by_crc32} by CRC32"
        if self.ok:
            return (f"{self.source}: {checked}, all as they should be",)
        return (f"{self.source}: {checked}, {format_count(len(self.findings), 'finding')}", *self.findings)


@dataclass(frozen=True, slots=True)
class _Task:
    """One file to be read whole, or record by record."""

    path: str
    size_bytes: int
    listed: Listed | None
    records: tuple[Region, ...] = ()


def check(
    source: PathLike,
    *,
    family: str | None = None,
    instruct: bool = False,
    tokenizer: PathLike | None = None,
    params: PathLike | None = None,
    progress: Progress | None = None,
) -> CheckReport:
    """Read INPUT's headers and compare every file with its checksum; all findings come together.

    Files that a checklist names are compared by MD5, other zipped shards by the CRC32 of
    their records where one is recorded. InputError only where no checkpoint is found at all.
    """
    storage = LocalStorage()
    progress = progress or SilentProgress()
    path = os.fspath(source)
    given = None if tokenizer is None else os.fspath(tokenizer)
    given_params = None if params is None else os.fspath(params)
    files = find_files(storage, path, given, given_params)
    findings: list[str] = []
    try:
        read_checkpoint(
            storage, path, family=family, instruct=instruct, tokenizer=given, params_path=given_params
        )
    except InputError as error:
        findings += str(error).splitlines()
    tasks, notes, wrong = _make_tasks(storage, files)
    findings += wrong
    progress.begin(sum(task.size_bytes for task in tasks), len(tasks), "files")
    try:
        findings += _run(storage, tasks, progress)
    finally:
        progress.end()
    return CheckReport(
        source=path,
        by_md5=sum(task.listed is not None for task in tasks),
        by_crc32=sum(task.listed is None for task in tasks),
        size_bytes=sum(task.size_bytes for task in tasks),
        findings=tuple(dict.fromkeys(findings)),
        notes=tuple(notes),
    )


def _make_tasks(storage: Storage, files: SourceFiles) -> tuple[list[_Task], list[str], list[str]]:
    """Decide how each file is checked; also notes, and findings about the checklists."""
    listed, wrong = read_checklists(storage, files)
    findings = list(wrong)
    tasks = []
    for entry in listed:
        found = storage.find(entry.path)
        if found is None:
            findings.append(f"{entry.path}: missing, though {entry.checklist} lists it")
        else:
            tasks.append(_Task(entry.path, found.size_bytes, entry))
    names = {entry.path for entry in listed}
    unlisted = [path for shard in files.shards for path in shard.paths if path not in names]
    notes = []
    for path, catalog in ((path, _try_catalog(storage, files, path)) for path in unlisted):
        records = _records_with_checksum(catalog, path)
        if records:
            tasks.append(_Task(path, sum(record.size_bytes for record in records), None, records))
        elif catalog is not None:
            notes.append(f"{path}: no checklist names it and no checksums are in it; nothing to compare with")
    return tasks, notes, findings


def _try_catalog(storage: Storage, files: SourceFiles, path: str) -> Catalog | None:
    """Read one file's catalog; what is wrong with it has been found already."""
    shard = next(shard for shard in files.shards if path in shard.paths)
    try:
        return read_catalog(storage, (shard,))
    except InputError:
        return None


def _records_with_checksum(catalog: Catalog | None, path: str) -> tuple[Region, ...]:
    if catalog is None:
        return ()
    views = (view for shard in catalog for view in shard.tensors.values())
    records = dict.fromkeys(view.region for view in views)
    return tuple(record for record in records if record.path == path and record.crc32)


def _run(storage: Storage, tasks: Sequence[_Task], progress: Progress) -> list[str]:
    """Check many files at once; an interruption stops all of them."""
    stop = threading.Event()

    def run(task: _Task) -> list[str]:
        try:
            found = list(_check_file(storage, task, progress.advance, stop))
        except InputError as error:
            found = [str(error)]
        progress.unit_done(task.path)
        return found

    with ThreadPoolExecutor(_FILES_AT_ONCE) as pool:
        try:
            return [finding for found in pool.map(run, tasks) for finding in found]
        except BaseException:
            stop.set()
            raise


def _check_file(
    storage: Storage, task: _Task, advance: Callable[[int], None], stop: threading.Event
) -> Iterator[str]:
    if task.listed is None:
        yield from compare_crc32(storage, task.path, task.records, advance, stop.is_set)
        return
    difference = compare_md5(storage, task.listed, advance, stop.is_set)
    if difference is not None:
        yield difference
