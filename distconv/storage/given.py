"""What is at a path that a person gave, or what is wrong with that."""

import contextlib
import difflib
import posixpath
import re
from collections.abc import Callable

from distconv.errors import InputError, UsageError
from distconv.storage.base import Entry, Storage, is_file, is_folder, join, opened, read_range
from distconv.storage.places import find_scheme

_LIKENESS, _MOST_NAMES = 0.85, 4096
_REPOSITORY = re.compile(r"(?P<owner>\w[\w.-]*)/\w[\w.-]*")
_BUCKET = re.compile(r"s3://([^/]+)")
_OF_KEYS = ("s3", "gs", "az")
_HEAD_BYTES = 256


def find_given(storage: Storage, path: str) -> Entry:
    """Give what is at a path that a person gave; InputError where nothing is, or a store has a file and a folder."""
    found = storage.find(path)
    if found is None:
        near = _describe_hub(storage, path) or _name_near(storage, path)
        raise InputError(f"{path}: {_describe_nothing(storage, path, f'no such file or folder{near}')}")
    twins = _describe_twins(storage, path, found)
    if twins is not None:
        raise InputError(f"{path}: {twins}")
    return found


def _describe_twins(storage: Storage, path: str, found: Entry) -> str | None:
    """Say that a file has the name of a folder, as only a store's keys may: nobody knows which of them is meant."""
    if found.is_folder or find_scheme(path) not in _OF_KEYS or not storage.list_names(path):
        return None
    return (
        f"a file of {found.size_bytes:,} bytes, and a folder of the same name, expected one of them; remove the other, "
        "or give it another name"
    )


def _describe_nothing(storage: Storage, path: str, words: str) -> str:
    """Say that nothing is at a path, which of a store may be as it has no such bucket."""
    bucket = _find_no_bucket(storage, path)
    return words if bucket is None else f"there is no bucket {bucket}; correct its name"


def _find_no_bucket(storage: Storage, path: str) -> str | None:
    """Give the name of a path's bucket where there is none; None also where nobody but its owner may know."""
    match = _BUCKET.match(path)
    with contextlib.suppress(PermissionError):
        if match is not None and storage.find(match[0]) is None:
            return match[1]
    return None


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
        return _describe_nothing(storage, path, f"no such folder{_describe_hub(storage, path)}")
    if found.is_folder:
        return None
    return _describe_twins(storage, path, found) or "a file, expected a folder"


def take_given(storage: Storage, path: str, name: str, what: str) -> str:
    """Take a file that was given by its path or by its folder's."""
    if is_folder(storage, path):
        path = join(path, name)
    if storage.find(path) is None:
        raise InputError(f"{path}: {_describe_nothing(storage, path, 'no such file')} (given as {what})")
    return path


def read_head(storage: Storage, path: str) -> bytes:
    """Give the first bytes of a file, by which it is told what it is; none where no file is."""
    if not is_file(storage, path):
        return b""
    with opened(storage, path) as reader:
        return bytes(read_range(reader, 0, min(_HEAD_BYTES, reader.size_bytes)))


def refuse_other(storage: Storage, path: str, is_own: Callable[[bytes], bool], what: str) -> None:
    """Raise UsageError where a small file that is written last would take the place of one of another kind, or has none.

    ``is_own`` tells by its head one that the same command wrote; an empty one, as ``mktemp`` makes it, loses nothing.
    """
    head = read_head(storage, path)
    if not head and (bucket := _find_no_bucket(storage, path)) is not None:
        raise UsageError(f"{path}: there is no bucket {bucket}; make it, or correct its name")
    if head and not is_own(head):
        raise UsageError(
            f"{path}: there already, and no {what} that distconv wrote, so that it is not replaced; remove it, or give "
            "another name"
        )
