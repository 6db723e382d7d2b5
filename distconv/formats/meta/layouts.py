"""How the files of a model are called, and which files of a folder make a whole one."""

import posixpath
import re
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice
from typing import Literal

from distconv.errors import InputError
from distconv.storage.base import Entry, Storage, join


@dataclass(frozen=True, slots=True)
class _Layout:
    """A way of naming the files of a model.

    ``ranks`` (from 0) and ``parts`` (of a known total) are numbered files, ``whole`` is one.
    ``shared`` names are those that Transformers writes as well: they count only where there
    are no others.
    """

    kind: Literal["ranks", "parts", "whole"]
    names: re.Pattern[str]
    shared: bool = False


_TYPES = r"(pth|pt|bin|ckpt|safetensors)"
_LAYOUTS = (
    _Layout("whole", re.compile(rf"consolidated\.{_TYPES}")),
    _Layout("ranks", re.compile(rf"consolidated\.(?P<number>\d+)\.{_TYPES}")),
    _Layout("parts", re.compile(rf"consolidated-(?P<number>\d+)-of-(?P<total>\d+)\.{_TYPES}")),
    # torchtune, and what people call a file that they save themselves
    _Layout("whole", re.compile(r"meta_model_\d+\.(pt|pth|bin)")),
    _Layout("parts", re.compile(r"(ft-)?model-(?P<number>\d+)-of-(?P<total>\d+)\.(pth|pt|bin)")),
    _Layout("whole", re.compile(r"(checkpoint|model|state_dict|last)\.(pth|pt|bin|ckpt)")),
    _Layout(
        "parts",
        re.compile(r"(pytorch_)?model-(?P<number>\d+)-of-(?P<total>\d+)\.(bin|safetensors)"),
        shared=True,
    ),
    _Layout("whole", re.compile(r"pytorch_model\.bin|(model|checkpoint)\.safetensors"), shared=True),
)
"""Every layout that is found; a name is of the first that it fits."""

_RANK_FOLDER = re.compile(r"consolidated\.(?P<number>\d+)")
"""A folder a rank, each with parts of its own, as the hub has the 405B."""


@dataclass(frozen=True, slots=True)
class ShardFiles:
    """One model-parallel rank: usually one file, on the hub sometimes a folder of parts."""

    number: int
    paths: tuple[str, ...]

    @property
    def name(self) -> str:
        """Show it in messages."""
        return posixpath.basename(self.paths[0])


@dataclass(frozen=True, slots=True)
class Candidate:
    """Files that would make a whole model: what they are called together, and in which folder."""

    name: str
    folder: str
    layout: _Layout
    names: tuple[str, ...]

    @property
    def path(self) -> str:
        """What to give as INPUT for this one."""
        return join(self.folder, self.names[0])


def list_candidates(storage: Storage, folder: str) -> list[Candidate]:
    """Find all sets of files directly in a folder that would make a model."""
    entries = storage.list_folder(folder)
    files = [entry.name for entry in entries if not entry.is_folder]
    found = group_names(folder, files)
    ranks = tuple(entry.name for entry in entries if _is_rank_folder(entry))
    if ranks:
        found.append(Candidate("consolidated.*/", folder, _RANK_FOLDERS, ranks))
    return found


def group_names(folder: str, names: Iterable[str]) -> list[Candidate]:
    """Put the names of files together that would make a model; others are left out."""
    sets: dict[tuple[int, str], list[str]] = {}
    for name in names:
        kind = _find_layout(name)
        if kind is not None:
            sets.setdefault((kind, _collective_name(_LAYOUTS[kind], name)), []).append(name)
    return [
        Candidate(together, folder, _LAYOUTS[kind], tuple(members))
        for (kind, together), members in sorted(sets.items())
    ]


_RANK_FOLDERS = _Layout("ranks", _RANK_FOLDER)
SINGLE = _Layout("whole", re.compile(r".*", re.DOTALL))
"""That of a file which was given by its path, whatever it is called."""


def _find_layout(name: str) -> int | None:
    return next((place for place, layout in enumerate(_LAYOUTS) if layout.names.fullmatch(name)), None)


def _collective_name(layout: _Layout, name: str) -> str:
    """Name a whole set by one of its files: its number becomes an asterisk."""
    match = layout.names.fullmatch(name)
    if match is None or layout.kind == "whole":
        return name
    return f"{name[: match.start('number')]}*{name[match.end('number') :]}"


def is_rank_name(name: str) -> bool:
    """Whether a folder of this name holds one rank's parts."""
    return _RANK_FOLDER.fullmatch(name) is not None


def _is_rank_folder(entry: Entry) -> bool:
    return entry.is_folder and is_rank_name(entry.name)


def make_shards(storage: Storage, chosen: Candidate) -> tuple[ShardFiles, ...]:
    """Put a candidate's files in their order, and prove that none is missing or there twice.

    Each file is a rank, but for those of a rank's folder: only what parts hold tells whether
    they are ranks.
    """
    folder, layout = chosen.folder, chosen.layout
    if layout.kind == "whole":
        return (ShardFiles(0, (chosen.path,)),)
    if layout.kind == "parts":
        if is_rank_name(posixpath.basename(storage.real_path(folder))):
            raise InputError(f"{folder}: the folder of one rank of several; give the folder above it")
        paths = _parts_in_order(chosen)
        return tuple(ShardFiles(number, (path,)) for number, path in enumerate(paths))
    if layout is _RANK_FOLDERS:
        return _in_order(folder, [_rank_of_folder(storage, join(folder, name)) for name in chosen.names])
    shards = [ShardFiles(_number(layout, name, "number"), (join(folder, name),)) for name in chosen.names]
    return _in_order(folder, shards)


def _number(layout: _Layout, name: str, group: str) -> int:
    match = layout.names.fullmatch(name)
    assert match is not None  # noqa: S101  the name was found by this layout
    return int(match[group])


def _rank_of_folder(storage: Storage, folder: str) -> ShardFiles:
    """Find the parts of one rank that has a folder of its own."""
    parts = [found for found in list_candidates(storage, folder) if found.layout.kind == "parts"]
    if len(parts) != 1:
        names = " and ".join(found.name for found in parts) or "none"
        raise InputError(f"{folder}: parts {names}; expected consolidated-*-of-N.pth, all N of them")
    return ShardFiles(int(posixpath.basename(folder).rpartition(".")[2]), _parts_in_order(parts[0]))


def _parts_in_order(chosen: Candidate) -> tuple[str, ...]:
    """Sort the parts of a set, counted from 0 or from 1."""
    found: dict[int, str] = {}
    for name in chosen.names:
        twin = found.setdefault(_number(chosen.layout, name, "number"), name)
        if twin is not name:
            raise InputError(f"{chosen.folder}: a part is there twice: {twin} and {name}")
    total = _number(chosen.layout, chosen.names[0], "total")
    numbers = sorted(found)
    if len(numbers) != total or numbers[0] > 1 or numbers[-1] - numbers[0] != total - 1:
        raise InputError(
            f"{chosen.folder}: parts {_listing(numbers)} of {_listing([total])}; expected all of "
            f"{chosen.name}; download the missing files"
        )
    return tuple(join(chosen.folder, found[number]) for number in numbers)


def _in_order(folder: str, shards: list[ShardFiles]) -> tuple[ShardFiles, ...]:
    """Sort by number, not by name, and prove that no number is missing or there twice."""
    findings = []
    by_number: dict[int, ShardFiles] = {}
    for shard in shards:
        twin = by_number.setdefault(shard.number, shard)
        if twin is not shard:
            findings.append(f"{folder}: shard {shard.number} is there twice: {twin.name} and {shard.name}")
    # A number in a name may be any: no more of them are gone through than there are files, and some.
    absent = (number for number in range(max(by_number)) if number not in by_number)
    missing = list(islice(absent, _MOST_LISTED))
    if missing:
        findings.append(
            f"{folder}: shards {_listing(sorted(by_number))} found, {_listing(missing)} missing; "
            "download the missing files"
        )
    if findings:
        raise InputError.of(findings)
    return tuple(by_number[number] for number in sorted(by_number))


_MOST_LISTED = 16


def _listing(numbers: list[int]) -> str:
    return ", ".join(f"{number:02d}" for number in numbers)
