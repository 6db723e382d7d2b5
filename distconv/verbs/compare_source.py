"""What ``verify`` compares OUTPUT with: INPUT, as ``convert`` takes it, another folder, or a manifest."""

import contextlib
from collections.abc import Iterator
from dataclasses import replace

from distconv.errors import MismatchError
from distconv.families.known import ALL_FAMILIES
from distconv.moving.executor import Cluster
from distconv.moving.progress import Progress
from distconv.output.descriptions import telling_unfinished
from distconv.output.findings import Finding
from distconv.output.proof import Proof
from distconv.output.receipt import Conversion, find_conversion
from distconv.output.targets import TRANSFORMERS, tell_target
from distconv.storage.base import Storage, is_folder
from distconv.verbs.against import Comparison, against_manifest, against_tensors, is_manifest_file
from distconv.verbs.compare_chat import compare_chat
from distconv.verbs.compare_chunks import compare_chunks
from distconv.verbs.compare_shards import compare_shards
from distconv.verbs.compare_trained import compare_trained
from distconv.verbs.expected import Expected, expect_checkpoint, expect_model
from distconv.verbs.kinds import Kind, tell_kind
from distconv.verbs.options import Options
from distconv.verbs.sources import open_meta, open_transformers
from distconv.verbs.trained_input import find_trained


def read_source(storage: Storage, options: Options, cluster: Cluster | None) -> Comparison | None:
    """Read INPUT's headers before OUTPUT's data; None where there is no OUTPUT, which is told later."""
    if not is_folder(storage, options.output):
        return None
    with telling_unfinished(storage, options.source):
        return _read_source(storage, options, cluster)


def _read_source(storage: Storage, options: Options, cluster: Cluster | None) -> Comparison:
    kind = tell_kind(storage, options)
    if kind is Kind.TRAINED:
        # What OUTPUT's config says of heads was that of the model that INPUT is like.
        asked = replace(options, like=options.like or options.output)
        model = find_trained(storage, asked).read(storage)
        return Comparison(
            lambda proof, progress: compare_trained(storage, model, proof.headers, progress),
            {made.name: made.source.dtype for made in model.made},
        )
    recorded = find_conversion(storage, options.output)
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

    return Comparison(compare, {whole.held_as: whole.stored_dtype for whole in expected})


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


def _against_checkpoint(storage: Storage, options: Options) -> Comparison:
    checkpoint = open_meta(storage, options)

    def compare(proof: Proof, progress: Progress) -> list[Finding]:
        chat = compare_chat(storage, options.output, checkpoint, progress)
        return [*chat, *compare_chunks(storage, checkpoint, proof.headers, progress)]

    return Comparison(compare, {match.target: match.views[0].dtype for match in checkpoint.matches})


def _expect(storage: Storage, options: Options, kind: Kind) -> list[Expected]:
    if kind is Kind.TRANSFORMERS:
        return expect_model(open_transformers(storage, options))
    return expect_checkpoint(open_meta(storage, options))
