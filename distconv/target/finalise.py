"""The words around the chunks: which files make a model folder, and in which order.

A folder without its mark (the index, or for a single chunk the config) does not load, so the
mark is written last.
"""

import re
from collections.abc import Mapping

from distconv.planning.chunks import INDEX_NAME
from distconv.storage import PARTIAL_SUFFIX, Storage, join, write_small

CONFIG_NAME = "config.json"
RECEIPT_NAME = "distconv.json"
JOURNAL_NAME = ".distconv.journal"

_OURS = re.compile(
    r"model(-\d{5}-of-\d{5})?\.safetensors|model\.safetensors\.index\.json|config\.json|generation_config\.json"
    r"|tokenizer\.json|tokenizer\.model|tokenizer_config\.json|special_tokens_map\.json|chat_template\.jinja"
    r"|distconv\.json|\.distconv\.journal|(LICENSE|USE_POLICY)(\.txt|\.md)?"
    rf"|\..+{re.escape(PARTIAL_SUFFIX)}"
)
_MARKS = (INDEX_NAME, CONFIG_NAME)


def is_model_file(name: str) -> bool:
    """Whether a name is that of a file which a converted model has."""
    return _OURS.fullmatch(name) is not None


def is_partial(name: str) -> bool:
    """Whether a name is that of a file left over from a write that never ended."""
    return name.startswith(".") and name.endswith(PARTIAL_SUFFIX)


def clear_folder(storage: Storage, output: str) -> None:
    """Remove the files of a model, its mark first, and leave all others alone."""
    names = [entry.name for entry in storage.list_folder(output) if not entry.is_folder]
    clear_marks(storage, output)
    for name in names:
        if is_model_file(name):
            storage.remove(join(output, name))
    storage.flush_folder(output)


def clear_marks(storage: Storage, output: str) -> None:
    """Make a folder one that does not load, for good."""
    for mark in _MARKS:
        storage.remove(join(output, mark))
    storage.flush_folder(output)


def sweep_partials(storage: Storage, output: str) -> None:
    """Remove what an earlier, unfinished run was writing."""
    for entry in storage.list_folder(output):
        if not entry.is_folder and is_partial(entry.name):
            storage.remove(join(output, entry.name))


def write_files(storage: Storage, output: str, files: Mapping[str, bytes]) -> None:
    """Write files in the order given, the mark last, each whole; durable before the mark is set."""
    for number, (name, content) in enumerate(files.items(), 1):
        if number == len(files):
            storage.flush_folder(output)
        write_small(storage, join(output, name), content)
    storage.flush_folder(output)
