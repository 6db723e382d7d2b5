"""What is at a path that a person gave, or what is wrong with that."""

import contextlib
import difflib
import posixpath
import re

from distconv.errors import InputError
from distconv.storage.base import Entry, Storage, is_folder, join

_LIKENESS, _MOST_NAMES = 0.85, 4096
_REPOSITORY = re.compile(r"(?P<owner>\w[\w.-]*)/\w[\w.-]*")


def find_given(storage: Storage, path: str) -> Entry:
    """Give what is at a path that a person gave; InputError where nothing is."""
    found = storage.find(path)
    if found is None:
        raise InputError(
            f"{path}: no such file or folder{_describe_hub(storage, path) or _name_near(storage, path)}"
        )
    return found


def _name_near(storage: Storage, path: str) -> str:
    """Name what lies there under a name that looks much the same; a store may have any number of names."""
    folder, name = posixpath.split(path.rstrip("/"))
    names: tuple[str, ...] = ()
    if "://" not in path:
        with contextlib.suppress(OSError):  # nobody asked for it
            names = storage.list_names(folder or ".")
    near = difflib.get_close_matches(name, names[:_MOST_NAMES], 1, _LIKENESS)
    return f"; did you mean {join(folder, near[0]) if folder else near[0]}?" if near else ""


def _describe_hub(storage: Storage, path: str) -> str:
    """Say where a repository of the hub is had, of whose name a person gave no more than that."""
    match = _REPOSITORY.fullmatch(path)
    if match is None or storage.find(match["owner"]) is not None:
        return ""
    return f"; a repository of the hub is given as hf://{path}"


def describe_no_folder(storage: Storage, path: str) -> str | None:
    """Say why a path is no folder's, as the end of a sentence; None of one that is."""
    found = storage.find(path)
    if found is None:
        return f"no such folder{_describe_hub(storage, path)}"
    return None if found.is_folder else "a file, expected a folder"


def take_given(storage: Storage, path: str, name: str, what: str) -> str:
    """Take a file that was given by its path or by its folder's."""
    if is_folder(storage, path):
        path = join(path, name)
    if storage.find(path) is None:
        raise InputError(f"{path}: no such file (given as {what})")
    return path
