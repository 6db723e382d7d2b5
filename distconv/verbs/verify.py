"""Prove that OUTPUT is whole, and that it holds INPUT's tensors, on another path than the worker's."""

import contextlib
from collections.abc import Iterator
from dataclasses import replace

from distconv.errors import InputError, MismatchError, OutputError, UsageError
from distconv.families.known import ALL_FAMILIES
from distconv.moving.executor import Cluster
from distconv.moving.progress import Progress
from distconv.moving.progress_default import choose_default_progress
from distconv.output.findings import Depth, Finding
from distconv.output.manifest import Manifest, make_manifest
from distconv.output.proof import Proof, prove
from distconv.output.receipt import Conversion, read_receipt
from distconv.output.targets import META, RECEIPT_NAME, TRANSFORMERS, Target, tell_target
from distconv.storage.base import PathLike, Storage, is_folder, join, write_small
from distconv.storage.places import read_place, read_small_output
from distconv.verbs.against import Compare, against_manifest, against_tensors, is_manifest_file
from distconv.verbs.compare_chat import compare_chat
from distconv.verbs.compare_chunks import compare_chunks
from distconv.verbs.compare_shards import compare_shards
from distconv.verbs.compare_trained import compare_trained
from distconv.verbs.expected import Expected, expect_checkpoint, expect_model
from distconv.verbs.kinds import Kind, tell_kind
from distconv.verbs.options import Options, open_storage, read_place_or_none
from distconv.verbs.running import choose_cluster, name_for_workers
from distconv.verbs.sign import read_signature
from distconv.verbs.sources import open_meta, open_transformers
from distconv.verbs.trained_input import find_trained
from distconv.verbs.verification import Verification
from distconv.verbs.verification_card import make_verification_card
from distconv.verbs.whole_tensors import digest_tensors, open_tensors


def verify(
    output: PathLike, *, against: PathLike | None = None, workers: int | None = None, address: str | None = None,
    family: str | None = None, instruct: bool = False, tokenizer: PathLike | None = None,
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
    report = _verify(
        storage, asked, choose_cluster(asked), progress or choose_default_progress(), carded=path is not None
    )
    if check is not None:
        report = _add(report, check(asked.output))
    if path is not None:
        write_small(storage, path, make_verification_card(report, path))
    return report


def _add(report: Verification, words: str | None) -> Verification:
    return report if words is None else replace(report, differences=(*report.differences, words))


def _verify(
    storage: Storage, asked: Options, cluster: Cluster | None, progress: Progress, *, carded: bool
) -> Verification:
    compare = _read_source(storage, asked, cluster) if asked.source else None
    proof = prove(
        storage,
        asked.output,
        Depth.MODEL,
        progress,
        cluster,
        digests=carded or compare is not None,
        against=asked.source,
    )
    findings = list(proof.findings)
    if compare is not None:
        findings += compare(proof, progress)
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
        tensors=sum(len(written) for written in proof.headers.values()),
        shards=len(proof.headers) if proof.target is META else None,
        data_proved=proof.data_proved or compare is not None,
        examined=proof.examined if compare is None else f"{proof.examined}, and every tensor compared",
        manifest=manifest,
        differences=tuple(finding.words for finding in findings),
        notes=notes,
    )


def _list_tensors(
    storage: Storage, asked: Options, proof: Proof, cluster: Cluster | None, progress: Progress | None
) -> Manifest | None:
    """Give the manifest of OUTPUT: of a Transformers folder where digests were made, of Meta's shards for ``progress``.

    Those hold parts, so that whole tensors are read again, as ``distconv manifest`` reads them.
    """
    if proof.target is TRANSFORMERS:
        tensors = tuple(proof.list_tensors())
        return make_manifest(tensors) if tensors else None
    if progress is None or proof.findings:
        return None
    own = replace(
        asked, source=asked.output, tokenizer=None, params=None, like=None, dialect=None, fill_from_like=False
    )
    return digest_tensors(storage, open_tensors(storage, own, cluster).tensors, progress, cluster)


def _read_source(storage: Storage, options: Options, cluster: Cluster | None) -> Compare | None:
    """Read INPUT's headers before OUTPUT's data; None where there is no OUTPUT, which is told later."""
    if not is_folder(storage, options.output):
        return None
    kind = tell_kind(storage, options)
    if kind is Kind.TRAINED:
        # What OUTPUT's config says of heads was that of the model that INPUT is like.
        asked = replace(options, like=options.like or options.output)
        model = find_trained(storage, asked).read(storage)
        return lambda proof, progress: compare_trained(storage, model, proof.headers, progress)
    recorded = _find_conversion(storage, options.output)
    target = tell_target(storage, options.output) if recorded is None else recorded.target
    if is_manifest_file(storage, options.source):
        return against_manifest(storage, options, target, cluster)
    if target is TRANSFORMERS and kind is Kind.TRANSFORMERS:
        return against_tensors(storage, options, cluster)
    with _as_recorded(storage, options, recorded) as taken:
        if target is TRANSFORMERS:
            return _against_checkpoint(storage, taken)
        expected = _expect(storage, taken, kind)

    def compare(proof: Proof, progress: Progress) -> list[Finding]:
        # A folder whose files nobody knows is refused by then.
        ranks = len(target.list_files(storage, options.output)) if recorded is None else recorded.shards or 1
        return compare_shards(storage, expected, ranks, proof.headers, progress)

    return compare


@contextlib.contextmanager
def _as_recorded(storage: Storage, options: Options, recorded: Conversion | None) -> Iterator[Options]:
    """Take INPUT as the family that OUTPUT's receipt says, where none is asked for; MismatchError where it is another."""
    family = None if recorded is None else ALL_FAMILIES.get(recorded.family)
    if options.family is not None or family is None:
        yield options
        return
    try:
        yield replace(options, family=family.name)
    except MismatchError as error:
        # What is wrong with INPUT whatever OUTPUT is, is said without that.
        other = open_meta(storage, options).choice.family.title
        raise MismatchError(
            f"{options.source}: looks like {other}, and {options.output} was made of {family.title}; give what it was made of"
        ) from error


def _against_checkpoint(storage: Storage, options: Options) -> Compare:
    checkpoint = open_meta(storage, options)

    def compare(proof: Proof, progress: Progress) -> list[Finding]:
        chat = compare_chat(storage, options.output, checkpoint, progress)
        return [*chat, *compare_chunks(storage, checkpoint, proof.headers, progress)]

    return compare


def _expect(storage: Storage, options: Options, kind: Kind) -> list[Expected]:
    if kind is Kind.TRANSFORMERS:
        return expect_model(open_transformers(storage, options))
    return expect_checkpoint(open_meta(storage, options))


def find_target(storage: Storage, output: str) -> Target:
    """Tell the format of OUTPUT by its receipt, and without a good one by names."""
    recorded = _find_conversion(storage, output)
    return tell_target(storage, output) if recorded is None else recorded.target


def _find_conversion(storage: Storage, output: str) -> Conversion | None:
    """Give what the receipt says of the conversion, if there is a good one."""
    if storage.find(join(output, RECEIPT_NAME)) is None:
        return None
    try:
        return read_receipt(storage, join(output, RECEIPT_NAME)).conversion
    except OutputError:  # a damaged receipt is a finding, and no reason not to look further
        return None
