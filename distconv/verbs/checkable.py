"""What of INPUT can be compared with checksums of its own, and what headers and names alone tell."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from distconv.errors import InputError
from distconv.formats.boxes import list_views
from distconv.formats.headers import FindNames
from distconv.formats.meta.catalog import Catalog, read_catalog
from distconv.formats.meta.checklist import Listed, read_checklists
from distconv.formats.meta.files import SourceFiles, find_files
from distconv.formats.meta.layouts import ShardFiles
from distconv.formats.meta.small_files import CONFIG_NAME, describe_missing_tokenizer
from distconv.formats.safetensors.catalog import read_transformers_catalog
from distconv.formats.safetensors.folder import TransformersFiles, find_transformers_files
from distconv.formats.safetensors.names import find_transformers_names, keep_names
from distconv.humanize import list_some
from distconv.layout.files import OutputTensor
from distconv.layout.regions import Region
from distconv.output.targets import CHECKLIST_NAME, RECEIPT_NAME
from distconv.storage.base import Storage, join
from distconv.verbs.options import Options
from distconv.verbs.sources import Found, open_meta
from distconv.verbs.trained_input import TrainedInput, find_trained_files, take_like
from distconv.verbs.transformers_model import read_any_model


@dataclass(frozen=True, slots=True)
class Task:
    """One file to be read whole, or record by record."""

    path: str
    size_bytes: int
    listed: Listed | None
    records: tuple[Region, ...] = ()


@dataclass(frozen=True, slots=True)
class Work:
    """What is to be read, and what headers and names alone tell."""

    tasks: Sequence[Task]
    findings: Sequence[str]
    notes: Sequence[str]
    by_headers: int = 0


def has_checksums(storage: Storage, found: Found, tensors: Iterable[OutputTensor]) -> bool:
    """Whether INPUT, of which tensors are made, has checksums of its own; of a trainer's files the first one tells."""
    regions = (tensor.copies[0].region for tensor in tensors if tensor.copies)
    if isinstance(found, TrainedInput):
        own = next((region for region in regions if region.path in found.files.weights), None)
        return own is not None and bool(found.files.read_checksums(storage, [own]))
    if any(region.crc32 for region in regions):
        return True
    return isinstance(found, SourceFiles) and bool(read_checklists(storage, found)[0])


def look_at_checkpoint(storage: Storage, options: Options) -> Work:
    """Read a checkpoint's headers and checklists; InputError where there is none."""
    files = find_files(storage, options.source, options.tokenizer, options.params)
    findings: list[str] = []
    try:
        open_meta(storage, options)
    except InputError as error:
        findings += str(error).splitlines()
    tasks, notes, wrong = _make_tasks(storage, files)
    if files.tokenizer is None:
        notes.append(describe_missing_tokenizer(files.folder))
    return Work(tasks, [*findings, *wrong], notes)


def look_at_trained(storage: Storage, options: Options) -> Work:
    """Compare each item of a trainer's checkpoint with the CRC32 behind its data, the optimizer's as well."""
    files = find_trained_files(storage, options)
    findings: list[str] = []
    if options.like is not None:
        try:
            take_like(storage, options, files).read(storage)
        except InputError as error:
            findings += str(error).splitlines()
    records: dict[str, list[Region]] = {}
    try:
        boxed = files.read(storage, files.tensors)
    except InputError as error:
        return Work((), [*findings, *str(error).splitlines()], files.notes)
    for view in list_views(boxed.values()):
        records.setdefault(view.region.path, []).append(view.region)
    tasks, bare = [], 0
    for path, regions in records.items():
        known = files.read_checksums(storage, regions)
        if known:
            tasks.append(Task(path, sum(region.size_bytes for region in known), None, tuple(known)))
        else:
            bare += 1
    return Work(tasks, findings, files.notes, bare)


def look_at_model(storage: Storage, options: Options) -> Work:
    """Hold index, headers and config.json against each other; only what torch saved has checksums.

    InputError where the files are not those of one model.
    """
    files = find_transformers_files(storage, options.source)
    findings: list[str] = []
    find_names: FindNames = find_transformers_names
    foreign = None
    try:
        model = read_any_model(storage, files, family=options.family)
        if isinstance(model, str):
            foreign, find_names = model, keep_names
            read_transformers_catalog(storage, files, find_names)
    except InputError as error:
        findings += str(error).splitlines()
    tasks, bare = [], []
    for path in files.weights:
        records = _find_records(storage, replace(files, weights=(path,), index=None), find_names)
        if records is None:
            continue
        if records:
            tasks.append(Task(path, sum(record.size_bytes for record in records), None, records))
        else:
            bare.append(path)
    compared = "headers and index" if find_names is keep_names else f"headers, index and {CONFIG_NAME}"
    notes = [_note_bare(storage, files.folder, bare, compared)] if bare else []
    if foreign is not None:
        notes.append(
            f"{foreign}; of a model that cannot be brought into Meta's layout tensors are not compared with {CONFIG_NAME} "
            f"here; `distconv verify {files.folder}` does"
        )
    return Work(tasks, findings, notes, len(bare))


def _find_records(
    storage: Storage, files: TransformersFiles, find_names: FindNames
) -> tuple[Region, ...] | None:
    """Give the records of one file that have checksums; None where it cannot be read, which has been told."""
    try:
        tensors = read_transformers_catalog(storage, files, find_names).tensors
    except InputError:
        return None
    records = dict.fromkeys(view.region for view in tensors.values())
    return tuple(record for record in records if record.crc32)


def _note_bare(storage: Storage, folder: str, paths: Sequence[str], compared: str) -> str:
    words = f"{list_some(paths, 1)}: no checksums are in it, so that only {compared} were compared"
    if storage.find(join(folder, RECEIPT_NAME)) is None:
        return words
    return f"{words}; distconv verify {folder} compares its data with the digests in {RECEIPT_NAME}"


def _make_tasks(storage: Storage, files: SourceFiles) -> tuple[list[Task], list[str], list[str]]:
    """Decide how each file is checked; also notes, and findings about the checklists."""
    listed, wrong = read_checklists(storage, files)
    findings = list(wrong)
    tasks = []
    for entry in listed:
        found = storage.find(entry.path)
        if found is None:
            findings.append(f"{entry.path}: missing, though {entry.checklist} lists it")
        else:
            tasks.append(Task(entry.path, found.size_bytes, entry))
    names = {entry.path for entry in listed}
    unlisted = [path for path in files.weights if path not in names]
    notes = []
    for path, catalog in ((path, _try_catalog(storage, path)) for path in unlisted):
        records = _records_with_checksum(catalog, path)
        if records:
            tasks.append(Task(path, sum(record.size_bytes for record in records), None, records))
        elif catalog is not None:
            notes.append(f"{path}: no checklist names it and no checksums are in it; nothing to compare with")
    beside = [path for path in (files.params, files.tokenizer) if path is not None and path not in names]
    if beside:
        notes.append(
            f"{' and '.join(beside)}: compared with nothing, as no checklist names {'them' if len(beside) > 1 else 'it'}; Meta's "
            f"download, and what `to='meta'` makes, have a {CHECKLIST_NAME}"
        )
    return tasks, notes, findings


def _try_catalog(storage: Storage, path: str) -> Catalog | None:
    """Read one file's catalog; what is wrong with it has been found already."""
    try:
        return read_catalog(storage, (ShardFiles(0, (path,)),))
    except InputError:
        return None


def _records_with_checksum(catalog: Catalog | None, path: str) -> tuple[Region, ...]:
    if catalog is None:
        return ()
    views = (view for shard in catalog for view in shard.tensors.values())
    records = dict.fromkeys(view.region for view in views)
    return tuple(record for record in records if record.path == path and record.crc32)
