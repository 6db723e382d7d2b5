"""Models with images as Meta published them, and as published config.json files describe them."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from distconv.families.dimensions import Dimensions, Llama4Dimensions, MllamaDimensions, VisionEncoder
from distconv.formats.meta.multimodal import ExpertParams, Llama4Params, TowerParams
from distconv.formats.meta.rope import RopeScaling
from distconv.sidecars.config import Rope, Settings, TokenIds
from distconv.sidecars.llama_4_config import choose_context, make_llama_4_config, make_llama_4_rope
from distconv.sidecars.mllama_config import make_mllama_config

VISION_BASE, VISION_CHAT = (
    TokenIds(128000, 128001, pad=128004), TokenIds(128000, (128001, 128008, 128009), pad=128004),
)  # fmt: skip
LLAMA_4_TOKENS = TokenIds(200000, (200001, 200007, 200008), pad=200018)
TOWER = TowerParams(16, 0.5, width=1408, layers=34, output_dim=4096, image_size=336, patch=14)


def make_vision_sizes(
    dim: int, layers: int, heads: int, ffn_dim: int, cross: int, side: int
) -> MllamaDimensions:
    text = Dimensions(dim, layers, heads, 8, 128, ffn_dim, 128256)
    encoder = VisionEncoder(1280, 32, 8, 16, 5120, 3, 14, (side // 14) ** 2 + 1, 4, 7680)
    return MllamaDimensions(text, cross, 8, encoder)


def make_llama_4_sizes(
    ffn_dim: int, experts: int, expert_ffn_dim: int, moe_layers: tuple[int, ...]
) -> Llama4Dimensions:
    text = Dimensions(5120, 48, 40, 8, 128, ffn_dim, 202048)
    encoder = VisionEncoder(1408, 34, 0, 16, 5632, 3, 14, 577, 1, 4096)
    return Llama4Dimensions(text, experts, expert_ffn_dim, moe_layers, encoder, 5632)


VISION_SIZES: Mapping[str, MllamaDimensions] = {
    "11b": make_vision_sizes(4096, 32, 32, 14336, 8, 448),
    "11b-instruct": make_vision_sizes(4096, 32, 32, 14336, 8, 560),
    "90b": make_vision_sizes(8192, 80, 64, 28672, 20, 560),
}


@dataclass(frozen=True, slots=True)
class Llama4Case:
    """One published Llama 4."""

    sizes: Llama4Dimensions
    params: Llama4Params
    rope: Rope
    context: int


def make_llama_4_params(
    experts: ExpertParams | None, *, sparse: bool = True, qk_norm: bool = False
) -> Llama4Params:
    chunk, nope = (8192, 4) if sparse else (None, None)
    return Llama4Params(TOWER, experts, chunk, nope, qk_norm, 8192, 0.1)


SCALED, PLAIN = make_llama_4_rope(5e5, RopeScaling()), make_llama_4_rope(5e5, None)
_SCOUT = Llama4Case(
    make_llama_4_sizes(0, 16, 8192, tuple(range(48))),
    make_llama_4_params(ExpertParams(16, 1, 1), qk_norm=True),
    SCALED,
    choose_context(262_144, 16, instruct=False),
)
_MAVERICK = Llama4Case(
    make_llama_4_sizes(16384, 128, 8192, tuple(range(1, 48, 2))),
    make_llama_4_params(ExpertParams(128, 1, 2)),
    PLAIN,
    choose_context(262_144, 128, instruct=False),
)
LLAMA_4 = {
    "scout": _SCOUT,
    "scout-instruct": replace(_SCOUT, context=choose_context(262_144, 16, instruct=True)),
    "maverick": _MAVERICK,
    "maverick-instruct": replace(_MAVERICK, context=choose_context(262_144, 128, instruct=True)),
    "guard-4": Llama4Case(
        make_llama_4_sizes(8192, 0, 0, ()),
        make_llama_4_params(None, sparse=False),
        PLAIN,
        choose_context(8192, 0, instruct=True),
    ),
}


def configure_vision(sizes: MllamaDimensions, tokens: TokenIds = VISION_CHAT) -> dict[str, object]:
    return make_mllama_config("model", sizes, Settings(1e-5, Rope(5e5, 8.0), 131_072, tokens, "bfloat16"))


def configure_llama_4(case: Llama4Case, tokens: TokenIds = LLAMA_4_TOKENS) -> dict[str, object]:
    settings = Settings(1e-5, case.rope, case.context, tokens, "bfloat16")
    return make_llama_4_config("model", case.sizes, case.params, settings)


CONFIGS: Mapping[str, dict[str, object]] = {
    **{name: configure_vision(sizes) for name, sizes in VISION_SIZES.items()},
    **{name: configure_llama_4(case) for name, case in LLAMA_4.items()},
}
