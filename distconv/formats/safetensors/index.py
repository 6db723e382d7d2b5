"""The index of a model that Transformers saved in several files: which tensor is in which of them.

Source of the format: ``save_pretrained`` of transformers 5.23; ``weight_map`` has a file's name
by each tensor's. Its ``total_size`` is not looked at: many published ones are wrong.
"""

from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeGuard

from distconv.errors import InputError
from distconv.formats.plain_json import LIMIT_BYTES, parse_object
from distconv.formats.state import LIMIT_TENSORS
from distconv.humanize import list_some
from distconv.storage.base import Storage, read_small

_NAME_LENGTH = 255
"""No file system has longer names."""
_MOST_SHOWN = 4
_SHOWN_CHARACTERS = 80


@dataclass(frozen=True, slots=True)
class Index:
    """An index, and the name of the file that it gives for each tensor."""

    path: str
    files: Mapping[str, str]

    def file_names(self) -> tuple[str, ...]:
        """All files that it names, sorted."""
        return tuple(sorted(set(self.files.values())))


def read_index(storage: Storage, path: str) -> Index:
    """Read an index; InputError with everything that is no name of a file in its folder."""
    found = parse_object(path, read_small(storage, path, LIMIT_BYTES)).get("weight_map")
    if not isinstance(found, dict) or not found:
        raise InputError(f"{path}: no weight_map, expected an object with a file's name by each tensor's")
    if len(found) > LIMIT_TENSORS:
        raise InputError(f"{path}: more than {LIMIT_TENSORS:,} tensors; refused as unsafe")
    files: dict[str, str] = {}
    wrong = []
    for name, file in found.items():
        if is_plain_name(file):
            files[name] = file
        else:
            wrong.append(
                f"{path}: {name[:_SHOWN_CHARACTERS]} is in {_show(file)}, expected a file in this folder"
            )
    if wrong:
        more = [f"{path}: and {len(wrong) - _MOST_SHOWN:,} more of these"] if len(wrong) > _MOST_SHOWN else []
        raise InputError.of(wrong[:_MOST_SHOWN] + more)
    return Index(path, files)


def is_plain_name(name: object) -> TypeGuard[str]:
    """Whether a value can only be the name of something in its own folder."""
    if not isinstance(name, str) or not 0 < len(name) <= _NAME_LENGTH:
        return False
    return name.isascii() and name.isprintable() and not {"/", "\\"} & set(name)


def check_index(index: Index, files: Mapping[str, Mapping[str, Hashable]]) -> Iterator[str]:
    """Say where headers and index differ: tensors that are elsewhere or nowhere, or that it does not name.

    ``files`` give by each file's name where in it its tensors lie; of others nothing is said. A second name of a
    tensor that it names, as ``save_model`` writes them, need not be in it.
    """
    homes = {own: name for name, places in files.items() for own in places}
    strayed: dict[tuple[str, str], list[str]] = {}
    for tensor, name in index.files.items():
        if name in files and tensor not in files[name]:
            home = homes.get(tensor, "none of the files")
            strayed.setdefault((name, home), []).append(tensor)
    for (name, home), tensors in strayed.items():
        yield f"{index.path}: names {name} for {_list(tensors)}, found in {home}; {_ADVICE}"
    for name, places in files.items():
        named = {place for own, place in places.items() if own in index.files}
        unnamed = [own for own, place in places.items() if own not in index.files and place not in named]
        if unnamed:
            yield f"{index.path}: does not name {_list(unnamed)}, found in {name}; {_ADVICE}"


_ADVICE = "index and files are not of one model: download both again"


def _list(names: Sequence[str]) -> str:
    return list_some([name[:_SHOWN_CHARACTERS] for name in names], _MOST_SHOWN)


def _show(value: object) -> str:
    return ascii(value[:_SHOWN_CHARACTERS]) if isinstance(value, str) else f"a {type(value).__name__}"
