"""Prove a model folder by itself: whether it is whole, looked at as closely as is asked.

Nothing of INPUT is needed, and nobody need have made it with distconv: what a receipt does not say, the folder's
own index, headers and config.json do.
"""

import re
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from itertools import chain

from distconv.errors import InputError, OutputError
from distconv.formats.written import Headers, list_without_checksum
from distconv.humanize import list_some
from distconv.moving.executor import Cluster
from distconv.moving.progress import Progress
from distconv.output.contents import Data, read_data
from distconv.output.descriptions import describe_unfinished
from distconv.output.findings import Depth, Finding
from distconv.output.loading import find_detours
from distconv.output.manifest import Listed
from distconv.output.oddities import find_odd_dtypes, find_odd_values
from distconv.output.receipt import ModelReceipt, read_receipt
from distconv.output.structure import check_forms, check_recorded, find_foreign, list_names, read_headers
from distconv.output.targets import (
    CHECKLIST_NAME,
    RECEIPT_NAME,
    TRANSFORMERS,
    Target,
    tell_target,
)
from distconv.output.ties import find_broken_tie, find_stored_tie
from distconv.output.tokenizers import find_tokenizer_faults
from distconv.sidecars.config import CONFIG_NAME
from distconv.sidecars.settings import read_declared_dtype
from distconv.storage.base import Storage, join
from distconv.storage.given import describe_no_folder
from distconv.storage.parallel import submit

_Found = tuple[list[Finding], list[str]]
"""Findings, and notes."""

_MOST_SHOWN = 4


@dataclass(frozen=True, slots=True)
class Proof:
    """What was found, and how much was looked at."""

    target: Target
    names: Sequence[str]
    """Of all files of weights that should be there."""
    headers: Headers
    """Of those that could be read."""
    receipt: ModelReceipt | None
    data: Data
    findings: tuple[Finding, ...]
    notes: tuple[str, ...]

    @property
    def unread(self) -> frozenset[str]:
        """Names of files of weights that could not be read to their ends."""
        return frozenset(self.names) - self.headers.keys() | self.data.unread

    @property
    def data_read(self) -> bool:
        """Whether all data was read."""
        return self.data.tensors is not None and not self.unread

    @property
    def examined(self) -> str:
        """Say for people what was looked at."""
        recorded = self.receipt is not None
        looked = "structure and small files" if recorded else "structure"
        if self.data.tensors is None:
            return f"{looked}; the {self.target.noun}s' data was not read" if recorded else looked
        if not self.data_read and not self.data.tensors:
            return f"{looked}; no data could be read"
        seen = "all data" if self.data_read else "what data could be read"
        if recorded:
            return f"structure, small files, the digests of {seen}"
        return "structure and values" if self.data_read else f"structure, and the values of {seen}"

    def list_tensors(self) -> Iterator[Listed]:
        """Give each tensor that has a digest, as a manifest has it."""
        for (_file, name), seen in (self.data.tensors or {}).items():
            if seen.digest is not None:
                yield Listed(name, seen.written.shape, seen.written.dtype, seen.digest, seen.tally)


def prove(
    storage: Storage,
    output: str,
    depth: Depth,
    progress: Progress,
    cluster: Cluster | None = None,
    *,
    digests: bool = False,
    against: str = "",
) -> Proof:
    """Look at a model folder, and list what is wrong in it.

    What it should be its receipt says, and where there is no good one the folder itself. ``progress`` is told of
    the bytes of the files of weights as they are read, by lanes or by a cluster's workers; ``digests`` asks for
    those of all tensors; ``against`` is what the caller compares them with. OutputError where it is no model folder.
    """
    _refuse_no_folder(storage, output)
    receipt, damage = _find_receipt(storage, output)
    target = tell_target(storage, output) if receipt is None else receipt.conversion.target
    names, misled = _list_names(storage, output, target, receipt)
    headers, findings, notes = _look_at_files(storage, output, target, receipt, names)
    findings = [*map(Finding, (*misled, *damage)), *findings]
    is_deep, data = depth >= Depth.MODEL, Data()
    asked = _ask(storage, output, target, headers, names, receipt) if is_deep else []
    if depth >= (Depth.DATA if receipt is not None or target.has_checksums else Depth.MODEL):
        digests |= (tie := find_stored_tie(storage, output, headers)) is not None
        data = read_data(storage, output, target, receipt, headers, progress, cluster, digests=digests)
        findings += (*data.findings, *map(Finding, find_broken_tie(tie, data.tensors or {})))
    if is_deep:
        for more, said in (*(future.result() for future in asked), find_odd_values(data.tensors or {})):
            findings += more
            notes += said
    if receipt is None and not damage:
        unrecorded = _describe_unrecorded(target, depth, output, against)
        notes.append(f"{output}: no {RECEIPT_NAME}, so {unrecorded}")
    return Proof(target, names, headers, receipt, data, tuple(dict.fromkeys(findings)), tuple(notes))


def _refuse_no_folder(storage: Storage, output: str) -> None:
    words = describe_no_folder(storage, output)
    if words is not None:
        raise OutputError(f"{output}: {words}")


def _list_names(
    storage: Storage, output: str, target: Target, receipt: ModelReceipt | None
) -> tuple[Sequence[str], tuple[str, ...]]:
    """Give the names of the files of weights, and what misleads about them: first a conversion that is not finished."""
    unfinished = describe_unfinished(storage, output)
    try:
        names, misled = list_names(storage, output, target, receipt)
    except OutputError as error:
        if unfinished is None:
            raise
        raise OutputError(unfinished) from error
    return names, misled if unfinished is None else (unfinished, *misled)


def _look_at_files(
    storage: Storage, output: str, target: Target, receipt: ModelReceipt | None, names: Sequence[str]
) -> tuple[Headers, list[Finding], list[str]]:
    """Look at headers, sizes and small files; gives also findings, and notes."""
    headers, findings = read_headers(storage, output, target, names)
    recorded = receipt is not None
    findings += check_forms(storage, output, target, names, headers, recorded=recorded)
    foreign, notes = find_foreign(storage, output, target, names, receipt)
    detours, more = find_detours(storage, output, target, recorded=recorded)
    findings += map(Finding, (*foreign, *detours))
    if receipt is not None:
        findings += check_recorded(storage, output, receipt, headers)
        return headers, findings, [*notes, *more]
    used, unused = _leave_unused(output, target, headers)
    return used, findings, [*unused, *_note_parts(output, target, used), *notes, *more]


def _leave_unused(output: str, target: Target, headers: Headers) -> tuple[Headers, list[str]]:
    """Leave tensors aside of which the target's code takes no notice; tells of them in a note."""
    used = {
        file: {name: written for name, written in tensors.items() if not re.fullmatch(target.unused, name)}
        for file, tensors in headers.items()
    }
    left = sorted({name for file, tensors in headers.items() for name in tensors.keys() - used[file].keys()})
    return used, [
        f"{output}: {list_some(left, _MOST_SHOWN)}: not looked at, as no code uses it"
    ] if left else []


def _note_parts(output: str, target: Target, headers: Headers) -> Iterator[str]:
    """Tell of tensors that a target's code loads, and that no checksum of the file's is about."""
    parts = list(dict.fromkeys(chain.from_iterable(map(list_without_checksum, headers.values()))))
    if target.has_checksums and parts:
        yield (
            f"{output}: {list_some(parts, _MOST_SHOWN)}: parts of larger records, or saved in torch's old format, so "
            f"that no CRC32 is about them alone; what records have `distconv check {output}` compares"
        )


def _ask(
    storage: Storage,
    output: str,
    target: Target,
    headers: Headers,
    names: Sequence[str],
    receipt: ModelReceipt | None,
) -> list[Future[_Found]]:
    """Ask what takes its time beside the data, and is known by the time that this has been read."""
    asked: list[Future[_Found]] = []
    # Of some of the tensors only it would be said that the others are missing or are of other shapes.
    if headers.keys() == set(names):
        asked.append(submit(lambda: (list(map(Finding, target.find_misfits(storage, output, headers))), [])))
    return [*asked, submit(_look_at_declared, storage, output, target, headers, receipt)]


def _look_at_declared(
    storage: Storage, output: str, target: Target, headers: Headers, receipt: ModelReceipt | None
) -> _Found:
    """Find types other than config.json's and a tokenizer that does not fit, where no receipt says that they were INPUT's."""
    config = join(output, CONFIG_NAME)
    if receipt is not None or target is not TRANSFORMERS or storage.find(config) is None:
        return [], []
    try:
        declared = read_declared_dtype(storage, config)
        unfit, said = find_tokenizer_faults(storage, output, headers)
    except InputError:  # which has been told
        declared, unfit, said = None, [], []
    odd, notes = find_odd_dtypes(headers, declared, config)
    return list(map(Finding, (*odd, *unfit))), [*notes, *said]


def _find_receipt(storage: Storage, output: str) -> tuple[ModelReceipt | None, list[str]]:
    """Read the receipt if there is one; a damaged one is a finding."""
    path = join(output, RECEIPT_NAME)
    if storage.find(path) is None:
        return None, []
    try:
        return read_receipt(storage, path), []
    except OutputError as error:
        return None, [f"{error}; `against=INPUT` compares without it"]


def _describe_unrecorded(target: Target, depth: Depth, output: str, against: str) -> str:
    """Say what proves the data where there is no receipt."""
    if against:
        published = f", and only `distconv check {output}` whether its files are those that Meta published"
        return f"only the comparison with {against} tells what its tensors should be{published if target.has_checksums else ''}"
    if depth < Depth.DATA or not target.has_checksums:
        return "nothing tells what the data should be"
    return (
        f"the data was compared only with the CRC32s of its own records, and with {CHECKLIST_NAME} where it is; "
        f"whether a download of Meta's is whole `distconv check {output}` tells"
    )
