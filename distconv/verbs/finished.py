"""Whether what stands in OUTPUT is what a conversion makes, before one begins and before it is made whole."""

import hashlib
from collections.abc import Callable, Iterable

from distconv.errors import ConversionError, OutputError
from distconv.humanize import shorten
from distconv.moving.existing import find_finished
from distconv.moving.progress import Progress
from distconv.output.findings import MOST_SHOWN, Depth, Finding, leave_unknown
from distconv.output.proof import prove
from distconv.output.structure import read_headers
from distconv.storage.base import Storage
from distconv.verbs.prepared import Prepared


def examine(
    storage: Storage,
    output: str,
    prepared: Prepared,
    progress: Progress,
    *,
    verify: bool,
) -> tuple[str | None, frozenset[str]]:
    """Look at an OUTPUT that this very conversion finished once; with ``verify``, at all of its data.

    Gives what was looked at where it is whole and as planned; otherwise None, and the chunks that are
    known to be damaged.
    """
    try:
        proof = prove(storage, output, Depth.DATA if verify else Depth.STRUCTURE, progress)
    except (OutputError, FileNotFoundError):  # without its index, for instance, which is made again
        return None, frozenset()
    findings = list(proof.findings)
    looked = proof.examined
    if verify:
        findings += _compare(storage, output, prepared, progress)
        looked = f"{looked}, and every tensor compared with the source"
    for finding in dict.fromkeys(findings):
        progress.note(f"{finding.words}; it is made again" if finding.chunk else finding.words)
    digests = {name: hashlib.sha256(content).hexdigest() for name, content in prepared.files.items()}
    late = prepared.target.checklist  # it is made of the others, and was proved with them
    whole = (
        not findings
        and proof.receipt is not None
        and {name: found for name, found in proof.receipt.files.items() if name != late} == digests
        and len(find_finished(storage, output, prepared.plan.files)) == len(prepared.plan.files)
    )
    return looked if whole else None, frozenset(found.chunk for found in findings if found.chunk)


def compare_all(
    storage: Storage,
    output: str,
    prepared: Prepared,
    progress: Progress,
    remove: Callable[[Iterable[str]], None],
) -> None:
    """Compare every tensor that was made with INPUT's.

    ``remove`` is told the chunks that differ, so that the same conversion makes them again; ConversionError then.
    """
    findings = _compare(storage, output, prepared, progress)
    if findings:
        remove({finding.chunk for finding in findings if finding.chunk})
        told = f"{output}: verification found differences; it is not made whole, run the same command again"
        raise ConversionError(
            "\n".join((told, *shorten([finding.words for finding in findings], MOST_SHOWN)))
        )


def _compare(storage: Storage, output: str, prepared: Prepared, progress: Progress) -> list[Finding]:
    progress.note("verifying every tensor against the source")
    names = [file.name for file in prepared.plan.files]
    headers, findings = read_headers(storage, output, prepared.target, names)
    unread = set(names) - headers.keys()
    return findings + leave_unknown(prepared.compare(storage, headers, progress), unread)
