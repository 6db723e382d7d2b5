"""What params.json says of Llama 3.2 Vision and of Llama 4, beyond what every Llama's says.

The keys are those of ``ModelArgs`` in ``llama3/args.py`` and ``llama4/args.py`` of llama-models.
"""

from dataclasses import dataclass

from distconv.formats.meta.fields import Fields, is_used

_VISION_KEYS = ("vision_chunk_size", "vision_num_cross_attention_layers", "vision_model")
_LLAMA_4_KEYS = (
    "vision_args", "nope_layer_interval", "attention_chunk_size", "use_qk_norm", "attn_temperature_tuning",
)  # fmt: skip
_MOST_TILES = 4
"""Of Meta's code, where the file does not say."""
FLOOR_SCALE, ATTENTION_SCALE = 8192, 0.1
"""Of Meta's code, where the file does not say."""


@dataclass(frozen=True, slots=True)
class VisionParams:
    """Llama 3.2 Vision; its vision tower is described nowhere."""

    chunk_size: int
    """Side of a tile of the image, in pixels."""
    max_tiles: int
    cross_attention_layers: int
    """They come beside the ``n_layers`` with self-attention."""


@dataclass(frozen=True, slots=True)
class TowerParams:
    """The vision tower of Llama 4 (``vision_args``); all but the first two is told by its tensors too."""

    heads: int
    pixel_shuffle_ratio: float
    width: int
    layers: int
    output_dim: int
    image_size: int
    """Side of a tile, in pixels."""
    patch: int
    """Side of a patch, in pixels."""


@dataclass(frozen=True, slots=True)
class ExpertParams:
    """The experts of Llama 4 (``moe_args``)."""

    experts: int
    top_k: int
    step: int
    """Distance of layers that have experts, of which layer ``step`` - 1 is the first."""


@dataclass(frozen=True, slots=True)
class Llama4Params:
    """What Llama 4's text model has that no other Llama's has, and its vision tower."""

    tower: TowerParams
    experts: ExpertParams | None
    """None where every layer is dense (Llama Guard 4)."""
    attention_chunk_size: int | None
    """In tokens; None where all that came before is attended to."""
    nope_interval: int | None
    """Distance of layers without rotary embedding, ``nope_interval`` - 1 the first; None where there is none."""
    qk_norm: bool
    floor_scale: int
    """In tokens; beyond them attention is tempered in layers without rotary embedding."""
    attention_scale: float


def take_vision(fields: Fields) -> VisionParams | None:
    """Take what a Llama 3.2 Vision model has; None where the file speaks of no such thing."""
    used = next(filter(fields.has, _VISION_KEYS), None)
    tiles = fields.take_optional_count("vision_max_num_chunks")
    if used is None:
        fields.taken |= set(_VISION_KEYS)
        return None
    chunk_size = fields.take_optional_count("vision_chunk_size")
    layers = {fields.take_optional_count("vision_num_cross_attention_layers"), _take_adapter(fields)} - {None}
    if len(layers) > 1:
        fields.findings.append(
            f"{fields.path}: the number of cross-attention layers is given twice, and differs"
        )
    for key, found in (("vision_chunk_size", chunk_size), ("vision_num_cross_attention_layers", layers)):
        if not found:
            fields.findings.append(
                f"{fields.path}: no {key!r}, which every Llama 3.2 Vision model has (it has {used!r})"
            )
    return VisionParams(chunk_size or 1, tiles or _MOST_TILES, next(iter(layers), None) or 1)


def _take_adapter(fields: Fields) -> int | None:
    """Take the number of cross-attention layers from where the first files have it."""
    if not fields.has("vision_model"):
        return None
    tower = fields.open("vision_model")
    if not tower.has("cross_attention_adapter"):
        return None
    return tower.open("cross_attention_adapter").take_optional_count("num_layers")


def take_llama_4(fields: Fields) -> Llama4Params | None:
    """Take what a Llama 4 model has; None where the file speaks of no such thing."""
    routed = fields.get("moe_args")
    has_experts = is_used(routed.get("num_experts", routed) if isinstance(routed, dict) else routed)
    used = next(filter(fields.has, _LLAMA_4_KEYS), "moe_args" if has_experts else None)
    fields.taken |= {*_LLAMA_4_KEYS, "moe_args"}
    if used is None:
        return None
    if not fields.has("vision_args"):
        fields.findings.append(
            f"{fields.path}: no 'vision_args', which every Llama 4 model has (it has {used!r})"
        )
        tower = TowerParams(1, 1, 1, 1, 1, 1, 1)
    else:
        tower = _take_tower(fields.open("vision_args"))
    # Whether it is on is decided where the model runs: no weight depends on it.
    fields.take_flag("attn_temperature_tuning")
    fields.take_number("ffn_exp", at_most=1e6)
    return Llama4Params(
        tower=tower,
        experts=_take_experts(fields.open("moe_args")) if has_experts else None,
        attention_chunk_size=fields.take_optional_count("attention_chunk_size"),
        nope_interval=fields.take_optional_count("nope_layer_interval"),
        qk_norm=fields.take_flag("use_qk_norm"),
        floor_scale=fields.take_optional_count("floor_scale") or FLOOR_SCALE,
        attention_scale=fields.take_number("attn_scale") or ATTENTION_SCALE,
    )


def _take_tower(inner: Fields) -> TowerParams:
    """Take it, and the fields that Meta's code requires though the tensors tell the same."""
    _take_ratio(inner, "mlp_ratio")
    return TowerParams(
        heads=inner.take_count("n_heads"),
        pixel_shuffle_ratio=_take_ratio(inner, "pixel_shuffle_ratio"),
        width=inner.take_count("dim"),
        layers=inner.take_count("n_layers"),
        output_dim=inner.take_count("output_dim"),
        image_size=_take_side(inner, "image_size"),
        patch=_take_side(inner, "patch_size"),
    )


def _take_side(inner: Fields, key: str) -> int:
    """Take the side of a square; 1 where it is none."""
    if not inner.require(key):
        return 1
    size = inner.open(key)
    height, width = size.take_count("height"), size.take_count("width")
    if height != width:
        inner.report(key, f"{height} x {width}", "a square")
    return height


def _take_ratio(inner: Fields, key: str) -> float:
    """Take a number that must be there."""
    return (inner.take_number(key, at_most=1e6) if inner.require(key) else None) or 1.0


def _take_experts(inner: Fields) -> ExpertParams:
    # By these Meta's code computes the experts' size, which the tensors tell.
    inner.take_number("capacity_factor", at_most=1e6)
    inner.take_flag("auto_scale_F")
    experts, top_k = inner.take_count("num_experts"), inner.take_optional_count("top_k") or 1
    if top_k > experts:
        inner.report("top_k", top_k, f"at most the {experts} experts that there are")
    return ExpertParams(
        experts=experts,
        top_k=top_k,
        step=inner.take_optional_count("interleave_moe_layer_step") or 1,
    )
