"""Which files are a model's weights, as Transformers calls them: by an index, or by their names.

Source: ``save_pretrained`` and ``from_pretrained`` of transformers 5.23.
"""

import posixpath
import re
from dataclasses import dataclass, replace

from distconv.errors import InputError
from distconv.formats.meta.foreign import describe_folder
from distconv.formats.meta.layouts import Candidate, group_names, is_rank_name, list_candidates, make_shards
from distconv.formats.meta.scales import refuse_scales
from distconv.formats.safetensors.chunks import INDEX_NAME
from distconv.formats.safetensors.index import Index, read_index
from distconv.humanize import list_some
from distconv.storage.base import Storage, join

_INDEX_NAMES = (INDEX_NAME, "pytorch_model.bin.index.json")
"""In the order in which Transformers prefers what they index."""
_INDEX = re.compile(r".*\.index(\.[\w-]+)?\.json")
_MOST_FILES = 4096
"""A 405B has 191."""
_MOST_SHOWN = 8


@dataclass(frozen=True, slots=True)
class Weights:
    """Files that make a whole model, in order."""

    paths: tuple[str, ...]
    index: Index | None = None
    notes: tuple[str, ...] = ()


def is_weights_name(name: str) -> bool:
    """Whether Transformers calls weights, or their index, so."""
    return name in _INDEX_NAMES or any(found.layout.shared for found in group_names("", [name]))


def has_meta_names(storage: Storage, folder: str) -> bool:
    """Whether a folder has files, or folders of ranks, called as Meta and trainers on Meta's code call them."""
    entries = storage.list_folder(folder)
    files = [entry.name for entry in entries if not entry.is_folder]
    ranks = any(entry.is_folder and is_rank_name(entry.name) for entry in entries)
    return ranks or not all(found.layout.shared for found in group_names(folder, files))


def find_weights(storage: Storage, folder: str, names: frozenset[str], name: str | None) -> Weights:
    """Find the only model in a folder of files with these names, or the one that a file in it is part of.

    InputError with what is missing, or where there are several whole models.
    """
    refuse_scales(storage, folder)
    if name is not None:
        weights = _find_of_file(storage, folder, names, name)
    else:
        weights = _find_whole(storage, folder, names)
    if len(weights.paths) > _MOST_FILES:
        raise InputError(
            f"{folder}: {len(weights.paths):,} files of weights, expected at most {_MOST_FILES:,}"
        )
    return weights


def _find_whole(storage: Storage, folder: str, names: frozenset[str]) -> Weights:
    """Find the only whole model of a folder; of two formats, that which Transformers prefers."""
    shared = [found for found in list_candidates(storage, folder) if found.layout.shared]
    kinds = []
    for index_name in _INDEX_NAMES:
        sets = [found for found in shared if found.name.endswith(_suffix(index_name))]
        indexes = [index_name] if index_name in names else []
        if sets or indexes:
            kinds.append((indexes, sets))
    if not kinds:
        raise InputError(
            f"{folder}: neither {INDEX_NAME} nor model.safetensors nor pytorch_model.bin; {describe_folder(storage, folder)}"
        )
    (indexes, sets), *others = kinds
    weights = _choose(storage, folder, names, indexes, sets)
    unread = [name for more, rest in others for name in (*more, *(found.name for found in rest))]
    if not unread:
        return weights
    note = f"{folder}: {' and '.join(unread[:_MOST_SHOWN])} not read: {posixpath.basename(weights.paths[0])} is preferred, as by Transformers"
    return replace(weights, notes=(note,))


def _choose(
    storage: Storage, folder: str, names: frozenset[str], indexes: list[str], sets: list[Candidate]
) -> Weights:
    """Take the only model of one format; several are only named."""
    if not indexes:
        index, rivals = None, sets
    else:
        index = read_index(storage, join(folder, indexes[0]))
        rivals = [found for found in sets if not set(found.names) & set(index.file_names())]
    whole = [*indexes, *(found.name for found in rivals)]
    if len(whole) > 1:
        raise InputError(
            f"{folder}: both {' and '.join(whole[:_MOST_SHOWN])}: several whole models, or one whose files were saved "
            "in two numbers; give the path of the one to convert: of its index or of any of its files"
        )
    return _take_set(storage, sets[0]) if index is None else _take_index(storage, folder, names, index)


def _find_of_file(storage: Storage, folder: str, names: frozenset[str], name: str) -> Weights:
    """Take all files of the model that a file is part of, by an index or by their names; or it alone."""
    if _INDEX.fullmatch(name):
        return _take_index(storage, folder, names, read_index(storage, join(folder, name)))
    for index_name in _INDEX_NAMES:
        if index_name in names and name.endswith(_suffix(index_name)):
            index = read_index(storage, join(folder, index_name))
            if name in index.file_names():
                return _take_index(storage, folder, names, index)
    found = next((found for found in list_candidates(storage, folder) if name in found.names), None)
    return Weights((join(folder, name),)) if found is None else _take_set(storage, found)


def _suffix(index_name: str) -> str:
    return f".{index_name.split('.')[1]}"


def _take_set(storage: Storage, chosen: Candidate) -> Weights:
    """Take files that belong together by their names, all of them."""
    return Weights(tuple(path for files in make_shards(storage, chosen) for path in files.paths))


def _take_index(storage: Storage, folder: str, names: frozenset[str], index: Index) -> Weights:
    """Take the files that an index names, all of which must be there and of one total."""
    listed = index.file_names()
    findings = []
    absent = [name for name in listed if name not in names]
    if absent:
        shown = list_some(absent, _MOST_SHOWN)
        findings.append(f"{index.path}: names {shown}: not in {folder}; download the missing files")
    sets = [found for found in group_names(folder, listed) if found.layout.kind == "parts"]
    if len(sets) > 1:
        totals = " and ".join(found.name for found in sets[:_MOST_SHOWN])
        findings.append(
            f"{index.path}: names both {totals}; expected files of one total: download all of them again"
        )
    weights = Weights(tuple(join(folder, name) for name in listed), index)
    if len(sets) == 1 and not absent:
        try:
            ordered = _take_set(storage, sets[0]).paths
        except InputError as error:
            findings.append(
                f"{index.path}: names {len(sets[0].names)} of the files that belong together: {error}"
            )
        else:
            others = [path for path in weights.paths if path not in ordered]
            weights = replace(weights, paths=(*ordered, *others))
    if findings:
        raise InputError.of(findings)
    return weights
