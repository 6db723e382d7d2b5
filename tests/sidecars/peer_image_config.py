"""Run under another transformers version: read configs of models with images, and print what they say as JSON."""

import json
import sys

import torch
import transformers
from transformers import AutoConfig, GenerationConfig


def read_part(config: object) -> dict[str, object]:
    """Give what one of the configs says."""
    return json.loads(json.dumps(config.to_dict(), default=str))


def make_frequencies(config: object) -> list[float]:
    """Give the frequencies of the text model, and of Llama 4's encoder."""
    if config.model_type == "mllama":
        from transformers.models.mllama.modeling_mllama import MllamaRotaryEmbedding

        return MllamaRotaryEmbedding(config.text_config).inv_freq.tolist()
    from transformers.models.llama4.modeling_llama4 import (
        Llama4TextRotaryEmbedding,
        Llama4VisionRotaryEmbedding,
    )

    text = Llama4TextRotaryEmbedding(config.text_config).inv_freq
    encoder = torch.view_as_real(Llama4VisionRotaryEmbedding(config.vision_config).freqs_ci)
    return [*text.tolist(), *encoder.flatten().tolist()]


def describe(folder: str) -> dict[str, object]:
    """Give what a folder's configs say."""
    config = AutoConfig.from_pretrained(folder)
    generation = GenerationConfig.from_pretrained(folder)
    return {
        "version": transformers.__version__,
        "text": read_part(config.text_config),
        "vision": read_part(config.vision_config),
        "image": [config.image_token_index, getattr(config, "boi_token_index", None)],
        "dtypes": [
            str(getattr(part, "dtype", None) or part.torch_dtype).removeprefix("torch.")
            for part in (config, config.text_config, config.vision_config)
        ],
        "frequencies": make_frequencies(config),
        "generation": [
            generation.bos_token_id,
            generation.eos_token_id,
            generation.pad_token_id,
            generation.do_sample,
            generation.temperature,
            generation.top_p,
        ],
    }


if __name__ == "__main__":
    print(json.dumps([describe(folder) for folder in sys.argv[1:]]))
