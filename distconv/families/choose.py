"""Which family a checkpoint is of, told from its contents.

The signals are those of Meta's published files; where they do not decide, what is assumed is
said together with the option that changes it.
"""

import posixpath
from dataclasses import dataclass
from typing import Literal

from distconv.errors import InputError, UsageError
from distconv.families.llama import FAMILIES, Family
from distconv.families.rules import Dimensions
from distconv.source.params import Params
from distconv.tensors import FLOAT16, DType

_LLAMA_1_MD5 = {
    "7596560e011154b90eb51a1b15739763": "7B",
    "0171286599e0f8858893e49fb74b71f8": "13B",
    "4babdbd05b8923226a9e9622492054b6": "30B",
}
_LLAMA_2_MD5 = {
    "9a3757de7196d1840b551a85b82efbc8": "7B",
    "1c39bc3c6b51079fd807cc105b86c9df": "7B-chat",
    "b54ad5614e2a66c1e6eb3d4d25aa8d94": "13B",
}
_TIKTOKEN_VOCABULARY = 128256
_LLAMA_31_DIMS = (4096, 8192, 16384)
_LLAMA_32_DIMS = (2048, 3072)


@dataclass(frozen=True, slots=True)
class Facts:
    """All that the choice rests on."""

    params: Params
    dimensions: Dimensions
    dtype: DType
    tokenizer: Literal["sentencepiece", "tiktoken"] | None
    folder: str
    tied_storage: bool
    """Embedding and output are one storage: proof of tying without reading data."""


@dataclass(frozen=True, slots=True)
class Choice:
    """The family, how that is known, and what had to be assumed."""

    family: Family
    instruct: bool
    evidence: tuple[str, ...]
    assumptions: tuple[str, ...]
    may_tie: bool
    """Whether the output may be the embedding: it is in some families, and where params.json says so."""


def choose_family(facts: Facts, family: str | None = None, *, instruct: bool = False) -> Choice:
    """Tell the family; UsageError for an unknown name, InputError where tokenizer and family clash."""
    assumed: list[str] = []
    if family is not None:
        if family not in FAMILIES:
            raise UsageError(f"--family {family}: unknown; expected one of {', '.join(FAMILIES)}")
        chosen, evidence = FAMILIES[family], ["--family says so"]
    else:
        name, evidence, assumed = _detect(facts)
        chosen = FAMILIES[name]
    if facts.tokenizer is not None and facts.tokenizer != chosen.tokenizer:
        raise InputError(
            f"{facts.folder}: {chosen.title} ({evidence[0]}) has a {chosen.tokenizer} tokenizer, "
            f"found a {facts.tokenizer} one; give the right file by --tokenizer"
        )
    assumed += _variant_assumption(chosen, facts, instruct=instruct)
    may_tie = chosen.may_tie or facts.params.tied
    return Choice(chosen, instruct or chosen.guard, tuple(evidence), tuple(assumed), may_tie)


def _variant_assumption(family: Family, facts: Facts, *, instruct: bool) -> list[str]:
    if family.guard:
        return ["Llama Guard has no chat template here: its prompt is a moderation task"]
    if family.chat is None or instruct:
        if instruct and family.chat is None:
            return [f"{family.title} has no instruct models; --instruct changes nothing"]
        return []
    hint = posixpath.basename(facts.folder.rstrip("/")).lower()
    named = any(word in hint for word in ("instruct", "chat"))
    also = f", as the folder's name {hint!r} suggests" if named else ""
    return [f"taken as a base model; if it is an instruct (chat) model{also}, add --instruct"]


def _detect(facts: Facts) -> tuple[str, list[str], list[str]]:
    is_tiktoken = facts.tokenizer == "tiktoken"
    if facts.tokenizer is None:
        is_tiktoken = facts.dimensions.vocab >= _TIKTOKEN_VOCABULARY
        evidence = [f"{facts.dimensions.vocab:,} rows of vocabulary"]
    else:
        evidence = [f"the tokenizer is a {facts.tokenizer} file"]
    detect = _detect_tiktoken if is_tiktoken else _detect_sentencepiece
    name, more, assumed = detect(facts)
    return name, evidence + more, assumed


_Found = tuple[str, list[str], list[str]]


def _detect_tiktoken(facts: Facts) -> _Found:
    params = facts.params
    if not params.use_scaled_rope:
        return "llama-3", ["params.json has no scaled rope"], _or("Llama 3", "llama-guard-2")
    evidence = ["params.json has use_scaled_rope"]
    if params.dim in _LLAMA_32_DIMS:
        found = [*evidence, f"dim {params.dim} is that of Llama 3.2"]
        return (
            "llama-3.2",
            found,
            _or("Llama 3.2", "llama-guard-3-1b") if params.dim == _LLAMA_32_DIMS[0] else [],
        )
    if facts.tied_storage:
        return "llama-3.2", [*evidence, "embedding and output share one storage"], []
    if params.dim in _LLAMA_31_DIMS:
        others = {8192: "llama-3.3", 4096: "llama-guard-3"}.get(params.dim)
        return "llama-3.1", [*evidence, f"dim {params.dim} is that of Llama 3.1"], _or("Llama 3.1", others)
    if params.rope_scaling.factor is not None:
        return "llama-3.1", [*evidence, f"and a factor of {params.rope_scaling.factor:g}"], []
    return (
        "llama-3.1",
        evidence,
        [
            f"dim {params.dim} was never published; rope scaled by 8 is assumed (Llama 3.1), --family llama-3.2 takes 32"
        ],
    )


def _or(title: str, other: str | None) -> list[str]:
    if other is None:
        return []
    return [
        f"{title} and {FAMILIES[other].title} look alike here; {title} is assumed, --family {other} changes that"
    ]


def _detect_sentencepiece(facts: Facts) -> _Found:
    params = facts.params
    if params.rope_theta is not None:
        if params.rope_theta > FAMILIES["llama-2"].theta:
            return "code-llama", [f"rope_theta is {params.rope_theta:g}"], []
        evidence = [
            f"rope_theta {params.rope_theta:g} is written out",
            f"vocabulary of {facts.dimensions.vocab:,}",
        ]
        if facts.dimensions.vocab == 32016 and params.dim == 8192:
            return "code-llama-70b-python", evidence, []
    if params.n_kv_heads is not None and params.n_kv_heads != params.n_heads:
        return "llama-2", [f"{params.n_kv_heads} key heads for {params.n_heads} heads, and no rope_theta"], []
    for table, name in ((_LLAMA_1_MD5, "llama-1"), (_LLAMA_2_MD5, "llama-2")):
        if params.md5 in table:
            return name, [f"params.json is Meta's own of {FAMILIES[name].title} {table[params.md5]}"], []
    if params.dim in {6656, 8192}:
        return "llama-1", [f"dim {params.dim} with as many key heads as heads is that of Llama 1"], []
    if params.norm_eps >= 1e-5 * 0.999:
        return "llama-2", [f"norm_eps {params.norm_eps:g}"], _or_context("llama-2", "llama-1", params)
    if params.dim == 5120:
        return "llama-1", [f"norm_eps {params.norm_eps:g} at dim 5120"], []
    name, other = ("llama-1", "llama-2") if facts.dtype is FLOAT16 else ("llama-2", "llama-1")
    return (
        name,
        [f"norm_eps {params.norm_eps:g}", f"stored as {facts.dtype}"],
        _or_context(name, other, params),
    )


def _or_context(name: str, other: str, params: Params) -> list[str]:
    if params.dim in {4096, 5120} and params.norm_eps > 1e-6 * 1.001:
        return []
    mine, theirs = FAMILIES[name], FAMILIES[other]
    return [
        (
            f"{mine.title} is assumed (context {mine.context}); "
            f"if it is {theirs.title} (context {theirs.context}), add --family {other}"
        )
    ]
