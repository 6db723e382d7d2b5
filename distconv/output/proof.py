"""Prove a model folder by itself: whether it is whole, looked at as closely as is asked.

Nothing of INPUT is needed.
"""

from dataclasses import dataclass

from distconv.errors import OutputError
from distconv.formats.written import Headers
from distconv.moving.progress import Progress
from distconv.output.contents import read_data
from distconv.output.findings import Depth, Finding
from distconv.output.loading import find_detours
from distconv.output.receipt import ModelReceipt, read_receipt
from distconv.output.structure import check_forms, check_recorded, find_foreign, list_names, read_headers
from distconv.output.targets import CHECKLIST_NAME, JOURNAL_NAME, RECEIPT_NAME, Target, tell_target
from distconv.storage.base import Storage, join


@dataclass(frozen=True, slots=True)
class Proof:
    """What was found, and how much was looked at."""

    target: Target
    depth: Depth
    headers: Headers
    receipt: ModelReceipt | None
    findings: tuple[Finding, ...]
    notes: tuple[str, ...]

    @property
    def data_proved(self) -> bool:
        """Whether all data was read and compared with its digests."""
        return self.depth >= Depth.DATA and self.receipt is not None

    @property
    def examined(self) -> str:
        """Say for people what was looked at."""
        if self.receipt is None:
            return "structure"
        if self.depth < Depth.DATA:
            return f"structure and small files; the {self.target.noun}s' data was not read"
        return "structure, small files, the digests of all data"


def prove(storage: Storage, output: str, depth: Depth, progress: Progress) -> Proof:
    """Look at a model folder, and list what is wrong in it.

    What it should be its receipt says, and where there is no good one the names in it.
    ``progress`` is told of the bytes of the files of weights as they are read. OutputError where it is
    no model folder.
    """
    entry = storage.find(output)
    if entry is None or not entry.is_folder:
        raise OutputError(f"{output}: {'no such folder' if entry is None else 'a file, expected a folder'}")
    receipt, damage = _find_receipt(storage, output)
    target = tell_target(storage, output) if receipt is None else receipt.conversion.target
    names, misled = list_names(storage, output, target, receipt)
    headers, findings = read_headers(storage, output, target, names)
    findings += map(Finding, (*damage, *misled))
    if storage.find(join(output, JOURNAL_NAME)) is not None:
        findings.append(Finding(f"{output}: a conversion into it is not finished; run it again"))
    findings += check_forms(storage, output, target, names, headers)
    foreign, notes = find_foreign(storage, output, target, names, receipt)
    findings += map(Finding, foreign)
    findings += map(Finding, find_detours(storage, output, target))
    if receipt is not None:
        findings += check_recorded(storage, output, receipt, headers)
    if depth >= Depth.DATA and (receipt is not None or target.has_checksums):
        findings += read_data(storage, output, target, receipt, headers, progress).findings
    if depth >= Depth.MODEL:
        findings += map(Finding, target.find_misfits(storage, output, headers))
    if receipt is None and not damage:
        notes.append(f"{output}: no {RECEIPT_NAME}, so {_describe_unrecorded(target, depth)}")
    return Proof(target, depth, headers, receipt, tuple(dict.fromkeys(findings)), tuple(notes))


def _find_receipt(storage: Storage, output: str) -> tuple[ModelReceipt | None, list[str]]:
    """Read the receipt if there is one; a damaged one is a finding."""
    path = join(output, RECEIPT_NAME)
    if storage.find(path) is None:
        return None, []
    try:
        return read_receipt(storage, path), []
    except OutputError as error:
        return None, [f"{error}; --against INPUT compares without it"]


def _describe_unrecorded(target: Target, depth: Depth) -> str:
    """Say what the data was compared with where there is no receipt."""
    if depth < Depth.DATA or not target.has_checksums:
        return "nothing tells what the data should be"
    return f"the data was compared only with the CRC32s of its own records, and with {CHECKLIST_NAME} where it is"
