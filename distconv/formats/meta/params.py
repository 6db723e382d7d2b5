"""What params.json says of a model."""

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from distconv.errors import InputError
from distconv.formats.meta.fields import Fields, describe_unknown, is_used
from distconv.formats.meta.mistral import MistralParams, rename_first_mixtral, take_mistral
from distconv.formats.meta.multimodal import Llama4Params, VisionParams, take_llama_4, take_vision
from distconv.formats.meta.rope import RopeScaling, take_rope_scaling, takes_scaled_rope
from distconv.formats.meta.scales import INT4, LORA, QLORA, SPINQUANT
from distconv.formats.plain_json import parse_object
from distconv.storage.base import Storage, read_small

_LIMIT_BYTES = 1 << 20
_MOST_SHOWN = 8


@dataclass(frozen=True, slots=True)
class Params:
    """The fields of params.json that a Llama or a Mistral has; None where the file has none."""

    path: str
    dim: int
    n_layers: int
    n_heads: int
    n_kv_heads: int | None
    multiple_of: int | None
    ffn_dim_multiplier: float | None
    hidden_dim: int | None
    """Rows of w1, where they are written out."""
    norm_eps: float
    rope_theta: float | None
    use_scaled_rope: bool
    rope_scaling: RopeScaling
    vocab_size: int | None
    vision: VisionParams | None
    llama_4: Llama4Params | None
    mistral: MistralParams | None
    tied: bool
    """Whether it says that the output is the embedding."""
    trained_context: tuple[str, int] | None
    """A trainer's length of sequence, and what it is called."""
    nested: bool
    """Whether the fields lie under a key of their own."""
    md5: str
    ends_with_newline: bool
    notes: tuple[str, ...]
    """What it says that nothing here stands for."""

    @property
    def kv_heads(self) -> int:
        """Key and value heads; as many as query heads where nothing else is said."""
        return self.n_heads if self.n_kv_heads is None else self.n_kv_heads

    @property
    def experts(self) -> int:
        """Experts of a layer that has any; 0 where none has."""
        return self.llama_4.experts.experts if self.llama_4 and self.llama_4.experts else 0

    @property
    def head_dim(self) -> int:
        """Size of one head, in elements."""
        return self.dim // self.n_heads if self.mistral is None else self.mistral.head_dim

    @property
    def ffn_dim(self) -> int | None:
        """Rows of w1 by Meta's formula; None without ``multiple_of``."""
        if self.multiple_of is None:
            return None
        return compute_ffn_dim(self.dim, self.multiple_of, self.ffn_dim_multiplier)


def compute_ffn_dim(dim: int, multiple_of: int, multiplier: float | None) -> int:
    """Rows of w1 by Meta's formula (``llama3/model.py``, class ``FeedForward``)."""
    hidden = 2 * (4 * dim) // 3
    if multiplier is not None:
        hidden = int(multiplier * hidden)
    return -(-hidden // multiple_of) * multiple_of


def read_params(storage: Storage, path: str) -> Params:
    """Read params.json; all that is wrong with it is reported at once as an InputError."""
    content = read_small(storage, path, _LIMIT_BYTES)
    parsed = parse_object(path, content)
    holder = _find_holder(path, parsed)
    fields = parsed if holder is None else parsed[holder]
    return _make_params(
        path, content, fields if isinstance(fields, dict) else parsed, nested=holder is not None
    )


def _find_holder(path: str, parsed: Mapping[str, object]) -> str | None:
    """Give the key under which the model's fields lie; None where they lie at the top."""
    if "dim" in parsed:
        return None
    holders = [key for key, value in parsed.items() if isinstance(value, dict) and "dim" in value]
    if "model" in holders or (not holders and isinstance(parsed.get("model"), dict)):
        return "model"
    if len(holders) > 1:
        shown = ", ".join(repr(key[:40]) for key in holders[:_MOST_SHOWN])
        raise InputError(
            f"{path}: {shown} each hold a 'dim'; expected one model's fields at the top or under 'model'"
        )
    return holders[0] if holders else None


def _make_params(path: str, content: bytes, found: Mapping[str, object], *, nested: bool) -> Params:
    found = rename_first_mixtral(found)
    # A foreign model is better named by what it is than by the fields that it lacks.
    foreign = describe_foreign_params(found)
    if foreign:
        raise InputError(f"{path}: {foreign}")
    fields = Fields(path, found)
    dim = fields.take_count("dim")
    head_dim = fields.take_optional_count("head_dim")
    params = Params(
        path=path,
        dim=dim,
        n_layers=fields.take_count("n_layers"),
        n_heads=_take_heads(fields, dim, head_dim),
        n_kv_heads=fields.take_optional_count("n_kv_heads"),
        multiple_of=fields.take_optional_count("multiple_of"),
        ffn_dim_multiplier=fields.take_number("ffn_dim_multiplier", at_most=1e6),
        hidden_dim=fields.take_optional_count("hidden_dim"),
        norm_eps=fields.take_number("norm_eps", "rms_norm_eps", at_most=1, always=True) or _DEFAULT_EPS,
        rope_theta=fields.take_number("rope_theta", *_BASES, always=True),
        use_scaled_rope=takes_scaled_rope(fields),
        rope_scaling=take_rope_scaling(fields),
        vocab_size=fields.take_optional_count("vocab_size"),
        vision=take_vision(fields),
        llama_4=take_llama_4(fields),
        mistral=take_mistral(fields),
        tied=_takes_tied(fields),
        trained_context=_take_context(fields),
        nested=nested,
        md5=hashlib.md5(content, usedforsecurity=False).hexdigest(),
        ends_with_newline=content.endswith(b"\n"),
        notes=tuple(f"{path}: {words}" for words in _mention(fields)),
    )
    if not fields.findings:
        fields.findings += [f"{path}: {finding}" for finding in _contradictions(params, head_dim)]
    if fields.findings:
        raise InputError.of(fields.findings)
    return params


_DEFAULT_EPS = 1e-5
_BASES = ("rope_base", "rope_freq_base", "rotary_base", "rotary_emb_base")
_TIED = ("weight_tying", "tied_embeddings", "tie_embeddings", "tie_word_embeddings")
_CONTEXTS = ("max_seq_len", "max_seqlen", "max_position_embeddings", "context_length", "seq_len")
"""What trainers call the longest sequence that they made room for."""
_OF_THE_RUN = frozenset(
    {
        "max_batch_size", "floor_scale", "attn_scale", "seed", "init_base_std", "init_std_factor", "depth_init",
        "device",
    }
)  # fmt: skip
"""Fields that change nothing of a model that is trained."""


def _take_heads(fields: Fields, dim: int, head_dim: int | None) -> int:
    """Take the number of heads, or find it by their size, as Meta's Lingua does."""
    if head_dim is not None and dim % head_dim == 0 and not fields.has("n_heads"):
        return dim // head_dim
    return fields.take_count("n_heads")


def _takes_tied(fields: Fields) -> bool:
    said = [fields.take_flag(key) for key in _TIED]
    return any(said)


def _take_context(fields: Fields) -> tuple[str, int] | None:
    found = [(key, length) for key in _CONTEXTS if (length := fields.take_optional_count(key)) is not None]
    return found[0] if found else None


def _mention(fields: Fields) -> Iterator[str]:
    """Name the fields that say something which a config has no place for."""
    return describe_unknown([key for key in fields.left() if key not in _OF_THE_RUN])


_SEES = (
    "a Mistral model with a vision encoder (Pixtral, Small 3.1 and later); of Mistral's, distconv converts text models: take "
    "the repository's files in Transformers' format"
)
_FOREIGN = (
    ("lora_args", "rank", LORA),
    (
        "vision_encoder",
        None,
        _SEES,
    ),
)
"""Fields that only other models use; of some, one field inside tells whether they are used."""
_OF_TRANSFORMERS = ("hidden_size", "num_hidden_layers", "num_attention_heads", "architectures")


def describe_foreign_params(fields: Mapping[str, object]) -> str | None:
    """Name the model that uses such fields, where distconv does not convert it."""
    theirs = [key for key in _OF_TRANSFORMERS if key in fields]
    if theirs and "dim" not in fields:
        return (
            f"a config.json of Transformers (it has {theirs[0]!r}), expected Meta's params.json; "
            "copy that from Meta's download of this model, or give it by `params=`"
        )
    quantization = fields.get("quantization_args")
    if is_used(quantization):
        return f"{_name_quantization(quantization, fields.get('lora_args'))} (it has 'quantization_args')"
    for key, inner, description in _FOREIGN:
        if is_used(_take_decisive(fields.get(key), inner)):
            return f"{description} (it has {key!r})"
    return None


def _take_decisive(value: object, inner: str | None) -> object:
    """Give the field that tells whether an object is used; the object itself where it has none, or is none."""
    return value.get(inner, value) if isinstance(value, dict) and inner is not None else value


def _name_quantization(quantization: object, lora: object) -> str:
    if is_used(_take_decisive(lora, "rank")):
        return QLORA
    return SPINQUANT if isinstance(quantization, dict) and is_used(quantization.get("spinquant")) else INT4


def _contradictions(params: Params, head_dim: int | None) -> list[str]:
    found = []
    if params.vision is not None and params.llama_4 is not None:
        found.append("fields of Llama 3.2 Vision and of Llama 4 in one file, expected those of one")
    if params.mistral is not None and params.use_scaled_rope:
        found.append("rope is scaled, as that of no Mistral is; leave rope_scaling and use_scaled_rope out")
    if params.mistral is None and params.dim % params.n_heads:
        found.append(f"dim {params.dim} is not a multiple of n_heads {params.n_heads}")
    elif head_dim is not None and head_dim != params.head_dim:
        found.append(
            f"head_dim {head_dim}, dim / n_heads gives {params.head_dim}: a model whose heads are not as wide as it is, as "
            "some of Mistral's are, which have 'hidden_dim' and no 'multiple_of'; distconv converts Llama and Mistral"
        )
    elif params.head_dim % 2:
        found.append(f"head size {params.head_dim} is odd; rotary embeddings pair up elements")
    if params.n_heads % params.kv_heads:
        found.append(f"n_heads {params.n_heads} is not a multiple of n_kv_heads {params.kv_heads}")
    return found
