"""The families of models that see: what they need beyond params.json, and which of them a checkpoint is of."""

from distconv.errors import MismatchError
from distconv.families.dimensions import Llama4Dimensions, MllamaDimensions
from distconv.families.llama import Family
from distconv.families.told import Told, assume_base

LLAMA_4_TOKENS = 202_048
"""Of Llama 4's tokenizer, special ones included, and rows of the embedding."""


def _vision(name: str, title: str, *, guard: bool = False) -> Family:
    return Family(
        name, title, "tiktoken", 131_072, 5e5, 8.0, 128000, 128001, (128001, 128008, 128009),
        None if guard else "llama-3.2-vision", special_tokens="llama-3.2-vision", sampled=True, guard=guard,
        architecture="mllama",
    )  # fmt: skip


def _llama_4(name: str, title: str, context: int, *, guard: bool = False) -> Family:
    return Family(
        name, title, "tiktoken", context, 5e5, None, 200000, 200001, (200001, 200007, 200008),
        None if guard else "llama-4", special_tokens="llama-4", sampled=True, guard=guard,
        architecture="llama4", published_tokens=LLAMA_4_TOKENS,
    )  # fmt: skip


IMAGE_FAMILIES = {
    family.name: family
    for family in (
        _vision("llama-3.2-vision", "Llama 3.2 Vision"),
        _vision("llama-guard-3-vision", "Llama Guard 3 Vision", guard=True),
        _llama_4("llama-4", "Llama 4", 262_144),
        _llama_4("llama-guard-4", "Llama Guard 4", 8192, guard=True),
    )
}
"""Contexts are those of base models; Llama 4's instruct models were given longer ones."""

IMAGE_MODELS = tuple(dict.fromkeys(family.architecture for family in IMAGE_FAMILIES.values()))
"""Transformers' ``model_type`` of models that see."""


def tell_image_family(
    folder: str,
    dimensions: MllamaDimensions | Llama4Dimensions,
    asked: Family | None,
    *,
    has_statistics: bool,
) -> Told:
    """Tell the family, or take the one asked for; MismatchError where that is of other tensors.

    ``has_statistics`` says that the files hold counts of how often experts were chosen.
    """
    told = (
        _tell_vision(dimensions)
        if isinstance(dimensions, MllamaDimensions)
        else _tell_llama_4(dimensions, has_statistics=has_statistics)
    )
    if asked is None:
        return told
    if asked.architecture != told.family.architecture or (
        asked.architecture == "llama4" and asked.guard != told.family.guard
    ):
        likely = " or ".join(
            family.name
            for family in IMAGE_FAMILIES.values()
            if family.architecture == told.family.architecture
            and (family.architecture != "llama4" or family.guard == told.family.guard)
        )
        raise MismatchError(
            f"{folder}: `family='{asked.name}'` ({asked.title}), but {', '.join(told.evidence)}; leave `family=` out "
            f"or give one that fits ({likely})"
        )
    return Told(asked, ("`family=` says so",))


def _tell_vision(sizes: MllamaDimensions) -> Told:
    evidence = (
        f"{len(sizes.cross_numbers)} layers that attend to images between {sizes.text.layers} others",
        f"tiles of {sizes.vision.image_size} pixels",
    )
    said = (
        "Llama 3.2 Vision and Llama Guard 3 Vision look alike here; Llama 3.2 Vision is assumed, "
        "`family='llama-guard-3-vision'` changes that"
    )
    return Told(IMAGE_FAMILIES["llama-3.2-vision"], evidence, (said,))


def _tell_llama_4(sizes: Llama4Dimensions, *, has_statistics: bool) -> Told:
    if not sizes.moe_layers:
        return Told(IMAGE_FAMILIES["llama-guard-4"], ("an image encoder, and no experts",))
    many = len(sizes.moe_layers)
    evidence = [f"{sizes.experts} experts in {many} of {sizes.layers} layers"]
    if has_statistics:
        evidence.append("counts of how often experts were chosen, as base models have")
    return Told(IMAGE_FAMILIES["llama-4"], tuple(evidence))


def assume_variant(family: Family, folder: str, *, instruct: bool | None) -> tuple[str, ...]:
    """Say what had to be assumed of what only chat models have."""
    if family.guard:
        return (f"{family.title} has no chat template here: its prompt is a moderation task",)
    return (assume_base(folder),) if instruct is None else ()
