"""A stranger's config.json as settings that are safe to make an empty model of.

A config may name code, kernels and files elsewhere, and numbers that take for ever to count up to. Nothing that
names any of these is kept, and no number is larger than a model of the tensors that there are can need.
"""

import math
import re
from collections.abc import Iterator, Mapping

from distconv.formats.plain_json import parse_object
from distconv.storage.base import Storage, join, read_small

_LIMIT_BYTES = 1 << 20
_LEADS_ELSEWHERE = re.compile(
    r"_.*|.*(attn|experts)_implementation|auto_map|quantization_config|transformers_weights|.*pretrained.*|.*timm.*"
    r"|use_kernels|kernel_config|(torch_)?dtype|transformers_version"
)
"""Keys of what is loaded from elsewhere, or says how to load; none of them shapes a model."""
_BACKBONES = ("backbone", "backbone_config")
_ANYTHING = re.compile(
    r".*(position|length|window|context|chunk|token_id|_id|_index|theta|base|seed|scale|_ctx|pixels|tokens|_limit).*"
)
"""Keys whose numbers nobody counts up to."""
_LAYERS = re.compile(r".*(layers?|blocks|depth)")
_LARGEST = 1 << 18
"""Of a vocabulary or a size of layers, where no tensor is as large."""
_LARGEST_OF_ALL = 1 << 48
_DEEPEST = 8
_FLOAT = "__float__"
_FLOATS = {"Infinity": math.inf, "-Infinity": -math.inf}
"""What JSON has no words for, as Transformers 5 writes it: ``{"__float__": "Infinity"}``."""


def read_config(storage: Storage, path: str) -> dict[str, object]:
    """Read a config as it is; InputError where it is no JSON object."""
    return parse_object(path, read_small(storage, path, _LIMIT_BYTES))


def take_settings(
    content: Mapping[str, object], shapes: Mapping[str, tuple[int, ...]], least_tensors: int = 0
) -> dict[str, object]:
    """Take what of a config is safe; ``shapes`` are those of all tensors that there are.

    A model may have ``least_tensors`` however few these are. ValueError for what no model of them needs.
    """
    most = max((extent for shape in shapes.values() for extent in shape), default=0)
    return _take(content, max(most, _LARGEST), max(len(shapes), least_tensors), 0)


def list_places(content: Mapping[str, object]) -> Iterator[Mapping[str, object]]:
    """Give a config, and what it says of the text model of one that does more."""
    yield content
    inner = content.get("text_config")
    if isinstance(inner, dict):
        yield inner


def read_declared_dtype(storage: Storage, path: str) -> str | None:
    """Give the type in which config.json says that the weights are, by torch's name; None where it says nothing.

    What is none of torch's names is given as it is: Transformers, which asks torch for it, does not load such a model.
    """
    for place in list_places(read_config(storage, path)):
        for key in ("dtype", "torch_dtype"):
            value = place.get(key)
            if value is not None:
                return f"{value!s:.40}"
    return None


def read_chat_template(storage: Storage, folder: str) -> str | None:
    """Give the chat template that Transformers takes of a model's folder; None where it has none.

    That of chat_template.jinja before that of tokenizer_config.json; of several the one that is called "default", else
    the first. InputError for files that are not what they should be.
    """
    path = join(folder, "chat_template.jinja")
    if storage.find(path) is not None:
        return read_small(storage, path, _LIMIT_BYTES).decode(errors="replace")
    path = join(folder, "tokenizer_config.json")
    if storage.find(path) is None:
        return None
    found = read_config(storage, path).get("chat_template")
    if isinstance(found, list):
        named = {one.get("name"): one.get("template") for one in found if isinstance(one, dict)}
        found = named.get("default", next(iter(named.values()), None))
    return found if isinstance(found, str) else None


def _take(found: Mapping[str, object], largest: int, tensors: int, depth: int) -> dict[str, object]:
    if depth > _DEEPEST:
        raise ValueError("nested too deeply")
    kept: dict[str, object] = {}
    for key, value in found.items():
        if _LEADS_ELSEWHERE.fullmatch(key):
            continue
        if key in _BACKBONES and value is not None:
            raise ValueError(f"{key}: a model that is elsewhere is none that can be looked at here")
        read = _read_float(value)
        kept[key] = _take(read, largest, tensors, depth + 1) if isinstance(read, dict) else read
        for number in read if isinstance(read, list) else (read,):
            _check_number(key, number, largest, tensors)
    return kept


def _read_float(value: object) -> object:
    """Take a value, or what a list holds, as a float where it is written as an object."""
    if isinstance(value, list):
        return [_read_float(one) for one in value]
    word = value.get(_FLOAT) if isinstance(value, dict) and len(value) == 1 else None
    return _FLOATS.get(word, value) if isinstance(word, str) else value


def _check_number(key: str, number: object, largest: int, tensors: int) -> None:
    if not isinstance(number, int | float) or isinstance(number, bool):
        return
    limit = largest
    if _ANYTHING.fullmatch(key):
        if isinstance(number, float) and math.isinf(number):
            return
        limit = _LARGEST_OF_ALL
    elif isinstance(number, int) and _LAYERS.fullmatch(key):
        limit = tensors
    if not abs(number) <= limit:
        raise ValueError(f"{key} {number:,}, the {tensors:,} tensors that there are allow at most {limit:,}")
