"""config.json of Llama 4, read for Meta's code.

Keys are those of ``configuration_llama4.py`` of transformers 4.51, whose published configs leave out what follows from
others, to 5.23; fields of params.json are those of ``llama4/args.py`` of llama-models.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from distconv.families.dimensions import Llama4Dimensions, VisionEncoder
from distconv.families.images import IMAGE_FAMILIES
from distconv.families.llama_vision import CHANNELS
from distconv.formats.meta.fields import Fields
from distconv.formats.meta.multimodal import ATTENTION_SCALE, FLOOR_SCALE
from distconv.sidecars.config import Rope
from distconv.sidecars.llama_4_config import ENCODER_THETA, SCALED, choose_context, find_image_tokens
from distconv.sidecars.meta_config import note_context, take_rope
from distconv.sidecars.meta_experts import ExpertFormula, find_expert_formula
from distconv.sidecars.meta_parts import ImageConfig, check_fixed, take_numbers, take_text

_INTERVAL = 4
"""Of layers without rotary embedding, where a config does not say."""


@dataclass(frozen=True, slots=True)
class _Attention:
    """How the text model attends."""

    rope: Rope
    chunk_size: int | None
    nope_interval: int | None
    qk_norm: bool
    tempered: bool
    floor_scale: int
    scale: float


def read_llama_4(fields: Fields, text: Fields, vision: Fields) -> ImageConfig:
    """Read the config's parts; what is wrong comes to the fields' findings."""
    layers = text.take_count("num_hidden_layers")
    moe, step = _take_moe_layers(text, layers)
    experts = (text.take_optional_count("num_local_experts") or 0) if moe else 0
    size, dense = text.take_count("intermediate_size"), text.take_optional_count("intermediate_size_mlp")
    sizes = take_text(text, layers=layers, ffn_dim=(dense or size) if len(moe) < layers else 0)
    encoder, ratio = _read_encoder(vision)
    dimensions = Llama4Dimensions(sizes, experts, size if moe else 0, moe, encoder, encoder.ffn_dim)
    begin = text.take_optional_count("bos_token_id")
    if begin is not None:
        check_fixed(fields, find_image_tokens(begin))
    check_fixed(text, {"attention_bias": False, "hidden_act": "silu", "tie_word_embeddings": False})
    eps = text.take_number("rms_norm_eps", at_most=1, always=True) or 1e-5
    attention, top_k = _take_attention(text, layers), text.take_optional_count("num_experts_per_tok") or 1
    context = text.take_optional_count("max_position_embeddings")
    text.taken |= {"num_local_experts", "layer_types", "no_rope_layer_interval", "interleave_moe_layer_step"}
    family = IMAGE_FAMILIES["llama-4" if moe else "llama-guard-4"]
    formula = None if fields.findings else find_expert_formula(dimensions)
    params: dict[str, object] = {}
    if formula is not None:
        params |= _list_text(dimensions, formula, eps, attention)
        params["vision_args"] = _list_encoder(encoder, ratio)
        params["moe_args"] = _list_experts(dimensions, formula, step, top_k)
    elif not fields.findings:
        text.report(
            "intermediate_size_mlp", dense, f"a size that goes with experts of {size:,} in Meta's formula"
        )
    evidence = (f"model_type is 'llama4', with {experts} experts in {len(moe)} of {layers} layers",)
    notes = tuple(note_context(family, context, choose_context(family.context, experts, instruct=True)))
    return ImageConfig(dimensions, family, evidence, context or family.context, params, notes)


def _take_moe_layers(text: Fields, layers: int) -> tuple[tuple[int, ...], int]:
    """Take the layers that have experts, and how far apart they are."""
    step = text.take_optional_count("interleave_moe_layer_step") or 0
    told = take_numbers(text, "moe_layers")
    found = tuple(range(step - 1, layers, step) if told is None and step else told or ())
    step = found[0] + 1 if found and found[0] >= 0 else step or 1
    if found and found != tuple(range(step - 1, layers, step)):
        text.report("moe_layers", list(found), "layers that lie evenly, as Meta's code has them")
    return found, step


def _take_attention(text: Fields, layers: int) -> _Attention:
    turned = _take_turned(text, layers)
    without = [layer for layer, turns in enumerate(turned) if not turns]
    interval = without[0] + 1 if without else None
    if interval is not None and without != [*range(interval - 1, layers, interval)]:
        text.report("no_rope_layers", turned, "zeros that lie evenly, as Meta's code has them")
    tempered = text.has("attn_temperature_tuning") or text.get("attn_temperature_tuning") is None
    text.taken.add("attn_temperature_tuning")
    return _Attention(
        rope=_take_rope(text),
        chunk_size=_take_chunk_size(text, turned),
        nope_interval=interval,
        qk_norm=text.get("use_qk_norm") is None or text.take_flag("use_qk_norm"),
        tempered=tempered and bool(without),
        floor_scale=text.take_optional_count("floor_scale") or FLOOR_SCALE,
        scale=text.take_number("attn_scale") or ATTENTION_SCALE,
    )


def _take_turned(text: Fields, layers: int) -> list[int]:
    """Take which layers have a rotary embedding (1) or none (0)."""
    every = text.take_optional_count("no_rope_layer_interval") or _INTERVAL
    found = take_numbers(text, "no_rope_layers") or [int((layer + 1) % every != 0) for layer in range(layers)]
    if len(found) != layers:
        text.report("no_rope_layers", found, f"a number for each of {layers} layers")
    return found


def _take_chunk_size(text: Fields, turned: Sequence[int]) -> int | None:
    """Take within how many tokens layers with rotary embedding attend; None where nothing limits them."""
    size, kinds = text.take_optional_count("attention_chunk_size"), text.get("layer_types")
    within = ["chunked_attention" if turns else "full_attention" for turns in turned]
    if size is None or kinds == ["full_attention"] * len(turned):
        return None
    if kinds is not None and kinds != within:
        text.report(
            "layer_types", kinds, "chunked_attention where there is a rotary embedding, as in Meta's code"
        )
    return size


def _take_rope(text: Fields) -> Rope:
    rope = take_rope(text, SCALED.theta)
    if rope.factor is not None and (rope.low, rope.original_context) != (SCALED.low, SCALED.original_context):
        text.report(
            "rope_scaling", rope.scaling(), "low_freq_factor 1 and 8192 original positions, as in Meta's code"
        )
    return rope


def _read_encoder(vision: Fields) -> tuple[VisionEncoder, float]:
    """Read the encoder, and the ratio of its pixel shuffle."""
    patch, width = vision.take_count("patch_size"), vision.take_count("hidden_size")
    ffn_dim, output_dim = vision.take_count("intermediate_size"), vision.take_count("vision_output_dim")
    ratio = vision.take_number("pixel_shuffle_ratio", at_most=1) or 0.5
    fixed = {
        "hidden_act": "gelu",
        "multi_modal_projector_bias": False,
        "norm_eps": 1e-5,
        "num_channels": CHANNELS,
        "projector_input_dim": output_dim,
        "projector_output_dim": output_dim,
        "vision_feature_select_strategy": "default",
    }
    check_fixed(vision, fixed)
    if ffn_dim != width / ratio**2:
        vision.report(
            "intermediate_size", ffn_dim, f"{width / ratio**2:g}, which pixel shuffle gives the adapter"
        )
    if take_rope(vision, ENCODER_THETA) != Rope(ENCODER_THETA):
        vision.report(
            "rope_theta", vision.get("rope_theta"), f"a plain rotary embedding of {ENCODER_THETA:g}"
        )
    encoder = VisionEncoder(
        width=width,
        layers=vision.take_count("num_hidden_layers"),
        global_layers=0,
        heads=vision.take_count("num_attention_heads"),
        ffn_dim=ffn_dim,
        channels=CHANNELS,
        patch=patch,
        positions=(vision.take_count("image_size") // patch) ** 2 + 1,
        tiles=1,
        output_dim=output_dim,
    )
    return encoder, ratio


def _list_text(
    sizes: Llama4Dimensions, formula: ExpertFormula, eps: float, attention: _Attention
) -> Iterator[tuple[str, object]]:
    rope = attention.rope
    yield "dim", sizes.dim
    yield "n_layers", sizes.layers
    yield "n_heads", sizes.heads
    yield "n_kv_heads", sizes.kv_heads
    yield "vocab_size", sizes.vocab
    yield "multiple_of", formula.multiple_of
    yield "ffn_dim_multiplier", formula.multiplier
    yield "ffn_exp", formula.ffn_exp
    yield "norm_eps", eps
    yield "attention_chunk_size", attention.chunk_size
    yield "rope_theta", rope.theta
    yield "use_scaled_rope", rope.factor is not None
    if rope.factor is not None and (rope.factor, rope.high) != (SCALED.factor, SCALED.high):
        yield "rope_scaling_factor", rope.factor
        yield "rope_high_freq_factor", rope.high
    yield "nope_layer_interval", attention.nope_interval
    yield "use_qk_norm", attention.qk_norm
    if attention.tempered:
        yield "attn_temperature_tuning", True
        yield "floor_scale", attention.floor_scale
        yield "attn_scale", attention.scale


def _list_encoder(encoder: VisionEncoder, ratio: float) -> dict[str, object]:
    return {
        "image_size": {"height": encoder.image_size, "width": encoder.image_size},
        "patch_size": {"height": encoder.patch, "width": encoder.patch},
        "dim": encoder.width,
        "n_layers": encoder.layers,
        "n_heads": encoder.heads,
        "mlp_ratio": encoder.ffn_dim / encoder.width,
        "output_dim": encoder.output_dim,
        "pixel_shuffle_ratio": ratio,
    }


def _list_experts(
    sizes: Llama4Dimensions, formula: ExpertFormula, step: int, top_k: int
) -> dict[str, object] | None:
    if not sizes.moe_layers:
        return None
    return {
        "num_experts": sizes.experts,
        "capacity_factor": 1.0,
        "auto_scale_F": formula.halved,
        "top_k": top_k,
        "interleave_moe_layer_step": step,
    }
