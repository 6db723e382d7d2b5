"""Check INPUT's own checksums before its bytes are trusted: MD5 by checklist, else CRC32 by record.

A model in Transformers' format has a checksum only where torch saved it; of the rest index, headers and
config.json are held against each other.
"""

import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

from distconv.errors import InputError
from distconv.formats.meta.catalog import Catalog, read_catalog
from distconv.formats.meta.checklist import Listed, compare_crc32, compare_md5, read_checklists
from distconv.formats.meta.files import CONFIG_NAME, SourceFiles, find_files
from distconv.formats.safetensors.catalog import read_transformers_catalog
from distconv.formats.safetensors.folder import TransformersFiles, find_transformers_files
from distconv.humanize import format_count
from distconv.layout.regions import Region
from distconv.moving.progress import Progress, SilentProgress
from distconv.output.targets import RECEIPT_NAME
from distconv.storage.base import PathLike, Storage, join
from distconv.storage.local import LocalStorage
from distconv.verbs.options import Options
from distconv.verbs.sources import is_transformers_model, open_meta, open_transformers

_FILES_AT_ONCE = 16


@dataclass(frozen=True, slots=True)
class CheckReport:
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


@dataclass(frozen=True, slots=True)
class _Work:
    """What is to be read, and what headers and names alone tell."""

    tasks: Sequence[_Task]
    findings: Sequence[str]
    notes: Sequence[str]
    by_headers: int = 0


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
    their records where one is recorded. InputError only where no model is found at all.
    """
    storage = LocalStorage()
    progress = progress or SilentProgress()
    options = Options(
        source=os.fspath(source), output="", family=family, instruct=instruct,
        tokenizer=None if tokenizer is None else os.fspath(tokenizer),
        params=None if params is None else os.fspath(params),
    )  # fmt: skip
    back = is_transformers_model(storage, options)
    work = _look_at_model(storage, options) if back else _look_at_checkpoint(storage, options)
    tasks, findings = work.tasks, list(work.findings)
    if tasks:
        progress.begin(sum(task.size_bytes for task in tasks), len(tasks), "files")
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


def _look_at_checkpoint(storage: Storage, options: Options) -> _Work:
    files = find_files(storage, options.source, options.tokenizer, options.params)
    findings: list[str] = []
    try:
        open_meta(storage, options)
    except InputError as error:
        findings += str(error).splitlines()
    tasks, notes, wrong = _make_tasks(storage, files)
    return _Work(tasks, [*findings, *wrong], notes)


def _look_at_model(storage: Storage, options: Options) -> _Work:
    """Hold index, headers and config.json against each other; only what torch saved has checksums."""
    files = find_transformers_files(storage, options.source)
    findings: list[str] = []
    try:
        open_transformers(storage, options)
    except InputError as error:
        findings += str(error).splitlines()
    tasks, bare = [], []
    for path in files.weights:
        records = _find_records(storage, replace(files, weights=(path,), index=None))
        if records is None:
            continue
        if records:
            tasks.append(_Task(path, sum(record.size_bytes for record in records), None, records))
        else:
            bare.append(path)
    notes = [_note_bare(storage, files.folder, bare)] if bare else []
    return _Work(tasks, findings, notes, len(bare))


def _find_records(storage: Storage, files: TransformersFiles) -> tuple[Region, ...] | None:
    """Give the records of one file that have checksums; None where it cannot be read, which has been told."""
    try:
        tensors = read_transformers_catalog(storage, files).tensors
    except InputError:
        return None
    records = dict.fromkeys(view.region for view in tensors.values())
    return tuple(record for record in records if record.crc32)


def _note_bare(storage: Storage, folder: str, paths: Sequence[str]) -> str:
    more = f" and {len(paths) - 1:,} more" if len(paths) > 1 else ""
    words = f"{paths[0]}{more}: no checksums are in it, so that only headers, index and {CONFIG_NAME} were compared"
    if storage.find(join(folder, RECEIPT_NAME)) is None:
        return words
    return f"{words}; distconv verify {folder} compares its data with the digests in {RECEIPT_NAME}"


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
