"""Whether the data of a model folder is what its digests and checksums say: each file is read once, from end to end."""

import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from xxhash import xxh3_128

from distconv.errors import InputError
from distconv.formats.meta.checklist import parse_checklist
from distconv.formats.meta.checksums import update_crc32
from distconv.formats.written import Headers, Written
from distconv.moving.progress import Progress
from distconv.output.findings import Finding
from distconv.output.receipt import ModelReceipt, RecordedChunk
from distconv.output.targets import CHECKLIST_NAME, RECEIPT_NAME, Target
from distconv.storage.base import Storage, join, opened, read_small
from distconv.storage.blocks import read_blocks
from distconv.storage.parallel import map_at_once

_LANES = 4
_CHECKLIST_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class _Task:
    """One file to be read, and what it is compared with: the receipt's row, CRC32s of its own, an MD5."""

    name: str
    path: str
    size_bytes: int
    tensors: Mapping[str, Written]
    recorded: RecordedChunk | None
    md5: str | None


@dataclass(frozen=True, slots=True)
class _Read:
    """What was computed; by tensors' names, and in hex but for the CRC32s."""

    digests: Mapping[str, str]
    checksums: Mapping[str, int]
    whole: str
    md5: str


def check_data(
    storage: Storage,
    output: str,
    target: Target,
    receipt: ModelReceipt | None,
    headers: Headers,
    progress: Progress,
) -> list[Finding]:
    """Read all files of weights whose headers could be read, several at once, and compare what can be.

    Digests of the receipt, CRC32s of archives, and the MD5s of a checklist that a conversion wrote.
    An interruption stops all of them.
    """

    def check(task: _Task, stopped: Callable[[], bool]) -> Finding | None:
        try:
            found = _compare(storage, task, progress.advance, stopped)
        except InputError as error:  # it was changed since its header was read
            found = Finding(str(error), task.name)
        progress.unit_done(task.name)
        return found

    tasks, findings = _make_tasks(storage, output, target, receipt, headers)
    kind = "files" if {task.name for task in tasks} - headers.keys() else f"{target.noun}s"
    progress.begin(sum(task.size_bytes for task in tasks), len(tasks), kind)
    try:
        return [*findings, *(found for found in map_at_once(check, tasks, _LANES) if found is not None)]
    finally:
        progress.end()


def _make_tasks(
    storage: Storage, output: str, target: Target, receipt: ModelReceipt | None, headers: Headers
) -> tuple[list[_Task], list[Finding]]:
    """List the files to be read; what stands beside the weights only where a checklist names it."""
    recorded = {} if receipt is None else {chunk.name: chunk for chunk in receipt.chunks}
    listed, findings = _read_checklist(storage, output, target)
    tasks = []
    for name in (*headers, *sorted(listed.keys() - headers.keys() - recorded.keys())):
        path, row = join(output, name), recorded.get(name)
        entry = storage.find(path)
        if entry is None:
            findings.append(Finding(f"{path}: missing, though {CHECKLIST_NAME} lists it"))
            continue
        size_bytes = entry.size_bytes if row is None else row.size_bytes
        tasks.append(_Task(name, path, size_bytes, headers.get(name, {}), row, listed.get(name)))
    return tasks, findings


def _read_checklist(storage: Storage, output: str, target: Target) -> tuple[Mapping[str, str], list[Finding]]:
    """Give the MD5s, by name, of the checklist that a target's conversion writes; none where it writes none."""
    path = join(output, CHECKLIST_NAME)
    if not target.is_sidecar(CHECKLIST_NAME) or storage.find(path) is None:
        return {}, []
    try:
        listed = tuple(parse_checklist(path, "", read_small(storage, path, _CHECKLIST_BYTES)))
    except InputError as error:
        return {}, [Finding(str(error))]
    return {entry.path: entry.md5 for entry in listed}, []


def _compare(
    storage: Storage, task: _Task, advance: Callable[[int], None], stopped: Callable[[], bool]
) -> Finding | None:
    """Read a file and tell of the first that differs: its tensors, what is around them, all of it."""
    read = _read(storage, task, advance, stopped)
    if task.recorded is not None:
        digests = task.recorded.tensors
        own = {name: digest for name, digest in read.digests.items() if task.tensors[name].shares is None}
        damaged = [name for name, digest in own.items() if digest != digests.get(name)]
        if damaged:
            words = f"the data of {', '.join(damaged)} differs from its digest in {RECEIPT_NAME}"
            return Finding(f"{task.path}: {words}", task.name)
        if task.recorded.digest not in {None, read.whole}:
            return Finding(f"{task.path}: its header differs from its digest in {RECEIPT_NAME}", task.name)
    damaged = [name for name, checksum in read.checksums.items() if checksum != task.tensors[name].crc32]
    if damaged:
        words = f"the data of {', '.join(damaged)} differs from its CRC32 in the archive's directory"
        return Finding(f"{task.path}: {words}", task.name)
    if task.md5 not in {None, read.md5}:
        return Finding(f"{task.path}: MD5 {read.md5}, {CHECKLIST_NAME} gives {task.md5}")
    return None


def _read(
    storage: Storage, task: _Task, advance: Callable[[int], None], stopped: Callable[[], bool]
) -> _Read:
    whole, md5 = xxh3_128(), hashlib.md5(usedforsecurity=False)
    has_whole = task.recorded is not None and task.recorded.digest is not None
    digests: dict[str, str] = {}
    checksums: dict[str, int] = {}
    with opened(storage, task.path) as reader:
        for first, end, names in _list_runs(task.tensors, reader.size_bytes):
            digest, checksum = xxh3_128(), 0
            sums = [name for name in names if task.tensors[name].crc32 is not None]
            for content in read_blocks(reader, first, end, stopped):
                if has_whole:
                    whole.update(content)
                if task.md5 is not None:
                    md5.update(content)
                if names:
                    digest.update(content)
                if sums:
                    checksum = update_crc32(checksum, content)
                advance(len(content))
            digests |= dict.fromkeys(names, digest.hexdigest())
            checksums |= dict.fromkeys(sums, checksum)
    return _Read(digests, checksums, whole.hexdigest(), md5.hexdigest())


def _list_runs(tensors: Mapping[str, Written], size_bytes: int) -> Iterator[tuple[int, int, tuple[str, ...]]]:
    """Give runs of bytes that cover the file: first byte, end, names of the tensors whose data it is."""
    spans: dict[tuple[int, int], list[str]] = {}
    for name, written in tensors.items():
        spans.setdefault((written.offset_bytes, written.end_bytes), []).append(name)
    position = 0
    for (first, end), names in sorted(spans.items()):
        if first > position:
            yield position, first, ()
        yield first, end, tuple(names)
        position = max(position, end)
    if position < size_bytes:
        yield position, size_bytes, ()
