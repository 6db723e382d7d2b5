"""The files beside quantized shards: which there are, and which are refused.

Sources: ``llama3/quantization/loader.py`` and ``llama4/scripts/quantize.py`` of llama-models 0.3.0. Meta's code
quantizes each shard by itself: beside each lies a dict of one scale for each row, by which its float8 values are
multiplied.
"""

import re
from collections.abc import Iterable

from distconv.errors import InputError
from distconv.storage.base import Storage, join, list_files

QLORA = (
    "a QLoRA checkpoint (int4 weights with scales, and an adaptor for each); convert the bf16 model instead"
)
SPINQUANT = "a SpinQuant checkpoint (int4 weights with scales, some of them for rotated inputs); convert the bf16 model instead"
INT4 = "an int4-quantized checkpoint; convert the bf16 model instead"
QUANTIZED = (
    "a quantized checkpoint (int4 or int8 weights, as SpinQuant has them); convert the bf16 model instead"
)
LORA = "a LoRA checkpoint; merge it into the model first"
"""What is refused, and what to do instead."""

_FP8 = re.compile(r"fp8_scales_(?P<number>\d+)\.pt")
_INT4 = re.compile(r"int4_scales_\d+\.pt")
_MOST_SHOWN = 8


def scales_name(rank: int) -> str:
    """Name the scales of a shard."""
    return f"fp8_scales_{rank}.pt"


def is_scales_name(name: str) -> bool:
    """Whether a file of this name has the scales of a shard."""
    return _FP8.fullmatch(name) is not None


def find_scales(storage: Storage, folder: str) -> tuple[str, ...]:
    """Find the scales of FP8 shards in their folder, in the order of ranks; InputError where any is missing.

    Files of int4 scales are refused.
    """
    names = list_files(storage, folder)
    _refuse_int4(folder, names)
    found: dict[int, str] = {}
    for name, number in _list_numbers(names):
        twin = found.setdefault(number, name)
        if twin is not name:
            raise InputError(f"{folder}: the scales of shard {number} are there twice: {twin} and {name}")
    count = len(found)
    missing = [scales_name(number) for number in range(count) if number not in found]
    if missing:
        held = ", ".join(found[number] for number in sorted(found)[:_MOST_SHOWN])
        raise InputError(
            f"{folder}: {', '.join(missing[:_MOST_SHOWN])} missing beside {held}; download the missing files"
        )
    return tuple(join(folder, found[number]) for number in range(count))


def refuse_scales(storage: Storage, folder: str) -> None:
    """Raise InputError where a folder of a model in Transformers' format has scales of Meta's shards."""
    names = list_files(storage, folder)
    _refuse_int4(folder, names)
    for name, _number in _list_numbers(names):
        raise InputError(
            f"{join(folder, name)}: the scales of one of Meta's FP8 shards, and there are none; "
            "download consolidated.*.pth and params.json, or take the scales away"
        )


def _list_numbers(names: Iterable[str]) -> list[tuple[str, int]]:
    matches = ((name, _FP8.fullmatch(name)) for name in sorted(names))
    return [(name, int(match["number"])) for name, match in matches if match]


def _refuse_int4(folder: str, names: Iterable[str]) -> None:
    for name in names:
        if _INT4.fullmatch(name):
            raise InputError(f"{join(folder, name)}: {INT4}")
