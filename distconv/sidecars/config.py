"""config.json and generation_config.json, as Transformers writes them for the same values.

The keys of older versions stand beside the new ones (``rope_theta``, ``rope_scaling``,
``torch_dtype``): without them 4.x would silently take theta 10000 and no scaling.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata

from distconv.families.dimensions import Dimensions, ModelDimensions, VisionEncoder

CONFIG_NAME = "config.json"


@dataclass(frozen=True, slots=True)
class Rope:
    """Rotary embedding: plain, or scaled as Llama 3.1 is (``factor`` not None)."""

    theta: float
    factor: float | None = None
    low: float = 1.0
    high: float = 4.0
    original_context: int = 8192

    def scaling(self) -> dict[str, object]:
        """Give the keys beside theta, by Transformers' names."""
        if self.factor is None:
            return {"rope_type": "default"}
        return {
            "rope_type": "llama3",
            "factor": self.factor,
            "low_freq_factor": self.low,
            "high_freq_factor": self.high,
            "original_max_position_embeddings": self.original_context,
        }

    def list_keys(self) -> dict[str, object]:
        """Give all keys of a config, the older ones beside the newer."""
        scaling = self.scaling()
        return {
            "rope_parameters": {"rope_theta": self.theta, **scaling},
            "rope_scaling": None if self.factor is None else scaling,
            "rope_theta": self.theta,
        }


@dataclass(frozen=True, slots=True)
class TokenIds:
    """Where text begins and ends, and what fills up shorter ones."""

    bos: int
    eos: int | tuple[int, ...]
    pad: int | None = None

    def plain_eos(self) -> int | list[int]:
        """Give the end as JSON has it."""
        return self.eos if isinstance(self.eos, int) else list(self.eos)


@dataclass(frozen=True, slots=True)
class Settings:
    """What a config says of a text model beside its sizes."""

    norm_eps: float
    rope: Rope
    context: int
    """Longest sequence, in tokens."""
    tokens: TokenIds
    dtype: str
    tied: bool = False
    """Whether the output is the embedding."""

    def list_keys(self, sizes: ModelDimensions) -> dict[str, object]:
        """Give the keys that text models have, of those of a model with images, too."""
        return {
            "bos_token_id": self.tokens.bos,
            "eos_token_id": self.tokens.plain_eos(),
            "hidden_act": "silu",
            "hidden_size": sizes.dim,
            "initializer_range": 0.02,
            "max_position_embeddings": self.context,
            "num_attention_heads": sizes.heads,
            "num_hidden_layers": sizes.layers,
            "num_key_value_heads": sizes.kv_heads,
            "pad_token_id": self.tokens.pad,
            "rms_norm_eps": self.norm_eps,
            **self.rope.list_keys(),
            "tie_word_embeddings": self.tied,
            "use_cache": True,
            "vocab_size": sizes.vocab,
        }

    def list_dtype(self) -> dict[str, object]:
        """Give the type in which tensors are stored, by both of its names."""
        return {"dtype": self.dtype, "torch_dtype": self.dtype}


def make_config(sizes: Dimensions, settings: Settings) -> dict[str, object]:
    """Make config.json's content: ``configuration_llama.py`` of transformers 5.23, and the older keys."""
    return {
        **settings.list_keys(sizes),
        "architectures": ["LlamaForCausalLM"],
        "attention_bias": False,
        "attention_dropout": 0.0,
        **settings.list_dtype(),
        "head_dim": sizes.head_dim,
        "intermediate_size": sizes.ffn_dim,
        "mlp_bias": False,
        "model_type": "llama",
        "pretraining_tp": 1,
        "transformers_version": metadata.version("transformers"),
    }


def list_encoder_keys(vision: VisionEncoder) -> dict[str, object]:
    """Give the keys that the configs of both image encoders have."""
    return {
        "hidden_act": "gelu",
        "hidden_size": vision.width,
        "image_size": vision.image_size,
        "initializer_range": 0.02,
        "intermediate_size": vision.ffn_dim,
        "norm_eps": 1e-5,
        "num_channels": vision.channels,
        "num_hidden_layers": vision.layers,
        "patch_size": vision.patch,
        "vision_output_dim": vision.output_dim,
    }


def make_parts_config(
    architecture: str,
    top: Mapping[str, object],
    text: Mapping[str, object],
    vision: Mapping[str, object],
    settings: Settings,
) -> dict[str, object]:
    """Make config.json's content of a text model and an image encoder; ``top`` is what stands beside their configs."""
    stored = settings.list_dtype()
    return {
        "architectures": [architecture],
        **top,
        **stored,
        "text_config": {**text, **stored},
        "transformers_version": metadata.version("transformers"),
        "vision_config": {**vision, **stored},
    }


def make_generation_config(tokens: TokenIds, *, sampled: bool) -> dict[str, object]:
    """Make generation_config.json's content; ``sampled`` is how Meta runs its instruct models."""
    sampling: dict[str, object] = {"do_sample": True, "temperature": 0.6, "top_p": 0.9} if sampled else {}
    return {
        "bos_token_id": tokens.bos,
        "eos_token_id": tokens.plain_eos(),
        **({} if tokens.pad is None else {"pad_token_id": tokens.pad}),
        **sampling,
        "transformers_version": metadata.version("transformers"),
    }


def to_json(content: Mapping[str, object]) -> bytes:
    """Give JSON as Transformers writes it: sorted, indented by two, ending with a newline."""
    return (json.dumps(content, indent=2, sort_keys=True) + "\n").encode()
