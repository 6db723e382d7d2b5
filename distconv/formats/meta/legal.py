"""Which texts near a checkpoint are its licence and its policy."""

import posixpath
import re

from distconv.errors import InputError
from distconv.storage.base import Storage, join, list_files, opened, read_range

LEGAL_NAMES = r"(?i:(LICENSE|USE_POLICY)(\.txt|\.md)?)"
"""Pattern of the names that a licence's text has."""
_LEGAL = re.compile(LEGAL_NAMES)
_OF_META = (re.compile(rb"\bmeta\b", re.IGNORECASE), re.compile(rb"llama", re.IGNORECASE))
_LEGAL_HEAD_BYTES = 1 << 16


def is_legal(name: str) -> bool:
    """Whether a file of this name is a licence or a policy."""
    return _LEGAL.fullmatch(name) is not None


def find_legal(storage: Storage, folder: str, parent: str) -> tuple[str, ...]:
    """Find the model's licence and policy.

    What lies beside the shards is the model's, and so is what lies beside ``original/``. Any other
    parent may be a project of its own: what does not read like Meta's there is its own licence.
    """
    found = {name: join(folder, name) for name in _legal_names(storage, folder)}
    is_original = posixpath.basename(storage.real_path(folder)) == "original"
    for name in _legal_names(storage, parent):
        path = join(parent, name)
        if name not in found and (is_original or is_of_meta(storage, path)):
            found[name] = path
    return tuple(found[name] for name in sorted(found))


def _legal_names(storage: Storage, folder: str) -> list[str]:
    return [name for name in list_files(storage, folder) if is_legal(name)]


def is_of_meta(storage: Storage, path: str) -> bool:
    """Whether a text speaks of Meta and Llama, as all of Meta's licences and policies do."""
    try:
        with opened(storage, path) as reader:
            text = read_range(reader, 0, min(reader.size_bytes, _LEGAL_HEAD_BYTES))
    except (OSError, InputError):  # nobody asked for it
        return False
    return all(word.search(text) for word in _OF_META)
