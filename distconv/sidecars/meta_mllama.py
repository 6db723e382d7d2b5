"""config.json of Llama 3.2 Vision, read for Meta's code.

Keys are those of ``configuration_mllama.py`` of transformers 5.23, fields those of ``llama3/args.py`` of llama-models.
What Meta's code has as a constant (``llama3/multimodal/model.py``) is in no params.json, and must be so.
"""

from collections.abc import Iterator

from distconv.families.dimensions import MllamaDimensions, VisionEncoder
from distconv.families.images import IMAGE_FAMILIES
from distconv.families.llama_vision import CHANNELS, EXTRA_TOKENS, HEADS
from distconv.formats.meta.fields import Fields
from distconv.sidecars.config import Rope
from distconv.sidecars.meta_config import META_FACTOR, note_context, take_rope
from distconv.sidecars.meta_params import find_ffn_pair
from distconv.sidecars.meta_parts import ImageConfig, check_fixed, take_numbers, take_text
from distconv.sidecars.mllama_config import INNER_LAYERS, list_aspect_ratios

_FAMILY = IMAGE_FAMILIES["llama-3.2-vision"]


def read_mllama(fields: Fields, text: Fields, vision: Fields) -> ImageConfig:
    """Read the config's parts; what is wrong comes to the fields' findings."""
    cross = take_numbers(text, "cross_attention_layers") or []
    layers = text.take_count("num_hidden_layers") - len(cross)
    sizes = take_text(text, layers=max(1, layers), ffn_dim=text.take_count("intermediate_size"))
    dimensions = MllamaDimensions(sizes, max(1, len(cross)), EXTRA_TOKENS, _read_encoder(vision))
    if not 0 < len(cross) <= layers or dimensions.cross_numbers != tuple(cross):
        text.report(
            "cross_attention_layers",
            cross,
            "layers that lie evenly from the last one on, as Meta's code has them",
        )
    check_fixed(text, {"hidden_act": "silu", "tie_word_embeddings": False})
    check_fixed(fields, {"image_token_index": sizes.vocab})
    eps = text.take_number("rms_norm_eps", at_most=1, always=True) or 1e-5
    rope, context = take_rope(text, _FAMILY.theta), text.take_optional_count("max_position_embeddings")
    if rope.factor is not None and rope != Rope(rope.theta, META_FACTOR):
        text.report("rope_scaling", rope.scaling(), "that of Llama 3.1: Meta's code knows no other numbers")
    params = {} if fields.findings else dict(_list_params(dimensions, eps, rope))
    evidence = (f"model_type is 'mllama', with {len(cross)} layers that attend to images",)
    notes = tuple(note_context(_FAMILY, context, _FAMILY.context))
    return ImageConfig(dimensions, _FAMILY, evidence, context or _FAMILY.context, params, notes)


def _read_encoder(vision: Fields) -> VisionEncoder:
    patch, tiles = vision.take_count("patch_size"), vision.take_count("max_num_tiles")
    if tiles > _MOST_TILES:
        vision.report("max_num_tiles", tiles, f"at most {_MOST_TILES}")
    layers, width = vision.take_count("num_hidden_layers"), vision.take_count("hidden_size")
    inner = [number for number in INNER_LAYERS if number < layers]
    fixed = {
        "attention_heads": HEADS,
        "hidden_act": "gelu",
        "intermediate_layers_indices": inner,
        "norm_eps": 1e-5,
        "num_channels": CHANNELS,
        "vision_output_dim": width * (len(inner) + 1),
    }
    check_fixed(vision, {**fixed, "supported_aspect_ratios": list_aspect_ratios(min(tiles, _MOST_TILES))})
    return VisionEncoder(
        width=width,
        layers=layers,
        global_layers=vision.take_count("num_global_layers"),
        heads=HEADS,
        ffn_dim=vision.take_count("intermediate_size"),
        channels=CHANNELS,
        patch=patch,
        positions=(vision.take_count("image_size") // patch) ** 2 + 1,
        tiles=tiles,
        output_dim=width * (len(inner) + 1),
    )


_MOST_TILES = 64


def _list_params(sizes: MllamaDimensions, eps: float, rope: Rope) -> Iterator[tuple[str, object]]:
    """Give the fields in the order of published files."""
    multiple_of, multiplier = find_ffn_pair(sizes.dim, sizes.ffn_dim, _FAMILY)
    yield "dim", sizes.dim
    yield "n_layers", sizes.text.layers
    yield "n_heads", sizes.heads
    yield "n_kv_heads", sizes.kv_heads
    yield "vocab_size", sizes.vocab
    yield "ffn_dim_multiplier", multiplier or 1.0
    yield "multiple_of", multiple_of
    yield "norm_eps", eps
    yield "rope_theta", rope.theta
    yield "use_scaled_rope", rope.factor is not None
    yield "vision_chunk_size", sizes.vision.image_size
    yield "vision_max_num_chunks", sizes.vision.tiles
    yield "vision_num_cross_attention_layers", sizes.cross_attention_layers
