"""What params.json says of a model."""

import hashlib
import json
import math
from dataclasses import dataclass
from typing import NoReturn

from distconv.errors import InputError
from distconv.source.content import describe_content
from distconv.storage import Storage, read_small

_LIMIT_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Params:
    """The fields of params.json that a Llama has; None where the file has none."""

    path: str
    dim: int
    n_layers: int
    n_heads: int
    n_kv_heads: int | None
    multiple_of: int | None
    ffn_dim_multiplier: float | None
    norm_eps: float
    rope_theta: float | None
    use_scaled_rope: bool
    vocab_size: int | None
    nested: bool
    """Whether the fields lie under ``model``."""
    keys: frozenset[str]
    """All field names, known or not."""
    md5: str
    ends_with_newline: bool

    @property
    def kv_heads(self) -> int:
        """Key and value heads; as many as query heads where nothing else is said."""
        return self.n_heads if self.n_kv_heads is None else self.n_kv_heads

    @property
    def head_dim(self) -> int:
        """Size of one head, in elements."""
        return self.dim // self.n_heads

    @property
    def ffn_dim(self) -> int | None:
        """Rows of w1 by Meta's formula (``llama3/model.py``); None without ``multiple_of``."""
        if self.multiple_of is None:
            return None
        hidden = 2 * (4 * self.dim) // 3
        if self.ffn_dim_multiplier is not None:
            hidden = int(self.ffn_dim_multiplier * hidden)
        return -(-hidden // self.multiple_of) * self.multiple_of


def read_params(storage: Storage, path: str) -> Params:
    """Read params.json; all that is wrong with it is reported at once as an InputError."""
    content = read_small(storage, path, _LIMIT_BYTES)
    try:
        parsed = json.loads(content, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        reason = "" if content.lstrip()[:1] == b"{" else f"; it is {describe_content(content)}"
        raise InputError(f"{path}: not JSON ({error}){reason}") from None
    if not isinstance(parsed, dict):
        raise InputError(f"{path}: {type(parsed).__name__}, expected a JSON object")
    nested = isinstance(parsed.get("model"), dict)
    fields = parsed["model"] if nested else parsed
    return _make_params(path, content, fields, nested=nested)


def _refuse_constant(name: str) -> NoReturn:
    message = f"{name} is not a number"
    raise ValueError(message)


def _make_params(path: str, content: bytes, fields: dict[str, object], *, nested: bool) -> Params:
    taker = _Taker(path, fields)
    # A foreign model is better named by what it is than by the fields that it lacks.
    keys = frozenset(fields)
    foreign = describe_foreign_params(keys)
    if foreign:
        raise InputError(f"{path}: {foreign}")
    params = Params(
        path=path,
        dim=taker.take_count("dim"),
        n_layers=taker.take_count("n_layers"),
        n_heads=taker.take_count("n_heads"),
        n_kv_heads=taker.take_optional_count("n_kv_heads"),
        multiple_of=taker.take_optional_count("multiple_of"),
        ffn_dim_multiplier=taker.take_number("ffn_dim_multiplier"),
        norm_eps=taker.take_number("norm_eps", default=1e-5) or 0.0,
        rope_theta=taker.take_number("rope_theta"),
        use_scaled_rope=taker.take_flag("use_scaled_rope"),
        vocab_size=taker.take_optional_count("vocab_size", unknown=-1),
        nested=nested,
        keys=keys,
        md5=hashlib.md5(content, usedforsecurity=False).hexdigest(),
        ends_with_newline=content.endswith(b"\n"),
    )
    if not taker.findings:
        taker.findings += [f"{path}: {finding}" for finding in _contradictions(params)]
    if taker.findings:
        raise InputError.of(taker.findings)
    return params


def describe_foreign_params(keys: frozenset[str]) -> str | None:
    """Name the model that has such fields, where distconv does not convert it."""
    foreign = (
        ("quantization_args", "a quantized checkpoint; convert the bf16 one instead"),
        ("lora_args", "a LoRA (QLoRA) checkpoint; merge it into the model first"),
        ("vision_chunk_size", "a Llama 3.2 Vision model; distconv converts text models"),
        ("vision_args", "a Llama 4 model; distconv converts Llama 1 to 3.3"),
        ("moe_args", "a Llama 4 model; distconv converts Llama 1 to 3.3"),
        ("nope_layer_interval", "a Llama 4 model; distconv converts Llama 1 to 3.3"),
        ("moe", "a Mixtral model; distconv converts Llama"),
        ("sliding_window", "a Mistral model; distconv converts Llama"),
        ("hidden_dim", "a Mistral model; distconv converts Llama"),
        ("head_dim", "a Mistral model; distconv converts Llama"),
    )
    for key, description in foreign:
        if key in keys:
            return f"{description} (it has {key!r})"
    return None


def _contradictions(params: Params) -> list[str]:
    found = []
    if params.dim % params.n_heads:
        found.append(f"dim {params.dim} is not a multiple of n_heads {params.n_heads}")
    elif params.head_dim % 2:
        found.append(f"head size {params.head_dim} is odd; rotary embeddings pair up elements")
    if params.n_heads % params.kv_heads:
        found.append(f"n_heads {params.n_heads} is not a multiple of n_kv_heads {params.kv_heads}")
    return found


class _Taker:
    """Takes typed fields out of the parsed object and collects what is wrong."""

    _LARGEST = 1 << 24

    def __init__(self, path: str, fields: dict[str, object]) -> None:
        self.findings: list[str] = []
        self._path = path
        self._fields = fields

    def take_count(self, key: str) -> int:
        if self._fields.get(key) is None:
            self.findings.append(f"{self._path}: no {key!r}")
            return 1
        return self.take_optional_count(key) or 1

    def take_optional_count(self, key: str, unknown: int | None = None) -> int | None:
        value = self._fields.get(key)
        if value is None or (type(value) is int and value == unknown):
            return None
        if type(value) is not int or not 0 < value <= self._LARGEST:
            self._wrong(key, value, f"a whole number from 1 to {self._LARGEST:,}")
            return None
        return value

    def take_number(self, key: str, default: float | None = None) -> float | None:
        value = self._fields.get(key)
        if value is None:
            return default
        if type(value) not in (int, float) or not 0 < float(str(value)) < math.inf:
            self._wrong(key, value, "a positive number")
            return default
        return float(str(value))

    def take_flag(self, key: str) -> bool:
        value = self._fields.get(key)
        if value is not None and not isinstance(value, bool):
            self._wrong(key, value, "true or false")
        return value is True

    def _wrong(self, key: str, value: object, expected: str) -> None:
        shown = repr(value)
        shown = shown if len(shown) <= 40 else shown[:37] + "..."
        self.findings.append(f"{self._path}: {key} is {shown}, expected {expected}")
