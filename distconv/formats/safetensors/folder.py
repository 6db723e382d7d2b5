"""Which files of a Transformers folder are what: weights, config.json, tokenizer, licence."""

import posixpath
from collections.abc import Mapping
from dataclasses import dataclass

from distconv.errors import InputError
from distconv.formats.meta.foreign import note_adapters
from distconv.formats.meta.legal import find_legal
from distconv.formats.meta.small_files import CONFIG_NAME, PARAMS_NAME, TOKENIZER_NAME, find_parent
from distconv.formats.safetensors.index import Index
from distconv.formats.safetensors.weights import Weights, find_weights, has_meta_names, is_weights_name
from distconv.storage.base import Storage, join, list_files
from distconv.storage.given import find_given, take_given

SMALL_NAMES = (
    "generation_config.json",
    "tokenizer.json",
    TOKENIZER_NAME,
    "tokenizer_config.json",
    "added_tokens.json",
    "special_tokens_map.json",
)
"""What lies beside the weights and is small; none of it need be there."""


@dataclass(frozen=True, slots=True)
class TransformersFiles:
    """All files of one model, as paths in the storage; notes say what is not read."""

    folder: str
    weights: tuple[str, ...]
    index: Index | None
    """What says which tensor is in which of the weights, where there is such a file."""
    config: str
    small: Mapping[str, str]
    """Paths by those of ``SMALL_NAMES`` that are there."""
    legal: tuple[str, ...]
    notes: tuple[str, ...] = ()


def is_transformers(storage: Storage, path: str) -> bool:
    """Whether a folder, or a file in it, is a model in Transformers' format, told by names alone.

    It is where weights are called as Transformers calls them and lie beside config.json, but not
    beside params.json; a folder that also has weights with names of Meta's, there or in
    ``original/``, is taken as Meta's.
    """
    entry = storage.find(path)
    if entry is None:
        return False
    folder, name = (path, None) if entry.is_folder else _split(path)
    names = frozenset(list_files(storage, folder))
    if CONFIG_NAME not in names or PARAMS_NAME in names:
        return False
    if name is not None:
        return is_weights_name(name)
    inside = join(folder, "original")
    meta = any(has_meta_names(storage, place) for place in (folder, inside))
    return any(map(is_weights_name, names)) and not meta


def find_transformers_files(storage: Storage, source: str, tokenizer: str | None = None) -> TransformersFiles:
    """Find a model's files in a folder, or those that belong to one of its files of weights or its index.

    ``tokenizer`` is a tokenizer.model that lies elsewhere, or its folder, in place of the one beside the weights. Raises InputError with all that is missing, or where there are several whole models.
    """
    entry = find_given(storage, source)
    folder, name = (source, None) if entry.is_folder else _split(source)
    names = frozenset(list_files(storage, folder))
    weights, findings = Weights(()), []
    try:
        weights = find_weights(storage, folder, names, name)
    except InputError as error:
        findings.append(str(error))
    # A folder that holds no model at all is not said to lack one's config.
    if CONFIG_NAME not in names and (weights.paths or any(map(is_weights_name, names))):
        findings.append(
            f"{folder}: no {CONFIG_NAME} beside the weights; copy it from the model that this one is, or was trained from"
        )
    if findings:
        raise InputError.of(findings)
    small = {name: join(folder, name) for name in SMALL_NAMES if name in names}
    if tokenizer is not None:
        small[TOKENIZER_NAME] = take_given(storage, tokenizer, TOKENIZER_NAME, "the tokenizer")
    legal = find_legal(storage, folder, find_parent(storage, folder))
    return TransformersFiles(
        folder,
        weights.paths,
        weights.index,
        join(folder, CONFIG_NAME),
        small,
        legal,
        (*weights.notes, *note_adapters(storage, folder)),
    )


def _split(path: str) -> tuple[str, str]:
    folder, name = posixpath.split(path)
    return folder or ".", name
