"""config.json of Transformers, read for Meta's code: what the model is, or why that code cannot run it.

Keys are those of ``configuration_llama.py`` in transformers 5.23 (``rope_parameters``,
``dtype``) and 4.57 (``rope_theta``, ``rope_scaling``, ``torch_dtype``).
"""

from collections.abc import Iterator
from dataclasses import dataclass

from distconv.errors import InputError
from distconv.families.choose import find_family
from distconv.families.dimensions import Dimensions
from distconv.families.evidence import Tokenizer
from distconv.families.llama import FAMILIES, Family
from distconv.formats.meta.fields import Fields, describe_unknown
from distconv.formats.plain_json import parse_object
from distconv.layout.dtypes import STORABLE
from distconv.sidecars.config import Rope
from distconv.sidecars.meta_family import PLAIN_THETA, find_contradictions, tell_family

META_FACTOR = 8.0
"""By which Meta's code scales the rope of every model that is scaled (``llama3/model.py``, ``apply_scaling``)."""
_OF_MISTRAL = ("mistral", "mixtral", "ministral", "ministral3", "mistral3")
_ROPES = ("rope_parameters", "rope_scaling")
WITHOUT_MEANING = frozenset(
    {
        "_name_or_path", "attention_dropout", "bos_token_id", "eos_token_id", "initializer_range", "pad_token_id",
        "pretraining_tp", "transformers_version", "use_cache", "use_sliding_window",
    }
)  # fmt: skip
"""Keys of Transformers that change nothing of what Meta's code does with the weights."""


@dataclass(frozen=True, slots=True)
class MetaConfig:
    """A model that Meta's code can run, in elements, and the family whose files describe it."""

    dimensions: Dimensions
    norm_eps: float
    rope: Rope
    context: int
    """Longest sequence; params.json has no place for it."""
    tied: bool
    """Whether the output is the embedding, which Meta's shards hold under both names."""
    dtype: str | None
    family: Family
    evidence: tuple[str, ...]
    """By what the family is known."""
    notes: tuple[str, ...]


def read_meta_config(
    path: str, content: bytes, *, tokenizer: Tokenizer | None = None, family: str | None = None
) -> MetaConfig:
    """Read config.json; ``tokenizer`` is the kind of file that goes beside the shards, None if unknown.

    ``family`` overrides what contents tell. Raises UsageError for an unknown family, and one
    InputError with everything that is wrong or that Meta's code cannot say.
    """
    asked = None if family is None else find_family(family)
    fields = Fields(path, parse_object(path, content))
    _refuse_other_than_llama(fields)
    sizes = take_sizes(
        fields, layers=fields.take_count("num_hidden_layers"), ffn_dim=fields.take_count("intermediate_size")
    )
    norm_eps = fields.take_number("rms_norm_eps", at_most=1, always=True) or 1e-6
    rope = take_rope(fields)
    context = fields.take_optional_count("max_position_embeddings") or 2048
    tied = fields.take_flag("tie_word_embeddings")
    dtype = _take_dtype(fields)
    told, evidence = tell_family(sizes, rope, context, fields.get("bos_token_id"), tokenizer)
    chosen = FAMILIES[told] if asked is None else asked
    findings = (*_find_unsayable(fields, sizes), *find_contradictions(chosen, sizes, rope, tokenizer))
    fields.findings += [f"{path}: {finding}" for finding in findings]
    if fields.findings:
        raise InputError.of(fields.findings)
    notes = tuple(f"{path}: {note}" for note in _make_notes(fields, chosen, context))
    said = evidence if asked is None else ("`family=` says so",)
    return MetaConfig(sizes, norm_eps, rope, context, tied, dtype, chosen, said, notes)


def refuse_foreign(path: str, content: bytes) -> None:
    """Raise InputError for the config.json of what is no plain Llama."""
    _refuse_other_than_llama(Fields(path, parse_object(path, content)))


def _refuse_other_than_llama(fields: Fields) -> None:
    """What is none is better named by what it is than by the keys that it lacks."""
    kind = fields.get("model_type")
    if kind in _OF_MISTRAL:
        raise InputError(
            f"{fields.path}: model_type is {kind!r}, expected 'llama'; Meta's code runs no Mistral, and Mistral's own layout is not "
            "written: take the one that Mistral publishes, or, of a model that was trained further, this folder, which vLLM and "
            "llama.cpp read as it is"
        )
    if kind != "llama":
        raise InputError(
            f"{fields.path}: model_type is {kind!r:.40}, expected 'llama'; Meta's layout is written for Llama only, "
            "and `verify` tells of any folder for Transformers whether it is whole"
        )
    # The older spelling is that of Transformers before 4.28.
    refuse_class(fields, "LlamaForCausalLM", "LLaMAForCausalLM")


def refuse_class(fields: Fields, *architectures: str) -> None:
    """Raise InputError for a model of another class than these, or one that is quantized."""
    built = fields.get("architectures")
    fields.taken |= {"model_type", "architectures", "quantization_config"}
    if fields.has("architectures") and built not in [[name] for name in architectures]:
        raise InputError(f"{fields.path}: architectures is {built!r:.80}, expected {[architectures[0]]!r}")
    if fields.has("quantization_config"):
        raise InputError(
            f"{fields.path}: a quantized model (it has 'quantization_config'); convert the bf16 one instead"
        )


def take_sizes(text: Fields, *, layers: int, ffn_dim: int) -> Dimensions:
    """Take the sizes of a text model that all of its kinds give by the same keys."""
    dim, heads = text.take_count("hidden_size"), text.take_count("num_attention_heads")
    return Dimensions(
        dim=dim,
        layers=layers,
        heads=heads,
        kv_heads=text.take_optional_count("num_key_value_heads") or heads,
        head_dim=text.take_optional_count("head_dim") or dim // heads,
        ffn_dim=ffn_dim,
        vocab=text.take_count("vocab_size"),
    )


def take_rope(fields: Fields, default: float = PLAIN_THETA) -> Rope:
    """Take theta and scaling from wherever the versions of Transformers keep them; they must agree.

    ``default`` is what Transformers takes where there is no theta.
    """
    fields.taken |= set(_ROPES)
    places = [fields.open(key) for key in _ROPES if fields.has(key)]
    thetas = {place.take_number("rope_theta", always=True) for place in (fields, *places)} - {None}
    turned = {place.take_number("partial_rotary_factor") for place in (fields, *places)} - {None, 1.0}
    theta = next(iter(thetas), None) or default
    if len(thetas) > 1:
        fields.findings.append(f"{fields.path}: rope_theta is given twice, with different values")
    if turned:
        fields.findings.append(
            f"{fields.path}: partial_rotary_factor {turned.pop():g}; Meta's code turns whole heads"
        )
    ropes = list(dict.fromkeys(_take_scaling(place, theta) for place in places))
    if len(ropes) > 1:
        fields.findings.append(
            f"{fields.path}: {' and '.join(_ROPES)} differ, expected one of them or equal ones"
        )
    return ropes[0] if ropes else Rope(theta)


def _take_scaling(place: Fields, theta: float) -> Rope:
    kind = next((place.get(key) for key in ("rope_type", "type") if place.has(key)), "default")
    place.taken |= {"rope_type", "type"}
    if kind == "llama3":
        factor, low, high = (
            place.take_number(key) for key in ("factor", "low_freq_factor", "high_freq_factor")
        )
        original = place.take_optional_count("original_max_position_embeddings")
        if None not in {factor, low, high, original}:
            return Rope(theta, factor, low or 0, high or 0, original or 0)
        place.findings.append(f"{place.path}: rope scaling of type 'llama3' without all of its four numbers")
    elif kind != "default":
        place.findings.append(
            f"{place.path}: rope scaling of type {kind!r:.40}; Meta's code knows that of Llama 3.1 ('llama3') only"
        )
    return Rope(theta)


def _take_dtype(fields: Fields) -> str | None:
    known = {dtype.name for dtype in STORABLE}
    found = {
        str(fields.get(key)).removeprefix("torch.") for key in ("dtype", "torch_dtype") if fields.has(key)
    }
    fields.taken |= {"dtype", "torch_dtype"}
    if len(found) > 1 or not found <= known:
        shown = " and ".join(sorted(found))
        fields.findings.append(
            f"{fields.path}: dtype is {shown:.60}, expected one of {', '.join(sorted(known))}"
        )
    return next(iter(found), None)


def _find_unsayable(fields: Fields, sizes: Dimensions) -> Iterator[str]:
    """Name what config.json says and Meta's code has no words for."""
    for key in ("attention_bias", "mlp_bias"):
        if fields.take_flag(key):
            yield f"{key} is true; Meta's code has no biases"
    if fields.has("hidden_act") and fields.get("hidden_act") not in ("silu", "swish"):
        yield f"hidden_act is {fields.get('hidden_act')!r:.40}; Meta's code knows 'silu' only"
    if fields.has("sliding_window") and fields.get("use_sliding_window") is not False:
        yield f"sliding_window is {fields.get('sliding_window')!r:.40}; Meta's code attends to all that came before"
    fields.taken |= {"hidden_act", "sliding_window"}
    if sizes.dim % sizes.heads or sizes.head_dim * sizes.heads != sizes.dim:
        yield (
            f"head_dim {sizes.head_dim} for hidden_size {sizes.dim} and {sizes.heads} heads; "
            "in Meta's code the heads together are as wide as the model"
        )
    elif sizes.head_dim % 2:
        yield f"head_dim {sizes.head_dim} is odd; rotary embeddings pair up elements"
    if sizes.heads % sizes.kv_heads:
        yield f"num_attention_heads {sizes.heads} is not a multiple of num_key_value_heads {sizes.kv_heads}"


def note_context(family: Family, context: int | None, published: int) -> Iterator[str]:
    """Say that a length of sequence is lost, where it is not the one that was published."""
    if context not in {None, published, family.context}:
        yield (
            f"max_position_embeddings {context:,} has no place in params.json ({family.title} has {published:,}); "
            "give it to Meta's code as max_seq_len"
        )


def _make_notes(fields: Fields, family: Family, context: int) -> Iterator[str]:
    yield from note_context(family, context, family.context)
    if family.factor not in {None, META_FACTOR}:
        yield (
            f"rope is scaled by {family.factor:g}, as published; params.json says only that it is scaled, and "
            f"Meta's own code then takes {META_FACTOR:g}"
        )
    yield from describe_unknown([key for key in fields.left() if key not in WITHOUT_MEANING])
