"""config.json of Llama 4, in the form that transformers 4.57 and 5.23 read alike."""

from dataclasses import replace

from distconv.errors import InputError
from distconv.families.dimensions import Llama4Dimensions
from distconv.formats.meta.multimodal import Llama4Params
from distconv.formats.meta.rope import RopeScaling
from distconv.sidecars.config import Rope, Settings, list_encoder_keys, make_parts_config
from distconv.sidecars.special_tokens import TOKEN_SETS

ARCHITECTURE = "Llama4ForConditionalGeneration"
ENCODER_THETA = 1e4
SCALED = Rope(theta=5e5, factor=16.0, low=1.0, high=1.0, original_context=8192)
"""How Meta's code scales where params.json does not say (``llama4/args.py`` and ``model.py``): Scout's does not."""
_INSTRUCT_CONTEXT, _LARGE_CONTEXT, _MANY_EXPERTS = 10_485_760, 1_048_576, 128
_NEVER = 8192
"""Chunks of attention, in tokens, of a model without any: Transformers can make no mask without a number."""

_ANY_INTERVAL = 4
"""Where no layer is without rotary embedding, which ``no_rope_layers`` says; Transformers divides by it."""


def make_llama_4_rope(theta: float, scaling: RopeScaling | None) -> Rope:
    """Make the text model's rotary embedding; ``scaling`` is what params.json says of it, None where it is plain."""
    if scaling is None:
        return Rope(theta)
    return replace(
        SCALED,
        theta=theta,
        factor=scaling.factor or SCALED.factor,
        low=scaling.low or SCALED.low,
        high=scaling.high or SCALED.high,
        original_context=scaling.original_context or SCALED.original_context,
    )


def choose_context(context: int, experts: int, *, instruct: bool) -> int:
    """Choose the longest sequence, in tokens; ``context`` is the base model's (Meta's model cards)."""
    if not instruct or not experts:
        return context
    return _LARGE_CONTEXT if experts >= _MANY_EXPERTS else _INSTRUCT_CONTEXT


def find_image_tokens(begin: int) -> dict[str, int]:
    """Give the ids that stand for images, by their keys; ``begin`` is that of the first special token."""
    special = TOKEN_SETS["llama-4"]
    return {
        "boi_token_index": special.find("<|image_start|>", begin),
        "eoi_token_index": special.find("<|image_end|>", begin),
        "image_token_index": special.find("<|patch|>", begin),
    }


def make_llama_4_config(
    path: str, sizes: Llama4Dimensions, params: Llama4Params, settings: Settings
) -> dict[str, object]:
    """Make config.json's content: ``configuration_llama4.py`` of transformers 5.23, and the older keys.

    InputError, which speaks of ``path``, where Transformers has no such encoder.
    """
    tokens = find_image_tokens(settings.tokens.bos)
    top = {**tokens, "model_type": "llama4", "tie_word_embeddings": False}
    text: dict[str, object] = {
        **settings.list_keys(sizes),
        "attention_bias": False,
        "attention_dropout": 0.0,
        "head_dim": sizes.head_dim,
        "model_type": "llama4_text",
        **_list_experts(sizes, params),
        **_list_attention(sizes, params),
    }
    return make_parts_config(ARCHITECTURE, top, text, _make_encoder(path, sizes, params), settings)


def _list_experts(sizes: Llama4Dimensions, params: Llama4Params) -> dict[str, object]:
    """Give the keys of feed-forward layers.

    Of a kind that there is none of, the size does not matter; it is that of as many active parameters, as published:
    with experts, each token goes through two of half the size.
    """
    routed = params.experts
    return {
        "interleave_moe_layer_step": 0 if routed is None else routed.step,
        "intermediate_size": sizes.expert_ffn_dim or sizes.ffn_dim,
        "intermediate_size_mlp": sizes.ffn_dim or 2 * sizes.expert_ffn_dim,
        "moe_layers": list(sizes.moe_layers),
        "num_experts_per_tok": 1 if routed is None else routed.top_k,
        "num_local_experts": sizes.experts,
        "output_router_logits": False,
        "router_aux_loss_coef": 0.001,
        "router_jitter_noise": 0.0,
    }


def _list_attention(sizes: Llama4Dimensions, params: Llama4Params) -> dict[str, object]:
    """Give the keys that say how each layer attends; what has a rotary embedding attends within chunks."""
    every = params.nope_interval
    turned = [every is None or (layer + 1) % every != 0 for layer in range(sizes.layers)]
    chunked = params.attention_chunk_size is not None
    return {
        "attention_chunk_size": params.attention_chunk_size or _NEVER,
        "attn_scale": params.attention_scale,
        # Without it Meta's code gives the same up to ``floor_scale`` tokens; published configs have it on.
        "attn_temperature_tuning": True,
        "floor_scale": params.floor_scale,
        "layer_types": ["chunked_attention" if chunked and turns else "full_attention" for turns in turned],
        "no_rope_layer_interval": every or _ANY_INTERVAL,
        "no_rope_layers": list(map(int, turned)),
        "use_qk_norm": params.qk_norm,
    }


def _make_encoder(path: str, sizes: Llama4Dimensions, params: Llama4Params) -> dict[str, object]:
    vision, tower = sizes.vision, params.tower
    if vision.ffn_dim != sizes.adapter_dim:
        raise InputError(
            f"{path}: the encoder's feed-forward size is {vision.ffn_dim:,}, its adapter takes {sizes.adapter_dim:,}; "
            "Transformers has one size for both (intermediate_size)"
        )
    return {
        **list_encoder_keys(vision),
        "attention_dropout": 0.0,
        "model_type": "llama4_vision_model",
        "multi_modal_projector_bias": False,
        "num_attention_heads": vision.heads,
        "pixel_shuffle_ratio": tower.pixel_shuffle_ratio,
        "projector_dropout": 0.0,
        "projector_input_dim": vision.output_dim,
        "projector_output_dim": vision.output_dim,
        **Rope(ENCODER_THETA).list_keys(),
        "vision_feature_select_strategy": "default",
    }
