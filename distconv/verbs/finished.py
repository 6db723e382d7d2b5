"""Whether what stands in OUTPUT is what a conversion makes, before one begins and before it is made whole."""

import hashlib
from collections.abc import Callable, Iterable, Mapping

from distconv.errors import ConversionError, OutputError
from distconv.moving.progress import Progress
from distconv.moving.worker import is_finished
from distconv.output.findings import Depth, Finding
from distconv.output.proof import prove
from distconv.output.structure import read_headers
from distconv.output.targets import TRANSFORMERS
from distconv.planning.plan import Plan
from distconv.storage.base import Storage, join
from distconv.verbs.checkpoint import Checkpoint
from distconv.verbs.verify import compare_tensors


def examine(
    storage: Storage,
    output: str,
    checkpoint: Checkpoint,
    plan: Plan,
    files: Mapping[str, bytes],
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
        findings += _compare(storage, output, checkpoint, plan, progress)
        looked = f"{looked}, and every tensor compared with the source"
    for finding in findings:
        progress.note(f"{finding.words}; it is made again" if finding.chunk else finding.words)
    digests = {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
    whole = (
        not findings
        and proof.receipt is not None
        and proof.receipt.files == digests
        and all(is_finished(storage, join(output, chunk.name), chunk) for chunk in plan.chunks)
    )
    return looked if whole else None, frozenset(found.chunk for found in findings if found.chunk)


def compare_all(
    storage: Storage,
    output: str,
    checkpoint: Checkpoint,
    plan: Plan,
    progress: Progress,
    remove: Callable[[Iterable[str]], None],
) -> None:
    """Compare every tensor that was made with INPUT's.

    ``remove`` is told the chunks that differ, so that the same conversion makes them again; ConversionError then.
    """
    findings = _compare(storage, output, checkpoint, plan, progress)
    if findings:
        remove({finding.chunk for finding in findings if finding.chunk})
        told = f"{output}: verification found differences; it is not made whole, run the same command again"
        raise ConversionError("\n".join((told, *(finding.words for finding in findings))))


def _compare(
    storage: Storage, output: str, checkpoint: Checkpoint, plan: Plan, progress: Progress
) -> list[Finding]:
    progress.note("verifying every tensor against the source")
    headers, findings = read_headers(storage, output, TRANSFORMERS, [chunk.name for chunk in plan.chunks])
    return findings + compare_tensors(storage, checkpoint, headers, progress)
