"""The words around the chunks: which files make a model folder, and in which order.

A folder without its mark (the index, or for a single chunk the config) does not load, so the
mark is written last.
"""

import re
from collections.abc import Collection, Mapping

from distconv.formats.meta.files import LEGAL_NAMES
from distconv.formats.safetensors.chunks import INDEX_NAME
from distconv.output.ownership import Ownership
from distconv.storage.base import Storage
from distconv.storage.fencing import ATTEMPT_ENDING

CONFIG_NAME = "config.json"
RECEIPT_NAME = "distconv.json"
JOURNAL_NAME = ".distconv.journal"

_CHUNKS = r"model(-\d{5,}-of-\d{5,})?\.safetensors"
_SMALL = (
    r"model\.safetensors\.index\.json|config\.json|generation_config\.json"
    r"|tokenizer\.json|tokenizer_config\.json|tokenizer\.model|chat_template\.jinja"
)
_CONTROL = r"distconv\.json|\.distconv\.[a-z0-9.-]+"
_OTHERS = (
    r"pytorch_model(-\d{5,}-of-\d{5,})?\.bin|pytorch_model\.bin\.index\.json"
    r"|special_tokens_map\.json|added_tokens\.json|chat_template\.json"
)
"""What other tools write of a model besides."""

_SIDECAR = re.compile(f"{_SMALL}|{LEGAL_NAMES}")
_LEGAL = re.compile(LEGAL_NAMES)
_MODEL = re.compile(rf"{_CHUNKS}|{_SMALL}|{_OTHERS}|distconv\.json|\.distconv\.journal")
_PARTIAL = re.compile(rf"\.({_CHUNKS}|{_SMALL}|{_OTHERS}|{LEGAL_NAMES}|{_CONTROL}){ATTEMPT_ENDING}")
_MARKS = (INDEX_NAME, CONFIG_NAME)


def is_sidecar(name: str) -> bool:
    """Whether a conversion writes a file of this name beside its chunks and its receipt."""
    return _SIDECAR.fullmatch(name) is not None


def is_legal(name: str) -> bool:
    """Whether a name is that of a licence's or policy's text."""
    return _LEGAL.fullmatch(name) is not None


def is_model_file(name: str) -> bool:
    """Whether a name is that of a file which a model consists of, whoever wrote it."""
    return _MODEL.fullmatch(name) is not None


def is_partial(name: str) -> bool:
    """Whether a name is that of a file left over from a write of ours that never ended."""
    return _PARTIAL.fullmatch(name) is not None


def clear_folder(storage: Storage, owner: Ownership, legal: Collection[str]) -> None:
    """Remove the files of a model, its mark first, and leave all others alone.

    ``legal`` names the texts that came with that model.
    """
    names = [entry.name for entry in storage.list_folder(owner.folder) if not entry.is_folder]
    clear_marks(storage, owner)
    for name in names:
        if is_model_file(name) or name in legal:
            owner.remove(storage, name)
    storage.flush_folder(owner.folder)


def clear_marks(storage: Storage, owner: Ownership) -> None:
    """Make a folder one that does not load, for good."""
    for mark in _MARKS:
        owner.remove(storage, mark)
    storage.flush_folder(owner.folder)


def write_files(storage: Storage, owner: Ownership, files: Mapping[str, bytes]) -> None:
    """Write files in the order given, each whole, and make their names durable."""
    for name, content in files.items():
        owner.write(storage, name, content)
    storage.flush_folder(owner.folder)
