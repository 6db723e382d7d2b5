"""The way to Meta's layout, from Meta's own at another model-parallel size and from Transformers'."""

import json
import os
from collections.abc import Sequence
from dataclasses import replace

from distconv.families.cuts import ROWS
from distconv.families.llama import EMBEDDING, OUTPUT
from distconv.families.translate import Decisions, MetaTensor, cut_for_ranks, join_ranks
from distconv.formats.meta.files import PARAMS_NAME, TOKENIZER_NAME
from distconv.formats.meta.params import Params
from distconv.formats.plain_json import parse_object
from distconv.layout.dtypes import DTYPES
from distconv.moving.compare import equal_targets, target_of_view
from distconv.output.identity import Source
from distconv.output.targets import META
from distconv.planning.plan import Plan, make_shard_plan
from distconv.sidecars.meta_params import make_params
from distconv.storage.base import Storage, read_small
from distconv.verbs.checkpoint import Checkpoint, decide_replication, share_storage
from distconv.verbs.compare_shards import compare_shards
from distconv.verbs.expected import expect_checkpoint, expect_model
from distconv.verbs.options import Options
from distconv.verbs.prepared import Prepared
from distconv.verbs.transformers_model import TransformersModel

_SMALL_BYTES = 64 << 20


def prepare_reshard(storage: Storage, source: Source, checkpoint: Checkpoint, options: Options) -> Prepared:
    """Plan a checkpoint of Meta's in another number of shards."""
    ranks = options.shards or 1
    replication, decided = decide_replication(
        checkpoint, lambda left, right: equal_targets(storage, target_of_view(left), target_of_view(right))
    )
    heads = checkpoint.dimensions.kv_heads // replication
    files = {
        os.path.basename(path): read_small(storage, path, _SMALL_BYTES) for path in checkpoint.files.legal
    }
    if checkpoint.files.tokenizer is not None:
        files[TOKENIZER_NAME] = read_small(storage, checkpoint.files.tokenizer, _SMALL_BYTES)
    files[PARAMS_NAME] = _adapt_params(storage, checkpoint.params, max(heads, ranks))
    expected = expect_checkpoint(checkpoint)
    return Prepared(
        choice=checkpoint.choice,
        plan=plan_reshard(checkpoint, replication, options),
        files=files,
        source=source.describe(checkpoint.catalog.all_views),
        target=META,
        shards=ranks,
        notes=(*notes_for_meta(checkpoint), *decided),
        compare=lambda storage, headers, progress: compare_shards(
            storage, expected, ranks, headers, progress
        ),
    )


def plan_reshard(checkpoint: Checkpoint, replication: int, options: Options) -> Plan:
    """Plan the shards of a checkpoint that has each key head so often."""
    wholes = [_recut(whole, checkpoint) for whole in join_ranks(checkpoint.matches, replication)]
    cuts = {whole.tensor.name: whole.cut for whole in wholes}
    if OUTPUT not in cuts:
        # A trainer's, whose params.json says that they are tied: Meta's code wants both.
        wholes.append(_make_output(wholes))
    tied = cuts[EMBEDDING] == ROWS and (OUTPUT not in cuts or share_storage(checkpoint.catalog))
    if tied:
        wholes = [whole for whole in wholes if whole.tensor.name != OUTPUT]
    return plan_shards(wholes, checkpoint.dimensions.head_dim, Decisions(tied, replication), options)


def notes_for_meta(checkpoint: Checkpoint) -> tuple[str, ...]:
    """Give the notes on a checkpoint that matter to Meta's code, which has no settings for chat."""
    return tuple(note for note in checkpoint.notes if note not in checkpoint.choice.variant)


def prepare_back(storage: Storage, source: Source, model: TransformersModel, options: Options) -> Prepared:
    """Plan Meta's shards of a model in Transformers' format."""
    ranks = options.shards or 1
    files = {os.path.basename(path): read_small(storage, path, _SMALL_BYTES) for path in model.files.legal}
    files[TOKENIZER_NAME] = model.tokenizer.content
    files[PARAMS_NAME] = make_params(model.config, rows=model.rows, shards=ranks)
    expected = expect_model(model)
    return Prepared(
        choice=model.choice,
        plan=plan_back(model, options),
        files=files,
        source=source.describe(model.catalog.tensors.values()),
        target=META,
        shards=ranks,
        notes=model.notes,
        compare=lambda storage, headers, progress: compare_shards(
            storage, expected, ranks, headers, progress
        ),
    )


def plan_back(model: TransformersModel, options: Options) -> Plan:
    """Plan the shards of a model in Transformers' format."""
    family, wholes = model.config.family, list(model.whole_tensors())
    if model.tied and family.embedding_cut is not ROWS:
        wholes.append(_make_output(wholes))
    shared = model.tied and family.embedding_cut is ROWS
    return plan_shards(wholes, model.config.shape.head_dim, Decisions(shared, 1), options)


def _make_output(wholes: Sequence[MetaTensor]) -> MetaTensor:
    """Make the output of the embedding, which it is tied to."""
    embedding = next(whole for whole in wholes if whole.tensor.name == EMBEDDING)
    return replace(embedding, tensor=replace(embedding.tensor, name=OUTPUT), cut=ROWS)


def plan_shards(wholes: Sequence[MetaTensor], head_dim: int, decisions: Decisions, options: Options) -> Plan:
    """Plan shards of whole tensors; where the output is the embedding, both names stand for one storage."""
    dtype = None if options.dtype == "auto" else DTYPES[options.dtype]
    parts = cut_for_ranks(wholes, options.shards or 1, head_dim, dtype)
    shared = {OUTPUT: EMBEDDING} if decisions.tied else {}
    return make_shard_plan(parts, decisions, options.max_shard_size, shared)


def _recut(whole: MetaTensor, checkpoint: Checkpoint) -> MetaTensor:
    """Cut the embedding as INPUT has it; nothing in one shard alone tells, but the family."""
    if whole.tensor.name == EMBEDDING and len(checkpoint.catalog.shards) == 1:
        return replace(whole, cut=checkpoint.choice.family.embedding_cut)
    return whole


def _adapt_params(storage: Storage, params: Params, kv_heads: int) -> bytes:
    """Give params.json as it is, but for the key heads, of which Meta's model has one a shard at least."""
    content = read_small(storage, params.path, _SMALL_BYTES)
    if params.kv_heads == kv_heads:
        return content
    found = parse_object(params.path, content)
    fields = next((value for value in found.values() if isinstance(value, dict) and "dim" in value), found)
    fields["n_kv_heads"] = kv_heads
    return (json.dumps(found) + ("\n" if params.ends_with_newline else "")).encode()
