"""Which family a checkpoint is of, told from its contents.

The signals are those of Meta's published files; where they do not decide, what is assumed is
said together with the option that changes it.
"""

from dataclasses import dataclass, replace

from distconv.errors import MismatchError, UsageError
from distconv.families.dimensions import Llama4Dimensions, MllamaDimensions
from distconv.families.evidence import (
    LLAMA_1_MD5,
    LLAMA_2_MD5,
    Facts,
    check_family,
    check_tokenizer,
    tell_tokenizer,
)
from distconv.families.images import assume_variant, tell_image_family
from distconv.families.known import ALL_FAMILIES
from distconv.families.llama import FAMILIES, Family
from distconv.families.mistral import tell_mistral_family
from distconv.families.told import assume_base
from distconv.formats.meta.mistral import MistralParams
from distconv.formats.meta.params import Params
from distconv.layout.dtypes import FLOAT16

_LLAMA_31_DIMS = (4096, 8192, 16384)
_LLAMA_32_DIMS = (2048, 3072)


@dataclass(frozen=True, slots=True)
class Choice:
    """The family, how that is known, and what had to be assumed."""

    family: Family
    instruct: bool
    evidence: tuple[str, ...]
    assumptions: tuple[str, ...]
    may_tie: bool
    """Whether the output may be the embedding: it is in some families, and where params.json says so."""
    variant: tuple[str, ...] = ()
    """Those of the assumptions that are about what only chat models have."""


def choose_family(facts: Facts, family: str | None = None, *, instruct: bool | None = None) -> Choice:
    """Tell the family, or take the one asked for.

    UsageError for an unknown name; MismatchError where firm evidence contradicts it, or where
    the tokenizer is another model's. What else speaks against it is among the assumptions.
    """
    asked = None if family is None else find_family(family)
    if facts.params.mistral is not None:
        return _choose_mistral_family(facts, facts.params.mistral, asked, instruct=instruct)
    if isinstance(facts.dimensions, MllamaDimensions | Llama4Dimensions):
        return _choose_image_family(facts, facts.dimensions, asked, instruct=instruct)
    if asked is not None and asked.architecture != "llama":
        raise MismatchError(
            f"{facts.folder}: `family='{asked.name}'` ({asked.title}), but params.json is of a Llama that does not see; "
            "leave `family=` out"
        )
    check_tokenizer(facts, asked)
    told = _detect(facts)
    chosen = FAMILIES[told.name] if asked is None else asked
    check_family(facts, chosen, asked=asked is not None)
    variant = tuple(_variant_assumption(chosen, facts, instruct=instruct))
    choice = Choice(
        chosen,
        bool(instruct) or chosen.guard,
        told.evidence if asked is None else ("`family=` says so",),
        (
            *(told.assumptions if asked is None else ()),
            *variant,
            *(_overruled(told, chosen) if asked is not None else ()),
            *_theta_assumption(chosen, facts.params),
        ),
        chosen.may_tie or facts.params.tied,
        variant,
    )
    _check_ids(facts, choice)
    return choice


def find_family(name: str) -> Family:
    """Give a family by its name; UsageError where there is none."""
    if name not in ALL_FAMILIES:
        raise UsageError(f"`family='{name}'`: unknown; expected one of {', '.join(ALL_FAMILIES)}")
    return ALL_FAMILIES[name]


def _choose_image_family(
    facts: Facts,
    dimensions: MllamaDimensions | Llama4Dimensions,
    asked: Family | None,
    *,
    instruct: bool | None,
) -> Choice:
    """Tell the family of a model that sees, or take the one asked for; its tokenizer must be that of the weights."""
    told = tell_image_family(facts.folder, dimensions, asked, has_statistics=facts.has_statistics)
    chosen, size = told.family, facts.tokenizer_size
    if facts.tokenizer == "sentencepiece" or (size is not None and size > dimensions.vocab):
        raise MismatchError(
            f"{facts.folder}: the tokenizer, {facts.tokenizer_path}, is a {facts.tokenizer} file of {size or 0:,} tokens, expected a tiktoken one "
            f"of {dimensions.vocab:,}, as the output has rows; give the right file by `tokenizer=`"
        )
    variant = assume_variant(chosen, facts.folder, instruct=instruct)
    assumptions = (*told.assumptions, *variant, *_theta_assumption(chosen, facts.params))
    return Choice(
        chosen, bool(instruct) or chosen.guard, told.evidence, assumptions, may_tie=False, variant=variant
    )


def _choose_mistral_family(
    facts: Facts, found: MistralParams, asked: Family | None, *, instruct: bool | None
) -> Choice:
    """Tell the family of one of Mistral's models, or take the one asked for; its tokenizer must be that of the weights."""
    rows, size = facts.dimensions.vocab, facts.tokenizer_size
    told = tell_mistral_family(facts.folder, facts.params, found, rows, facts.tokenizer, asked)
    kind = told.family.tokenizer
    if facts.tokenizer not in {None, kind} or (size is not None and size > rows):
        raise MismatchError(
            f"{facts.folder}: the tokenizer, {facts.tokenizer_path}, is a {facts.tokenizer} file of {size or 0:,} tokens, "
            f"expected a {kind} one of {rows:,} at most, as the embedding has rows; give the right file by `tokenizer=`"
        )
    variant = (_WITHOUT_CHAT,) if instruct else ()
    assumptions = (*told.assumptions, *variant)
    return Choice(told.family, bool(instruct), told.evidence, assumptions, facts.params.tied, variant)


_WITHOUT_CHAT = (
    "no chat template is written for Mistral's models: mistral-common, with which Transformers and vLLM read the tokenizer "
    "that is copied, has their prompts"
)


def _check_ids(facts: Facts, choice: Choice) -> None:
    """Refuse ids that config.json would name and the embedding has not; without a tokenizer none is written."""
    if facts.tokenizer is None:
        return
    begin, ends = choice.family.token_ids(facts.tokenizer_size, instruct=choice.instruct)
    rows = facts.dimensions.vocab
    beyond = sorted(number for number in {begin, *ends} if number >= rows)
    if beyond:
        raise MismatchError(
            f"{facts.folder}: {choice.family.title}{' (instruct)' if choice.instruct else ''} has the special tokens "
            f"{', '.join(map(str, beyond))}, the embedding {rows:,} rows; give another `family=`, or none"
            f"{', or leave `instruct=True` out' if choice.instruct else ''}"
        )


def _overruled(told: "_Told", chosen: Family) -> tuple[str, ...]:
    """Say what contents speak for, where the option says something that is not just as likely."""
    likely = [FAMILIES[name] for name in (told.name, *told.others)]
    if any(chosen.is_like(family) for family in likely):
        return ()
    return (
        (
            f"`family='{chosen.name}'` overrules what contents speak for: {likely[0].title} "
            f"({'; '.join(told.evidence)}), context {likely[0].context:,} and not {chosen.context:,}"
        ),
    )


def _theta_assumption(chosen: Family, params: Params) -> tuple[str, ...]:
    if params.rope_theta is None:
        if chosen.tokenizer == "sentencepiece":
            return ()
        return (f"params.json has no rope_theta; {chosen.title}'s {chosen.theta:g} is taken",)
    if params.rope_theta == chosen.theta:
        return ()
    return (
        (
            f"rope_theta {params.rope_theta:g} is kept; {chosen.title}'s own is {chosen.theta:g}, and the context "
            f"written is {chosen.title}'s, {chosen.context:,}"
        ),
    )


def _variant_assumption(family: Family, facts: Facts, *, instruct: bool | None) -> list[str]:
    if family.guard:
        return ["Llama Guard has no chat template here: its prompt is a moderation task"]
    if family.chat is None:
        return [f"{family.title} has no instruct models; `instruct=True` changes nothing"] if instruct else []
    return [assume_base(facts.folder)] if instruct is None else []


@dataclass(frozen=True, slots=True)
class _Told:
    """What contents tell: a family, by what, and the others that are as likely."""

    name: str
    evidence: tuple[str, ...]
    others: tuple[str, ...] = ()
    assumptions: tuple[str, ...] = ()


def _detect(facts: Facts) -> _Told:
    if facts.tokenizer is not None:
        kind: str = facts.tokenizer
        first = f"the tokenizer is a {kind} file"
    else:
        kind, first = tell_tokenizer(facts) or (
            "sentencepiece",
            f"{facts.dimensions.vocab:,} rows of vocabulary",
        )
    told = _detect_tiktoken(facts) if kind == "tiktoken" else _detect_sentencepiece(facts)
    return replace(told, evidence=(first, *told.evidence))


def _detect_tiktoken(facts: Facts) -> _Told:
    params = facts.params
    if not params.use_scaled_rope:
        return _or("llama-3", ("params.json has no scaled rope",), "llama-guard-2")
    scaled, dim = "params.json has use_scaled_rope", params.dim
    if dim in _LLAMA_32_DIMS:
        other = "llama-guard-3-1b" if dim == _LLAMA_32_DIMS[0] else None
        return _or("llama-3.2", (scaled, f"dim {dim} is that of Llama 3.2"), other)
    if dim in _LLAMA_31_DIMS:
        other = {8192: "llama-3.3", 4096: "llama-guard-3"}.get(dim)
        return _or("llama-3.1", (scaled, f"dim {dim} is that of Llama 3.1"), other)
    if facts.tied_storage:
        return _Told("llama-3.2", (scaled, "embedding and output share one storage"))
    if params.rope_scaling.factor is not None:
        return _Told("llama-3.1", (scaled, f"and a factor of {params.rope_scaling.factor:g}"))
    return _Told(
        "llama-3.1",
        (scaled,),
        ("llama-3.2",),
        (
            f"dim {dim} was never published; rope scaled by 8 is assumed (Llama 3.1), `family='llama-3.2'` takes 32",
        ),
    )


def _or(name: str, evidence: tuple[str, ...], other: str | None) -> _Told:
    if other is None:
        return _Told(name, evidence)
    title = FAMILIES[name].title
    said = f"{title} and {FAMILIES[other].title} look alike here; {title} is assumed, `family='{other}'` changes that"
    return _Told(name, evidence, (other,), (said,))


def _detect_sentencepiece(facts: Facts) -> _Told:
    params = facts.params
    theta = params.rope_theta
    if theta is not None:
        if theta > FAMILIES["llama-2"].theta:
            large = f"rope_theta is {theta:g}"
            if theta == FAMILIES["code-llama"].theta:
                return _Told("code-llama", (large,))
            return _or_context("code-llama", (large,), "llama-2")
        if facts.dimensions.vocab == 32016 and params.dim == 8192:
            evidence = (f"rope_theta {theta:g} is written out", f"vocabulary of {facts.dimensions.vocab:,}")
            return _Told("code-llama-70b-python", evidence)
    if params.n_kv_heads is not None and params.n_kv_heads != params.n_heads:
        grouped = f"{params.n_kv_heads} key heads for {params.n_heads} heads"
        return _Told("llama-2", (grouped + (", and no rope_theta" if theta is None else ""),))
    for table, name in ((LLAMA_1_MD5, "llama-1"), (LLAMA_2_MD5, "llama-2")):
        if params.md5 in table:
            return _Told(name, (f"params.json is Meta's own of {FAMILIES[name].title} {table[params.md5]}",))
    if params.dim in {6656, 8192}:
        return _Told("llama-1", (f"dim {params.dim} with as many key heads as heads is that of Llama 1",))
    return _detect_by_norm(facts)


def _detect_by_norm(facts: Facts) -> _Told:
    params = facts.params
    norm = f"norm_eps {params.norm_eps:g}"
    if params.norm_eps >= 1e-5 * 0.999:
        if params.dim in {4096, 5120}:
            return _Told("llama-2", (norm,))
        return _or_context("llama-2", (norm,), "llama-1")
    if params.dim == 5120:
        return _Told("llama-1", (f"{norm} at dim 5120",))
    name, other = ("llama-1", "llama-2") if facts.dtype is FLOAT16 else ("llama-2", "llama-1")
    return _or_context(name, (norm, f"stored as {facts.dtype}"), other)


def _or_context(name: str, evidence: tuple[str, ...], other: str) -> _Told:
    mine, theirs = FAMILIES[name], FAMILIES[other]
    said = (
        f"{mine.title} is assumed (context {mine.context}); "
        f"if it is {theirs.title} (context {theirs.context}), add `family='{other}'`"
    )
    return _Told(name, evidence, (other,), (said,))
