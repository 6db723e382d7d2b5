"""params.json in the form in which Meta publishes it for each family.

The keys are each family's own and no others: the code of Llama 1, 2 and 3 and of Code Llama
refuses keys that it does not know. The size of the feed-forward layers is in none of them;
Meta's code computes it from two numbers, which are found here.
"""

import json
from collections.abc import Iterator

from distconv.families.dimensions import Dimensions
from distconv.families.llama import Family
from distconv.formats.meta.params import Params, compute_ffn_dim
from distconv.sidecars.meta_config import MetaConfig

_PLAIN_KEYS = (
    "dim", "multiple_of", "ffn_dim_multiplier", "n_heads", "n_kv_heads", "n_layers", "norm_eps", "vocab_size",
)  # fmt: skip
_CODE_KEYS = (
    "dim", "n_layers", "n_heads", "n_kv_heads", "multiple_of", "ffn_dim_multiplier", "norm_eps", "rope_theta",
)  # fmt: skip
_LLAMA_3_KEYS = (
    "dim", "n_layers", "n_heads", "n_kv_heads", "vocab_size", "multiple_of", "ffn_dim_multiplier", "norm_eps",
    "rope_theta",
)  # fmt: skip
_SCALED_KEYS = tuple(sorted((*_LLAMA_3_KEYS, "use_scaled_rope")))

_PAIRS = ((256, None), (4096, 1.3))
"""``multiple_of`` and ``ffn_dim_multiplier`` of all published models with a sentencepiece tokenizer."""
_PAIRS_BY_DIM = {2048: (256, 1.5), 3072: (256, 1.0), 4096: (1024, 1.3), 8192: (4096, 1.3), 16384: (4096, 1.2)}
"""The same of those with a tiktoken file: more than one pair gives their size."""
_LARGEST_MULTIPLE = 4096
_MIDDLE_MULTIPLE = 256


def make_params(config: MetaConfig, *, rows: int, shards: int = 1) -> bytes:
    """Make params.json for ``shards`` files and ``rows`` rows of embedding.

    Where there are more shards than key heads, it counts every copy, as Meta's model divides
    the heads among the shards, of which there are as many as ``families.translate.cut_for_ranks`` takes.
    """
    sizes, family, theta = config.dimensions, config.family, config.rope.theta
    kv_heads = max(sizes.kv_heads, shards)
    multiple_of, multiplier = find_ffn_pair(sizes.dim, sizes.ffn_dim, family)
    keys, indent, ending = _find_form(family)
    plain = family.tokenizer == "sentencepiece"
    short = keys is _CODE_KEYS
    values: dict[str, object] = {
        "dim": sizes.dim,
        "n_layers": sizes.layers,
        "n_heads": sizes.heads,
        "n_kv_heads": None if plain and kv_heads == sizes.heads else kv_heads,
        "multiple_of": multiple_of,
        "ffn_dim_multiplier": multiplier if keys is _PLAIN_KEYS else multiplier or 1.0,
        "norm_eps": config.norm_eps,
        "rope_theta": int(theta) if short and theta.is_integer() else theta,
        "use_scaled_rope": True,
        "vocab_size": -1 if plain else rows,
    }
    text = json.dumps({key: values[key] for key in keys if values[key] is not None}, indent=indent)
    # Code Llama's files have 1e-5 where all others have 1e-05.
    return ((text.replace("e-0", "e-") if short else text) + ending).encode()


def find_ffn_pair(dim: int, ffn_dim: int, family: Family) -> tuple[int, float | None]:
    """Find ``multiple_of`` and ``ffn_dim_multiplier`` (None: not needed) that give this size.

    Published pairs come first, then a power of two alone, then one with the multiplier of
    fewest digits: there is one for every size, as multiples of 1 need only the ratio.
    """
    pairs = list_ffn_pairs(dim, ffn_dim, family)
    return next(pair for pair in pairs if compute_ffn_dim(dim, *pair) == ffn_dim)


def correct_sizes(params: Params, sizes: Dimensions, family: Family) -> dict[str, object]:
    """Give the fields of a params.json that the tensors have otherwise, as they should be."""
    found: dict[str, object] = {}
    if params.ffn_dim not in {None, sizes.ffn_dim}:
        multiple_of, multiplier = find_ffn_pair(sizes.dim, sizes.ffn_dim, family)
        found["multiple_of"] = multiple_of
        # Where neither has one, none is added: Llama 1's code refuses the key.
        if multiplier is not None or params.ffn_dim_multiplier is not None:
            found["ffn_dim_multiplier"] = multiplier or 1.0
    if params.vocab_size not in {None, sizes.vocab}:
        found["vocab_size"] = sizes.vocab
    return found


def list_ffn_pairs(dim: int, ffn_dim: int, family: Family) -> Iterator[tuple[int, float | None]]:
    """List what may give this size, as ``find_ffn_pair`` tries it."""
    if family.tokenizer == "sentencepiece":
        yield from _PAIRS
    elif dim in _PAIRS_BY_DIM:
        yield _PAIRS_BY_DIM[dim]
    power = min(ffn_dim & -ffn_dim, _LARGEST_MULTIPLE)
    yield from ((power >> shift, None) for shift in range(power.bit_length()))
    step = min(power, _MIDDLE_MULTIPLE)
    # Everything above ffn_dim - step and below ffn_dim + 1 is rounded to ffn_dim.
    middle = (ffn_dim + 1 - step / 2) / compute_ffn_dim(dim, 1, None)
    yield from ((step, round(middle, digits)) for digits in range(1, 18))


def _find_form(family: Family) -> tuple[tuple[str, ...], int | None, str]:
    """Give a family's keys in their order, the indentation, and how the text ends."""
    if family.factor is not None:
        return _SCALED_KEYS, None if family.factor == 8 else 2, ""
    if family.tokenizer == "tiktoken":
        return _LLAMA_3_KEYS, 4, "\n"
    if family.name.startswith("code-llama"):
        return _CODE_KEYS, None, "\n"
    return _PLAIN_KEYS, None, "" if family.name == "llama-1" else "\n"
