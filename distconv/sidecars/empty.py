"""The tensors that a model made of config.json has, without memory for any.

A config may be anybody's. Only the settings that shape a Llama are taken from it, each within
what the chunks hold: others name code and files elsewhere, or sizes that take for ever to make.
"""

import json
from collections.abc import Collection, Mapping

from distconv.families.images import IMAGE_MODELS
from distconv.sidecars.empty_images import read_image_model_shapes
from distconv.storage.base import Storage, read_small

_LIMIT_BYTES = 1 << 20
_EXTENTS = (
    "head_dim",
    "hidden_size",
    "intermediate_size",
    "num_attention_heads",
    "num_key_value_heads",
    "vocab_size",
)
_OTHERS = (
    "attention_bias",
    "hidden_act",
    "max_position_embeddings",
    "mlp_bias",
    "num_hidden_layers",
    "rms_norm_eps",
    "rope_parameters",
    "rope_scaling",
    "rope_theta",
    "tie_word_embeddings",
)
_LAYER_TENSORS = 9
_MOST_LAYERS = 1024
"""More than any Llama has; making so many takes a second."""

Shape = tuple[int, ...]


def read_expected_shapes(
    storage: Storage, path: str, shapes: Collection[Shape]
) -> tuple[dict[str, Shape], set[str]]:
    """Give a model's tensors, and those that it takes from others where they are not there.

    ``shapes`` are those of all tensors that there are. Whatever is raised, no model can be made.
    """
    from accelerate import init_empty_weights
    from transformers import LlamaConfig, LlamaForCausalLM

    content = json.loads(read_small(storage, path, _LIMIT_BYTES))
    if not isinstance(content, dict):
        raise TypeError("expected a JSON object")
    if content.get("model_type") in IMAGE_MODELS:
        return read_image_model_shapes(content, shapes), set()
    if content.get("model_type") != "llama":
        raise ValueError(f"model_type {content.get('model_type')!a:.40}, expected 'llama'")
    settings = {key: content[key] for key in (*_EXTENTS, *_OTHERS) if key in content}
    _bound(settings, shapes)
    with init_empty_weights():
        model = LlamaForCausalLM(LlamaConfig(**settings))
    found = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    return found, {"lm_head.weight"} if settings.get("tie_word_embeddings") else set()


def _bound(settings: Mapping[str, object], shapes: Collection[Shape]) -> None:
    """Refuse sizes that the tensors cannot have."""
    largest = max((extent for shape in shapes for extent in shape), default=0)
    limits = dict.fromkeys(_EXTENTS, largest)
    limits["num_hidden_layers"] = min(len(shapes) // _LAYER_TENSORS, _MOST_LAYERS)
    for key, limit in limits.items():
        value = settings.get(key)
        if isinstance(value, int | float) and not value <= limit:
            raise ValueError(f"{key} {value:,}, the chunks' {len(shapes)} tensors allow at most {limit:,}")
    for key in ("rope_parameters", "rope_scaling"):
        rope = settings.get(key)
        share = rope.get("partial_rotary_factor", 1) if isinstance(rope, dict) else 1
        # Of each head; as many frequencies are made at once.
        if not isinstance(share, int | float) or not 0 < share <= 1:
            raise ValueError(f"{key}: partial_rotary_factor {share!a:.40}, expected at most 1")
