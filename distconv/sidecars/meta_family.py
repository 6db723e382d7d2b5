"""Which family's files describe a model that is known by its config.json, and where the two differ."""

from collections.abc import Iterator

from distconv.families.dimensions import Dimensions
from distconv.families.evidence import Tokenizer
from distconv.families.llama import FAMILIES, TIKTOKEN_SIZE, Family
from distconv.sidecars.config import Rope

PLAIN_THETA = 1e4
"""What Transformers and the code of Llama 1 and 2 take where nothing is said."""
_SCALED = ("llama-3.1", "llama-3.2")


def tell_family(
    sizes: Dimensions, rope: Rope, context: int, bos: object, tokenizer: Tokenizer | None
) -> tuple[str, tuple[str, ...]]:
    """Tell which family's files say the same; of those that differ in their prompts only, the first."""
    kind, first = (
        _tell_tokenizer(sizes, rope, bos) if tokenizer is None else (tokenizer, f"a {tokenizer} tokenizer")
    )
    if rope.factor is not None:
        name = next((name for name in _SCALED if FAMILIES[name].factor == rope.factor), _SCALED[0])
        return name, (first, f"rope is scaled by {rope.factor:g}")
    if kind == "tiktoken":
        return "llama-3", (first, "rope is not scaled")
    if rope.theta != PLAIN_THETA:
        return "code-llama", (first, f"rope_theta is {rope.theta:g}")
    if (sizes.dim, sizes.vocab) == (8192, 32016):
        return "code-llama-70b-python", (first, "vocabulary of 32,016 at dim 8192")
    if sizes.kv_heads != sizes.heads:
        return "llama-2", (first, f"{sizes.kv_heads} key heads for {sizes.heads} heads")
    longest = FAMILIES["llama-1"].context
    return "llama-1" if context <= longest else "llama-2", (first, f"context {context:,}")


def _tell_tokenizer(sizes: Dimensions, rope: Rope, bos: object) -> tuple[Tokenizer, str]:
    if sizes.vocab >= TIKTOKEN_SIZE:
        return "tiktoken", f"vocabulary of {sizes.vocab:,}"
    if bos == FAMILIES["llama-2"].bos:
        return "sentencepiece", f"bos_token_id is {bos}"
    theta = FAMILIES["llama-3"].theta
    return "tiktoken" if rope.theta == theta else "sentencepiece", f"rope_theta is {rope.theta:g}"


def find_contradictions(
    family: Family, sizes: Dimensions, rope: Rope, tokenizer: Tokenizer | None
) -> Iterator[str]:
    """Name what the family's code takes otherwise than config.json has it."""
    if tokenizer not in {None, family.tokenizer}:
        yield f"{family.title} has a {family.tokenizer} tokenizer, found a {tokenizer} one"
    if family.tokenizer == "sentencepiece" and sizes.vocab >= TIKTOKEN_SIZE and tokenizer is None:
        yield f"vocabulary of {sizes.vocab:,}, {family.title} has a sentencepiece tokenizer"
    if not says_theta(family) and rope.theta != family.theta:
        yield (
            f"rope_theta {rope.theta:g}; the code of {family.title} always takes {family.theta:g}, "
            "that of Code Llama (`family='code-llama'`) any"
        )
    scaling, expected = rope.scaling(), Rope(family.theta, family.factor).scaling()
    if scaling != expected:
        yield f"rope scaling is {_show(scaling)}; the code of {family.title} takes {_show(expected)}"


def says_theta(family: Family) -> bool:
    """Whether params.json has ``rope_theta``; to the code of Llama 1 and 2 an unknown key is an error."""
    return family.tokenizer == "tiktoken" or family.name.startswith("code-llama")


def _show(scaling: dict[str, object]) -> str:
    return ", ".join(f"{key} {value}" for key, value in scaling.items())
