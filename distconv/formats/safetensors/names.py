"""Tensor names as ``LlamaForCausalLM`` of Transformers has them, whatever a trainer has put around them."""

import re
from collections import Counter
from collections.abc import Iterable

from distconv.errors import InputError
from distconv.formats.marks import LIMIT_NAME_CHARACTERS
from distconv.formats.meta.names import Names, read_names

_BODY = "model"
_PARTS_OF_BODY = frozenset({"embed_tokens", "layers", "norm", "rotary_emb"})
"""What ``LlamaModel`` has, which is ``model`` of ``LlamaForCausalLM`` and may be saved alone."""
_BUFFER = re.compile(r"(?:.*\.)?(rotary_emb\.\w+)")
"""What is computed from the config: saved by Transformers up to 4.31."""

_REFUSED = (
    (
        re.compile(r".*\.lora_\w+(\..*)?|.*\.(modules_to_save|base_layer)\..*", re.IGNORECASE),
        "a LoRA adapter that is not merged; merge it into the model first (merge_and_unload of peft)",
    ),
    (
        re.compile(
            r".*\.(qweight|qzeros|scales|g_idx|SCB|weight_format|W_q|absmax|(nested_)?quant_map)"
            r"|.*\.(weight|input|output|[kqv])_(scale|zero_point)(_\w+)?|.*\.weight_(packed|shape|g_idx)"
            r"|.*\.quant_state\..*"
        ),
        "a quantised model; take the one that it was made of, or dequantise it first",
    ),
)
"""By names alone, as auto-gptq, awq, bitsandbytes, compressed-tensors, fbgemm, hqq and peft write them."""


def keep_names(_path: str, names: Iterable[str]) -> Names:
    """Take all names as they are: of other models nothing is known that could be taken off."""
    return Names({name: name for name in names}, {}, {})


def find_transformers_names(path: str, names: Iterable[str]) -> Names:
    """Find the name in ``LlamaForCausalLM`` of each tensor of a file.

    Names that are none of that model's stay as they are, but for wrappers. Rotary buffers are left
    aside. InputError for adapters, quantised weights, and names of more than 1,024
    characters.
    """
    names = list(names)
    longest = max(map(len, names), default=0)
    if longest > LIMIT_NAME_CHARACTERS:
        raise InputError(f"{path}: a tensor whose name has {longest:,} characters; refused as unsafe")
    found = read_names(names)
    kept: dict[str, str] = {}
    stripped: Counter[str] = Counter()
    aside = Counter(found.aside)
    for own, plain in found.kept.items():
        _refuse(path, own)
        buffer = _BUFFER.fullmatch(plain)
        if buffer is not None:
            aside[buffer[1][:_SHOWN_CHARACTERS]] += 1
            continue
        name = f"{_BODY}.{plain}" if plain.partition(".")[0] in _PARTS_OF_BODY else plain
        kept[own] = name
        stripped.update((Counter(own.split(".")) - Counter(name.split("."))).keys())
    return Names(kept, stripped, aside)


_SHOWN_CHARACTERS = 80


def is_bare(own: str, name: str) -> bool:
    """Whether a tensor was saved from ``LlamaModel``, by its file's name and the model's."""
    return name.startswith(f"{_BODY}.") and _BODY not in own.split(".")


def _refuse(path: str, own: str) -> None:
    for pattern, description in _REFUSED:
        if pattern.fullmatch(own):
            raise InputError(f"{path}: {description} (it has {own[:_SHOWN_CHARACTERS]})")
