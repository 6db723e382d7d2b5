"""The same asked of many files: of those in stores at once, as each answer takes its time."""

from collections.abc import Callable, Iterable
from typing import TypeVar

from distconv.storage.base import Entry, Storage
from distconv.storage.parallel import submit
from distconv.storage.places import find_scheme

Result = TypeVar("Result")


_VERSIONED = frozenset({"s3", "gs", "az", "hf"})


def is_versioned(path: str) -> bool:
    """Whether a file's stamp stands for one content, as ETags of stores, generations and commits do.

    Times of local files do not, and many a web server makes its ETags of a time in seconds and a size.
    """
    return find_scheme(path) in _VERSIONED


def ask_each(ask: Callable[[str], Result], paths: Iterable[str]) -> dict[str, Result]:
    """Give what ``ask`` gives of each path, in their order; not for what itself asks many at once.

    The first error, in that order, is raised.
    """
    ordered = tuple(paths)
    asked = {path: submit(ask, path) for path in ordered if find_scheme(path) is not None}
    return {path: asked[path].result() if path in asked else ask(path) for path in ordered}


def find_each(storage: Storage, paths: Iterable[str]) -> dict[str, Entry | None]:
    """Give what is at each path, if anything."""
    return ask_each(storage.find, paths)
