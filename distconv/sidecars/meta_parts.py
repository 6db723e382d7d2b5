"""What the configs of text model and image encoder within config.json say, taken for Meta's code."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from distconv.families.dimensions import Dimensions, Llama4Dimensions, MllamaDimensions
from distconv.families.llama import Family
from distconv.formats.meta.fields import Fields, describe_unknown
from distconv.sidecars.meta_config import WITHOUT_MEANING, take_sizes

_OF_GENERATION = frozenset(
    {
        "architectures", "attention_bias", "cache_implementation", "chunk_size_feed_forward", "diversity_penalty",
        "dropout", "dtype", "encoder_no_repeat_ngram_size", "for_llm_compressor", "id2label", "label2id",
        "length_penalty", "max_length", "min_length", "model_type", "num_beams", "num_beam_groups",
        "num_return_sequences", "projector_dropout", "repetition_penalty", "return_dict", "router_aux_loss_coef",
        "router_jitter_noise", "temperature", "top_k", "top_p", "torch_dtype", "typical_p", "use_bfloat16",
        "vision_feature_layer",
    }
)  # fmt: skip
"""Keys of published configs, which older versions wrote in full, that change nothing of the model."""
_LONGEST_LIST = 1 << 12


@dataclass(frozen=True, slots=True)
class ImageConfig:
    """A model that Meta's code can run, and what params.json says of it."""

    dimensions: MllamaDimensions | Llama4Dimensions
    family: Family
    evidence: tuple[str, ...]
    context: int
    """Longest sequence, in tokens; params.json has no place for it."""
    params: Mapping[str, object]
    notes: tuple[str, ...] = ()

    @property
    def tied(self) -> bool:
        """Whether the output is the embedding: it never is."""
        return False


def take_text(text: Fields, *, layers: int, ffn_dim: int) -> Dimensions:
    """Take the sizes of a text model, whose heads together must be as wide as it is."""
    sizes = take_sizes(text, layers=layers, ffn_dim=ffn_dim)
    if sizes.head_dim * sizes.heads != sizes.dim:
        width = f"{sizes.dim / sizes.heads:g}: in Meta's code heads together are as wide as the model"
        text.report("head_dim", sizes.head_dim, width)
    if sizes.heads % sizes.kv_heads:
        text.report("num_key_value_heads", sizes.kv_heads, f"a number that divides {sizes.heads} heads")
    return sizes


def take_numbers(fields: Fields, key: str) -> list[int] | None:
    """Take a list of whole numbers; None where there is none, or it is wrong."""
    found = fields.get(key)
    fields.taken.add(key)
    if found is None:
        return None
    if (
        not isinstance(found, list)
        or len(found) > _LONGEST_LIST
        or any(type(one) is not int for one in found)
    ):
        fields.report(key, found, "a list of whole numbers")
        return None
    return found


def check_fixed(fields: Fields, fixed: Mapping[str, object]) -> None:
    """Refuse what Meta's code does in one way only, where the config has it otherwise."""
    for key, value in fixed.items():
        found = fields.get(key)
        fields.taken.add(key)
        if found is not None and found != value:
            fields.report(key, found, f"{value!r:.60}: Meta's code does nothing else")


def note_left(fields: Fields) -> Iterator[str]:
    """Name what was not taken and may mean something."""
    known = WITHOUT_MEANING | _OF_GENERATION
    return describe_unknown([key for key in fields.left() if key.rpartition(".")[2] not in known])
