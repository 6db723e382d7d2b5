"""What contents say of a model firmly: what they contradict is refused, with the way out."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from distconv.errors import MismatchError
from distconv.families.dimensions import ModelDimensions
from distconv.families.llama import FAMILIES, TIKTOKEN_SIZE, Family
from distconv.formats.meta.params import Params
from distconv.layout.dtypes import DType

Tokenizer = Literal["sentencepiece", "tiktoken", "tekken"]

LLAMA_1_MD5 = {
    "7596560e011154b90eb51a1b15739763": "7B",
    "0171286599e0f8858893e49fb74b71f8": "13B",
    "4babdbd05b8923226a9e9622492054b6": "30B",
}
LLAMA_2_MD5 = {
    "9a3757de7196d1840b551a85b82efbc8": "7B",
    "1c39bc3c6b51079fd807cc105b86c9df": "7B-chat",
    "b54ad5614e2a66c1e6eb3d4d25aa8d94": "13B",
}
_DIFFER_BY_A_NEWLINE = frozenset({"7596560e011154b90eb51a1b15739763", "1c39bc3c6b51079fd807cc105b86c9df"})
"""Llama 1 7B's and Llama 2 7B-chat's, one of which an editor makes of the other."""

_PUBLISHED_FACTORS = {(4096, 32): 8.0, (8192, 80): 8.0, (16384, 126): 8.0, (2048, 16): 32.0, (3072, 28): 32.0}
"""By (dim, layers): how much the published models of these sizes scale their rope, where they do."""

_PLAIN_THETA = 1e4
"""What Llama 1, 2 and Code Llama's code take where params.json does not say."""


@dataclass(frozen=True, slots=True)
class Facts:
    """All that the choice rests on."""

    params: Params
    dimensions: ModelDimensions
    dtype: DType
    tokenizer: Tokenizer | None
    folder: str
    tied_storage: bool
    """Embedding and output are one storage: proof of tying without reading data."""
    tokenizer_size: int | None = None
    """Tokens of the tokenizer, special ones included; None where they are not known."""
    tokenizer_path: str | None = None
    """Its file, for messages."""
    has_statistics: bool = False
    """Whether the shards hold how often Llama 4's experts were chosen."""


@dataclass(frozen=True, slots=True)
class Evidence:
    """Something that contents say, and the names of the families of which it is true."""

    said: str
    fits: frozenset[str]


def find_evidence(facts: Facts) -> tuple[Evidence, ...]:
    """Give all that is firm."""
    return tuple(found for find in _FINDERS if (found := find(facts)) is not None)


def _find_scaling(facts: Facts) -> Evidence | None:
    scaled = facts.params.use_scaled_rope
    fits = _names(family for family in FAMILIES.values() if (family.factor is not None) == scaled)
    return Evidence(f"params.json has {'' if scaled else 'no '}use_scaled_rope", fits)


def _find_theta(facts: Facts) -> Evidence | None:
    theta = facts.params.rope_theta
    if theta is None:
        # Llama 3's code takes what all its models have.
        fits = _names(
            family
            for family in FAMILIES.values()
            if family.tokenizer == "tiktoken" or family.theta == _PLAIN_THETA
        )
        return Evidence("params.json has no rope_theta", fits)
    fits = _names(
        family
        for family in FAMILIES.values()
        if family.theta == theta and facts.tokenizer in {None, family.tokenizer}
    )
    return Evidence(f"params.json has rope_theta {theta:g}", fits) if fits else None


def _find_factor(facts: Facts) -> Evidence | None:
    dim, layers = facts.params.dim, facts.params.n_layers
    factor = _PUBLISHED_FACTORS.get((dim, layers))
    if factor is None or not facts.params.use_scaled_rope:
        return None
    fits = _names(family for family in FAMILIES.values() if family.factor == factor)
    return Evidence(f"with dim {dim} and {layers} layers rope is scaled by {factor:g}", fits)


def _find_digest(facts: Facts) -> Evidence | None:
    md5 = facts.params.md5
    if md5 in _DIFFER_BY_A_NEWLINE:
        return None
    for table, name in ((LLAMA_1_MD5, "llama-1"), (LLAMA_2_MD5, "llama-2")):
        if md5 in table:
            own = FAMILIES[name]
            fits = _names(family for family in FAMILIES.values() if family.is_like(own))
            return Evidence(f"params.json is Meta's own of {own.title} {table[md5]}", fits)
    return None


def _find_rows(facts: Facts) -> Evidence | None:
    rows = facts.dimensions.vocab
    if facts.tokenizer is not None or rows < TIKTOKEN_SIZE:
        return None
    fits = _names(family for family in FAMILIES.values() if family.tokenizer == "tiktoken")
    return Evidence(f"the embedding has {rows:,} rows", fits)


_FINDERS = (_find_scaling, _find_theta, _find_factor, _find_digest, _find_rows)


def _names(families: Iterable[Family]) -> frozenset[str]:
    return frozenset(family.name for family in families)


def check_family(facts: Facts, family: Family, *, asked: bool) -> None:
    """Raise MismatchError where firm evidence contradicts a family, ``asked`` for by the option or told."""
    evidence = find_evidence(facts)
    against = [found.said for found in evidence if family.name not in found.fits]
    if not against:
        return
    fitting = [name for name in FAMILIES if all(name in found.fits for found in evidence)]
    if facts.tokenizer is not None:
        fitting = [name for name in fitting if FAMILIES[name].tokenizer == facts.tokenizer]
    if not asked:
        raise MismatchError(
            f"{facts.folder}: {family.title} by its {facts.tokenizer} tokenizer, {facts.tokenizer_path}, but {', '.join(against)}; "
            "no family has both; if the tokenizer is another model's, give the right file by `tokenizer=`"
        )
    also = f" or give one that fits ({', '.join(fitting)})" if fitting else ""
    raise MismatchError(
        f"{facts.folder}: `family='{family.name}'` ({family.title}), but {', '.join(against)}; leave `family=` out{also}"
    )


def check_tokenizer(facts: Facts, family: Family | None) -> None:
    """Raise MismatchError where the tokenizer is not that of the weights, ``family`` being the one asked for."""
    rows, size = facts.dimensions.vocab, facts.tokenizer_size
    reason = None
    if family is not None and facts.tokenizer not in {None, family.tokenizer}:
        reason = f"{family.title} has a {family.tokenizer} tokenizer, found a {facts.tokenizer} one, {facts.tokenizer_path}"
    elif size is not None and size > rows:
        reason = f"the tokenizer, {facts.tokenizer_path}, has {size:,} tokens, the embedding {rows:,} rows"
    elif size is not None and size < rows:
        reason = _find_foreign(facts, size, asked=family is not None)
    if reason is not None:
        otherwise = "" if family is None else ", or leave `family=` out"
        if family is None and _may_be_padded(facts, size):
            otherwise = ", or, if it is right and the other rows are padding, the model's family by `family=`"
        raise MismatchError(f"{facts.folder}: {reason}; give the right file by `tokenizer=`{otherwise}")


def _may_be_padded(facts: Facts, size: int | None) -> bool:
    """Whether a family that is asked for settles that a tokenizer of fewer tokens than rows is the right one."""
    rows = facts.dimensions.vocab
    return size is not None and size < rows != TIKTOKEN_SIZE and not facts.params.use_scaled_rope


def _find_foreign(facts: Facts, size: int, *, asked: bool) -> str | None:
    """Say why a tokenizer that is smaller than the embedding is not just that of a padded one."""
    rows = facts.dimensions.vocab
    told = tell_tokenizer(facts)
    found = f"the tokenizer, {facts.tokenizer_path}, is a {facts.tokenizer} file of {size:,} tokens"
    if rows == TIKTOKEN_SIZE:
        return f"{found}, and the embedding has {rows:,} rows, as many as Llama 3's tokenizer tokens"
    if told is not None and told[0] != facts.tokenizer and not asked:
        return f"{found} for {rows:,} rows, and {told[1]}: the model has a {told[0]} tokenizer"
    return None


def tell_tokenizer(facts: Facts) -> tuple[Tokenizer, str] | None:
    """Tell the kind of tokenizer that the weights were made for, and by what; None where that is open."""
    params, rows = facts.params, facts.dimensions.vocab
    if rows >= TIKTOKEN_SIZE:
        return "tiktoken", f"{rows:,} rows of vocabulary"
    if params.use_scaled_rope:
        return "tiktoken", "params.json has use_scaled_rope"
    if params.rope_theta is None:
        return "sentencepiece", "params.json has no rope_theta"
    kinds = {family.tokenizer for family in FAMILIES.values() if family.theta == params.rope_theta}
    # Other people's models have the plain one with any tokenizer.
    if len(kinds) != 1 or params.rope_theta == _PLAIN_THETA:
        return None
    return kinds.pop(), f"params.json has rope_theta {params.rope_theta:g}"
