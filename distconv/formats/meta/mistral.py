"""What params.json says of Mistral's and Mixtral's originals, beyond what every Llama's says.

The keys are those of ``TransformerArgs`` and ``MoeArgs`` in mistral-inference (``args.py``, ``moe.py``); those of Mixtral's
first files are Transformers' (``convert_mixtral_weights_to_hf.py`` of transformers 4.47.1 reads them).
"""

from collections.abc import Mapping
from dataclasses import dataclass

from distconv.formats.meta.fields import Fields, is_used

_FIRST_MIXTRAL = {
    "dim": "hidden_size",
    "n_layers": "num_hidden_layers",
    "n_heads": "num_attention_heads",
    "n_kv_heads": "num_key_value_heads",
    "hidden_dim": "intermediate_size",
    "norm_eps": "rms_norm_eps",
}
_EXPERTS = "num_local_experts"
_WINDOWS = ("sliding_window", "_sliding_window")
_CHOSEN = 2
"""Experts a token, of all Mixtrals; the first files do not say it."""
_REFUSED = {
    "yarn": "rope that is scaled by yarn (Ministral 3, Mistral Large 3)",
    "llama_4_scaling": "attention that is scaled by position (Ministral 3, Mistral Large 3)",
    "q_lora_rank": "latent attention (Mistral Large 3 and 4)",
    "kv_lora_rank": "latent attention (Mistral Large 3 and 4)",
    "quantization": "FP8 weights",
    "quantization_config": "FP8 weights",
    "multimodal": "an audio encoder (Voxtral)",
    "lora": "LoRA adapters",
}
_UNTIL_THEN = "the dense models up to Small 3 and Mixtral alone are converted; take the repository's files in Transformers' format"


@dataclass(frozen=True, slots=True)
class MistralParams:
    """What a Mistral has that no Llama has."""

    head_dim: int
    """Size of a head, which ``dim`` does not tell: Nemo's is 128 of 160."""
    windows: tuple[int | None, ...]
    """How many tokens a layer attends to, itself included; None for all before it. The pattern repeats over the layers."""
    experts: int
    """In each layer; 0 where none has."""
    experts_per_token: int

    @property
    def is_windowed(self) -> bool:
        """Whether any layer attends to a window."""
        return any(self.windows)

    @property
    def absent_theta(self) -> float:
        """What rope_theta is where the file does not say.

        As mistral-inference had it when such files were made: 1e4 for Mistral 7B v0.1, which alone has a window, and 1e6 for
        Mixtral. Transformers' converters took 1e4 for both.
        """
        return 1e4 if self.is_windowed else 1e6


def rename_first_mixtral(found: Mapping[str, object]) -> Mapping[str, object]:
    """Give the fields of Mixtral's first files, which are Transformers', the names that all later files have."""
    if "dim" in found or "architectures" in found or not is_used(found.get(_EXPERTS)):
        return found
    ours = {name: found[theirs] for name, theirs in _FIRST_MIXTRAL.items() if theirs in found}
    dim, heads = ours.get("dim"), ours.get("n_heads")
    if isinstance(dim, int) and isinstance(heads, int) and heads > 0:
        ours["head_dim"] = dim // heads
    chosen = found.get("num_experts_per_tok", _CHOSEN)
    moe = {"num_experts": found[_EXPERTS], "num_experts_per_tok": chosen}
    gone = {*_FIRST_MIXTRAL.values(), _EXPERTS, "num_experts_per_tok"}
    return {**ours, "moe": moe, **{key: value for key, value in found.items() if key not in gone}}


def take_mistral(fields: Fields) -> MistralParams | None:
    """Take what a Mistral has; None where the file speaks of no such thing."""
    reason = _find_reason(fields)
    if reason is None:
        return None
    for key, what in _REFUSED.items():
        if fields.has(key):
            fields.findings.append(
                f"{fields.path}: a Mistral model with {what} (it has {key!r}), which is not converted: {_UNTIL_THEN}"
            )
    kind = fields.get("model_type")
    if isinstance(kind, str) and kind != "transformer":
        fields.report("model_type", kind, "'transformer', as Mistral's text models have")
    fields.taken.add("model_type")
    for key in ("head_dim", "hidden_dim"):
        if not fields.has(key):
            fields.findings.append(
                f"{fields.path}: no {key!r}, which every Mistral model has (it has {reason!r}); distconv converts Llama and Mistral"
            )
    count, chosen = _take_experts(fields) if _has_experts(fields) else (0, 0)
    return MistralParams(
        head_dim=fields.take_optional_count("head_dim") or 1,
        windows=_take_windows(fields),
        experts=count,
        experts_per_token=chosen,
    )


def _take_experts(fields: Fields) -> tuple[int, int]:
    """Take how many experts there are, and how many a token goes through."""
    inner = fields.open("moe")
    count, chosen = inner.take_count("num_experts"), inner.take_count("num_experts_per_tok")
    if chosen > count:
        inner.report("num_experts_per_tok", chosen, f"at most the {count} experts that there are")
    return count, chosen


def _find_reason(fields: Fields) -> str | None:
    """Give the field by which a file is Mistral's; it writes both sizes, and has no formula for the feed-forward one."""
    used = next(filter(fields.has, _WINDOWS), None)
    if used is not None:
        return used
    if _has_experts(fields):
        return "moe"
    both = fields.has("head_dim") and fields.has("hidden_dim")
    return "hidden_dim" if both and fields.get("multiple_of") is None else None


def _has_experts(fields: Fields) -> bool:
    routed = fields.get("moe")
    return is_used(routed.get("num_experts", routed) if isinstance(routed, dict) else routed)


def _take_windows(fields: Fields) -> tuple[int | None, ...]:
    """Take one window for all layers, or a pattern of them; of its two names one is used."""
    used = [key for key in _WINDOWS if fields.has(key)]
    if len(used) > 1:
        fields.findings.append(f"{fields.path}: {' and '.join(used)} are both given, expected one of them")
    if not used:
        return (None,)
    key = used[0]
    value = fields.get(key)
    if not isinstance(value, list):
        return (fields.take_optional_count(key),)
    fields.taken.add(key)
    if not all(window is None or (type(window) is int and window > 0) for window in value):
        fields.report(key, value, "whole numbers of tokens, and null where all is attended to")
        return (None,)
    return tuple(value)
