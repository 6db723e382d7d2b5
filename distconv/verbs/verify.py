"""Prove that OUTPUT is whole, and that it holds INPUT's tensors, on another path than the worker's."""

import os
from collections.abc import Iterable
from dataclasses import replace
from typing import TYPE_CHECKING

from distconv.errors import InputError, UsageError
from distconv.moving.executor import Cluster
from distconv.moving.progress import Progress
from distconv.moving.progress_default import take_progress
from distconv.output.chat import find_missing_template
from distconv.output.findings import Depth, Finding, leave_unknown
from distconv.output.manifest import Manifest, make_manifest
from distconv.output.proof import Proof, prove
from distconv.output.receipt import Conversion
from distconv.output.targets import META, TRANSFORMERS
from distconv.storage.base import PathLike, Storage, write_small
from distconv.storage.given import refuse_other
from distconv.storage.places import read_place, read_small_output
from distconv.verbs.options import Options, open_storage, read_place_or_none
from distconv.verbs.running import choose_cluster, name_for_workers
from distconv.verbs.sign import Signed, read_signature
from distconv.verbs.verification import Verification
from distconv.verbs.verification_card import is_card, make_verification_card
from distconv.version import VERSION

if TYPE_CHECKING:
    from distconv.verbs.against import Comparison


def verify(
    output: PathLike, *, against: PathLike | None = None, workers: int | None = None, address: str | None = None,
    family: str | None = None, instruct: bool | None = None, tokenizer: PathLike | None = None,
    params: PathLike | None = None, like: PathLike | None = None, dialect: str | None = None,
    fill_from_like: bool = False, endpoint_url: str | None = None, card: PathLike | None = None,
    signature: PathLike | None = None, public_key: PathLike | None = None, progress: Progress | None = None,
) -> Verification:  # fmt: skip
    """Check the structure, values and digests of ``output``; with ``against``, compare every tensor with that too.

    ``output`` is a folder for Transformers, whoever wrote it, or for Meta's code. ``against`` is whatever ``convert``
    makes it of, another Transformers folder, or a manifest; what is said of it is taken as ``convert`` does, and so are
    ``workers``, ``address`` and ``progress``. ``card`` is a file that is written then: Markdown by its name, else JSON.
    ``signature`` is one that ``sign`` made, checked with the ``public_key``, a PEM file.
    What differs is in the report, whose ``ok`` says whether nothing does. Raises OutputError where ``output`` is no
    model folder, InputError where ``against`` cannot be read, UsageError for what was asked, ConversionError for a
    cluster that failed.
    """
    asked = Options(
        source=read_place_or_none(against) or "", output=read_place(output), family=family, instruct=instruct,
        tokenizer=read_place_or_none(tokenizer), params=read_place_or_none(params),
        like=read_place_or_none(like), dialect=dialect, fill_from_like=fill_from_like, endpoint_url=endpoint_url,
        cluster=Cluster(address, workers),
    )  # fmt: skip
    if (signature is None) != (public_key is None):
        raise UsageError("a signature is checked with a public key: give both, or neither")
    check = None if signature is None or public_key is None else read_signature(signature, public_key)
    asked, path = name_for_workers(asked), None if card is None else read_small_output(card)
    storage = open_storage(asked, path)
    if path is not None:
        refuse_other(storage, path, is_card, "card")
    report = _verify(storage, asked, choose_cluster(asked), take_progress(progress), carded=path is not None)
    if check is not None:
        report = _add(report, check(asked.output), os.fspath(public_key or ""))
    if path is not None:
        write_small(storage, path, make_verification_card(report, path))
        report = replace(report, card=path)
    return report


def _add(report: Verification, signed: Signed, key: str) -> Verification:
    """Say of a signature what is wrong with it, or by which key it is."""
    if signed.false is not None:
        return replace(report, differences=(*report.differences, signed.false))
    return replace(
        report,
        examined=f"{report.examined}, the signature by {key}",
        notes=(*report.notes, *signed.notes),
    )


def _verify(
    storage: Storage, asked: Options, cluster: Cluster | None, progress: Progress, *, carded: bool
) -> Verification:
    against = _read_source(storage, asked, cluster) if asked.source else None
    if against is not None:
        progress.note(f"reading all data of {asked.output}")
    proof = prove(
        storage,
        asked.output,
        Depth.MODEL,
        progress,
        cluster,
        digests=carded or against is not None,
        against=asked.source,
    )
    findings = [*proof.findings, *_compare(storage, asked, proof, against, progress)]
    manifest, notes = None, proof.notes
    try:
        manifest = _list_tensors(storage, asked, proof, cluster, progress if carded else None)
    except InputError as error:
        notes = (
            *notes,
            f"{asked.output}: no digests of whole tensors, as it is no whole model by itself ({error})",
        )
    return Verification(
        output=asked.output,
        source=asked.source or None,
        cast_to=() if against is None else tuple(against.list_casts(proof.headers)),
        tensors=sum(len(written) for written in proof.headers.values()),
        shards=len(proof.headers) if proof.target is META else None,
        data_proved=proof.data_read and (proof.receipt is not None or against is not None),
        examined=_tell_examined(proof, compared=against is not None),
        manifest=manifest,
        differences=tuple(finding.words for finding in findings),
        notes=notes,
        damaged=_find_damaged(proof),
    )


def _compare(
    storage: Storage, asked: Options, proof: Proof, against: "Comparison | None", progress: Progress
) -> Iterable[Finding]:
    """Compare OUTPUT with its source; without one tell only whether it talks as it was said to."""
    if against is not None:
        progress.note(f"comparing every tensor with {asked.source}")
        return leave_unknown(against.compare(proof, progress), proof.unread)
    if asked.instruct and proof.target is TRANSFORMERS:
        return find_missing_template(storage, asked.output)
    return ()


def _find_damaged(proof: Proof) -> Conversion | None:
    """Give the conversion that makes again what the folder itself shows to be damaged: this version's, and no other."""
    if not proof.findings or proof.receipt is None or proof.receipt.conversion.version != VERSION:
        return None
    return proof.receipt.conversion


def _tell_examined(proof: Proof, *, compared: bool) -> str:
    """Say for people what was looked at, and what of it was compared: nothing where no data could be read."""
    if not compared or not proof.data.tensors:
        return proof.examined
    return f"{proof.examined}, and every tensor{'' if proof.data_read else ' of it'} compared"


def _list_tensors(
    storage: Storage, asked: Options, proof: Proof, cluster: Cluster | None, progress: Progress | None
) -> Manifest | None:
    """Give the manifest of OUTPUT: of a Transformers folder where digests were made, of Meta's shards for ``progress``.

    Those hold parts, so that whole tensors are read again, as ``distconv manifest`` reads them. None where not all
    could be read: what is left is another model's.
    """
    if not proof.data_read:
        return None
    if proof.target is TRANSFORMERS:
        tensors = tuple(proof.list_tensors())
        return make_manifest(tensors) if tensors else None
    if progress is None or proof.findings:
        return None
    from distconv.verbs.whole_tensors import digest_tensors, open_tensors

    own = replace(
        asked, source=asked.output, tokenizer=None, params=None, like=None, dialect=None, fill_from_like=False
    )
    return digest_tensors(storage, open_tensors(storage, own, cluster).tensors, progress, cluster)


def _read_source(storage: Storage, options: Options, cluster: Cluster | None) -> "Comparison | None":
    # All that INPUT can be takes a third of a second to import, in which OUTPUT alone is read half.
    from distconv.verbs.compare_source import read_source

    return read_source(storage, options, cluster)
