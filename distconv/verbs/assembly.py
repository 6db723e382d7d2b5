"""What stands beside the chunks: config, tokenizer, licence, index and receipt, as bytes."""

import os
from collections.abc import Iterable
from dataclasses import replace

from distconv.errors import DistconvError, InputError
from distconv.families.llama import Family
from distconv.formats.meta.rope import RopeScaling
from distconv.formats.safetensors.chunks import make_index_file
from distconv.output.loading import SMALL_FILE_BYTES
from distconv.planning.plan import Plan
from distconv.sidecars.chat import CHAT_TEMPLATES
from distconv.sidecars.config import (
    CONFIG_NAME,
    ModelShape,
    Rope,
    TokenIds,
    make_config,
    make_generation_config,
    to_json,
)
from distconv.sidecars.tokenizer import Vocabulary, make_tokenizer_files
from distconv.storage.base import Storage, read_small
from distconv.verbs.checkpoint import Checkpoint


def make_model_config(checkpoint: Checkpoint, plan: Plan) -> tuple[dict[str, object], dict[str, object]]:
    """Make config and generation config for a planned conversion."""
    family, sizes = checkpoint.choice.family, checkpoint.dimensions
    params = checkpoint.params
    shape = ModelShape(
        dim=sizes.dim,
        layers=sizes.layers,
        heads=sizes.heads,
        kv_heads=sizes.kv_heads // plan.decisions.kv_replication,
        head_dim=sizes.head_dim,
        ffn_dim=sizes.ffn_dim,
        vocab_size=sizes.vocab,
        norm_eps=params.norm_eps,
    )
    size = None if checkpoint.vocabulary is None else checkpoint.vocabulary.size
    begin, ends = family.token_ids(size, instruct=checkpoint.choice.instruct)
    tokens = TokenIds(begin, ends if len(ends) > 1 else ends[0])
    sampled = checkpoint.choice.instruct and family.sampled
    config = make_config(
        shape,
        _make_rope(checkpoint),
        family.context,
        tokens,
        tied=plan.decisions.tied,
        dtype=plan.dtype.name,
    )
    return config, make_generation_config(tokens, sampled=sampled)


def _make_rope(checkpoint: Checkpoint) -> Rope:
    """Make the rotary embedding: what params.json says, and the family's where it says nothing."""
    family, params = checkpoint.choice.family, checkpoint.params
    said = params.rope_scaling if params.use_scaled_rope else RopeScaling()
    plain = Rope(
        family.theta if params.rope_theta is None else params.rope_theta,
        family.factor if said.factor is None else said.factor,
    )
    return replace(
        plain,
        low=plain.low if said.low is None else said.low,
        high=plain.high if said.high is None else said.high,
        original_context=plain.original_context if said.original_context is None else said.original_context,
    )


def make_tokenizer(checkpoint: Checkpoint) -> dict[str, bytes]:
    """Make the tokenizer's files for a checkpoint that has one."""
    if checkpoint.vocabulary is None:
        raise InputError(f"{checkpoint.files.folder}: no tokenizer.model")
    choice = checkpoint.choice
    return make_family_tokenizer(checkpoint.vocabulary, choice.family, instruct=choice.instruct)


def make_family_tokenizer(vocabulary: Vocabulary, family: Family, *, instruct: bool) -> dict[str, bytes]:
    """Make a tokenizer's files as a family has them; InputError where none can be made of the vocabulary."""
    try:
        return make_tokenizer_files(
            vocabulary,
            special_tokens=family.special_tokens,
            context=family.context,
            instruct=instruct,
            chat_template=CHAT_TEMPLATES[family.chat] if instruct and family.chat else None,
        )
    except (DistconvError, OSError, MemoryError, KeyboardInterrupt, SystemExit):
        raise
    # Whatever a strange vocabulary makes of the tokenizers library, whose panics are no Exception.
    except BaseException as error:  # noqa: BLE001
        first, *_ = [*str(error).splitlines(), ""]
        raise InputError(
            f"{vocabulary.path}: no tokenizer can be made of it ({type(error).__name__}: {first})"
        ) from None


def read_legal(storage: Storage, paths: Iterable[str]) -> dict[str, bytes]:
    """Read the texts of licence and policy, by their names."""
    return {os.path.basename(path): read_small(storage, path, SMALL_FILE_BYTES) for path in paths}


def make_files(storage: Storage, checkpoint: Checkpoint, plan: Plan) -> dict[str, bytes]:
    """Make every small file, in the order of writing: the mark is the last one."""
    config, generation = make_model_config(checkpoint, plan)
    files = read_legal(storage, checkpoint.files.legal)
    files |= make_tokenizer(checkpoint)
    files["generation_config.json"] = to_json(generation)
    files[CONFIG_NAME] = to_json(config)
    return files | make_index_file(plan.files)
