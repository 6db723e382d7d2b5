"""What Transformers' files say of a checkpoint's model: config, generation config, and what turns images into pixels."""

from dataclasses import replace

from distconv.errors import InputError, MismatchError
from distconv.families.dimensions import Llama4Dimensions, MixtralDimensions, MllamaDimensions
from distconv.families.mistral import choose_context as choose_mistral_context
from distconv.formats.meta.multimodal import Llama4Params
from distconv.formats.meta.rope import RopeScaling
from distconv.planning.plan import Plan
from distconv.sidecars.config import Rope, Settings, TokenIds, make_config, make_generation_config
from distconv.sidecars.llama_4_config import choose_context, make_llama_4_config, make_llama_4_rope
from distconv.sidecars.mistral_config import make_mistral_config
from distconv.sidecars.mllama_config import make_mllama_config
from distconv.sidecars.processors import make_llama_4_processor, make_mllama_processor
from distconv.sidecars.special_tokens import TOKEN_SETS
from distconv.verbs.checkpoint import Checkpoint


def make_model_config(checkpoint: Checkpoint, plan: Plan) -> tuple[dict[str, object], dict[str, object]]:
    """Make config and generation config for a planned conversion; InputError where no config can say the model."""
    choice, tokens = checkpoint.choice, _make_tokens(checkpoint)
    generation = make_generation_config(tokens, sampled=choice.instruct and choice.family.sampled)
    return _make_config(checkpoint, plan, tokens), generation


def _make_config(checkpoint: Checkpoint, plan: Plan, tokens: TokenIds) -> dict[str, object]:
    sizes, params, folder = checkpoint.dimensions, checkpoint.params, checkpoint.files.folder
    rope, context = _make_rope(checkpoint), choose_longest(checkpoint)
    settings = Settings(params.norm_eps, rope, context, tokens, plan.dtype.name)
    if isinstance(sizes, MllamaDimensions):
        _check_image_row(checkpoint, sizes)
        return make_mllama_config(folder, sizes, settings)
    if isinstance(sizes, Llama4Dimensions):
        return make_llama_4_config(folder, sizes, _llama_4(checkpoint), settings)
    text = sizes.text if isinstance(sizes, MixtralDimensions) else sizes
    text = replace(text, kv_heads=text.kv_heads // plan.decisions.kv_replication)
    settings = replace(settings, tied=plan.decisions.tied)
    if params.mistral is not None:
        return make_mistral_config(params.path, text, params.mistral, settings)
    return make_config(text, settings)


def _llama_4(checkpoint: Checkpoint) -> Llama4Params:
    """Give what params.json says of a Llama 4, by which its sizes were read."""
    found = checkpoint.params.llama_4
    if found is None:
        raise InputError(
            f"{checkpoint.params.path}: no 'vision_args', though the tensors are of Llama 4; take the params.json of this model"
        )
    return found


def _check_image_row(checkpoint: Checkpoint, sizes: MllamaDimensions) -> None:
    """The image's token is the one behind the vocabulary, in the tokenizer as in the embedding."""
    vocabulary = checkpoint.vocabulary
    if vocabulary is not None and vocabulary.size != sizes.vocab:
        raise MismatchError(
            f"{vocabulary.path}: {vocabulary.size:,} tokens, and the embedding has {sizes.vocab:,} rows before that of "
            "the image; give the right file by `tokenizer=`"
        )


def _make_tokens(checkpoint: Checkpoint) -> TokenIds:
    family = checkpoint.choice.family
    size = None if checkpoint.vocabulary is None else checkpoint.vocabulary.size
    begin, ends = family.token_ids(size, instruct=checkpoint.choice.instruct)
    special = None if family.special_tokens is None else TOKEN_SETS[family.special_tokens]
    pad = None if special is None or special.pad is None else special.find(special.pad, begin)
    return TokenIds(begin, ends if len(ends) > 1 else ends[0], pad)


def choose_longest(checkpoint: Checkpoint) -> int:
    """Choose the longest sequence, in tokens: the family's, or the one of Llama 4's variant or of Mistral's model."""
    choice, sizes = checkpoint.choice, checkpoint.dimensions
    if checkpoint.params.mistral is not None:
        return choose_mistral_context(checkpoint.params)
    if isinstance(sizes, Llama4Dimensions):
        return choose_context(choice.family.context, sizes.experts, instruct=choice.instruct)
    return choice.family.context


def _make_rope(checkpoint: Checkpoint) -> Rope:
    """Make the rotary embedding: what params.json says, and the family's where it says nothing."""
    family, params = checkpoint.choice.family, checkpoint.params
    if params.mistral is not None:
        return Rope(params.rope_theta or params.mistral.absent_theta)
    theta = family.theta if params.rope_theta is None else params.rope_theta
    if params.llama_4 is not None:
        return make_llama_4_rope(theta, params.rope_scaling if params.use_scaled_rope else None)
    if params.vision is not None and not params.use_scaled_rope:
        return Rope(theta)
    said = params.rope_scaling if params.use_scaled_rope else RopeScaling()
    plain = Rope(theta, family.factor if said.factor is None else said.factor)
    return replace(
        plain,
        low=plain.low if said.low is None else said.low,
        high=plain.high if said.high is None else said.high,
        original_context=plain.original_context if said.original_context is None else said.original_context,
    )


def make_processor(checkpoint: Checkpoint) -> dict[str, bytes]:
    """Make the files of what turns images into pixels; a text model has none."""
    sizes = checkpoint.dimensions
    if isinstance(sizes, MllamaDimensions):
        return make_mllama_processor(sizes)
    if isinstance(sizes, Llama4Dimensions):
        return make_llama_4_processor(sizes, _llama_4(checkpoint))
    return {}
