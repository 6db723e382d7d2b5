"""The way to Meta's layout, from Meta's own at another model-parallel size and from Transformers'."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace

from distconv.errors import InputError
from distconv.families.choose import Choice
from distconv.families.cuts import ROWS
from distconv.families.dimensions import Dimensions
from distconv.families.llama import EMBEDDING, OUTPUT
from distconv.families.translate import Decisions, MetaTensor, cut_for_ranks, join_ranks
from distconv.formats.meta.small_files import PARAMS_NAME, TOKENIZER_NAME
from distconv.formats.plain_json import parse_object
from distconv.humanize import format_count
from distconv.layout.dtypes import DTYPES, DType
from distconv.output.loading import SMALL_FILE_BYTES
from distconv.output.targets import META
from distconv.planning.plan import Plan, make_shard_plan
from distconv.sidecars.meta_params import correct_sizes
from distconv.storage.base import Storage, read_small
from distconv.verbs.assembly import read_legal
from distconv.verbs.checkpoint import (
    Checkpoint,
    choose_dtype,
    decide_replication,
    share_storage,
    subject_of,
)
from distconv.verbs.compare_shards import compare_shards
from distconv.verbs.expected import Expected, expect_checkpoint, expect_model
from distconv.verbs.options import Options
from distconv.verbs.prepared import Prepared
from distconv.verbs.questions import Answers, Asked
from distconv.verbs.remarks import note_frequencies
from distconv.verbs.transformers_model import TransformersModel


def prepare_reshard(
    storage: Storage,
    source: Mapping[str, object],
    checkpoint: Checkpoint,
    options: Options,
    answers: Answers | None,
) -> Prepared:
    """Plan a checkpoint of Meta's in another number of shards; ``source`` describes INPUT's files.

    Without ``answers`` what only data can tell is assumed.
    """
    replication, decided = decide_replication(checkpoint, answers)
    heads = checkpoint.dimensions.kv_heads // replication
    files = read_legal(storage, checkpoint.files.legal)
    if checkpoint.files.tokenizer is not None:
        files[TOKENIZER_NAME] = read_small(storage, checkpoint.files.tokenizer, SMALL_FILE_BYTES)
    files[PARAMS_NAME] = _adapt_params(storage, checkpoint, max(heads, _count(options)))
    return _prepare(
        options,
        checkpoint.choice,
        _plan_reshard(checkpoint, replication, options),
        files,
        source,
        format_count(len(checkpoint.files.shards), "shard"),
        (*_notes_for_meta(checkpoint), *decided),
        expect_checkpoint(checkpoint),
    )


def prepare_back(
    storage: Storage,
    source: Mapping[str, object],
    model: TransformersModel,
    options: Options,
    answers: Asked | None,
) -> Prepared:
    """Plan Meta's shards of a model in Transformers' format; ``source`` describes INPUT's files.

    Without ``answers`` its tables of tiles are taken as ones that Meta's code can have.
    """
    plan = _plan_back(model, options)
    lost = [
        held.name
        for held, again in model.list_tables()
        if answers is not None and not answers.are_equal(held.name, [(held, again)])
    ]
    if lost:
        raise InputError(
            f"{model.files.folder}: {', '.join(lost)}: images of several ratios have other embeddings for the same place of "
            "a tile, or there are some behind the tiles; Meta's code has one for each place"
        )
    files = read_legal(storage, model.files.legal)
    files[TOKENIZER_NAME] = model.tokenizer.content
    files[PARAMS_NAME] = model.make_params(_count(options))
    return _prepare(
        options,
        model.choice,
        plan,
        files,
        source,
        format_count(len(model.files.weights), "file"),
        model.notes,
        expect_model(model),
    )


def _count(options: Options) -> int:
    return options.shards or 1


def _prepare(
    options: Options,
    choice: Choice,
    plan: Plan,
    files: Mapping[str, bytes],
    source: Mapping[str, object],
    sources: str,
    notes: tuple[str, ...],
    expected: Sequence[Expected],
) -> Prepared:
    ranks = _count(options)
    return Prepared(
        subject=subject_of(choice),
        plan=plan,
        files=files,
        source=source,
        sources=sources,
        target=META,
        shards=ranks,
        notes=notes,
        compare=lambda storage, headers, progress: compare_shards(
            storage, expected, ranks, headers, progress
        ),
    )


def _plan_reshard(checkpoint: Checkpoint, replication: int, options: Options) -> Plan:
    """Plan the shards of a checkpoint that has each key head so often."""
    if checkpoint.params.mistral is not None:
        raise InputError(
            f"{checkpoint.files.folder}: {checkpoint.choice.family.title}; Mistral's code reads one file, as INPUT is, and no code "
            "of Meta's reads it in shards: leave `to=` out for Transformers' format"
        )
    wholes = [_recut(whole, checkpoint) for whole in join_ranks(checkpoint.matches, replication)]
    # A trainer's may lack the output, where params.json says that they are tied.
    tied = checkpoint.match(checkpoint.architecture.output) is None or share_storage(checkpoint.catalog)
    dtype = choose_dtype(checkpoint, options.dtype)
    return _plan_shards(wholes, checkpoint.dimensions.head_dim, replication, options, dtype, tied=tied)


def _plan_back(model: TransformersModel, options: Options) -> Plan:
    """Plan the shards of a model in Transformers' format."""
    wholes = list(model.whole_tensors())
    dtype = None if options.dtype == "auto" else DTYPES[options.dtype]
    return _plan_shards(wholes, model.dimensions.head_dim, 1, options, dtype, tied=model.tied)


def _notes_for_meta(checkpoint: Checkpoint) -> tuple[str, ...]:
    """Give the notes on a checkpoint that matter to Meta's code, which has no settings for chat, and had frequencies."""
    kept = (note for note in checkpoint.notes if note not in checkpoint.choice.variant)
    return (*kept, *note_frequencies(checkpoint.catalog))


def _plan_shards(
    wholes: Sequence[MetaTensor],
    head_dim: int,
    replication: int,
    options: Options,
    dtype: DType | None,
    *,
    tied: bool,
) -> Plan:
    """Plan shards of whole tensors; ``tied`` says that the output is the embedding, whether it is among them or not.

    Meta's code wants both. They are one storage where ranks share them alike.
    """
    shared = {}
    if tied:
        embedding = next(whole for whole in wholes if whole.tensor.name == EMBEDDING)
        wholes = [whole for whole in wholes if whole.tensor.name != OUTPUT]
        if embedding.cut == ROWS:
            shared = {OUTPUT: EMBEDDING}
        else:
            output = replace(embedding.tensor, name=OUTPUT)
            wholes.append(replace(embedding, tensor=output, cut=ROWS, stored=OUTPUT))
    parts = cut_for_ranks(wholes, _count(options), head_dim, dtype)
    decisions = Decisions(bool(shared), replication)
    return make_shard_plan(parts, decisions, options.max_shard_size, shared)


def _recut(whole: MetaTensor, checkpoint: Checkpoint) -> MetaTensor:
    """Cut the embedding as INPUT has it; nothing in one shard alone tells, but the family."""
    if whole.tensor.name == EMBEDDING and len(checkpoint.catalog.shards) == 1:
        return replace(whole, cut=checkpoint.choice.family.embedding_cut)
    return whole


def _adapt_params(storage: Storage, checkpoint: Checkpoint, kv_heads: int) -> bytes:
    """Give params.json as it is, but for sizes that the tensors have otherwise.

    And for the key heads, of which Meta's model has one a shard at least.
    """
    params = checkpoint.params
    content = read_small(storage, params.path, SMALL_FILE_BYTES)
    changes: dict[str, object] = {} if params.kv_heads == kv_heads else {"n_kv_heads": kv_heads}
    if isinstance(checkpoint.dimensions, Dimensions):
        changes |= correct_sizes(params, checkpoint.dimensions, checkpoint.choice.family)
    if not changes:
        return content
    found = parse_object(params.path, content)
    fields = next((value for value in found.values() if isinstance(value, dict) and "dim" in value), found)
    fields |= changes
    return (json.dumps(found) + ("\n" if params.ends_with_newline else "")).encode()
