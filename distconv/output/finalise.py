"""The words around the weights: which files make a model folder, and in which order.

A folder without its marks (for Transformers the index, or for a single chunk the config; for Meta's
code params.json) does not load, so the mark is written last.
"""

from collections.abc import Callable, Collection, Iterable, Mapping

from distconv.output.loading import find_replaced
from distconv.output.ownership import Ownership
from distconv.output.targets import JOURNAL_NAME, RECEIPT_NAME, TRANSFORMERS, Target
from distconv.storage.base import Storage, list_files
from distconv.storage.parallel import map_at_once

_WRITERS = 16
"""In a store a small file takes five answers, one after the other."""


def clear_folder(
    storage: Storage, owner: Ownership, legal: Collection[str], target: Target = TRANSFORMERS
) -> None:
    """Remove the files of a model, its mark first, and leave all others alone.

    Those of the new ``target`` and of the conversion that stood there. ``legal`` names the texts
    that came with that model.
    """
    names = list_files(storage, owner.folder)
    # Who is killed meanwhile must find again whose files they are: the records go last.
    names.sort(key=lambda name: name in {JOURNAL_NAME, RECEIPT_NAME})
    replaced = find_replaced(storage, owner.folder, target)
    clear_marks(storage, owner, replaced)
    for name in names:
        if any(old.is_model_file(name) for old in replaced) or name in legal:
            owner.remove(storage, name)
    storage.flush_folder(owner.folder)


def clear_marks(storage: Storage, owner: Ownership, targets: Iterable[Target] = (TRANSFORMERS,)) -> None:
    """Make a folder one that does not load, for good."""
    for target in targets:
        for mark in target.marks:
            owner.remove(storage, mark)
    storage.flush_folder(owner.folder)


def write_files(storage: Storage, owner: Ownership, files: Mapping[str, bytes]) -> None:
    """Write files at once, each whole, and make their names durable."""

    def write(name: str, _stopped: Callable[[], bool]) -> None:
        owner.write(storage, name, files[name])

    map_at_once(write, tuple(files), _WRITERS)
    storage.flush_folder(owner.folder)
