"""config.json of Llama 3.2 Vision, in the form that transformers 4.57 and 5.23 read alike."""

from collections.abc import Iterable

from distconv.errors import InputError
from distconv.families.dimensions import MllamaDimensions, VisionEncoder
from distconv.families.operations import list_ratios
from distconv.sidecars.config import Settings, list_encoder_keys, make_parts_config

ARCHITECTURE = "MllamaForConditionalGeneration"
INNER_LAYERS = (3, 7, 15, 23, 30)
"""Layers of the encoder whose inputs, beside the last one's output, are what the text model sees (``llama3/multimodal/
model.py``, ``return_intermediate``). Published configs have these numbers. They mean inputs in transformers up to
4.54; later versions take outputs, which is their fault and not to be made up for in a file.
"""


def list_aspect_ratios(tiles: int) -> list[list[int]]:
    """Give rows and columns of tiles that an image may have, in the order of Transformers' and Meta's tables."""
    return [list(ratio) for ratio in list_ratios(tiles)]


def make_mllama_config(path: str, sizes: MllamaDimensions, settings: Settings) -> dict[str, object]:
    """Make config.json's content: ``configuration_mllama.py`` of transformers 5.23, and the older keys.

    InputError, which speaks of ``path``, where the encoder is none that Meta's code knows.
    """
    text: dict[str, object] = {
        **settings.list_keys(sizes),
        "cross_attention_layers": list(sizes.cross_numbers),
        "dropout": 0.0,
        "intermediate_size": sizes.ffn_dim,
        "model_type": "mllama_text_model",
    }
    # The embedding's row behind those of the vocabulary is the image's.
    top = {"image_token_index": sizes.vocab, "model_type": "mllama"}
    return make_parts_config(ARCHITECTURE, top, text, _make_encoder(path, sizes.vision), settings)


def _make_encoder(path: str, vision: VisionEncoder) -> dict[str, object]:
    return {
        **list_encoder_keys(vision),
        "attention_heads": vision.heads,
        "intermediate_layers_indices": list(_find_inner_layers(path, vision)),
        "max_num_tiles": vision.tiles,
        "model_type": "mllama_vision_model",
        "num_global_layers": vision.global_layers,
        "supported_aspect_ratios": list_aspect_ratios(vision.tiles),
    }


def _find_inner_layers(path: str, vision: VisionEncoder) -> Iterable[int]:
    """Give those of the layers that there are; the projection must take as many."""
    found = [number for number in INNER_LAYERS if number < vision.layers]
    if vision.output_dim != vision.width * (len(found) + 1):
        raise InputError(
            f"{path}: the projection takes {vision.output_dim:,} features of an encoder of {vision.layers} layers, "
            f"{vision.width:,} wide; expected {len(found) + 1} times as many: Meta's code takes the inputs of the layers "
            f"{', '.join(map(str, found))} and the last one's output"
        )
    return found
