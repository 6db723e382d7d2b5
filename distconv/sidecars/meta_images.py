"""config.json of a model that sees, read for Meta's code: its sizes, and the params.json that says the same.

Keys are those of ``configuration_mllama.py`` and ``configuration_llama4.py`` of transformers 5.23, the fields of
params.json those of ``llama3/args.py`` and ``llama4/args.py`` of llama-models 0.3.0.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from distconv.errors import InputError, MismatchError
from distconv.families.choose import find_family
from distconv.families.dimensions import Dimensions, Llama4Dimensions, MllamaDimensions, VisionEncoder
from distconv.families.images import IMAGE_FAMILIES
from distconv.families.llama import Family
from distconv.formats.meta.fields import Fields
from distconv.formats.meta.params import compute_ffn_dim
from distconv.formats.plain_json import parse_object
from distconv.sidecars.config import Rope
from distconv.sidecars.meta_config import take_rope
from distconv.sidecars.meta_params import find_ffn_pair, list_ffn_pairs

IMAGE_MODELS = ("mllama", "llama4")
_EXTRA_TOKENS = 8
_PUBLISHED_PAIRS = ((2048, 1.2), (2048, 0.6))
"""``multiple_of`` and ``ffn_dim_multiplier`` of Llama 4, and of Llama Guard 4."""
_SCALED = Rope(5e5, 16.0, 1.0, 1.0, 8192)
"""How Llama 4's code scales where params.json gives no numbers."""


@dataclass(frozen=True, slots=True)
class ImageConfig:
    """A model that Meta's code can run, and what params.json says of it."""

    dimensions: MllamaDimensions | Llama4Dimensions
    family: Family
    evidence: tuple[str, ...]
    context: int
    params: Mapping[str, object]
    notes: tuple[str, ...] = ()

    @property
    def tied(self) -> bool:
        """Whether the output is the embedding: it never is."""
        return False


def is_image_config(path: str, content: bytes) -> bool:
    """Whether a config.json is that of a model that sees, of Meta's."""
    return parse_object(path, content).get("model_type") in IMAGE_MODELS


def read_image_config(path: str, content: bytes, *, family: str | None = None) -> ImageConfig:
    """Read config.json; ``family`` overrides what it tells. InputError with all that Meta's code cannot say."""
    asked = None if family is None else find_family(family)
    fields = Fields(path, parse_object(path, content))
    if fields.has("quantization_config"):
        raise InputError(
            f"{path}: a quantized model (it has 'quantization_config'); convert the bf16 one instead"
        )
    text, vision = fields.open("text_config"), fields.open("vision_config")
    read = _read_mllama if fields.get("model_type") == "mllama" else _read_llama_4
    found = read(text, vision)
    if fields.findings:
        raise InputError.of(fields.findings)
    if asked is not None and asked.architecture != found.family.architecture:
        raise MismatchError(
            f"{path}: --family {asked.name} ({asked.title}), but it is a {found.family.title} model"
        )
    if asked is None:
        return found
    return ImageConfig(
        found.dimensions, asked, ("--family says so",), found.context, found.params, found.notes
    )


def _take_text(text: Fields, layers: int, ffn_dim: int) -> Dimensions:
    dim, heads = text.take_count("hidden_size"), text.take_count("num_attention_heads")
    head_dim = text.take_optional_count("head_dim") or dim // heads
    if head_dim * heads != dim:
        text.findings.append(
            f"{text.path}: text_config.head_dim {head_dim} for hidden_size {dim} and {heads} heads; in Meta's code the "
            "heads together are as wide as the model"
        )
    kv_heads = text.take_optional_count("num_key_value_heads") or heads
    if heads % kv_heads:
        text.report("num_key_value_heads", kv_heads, f"a number that divides {heads} heads")
    return Dimensions(dim, layers, heads, kv_heads, head_dim, ffn_dim, text.take_count("vocab_size"))


def _take_list(fields: Fields, key: str) -> list[int]:
    found = fields.get(key)
    fields.taken.add(key)
    if not isinstance(found, list) or any(type(one) is not int for one in found):
        fields.report(key, found, "a list of whole numbers")
        return []
    return found


def _count_positions(vision: Fields, patch: int) -> int:
    return (vision.take_count("image_size") // patch) ** 2 + 1


def _read_mllama(text: Fields, vision: Fields) -> ImageConfig:
    cross = _take_list(text, "cross_attention_layers")
    layers = text.take_count("num_hidden_layers") - len(cross)
    patch = vision.take_count("patch_size")
    encoder = VisionEncoder(
        width=vision.take_count("hidden_size"),
        layers=vision.take_count("num_hidden_layers"),
        global_layers=vision.take_count("num_global_layers"),
        heads=vision.take_count("attention_heads"),
        ffn_dim=vision.take_count("intermediate_size"),
        channels=vision.take_count("num_channels"),
        patch=patch,
        positions=_count_positions(vision, patch),
        tiles=vision.take_count("max_num_tiles"),
        output_dim=vision.take_count("vision_output_dim"),
    )
    sizes = _take_text(text, layers, text.take_count("intermediate_size"))
    dimensions = MllamaDimensions(sizes, max(1, len(cross)), _EXTRA_TOKENS, encoder)
    if not 0 < len(cross) <= layers or dimensions.cross_numbers != tuple(cross):
        text.report(
            "cross_attention_layers", cross, "those before every so-manieth layer, as Meta's code has them"
        )
    rope = take_rope(text)
    if rope.factor is not None and rope != Rope(rope.theta, 8.0):
        text.report("rope_scaling", rope.scaling(), "that of Llama 3.1: Meta's code knows no other numbers")
    family = IMAGE_FAMILIES["llama-3.2-vision"]
    multiple_of, multiplier = (
        (256, None) if text.findings else find_ffn_pair(sizes.dim, sizes.ffn_dim, family)
    )
    params: dict[str, object] = {
        "dim": sizes.dim, "n_layers": layers, "n_heads": sizes.heads, "n_kv_heads": sizes.kv_heads,
        "vocab_size": sizes.vocab, "ffn_dim_multiplier": multiplier or 1.0, "multiple_of": multiple_of,
        "norm_eps": _take_eps(text), "rope_theta": rope.theta, "use_scaled_rope": rope.factor is not None,
        "vision_chunk_size": encoder.image_size, "vision_max_num_chunks": encoder.tiles,
        "vision_num_cross_attention_layers": len(cross),
    }  # fmt: skip
    evidence = (f"model_type is 'mllama', with {len(cross)} layers that attend to images",)
    return ImageConfig(dimensions, family, evidence, _take_context(text), params)


def _take_eps(text: Fields) -> float:
    return text.take_number("rms_norm_eps", at_most=1, always=True) or 1e-5


def _take_context(text: Fields) -> int:
    return text.take_optional_count("max_position_embeddings") or 131_072


def _read_llama_4(text: Fields, vision: Fields) -> ImageConfig:
    layers, experts = text.take_count("num_hidden_layers"), text.take_optional_count("num_local_experts") or 0
    moe = tuple(_take_list(text, "moe_layers")) if experts else ()
    step = moe[0] + 1 if moe else 0
    if moe != (tuple(range(step - 1, layers, step)) if step else ()):
        text.report("moe_layers", list(moe), "every so-manieth layer, as Meta's code has them")
    dense = text.take_count("intermediate_size_mlp") if len(moe) < layers else 0
    sizes = _take_text(text, layers, dense)
    expert = text.take_count("intermediate_size") if moe else 0
    patch = vision.take_count("patch_size")
    encoder = VisionEncoder(
        width=vision.take_count("hidden_size"),
        layers=vision.take_count("num_hidden_layers"),
        global_layers=0,
        heads=vision.take_count("num_attention_heads"),
        ffn_dim=vision.take_count("intermediate_size"),
        channels=vision.take_count("num_channels"),
        patch=patch,
        positions=_count_positions(vision, patch),
        tiles=1,
        output_dim=vision.take_count("vision_output_dim"),
    )
    dimensions = Llama4Dimensions(sizes, experts if moe else 0, expert, moe, encoder, encoder.ffn_dim)
    params = {} if text.findings else dict(_list_llama_4_params(dimensions, text, vision, step))
    family = IMAGE_FAMILIES["llama-4" if moe else "llama-guard-4"]
    evidence = (f"model_type is 'llama4', with {experts} experts in {len(moe)} of {layers} layers",)
    return ImageConfig(dimensions, family, evidence, _take_context(text), params)


def _list_llama_4_params(
    sizes: Llama4Dimensions, text: Fields, vision: Fields, step: int
) -> Iterator[tuple[str, object]]:
    rope, formula = take_rope(text), find_expert_formula(sizes)
    yield from (("dim", sizes.dim), ("n_layers", sizes.layers), ("n_heads", sizes.heads))
    yield from (
        ("n_kv_heads", sizes.kv_heads),
        ("vocab_size", sizes.vocab),
        ("multiple_of", formula.multiple_of),
    )
    yield from (
        ("ffn_dim_multiplier", formula.multiplier),
        ("ffn_exp", formula.ffn_exp),
        ("norm_eps", _take_eps(text)),
    )
    chunked = "chunked_attention" in (text.get("layer_types") or ())  # type: ignore[operator]
    yield "attention_chunk_size", text.take_optional_count("attention_chunk_size") if chunked else None
    yield from (("rope_theta", rope.theta), ("use_scaled_rope", rope.factor is not None))
    if rope.factor is not None and rope != _SCALED:
        yield from (("rope_scaling_factor", rope.factor), ("rope_high_freq_factor", rope.high))
        if (rope.low, rope.original_context) != (_SCALED.low, _SCALED.original_context):
            text.report("rope_scaling", rope.scaling(), "low_freq_factor 1 and 8192 original positions")
    yield "nope_layer_interval", _find_interval(text, sizes.layers)
    yield "use_qk_norm", text.take_flag("use_qk_norm")
    side = {"height": sizes.vision.image_size, "width": sizes.vision.image_size}
    patch = {"height": sizes.vision.patch, "width": sizes.vision.patch}
    yield "vision_args", {
        "image_size": side, "patch_size": patch, "dim": sizes.vision.width, "n_layers": sizes.vision.layers,
        "n_heads": sizes.vision.heads, "mlp_ratio": sizes.vision.ffn_dim / sizes.vision.width,
        "output_dim": sizes.vision.output_dim, "pixel_shuffle_ratio": vision.take_number("pixel_shuffle_ratio") or 0.5,
    }  # fmt: skip
    experts = {
        "num_experts": sizes.experts, "capacity_factor": 1.0, "auto_scale_F": formula.halved,
        "top_k": text.take_optional_count("num_experts_per_tok") or 1, "interleave_moe_layer_step": step,
    }  # fmt: skip
    yield "moe_args", experts if sizes.moe_layers else None


def _find_interval(text: Fields, layers: int) -> int | None:
    """Give after how many layers each one without rotary embedding comes; None where there is none."""
    turns = _take_list(text, "no_rope_layers") if text.get("no_rope_layers") is not None else []
    without = [layer for layer, turned in enumerate(turns) if not turned]
    if not without:
        return None
    every = without[0] + 1
    if without != [*range(every - 1, layers, every)]:
        text.report("no_rope_layers", turns, "every so-manieth layer, as Meta's code has them")
    return every


@dataclass(frozen=True, slots=True)
class ExpertFormula:
    """The numbers from which Llama 4's code computes the sizes of its feed-forward layers."""

    multiple_of: int
    multiplier: float
    ffn_exp: float
    halved: bool
    """``auto_scale_F``: experts are half as large, as each token sees two."""

    def expert_size(self, dim: int) -> int:
        """Give the size of an expert (``llama4/moe.py``, class ``MoE``)."""
        size = int(self.multiplier * int(2 * int(self.ffn_exp * dim) / 3))
        size = int(size / 2) if self.halved else size
        return -(-size // self.multiple_of) * self.multiple_of


def find_expert_formula(sizes: Llama4Dimensions) -> ExpertFormula:
    """Find the numbers that give these sizes: published ones first."""
    return next(_list_formulas(sizes))


def _list_formulas(sizes: Llama4Dimensions) -> Iterator[ExpertFormula]:
    dim, dense, expert = sizes.dim, sizes.ffn_dim, sizes.expert_ffn_dim
    family = IMAGE_FAMILIES["llama-4"]
    pairs = [*_PUBLISHED_PAIRS, *list_ffn_pairs(dim, dense or 2 * expert, family)]
    for multiple_of, multiplier in pairs:
        found = multiplier or 1.0
        if dense and compute_ffn_dim(dim, multiple_of, multiplier) != dense:
            continue
        if not expert:
            yield ExpertFormula(multiple_of, found, 4.0, halved=True)
            continue
        if expert % multiple_of:
            continue
        share = (expert - multiple_of / 2 + 0.5) * 1.5 / (found * dim)
        others = (
            ExpertFormula(multiple_of, found, round(share, digits), halved=False) for digits in range(1, 18)
        )
        for formula in (ExpertFormula(multiple_of, found, 4.0, halved=True), *others):
            if formula.expert_size(dim) == expert:
                yield formula


def to_params(config: ImageConfig) -> bytes:
    """Make params.json."""
    return json.dumps(config.params).encode()
