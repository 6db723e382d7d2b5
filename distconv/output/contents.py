"""What the data of a model folder is, and whether that is what its digests and checksums say.

Each file is read once, from end to end, by lanes of this process or by workers.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from distconv.errors import InputError
from distconv.formats.meta.checklist import parse_checklist
from distconv.formats.written import Headers, Place, Written, view_written
from distconv.layout.files import OutputTensor
from distconv.layout.units import Examination, Gap, split_examination
from distconv.moving.compare import target_of_view
from distconv.moving.executor import Cluster, forget
from distconv.moving.job import Found, Job
from distconv.moving.progress import Progress
from distconv.moving.running import run_units
from distconv.moving.values import Tally
from distconv.output.findings import Finding
from distconv.output.receipt import ModelReceipt, RecordedChunk
from distconv.output.targets import CHECKLIST_NAME, RECEIPT_NAME, Target
from distconv.storage.base import Storage, join, read_small

_CHECKLIST_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Seen:
    """What was seen of a tensor's data: its digest in hex, and its odd values."""

    written: Written
    tally: Tally
    digest: str | None
    """None where none was asked for."""


@dataclass(frozen=True, slots=True)
class Data:
    """What was seen of all data; tensors by the names of their files and their own."""

    findings: tuple[Finding, ...] = ()
    tensors: Mapping[tuple[str, str], Seen] | None = None
    """None where it was not read."""
    unread: frozenset[str] = frozenset()
    """Names of files that could not be read to their ends."""


@dataclass(frozen=True, slots=True)
class _Task:
    """One file to be read, and what it is compared with: the receipt's row, CRC32s of its own, an MD5."""

    name: str
    path: str
    size_bytes: int
    tensors: Mapping[str, Written]
    recorded: RecordedChunk | None
    md5: str | None

    def list_units(self, *, digests: bool) -> tuple[Examination, ...]:
        """Give what workers read at a time; of a file whose tensors do not lie in a row, all of it apart."""
        whole, md5 = self.recorded is not None and self.recorded.digest is not None, self.md5 is not None
        sums = any(written.crc32 is not None for written in self.tensors.values())
        runs = tuple(_list_runs(self.path, self.tensors, self.size_bytes))
        tensors = tuple(run for run in runs if isinstance(run, OutputTensor))
        unit = Examination(self.name, tensors, digests or self.recorded is not None, checksums=sums)
        if not whole and not md5:
            return split_examination(unit)
        in_order = all(written.strides is None for written in self.tensors.values())
        if in_order and sum(run.size_bytes for run in runs) == self.size_bytes:
            return (replace(unit, runs=runs, whole=whole, md5=md5),)
        all_of_it = (Gap(self.path, 0, self.size_bytes),)
        rest = Examination(f"all of {self.name}", all_of_it, digests=False, whole=whole, md5=md5)
        return (*split_examination(unit), rest)


@dataclass(frozen=True, slots=True)
class _Read:
    """What was found in one file; by tensors' names, and in hex but for the CRC32s."""

    digests: Mapping[str, str]
    tallies: Mapping[str, Tally]
    checksums: Mapping[str, int]
    whole: str | None
    md5: str | None
    problem: str | None


def read_data(
    storage: Storage,
    output: str,
    target: Target,
    receipt: ModelReceipt | None,
    headers: Headers,
    progress: Progress,
    cluster: Cluster | None = None,
    *,
    digests: bool = False,
) -> Data:
    """Read all files of weights whose headers could be read, several at once, and compare what can be.

    Digests of the receipt, CRC32s of archives, and the MD5s of a checklist that a conversion wrote. ``digests``
    asks for those of tensors with which nothing is compared here.
    An interruption stops all of them.
    """
    tasks, findings = _make_tasks(storage, output, target, receipt, headers)
    units = {task.name: task.list_units(digests=digests) for task in tasks}
    job = Job(storage, output, "cpu")
    receipts = run_units(job, [unit for own in units.values() for unit in own], cluster, progress, forget)
    found = {done.chunk: done.found or Found() for done in receipts}
    seen: dict[tuple[str, str], Seen] = {}
    unread = set[str]()
    for task in tasks:
        read = _bring_together(task, units[task.name], found)
        if read.problem is not None:
            unread.add(task.name)
        difference = _compare(task, read)
        if difference is not None:
            findings.append(difference)
        for name, tally in read.tallies.items():
            seen[task.name, name] = Seen(task.tensors[name], tally, read.digests.get(name))
    return Data(tuple(findings), seen, frozenset(unread))


def _make_tasks(
    storage: Storage, output: str, target: Target, receipt: ModelReceipt | None, headers: Headers
) -> tuple[list[_Task], list[Finding]]:
    """List the files to be read; what stands beside the weights only where a checklist names it."""
    recorded = {} if receipt is None else {chunk.name: chunk for chunk in receipt.chunks}
    listed, findings = _read_checklist(storage, output, target)
    tasks = []
    for name in (*headers, *sorted(listed.keys() - headers.keys() - recorded.keys())):
        path = join(output, name)
        entry = storage.find(path)
        if entry is None:
            findings.append(Finding(f"{path}: missing, though {CHECKLIST_NAME} lists it"))
            continue
        row, md5 = recorded.get(name), listed.get(name)
        tasks.append(_Task(name, path, entry.size_bytes, headers.get(name, {}), row, md5))
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


def _bring_together(task: _Task, units: tuple[Examination, ...], found: Mapping[str, Found]) -> _Read:
    """Take what was found in a file's units, by the names of its tensors; several may have one run."""
    parts = [found[unit.name] for unit in units]
    problem = next((part.problem for part in parts if part.problem is not None), None)
    digests: dict[str, str] = {}
    tallies: dict[str, Tally] = {}
    checksums: dict[str, int] = {}
    sharing = _group_names(task.tensors)
    for unit, part in zip(units, parts, strict=True):
        for place, tensor in enumerate(unit.tensors if part.problem is None else ()):
            written = task.tensors[tensor.name]
            names = sharing[written.place]
            if unit.digests:
                digests |= dict.fromkeys(names, part.tensors[place])
            tallies |= dict.fromkeys(names, part.tallies[place])
            checksums |= {
                name: part.checksums[place] for name in names if task.tensors[name].crc32 is not None
            }
    whole = next((part.whole for part in parts if part.whole is not None), None)
    md5 = next((part.md5 for part in parts if part.md5 is not None), None)
    return _Read(digests, tallies, checksums, whole, md5, problem)


def _compare(task: _Task, read: _Read) -> Finding | None:
    """Tell of the first that differs: a file's tensors, what is around them, all of it."""
    if read.problem is not None:
        return Finding(read.problem, task.name)
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


def _group_names(tensors: Mapping[str, Written]) -> dict[Place, list[str]]:
    """Give the names of tensors by what only those of the same data have."""
    places: dict[Place, list[str]] = {}
    for name, written in tensors.items():
        places.setdefault(written.place, []).append(name)
    return places


def _list_runs(path: str, tensors: Mapping[str, Written], size_bytes: int) -> Iterator[OutputTensor | Gap]:
    """Give runs that cover the file, which some do twice where tensors overlap; one of several names is called by the first."""
    position = 0
    for (first, end, _order), (name, *_others) in sorted(_group_names(tensors).items()):
        if first > position:
            yield Gap(path, position, first)
        yield take_written(name, tensors[name])
        position = max(position, end)
    if position < size_bytes:
        yield Gap(path, position, size_bytes)


def take_written(name: str, written: Written) -> OutputTensor:
    """Take a tensor of a file that was written as one to be read."""
    return target_of_view(view_written(name, written))
