"""What INPUT is, and which way from it to OUTPUT is asked for."""

from collections.abc import Iterable, Mapping

from distconv.errors import InputError
from distconv.formats.meta.catalog import read_catalog
from distconv.formats.meta.files import SourceFiles, find_files
from distconv.formats.meta.small_files import describe_missing_tokenizer
from distconv.formats.safetensors.catalog import read_transformers_catalog
from distconv.formats.safetensors.folder import TransformersFiles, find_transformers_files
from distconv.formats.views import TensorView
from distconv.humanize import format_count
from distconv.output.identity import InputFiles, Source
from distconv.output.state import find_decisions
from distconv.output.targets import TARGETS, TRANSFORMERS
from distconv.planning.plan import describe_plan
from distconv.storage.base import Storage
from distconv.verbs.assembly import make_files
from distconv.verbs.checkpoint import (
    Checkpoint,
    choose_dtype,
    decide,
    plan_conversion,
    read_checkpoint,
    read_found,
    subject_of,
)
from distconv.verbs.compare_chunks import compare_chunks
from distconv.verbs.from_trained import prepare_trained
from distconv.verbs.kinds import Kind, reading_kind
from distconv.verbs.options import Options
from distconv.verbs.prepared import Prepared
from distconv.verbs.questions import Answers, Ask, Asked, Known
from distconv.verbs.to_meta import prepare_back, prepare_reshard
from distconv.verbs.trained_input import TrainedInput, find_trained, list_sources
from distconv.verbs.transformers_model import TransformersModel, read_model

Found = SourceFiles | TransformersFiles | TrainedInput
"""Which files of INPUT are what."""


def find_input(storage: Storage, options: Options) -> Found:
    """Find a conversion's INPUT; InputError where that is not one whole model."""
    with reading_kind(storage, options) as kind:
        if kind is Kind.TRAINED:
            return find_trained(storage, options)
        if kind is Kind.TRANSFORMERS and options.to == "meta":
            return find_transformers_files(storage, options.source, options.tokenizer)
        return find_files(storage, options.source, options.tokenizer, options.params)


def list_input(found: Found) -> InputFiles:
    """List the files that must stay as they are for a conversion."""
    if isinstance(found, TrainedInput):
        return found.list_files()
    if isinstance(found, TransformersFiles):
        index = () if found.index is None else (found.index.path,)
        return InputFiles(
            found.folder,
            found.weights,
            (found.config, *index, *found.small.values(), *found.legal),
            lambda storage: read_transformers_catalog(storage, found).tensors.values(),
        )
    return InputFiles(
        found.folder,
        found.weights,
        found.small,
        lambda storage: read_catalog(storage, found.shards, found.scales).all_views,
    )


def open_transformers(storage: Storage, options: Options) -> TransformersModel:
    """Find a model in Transformers' format and read its headers, see ``read_model``."""
    files = find_transformers_files(storage, options.source, options.tokenizer)
    return read_model(storage, files, family=options.family)


def open_meta(storage: Storage, options: Options) -> Checkpoint:
    """Read the headers of a checkpoint of Meta's, see ``read_checkpoint``."""
    return read_checkpoint(
        storage,
        options.source,
        family=options.family,
        instruct=options.instruct,
        tokenizer=options.tokenizer,
        params_path=options.params,
    )


def prepare(
    storage: Storage, found: Found, options: Options, source: Source | None = None, ask: Ask | None = None
) -> Prepared:
    """Read headers, have decided what data alone can tell, plan, and make what stands beside the weights.

    All that can fail without a byte moved fails here. Without ``source`` and ``ask`` nothing is made of it: INPUT's
    files are not described, and what only data can tell is assumed as published.
    """
    if isinstance(found, TrainedInput):
        return _prepare_trained(storage, found, options, source, ask)
    if isinstance(found, TransformersFiles):
        model = read_model(storage, found, family=options.family)
        description = _describe(source, model.catalog.tensors.values())
        return prepare_back(storage, description, model, options, None if ask is None else Asked(ask))
    checkpoint = read_found(storage, found, family=options.family, instruct=options.instruct)
    # What cannot be converted so is refused before anybody reads data.
    choose_dtype(checkpoint, options.dtype)
    description = _describe(source, checkpoint.catalog.all_views)
    answers = _find_answers(storage, description, checkpoint.choice.family.name, options, ask)
    if options.to == "meta":
        return prepare_reshard(storage, description, checkpoint, options, answers)
    return _prepare_transformers(storage, description, checkpoint, options, answers)


def _describe(source: Source | None, views: Iterable[TensorView]) -> Mapping[str, object]:
    return {} if source is None else source.describe(views)


def _prepare_trained(
    storage: Storage, found: TrainedInput, options: Options, source: Source | None, ask: Ask | None
) -> Prepared:
    model = found.read(storage)
    description = _describe(source, list_sources(model))
    answers = _find_answers(storage, description, model.architecture.kind, options, ask)
    return prepare_trained(storage, description, model, options, answers)


def _find_answers(
    storage: Storage, source: Mapping[str, object], family: str, options: Options, ask: Ask | None
) -> Answers | None:
    """Give what an earlier run into OUTPUT was told of the same INPUT, or have it asked; None where nobody asks."""
    if ask is None:
        return None
    if options.overwrite:
        return Asked(ask)
    decisions = find_decisions(storage, options.output, TARGETS[options.to], family, source)
    return Asked(ask) if decisions is None else Known(decisions)


def _prepare_transformers(
    storage: Storage,
    source: Mapping[str, object],
    checkpoint: Checkpoint,
    options: Options,
    answers: Answers | None,
) -> Prepared:
    has_tokenizer = checkpoint.vocabulary is not None
    lacking = () if has_tokenizer else (describe_missing_tokenizer(checkpoint.files.folder),)
    if lacking and answers is not None:  # which read data
        raise InputError(*lacking)
    decisions, decided = decide(checkpoint, answers)
    plan = plan_conversion(checkpoint, decisions, options.dtype, options.max_shard_size)
    return Prepared(
        subject=subject_of(checkpoint.choice),
        plan=plan,
        files=make_files(storage, checkpoint, plan),
        source=source,
        sources=format_count(len(checkpoint.files.shards), "shard"),
        target=TRANSFORMERS,
        shards=None,
        notes=(*checkpoint.notes, *lacking, *decided, *describe_plan(plan)),
        compare=lambda storage, headers, progress: compare_chunks(storage, checkpoint, headers, progress),
        lacks_tokenizer=not has_tokenizer,
    )
