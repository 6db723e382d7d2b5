"""What INPUT is, and which way from it to OUTPUT is asked for."""

import contextlib
from collections.abc import Iterator, Mapping

from distconv.errors import InputError
from distconv.formats.meta.catalog import read_catalog
from distconv.formats.meta.files import SourceFiles, find_files, find_tokenizer
from distconv.formats.safetensors.catalog import read_transformers_catalog
from distconv.formats.safetensors.folder import TransformersFiles, find_transformers_files, is_transformers
from distconv.output.identity import InputFiles, Source
from distconv.output.state import describe_unfinished, find_decisions
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
from distconv.verbs.options import Options
from distconv.verbs.prepared import Prepared
from distconv.verbs.questions import Answers, Ask, Asked, Known
from distconv.verbs.to_meta import prepare_back, prepare_reshard
from distconv.verbs.trained_input import TrainedInput, find_trained, is_trained, list_sources, refuse_like
from distconv.verbs.transformers_model import TransformersModel, read_model

Found = SourceFiles | TransformersFiles | TrainedInput
"""Which files of INPUT are what."""


@contextlib.contextmanager
def telling_unfinished(storage: Storage, options: Options) -> Iterator[None]:
    """Say of an INPUT in which no model is found that it is a conversion's unfinished OUTPUT, where it is one."""
    try:
        yield
    except InputError as error:
        words = describe_unfinished(storage, options.source)
        if words is None:
            raise
        raise InputError(words) from error


def find_input(storage: Storage, options: Options) -> Found:
    """Find a conversion's INPUT; InputError where that is not one whole model."""
    with telling_unfinished(storage, options):
        return _find_input(storage, options)


def _find_input(storage: Storage, options: Options) -> Found:
    if is_trained(storage, options):
        return find_trained(storage, options)
    refuse_like(storage, options)
    if is_back(storage, options):
        return find_transformers_files(storage, options.source)
    return find_files(storage, options.source, options.tokenizer, options.params)


def list_input(storage: Storage, found: Found, options: Options) -> InputFiles:
    """List the files that must stay as they are for a conversion."""
    if isinstance(found, TrainedInput):
        return found.list_files()
    if isinstance(found, TransformersFiles):
        index = () if found.index is None else (found.index.path,)
        small = (found.config, *index, *found.small.values(), *found.legal)
        given = () if options.tokenizer is None else (find_tokenizer(storage, options.tokenizer),)
        return InputFiles(
            found.folder,
            found.weights,
            (*small, *given),
            lambda storage: read_transformers_catalog(storage, found).tensors.values(),
        )
    return InputFiles(
        found.folder,
        found.weights,
        found.small,
        lambda storage: read_catalog(storage, found.shards, found.scales).all_views,
    )


def is_transformers_model(storage: Storage, options: Options) -> bool:
    """Whether INPUT is in Transformers' format; --params says that its tensors are Meta's."""
    return options.params is None and is_transformers(storage, options.source)


def is_back(storage: Storage, options: Options) -> bool:
    """Whether a model in Transformers' format is to be brought into Meta's."""
    return options.to == "meta" and is_transformers_model(storage, options)


def open_transformers(storage: Storage, options: Options) -> TransformersModel:
    """Find a model in Transformers' format and read its headers, see ``read_model``."""
    return _read_model(storage, find_transformers_files(storage, options.source), options)


def _read_model(storage: Storage, found: TransformersFiles, options: Options) -> TransformersModel:
    return read_model(storage, found, family=options.family, tokenizer=options.tokenizer)


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


def prepare(storage: Storage, source: Source, found: Found, options: Options, ask: Ask) -> Prepared:
    """Read headers, have decided what data alone can tell, plan, and make what stands beside the weights.

    All that can fail without a byte moved fails here.
    """
    if isinstance(found, TrainedInput):
        return _prepare_trained(storage, source, found, options, ask)
    if isinstance(found, TransformersFiles):
        return prepare_back(storage, source, _read_model(storage, found, options), options, Asked(ask))
    checkpoint = read_found(storage, found, family=options.family, instruct=options.instruct)
    # What cannot be converted so is refused before anybody reads data.
    choose_dtype(checkpoint, options.dtype)
    description = source.describe(checkpoint.catalog.all_views)
    answers = _find_answers(storage, description, checkpoint.choice.family.name, options) or Asked(ask)
    if options.to == "meta":
        return prepare_reshard(storage, description, checkpoint, options, answers)
    return _prepare_transformers(storage, description, checkpoint, options, answers)


def _prepare_trained(
    storage: Storage, source: Source, found: TrainedInput, options: Options, ask: Ask
) -> Prepared:
    model = found.read(storage)
    description = source.describe(list_sources(model))
    answers = _find_answers(storage, description, model.architecture.kind, options) or Asked(ask)
    return prepare_trained(storage, description, model, options, answers)


def _find_answers(
    storage: Storage, source: Mapping[str, object], family: str, options: Options
) -> Answers | None:
    """Give what an earlier run into OUTPUT was told of the same INPUT; None where there was none."""
    if options.overwrite:
        return None
    decisions = find_decisions(storage, options.output, TARGETS[options.to], family, source)
    return None if decisions is None else Known(decisions)


def _prepare_transformers(
    storage: Storage, source: Mapping[str, object], checkpoint: Checkpoint, options: Options, answers: Answers
) -> Prepared:
    if checkpoint.vocabulary is None:
        raise InputError(
            f"{checkpoint.files.folder}: no tokenizer.model (Mistral's: tekken.json) here or in the parent folder; give it by `tokenizer=PATH`"
        )
    decisions, decided = decide(checkpoint, answers)
    plan = plan_conversion(checkpoint, decisions, options.dtype, options.max_shard_size)
    return Prepared(
        subject=subject_of(checkpoint.choice),
        plan=plan,
        files=make_files(storage, checkpoint, plan),
        source=source,
        target=TRANSFORMERS,
        shards=None,
        notes=(*checkpoint.notes, *decided, *describe_plan(plan)),
        compare=lambda storage, headers, progress: compare_chunks(storage, checkpoint, headers, progress),
    )
