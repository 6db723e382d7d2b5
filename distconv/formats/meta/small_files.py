"""The small files of a checkpoint: what they are called, and where they lie."""

import posixpath
from collections.abc import Iterable

from distconv.errors import InputError
from distconv.storage.base import Storage, is_file, join

PARAMS_NAME = "params.json"
TOKENIZER_NAME = "tokenizer.model"
_OF_MISTRAL = (
    *(f"{TOKENIZER_NAME}.{version}" for version in ("v7m1", "v7", "v3", "v2", "v1")),
    "tekken.json",
)
"""What Mistral's repositories call it, too."""
CONFIG_NAME = "config.json"
ORIGINAL = "original"
"""The folder in which repositories of the hub have Meta's files."""


def find_tokenizer(storage: Storage, source: str) -> str:
    """Find the tokenizer of a folder (or its ``original/`` or parent), or take the file itself."""
    if is_file(storage, source):
        return source
    found = find_first_tokenizer(storage, (source, join(source, ORIGINAL), find_parent(storage, source)))
    if found is None:
        raise InputError(f"{source}: no {TOKENIZER_NAME} here, in original/ or in the parent folder")
    return found


def describe_missing_tokenizer(folder: str) -> str:
    """Say of a checkpoint's folder that a Transformers model of it would have no tokenizer."""
    return (
        f"{folder}: no {TOKENIZER_NAME} (Mistral's: tekken.json) here, in original/ or in the parent folder; "
        "convert needs it for Transformers: give it by `tokenizer=PATH`"
    )


def find_parent(storage: Storage, folder: str) -> str:
    """Give the folder above, links resolved; nothing is above a bucket, which is given itself."""
    real = storage.real_path(folder)
    above = posixpath.dirname(real)
    return real if "://" in real and "://" not in above else above


def find_first_tokenizer(storage: Storage, folders: Iterable[str]) -> str | None:
    """Find the tokenizer in the first folder that has any, by the first of its names."""
    for folder in folders:
        if is_file(storage, join(folder, TOKENIZER_NAME)):
            return join(folder, TOKENIZER_NAME)
        there = storage.list_names(folder)
        found = next((name for name in _OF_MISTRAL if name in there), None)
        if found is not None:
            return join(folder, found)
    return None
