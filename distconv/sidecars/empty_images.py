"""The tensors that a model which sees has by its config.json, without memory for any.

As of text models, only the settings that shape it are taken, each within what the chunks hold.
"""

from collections.abc import Collection, Mapping

Shape = tuple[int, ...]

_EXTENTS = frozenset(
    {
        "hidden_size", "intermediate_size", "intermediate_size_mlp", "num_attention_heads", "num_key_value_heads",
        "attention_heads", "head_dim", "vocab_size", "num_local_experts", "num_experts_per_tok", "num_channels",
        "patch_size", "vision_output_dim", "projector_input_dim", "projector_output_dim", "max_num_tiles",
    }
)  # fmt: skip
_COUNTS = frozenset({"num_hidden_layers", "num_global_layers"})
_LISTS = frozenset(
    {
        "cross_attention_layers", "intermediate_layers_indices", "layer_types", "moe_layers", "no_rope_layers",
        "supported_aspect_ratios",
    }
)  # fmt: skip
_OTHERS = frozenset(
    {
        "attention_bias", "attention_chunk_size", "attn_temperature_tuning", "bos_token_id", "eos_token_id", "hidden_act", "image_size",
        "interleave_moe_layer_step", "max_position_embeddings", "multi_modal_projector_bias", "norm_eps", "pad_token_id",
        "pixel_shuffle_ratio", "rms_norm_eps", "rope_parameters", "rope_scaling", "rope_theta", "tie_word_embeddings",
        "use_qk_norm", "floor_scale",
    }
)  # fmt: skip
_PARTS = ("text_config", "vision_config")
_LAYER_TENSORS = 8
_MOST_LAYERS = 1024
_MOST_PIXELS = 1 << 14


def read_image_model_shapes(content: Mapping[str, object], shapes: Collection[Shape]) -> dict[str, Shape]:
    """Give a model's tensors by their names in files; ``shapes`` are those of all tensors that there are."""
    import torch
    from transformers import AutoModelForImageTextToText, Llama4Config, MllamaConfig

    parts = {part: _take(content.get(part), shapes) for part in _PARTS}
    config = {"mllama": MllamaConfig, "llama4": Llama4Config}[str(content["model_type"])](**parts)
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(config)  # type: ignore[no-untyped-call]
    return {_name_in_files(name): tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def _take(found: object, shapes: Collection[Shape]) -> dict[str, object]:
    if not isinstance(found, dict):
        raise TypeError(f"expected {' and '.join(_PARTS)}")
    settings = {key: value for key, value in found.items() if key in _EXTENTS | _COUNTS | _LISTS | _OTHERS}
    largest = max((extent for shape in shapes for extent in shape), default=0)
    layers = min(len(shapes) // _LAYER_TENSORS, _MOST_LAYERS)
    limits = {
        **dict.fromkeys(_EXTENTS, largest),
        **dict.fromkeys(_COUNTS, layers),
        "image_size": _MOST_PIXELS,
    }
    for key, limit in limits.items():
        value = settings.get(key)
        if isinstance(value, int | float) and not value <= limit:
            raise ValueError(f"{key} {value:,}, the chunks' {len(shapes)} tensors allow at most {limit:,}")
    for key in _LISTS:
        value = settings.get(key)
        if isinstance(value, list) and len(value) > max(layers, largest):
            raise ValueError(f"{key} has {len(value):,} entries, more than there are layers")
    return settings


def _name_in_files(name: str) -> str:
    """Give the name under which Transformers saves a tensor, which in memory lies in a model of its own."""
    if name == "lm_head.weight":
        return "language_model.lm_head.weight"
    inner = name.removeprefix("model.")
    return inner.replace("language_model.", "language_model.model.", 1) if inner != name else name
