"""What tensors the shards hold, and where: read from headers alone."""

import posixpath
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from distconv.errors import InputError
from distconv.formats.headers import FileTensors, describe_files, name_files, read_headers
from distconv.formats.meta.layouts import ShardFiles
from distconv.formats.meta.names import Names, read_names
from distconv.formats.meta.scales import scales_name
from distconv.formats.views import TensorView
from distconv.storage.base import Storage


@dataclass(frozen=True, slots=True)
class Shard:
    """One model-parallel rank's tensors by Meta's names."""

    name: str
    paths: tuple[str, ...]
    size_bytes: int
    tensors: Mapping[str, TensorView]
    stored: Mapping[str, str] = field(default_factory=dict)
    """The file's own names, where they are longer than Meta's."""
    scales: Mapping[str, TensorView] = field(default_factory=dict)
    """What the file of its scales holds, by the names there, if there is one."""


@dataclass(frozen=True, slots=True)
class Catalog:
    """All shards of a checkpoint, in the order of their ranks; notes say how they were read."""

    shards: tuple[Shard, ...]
    notes: tuple[str, ...] = ()

    def __iter__(self) -> Iterator[Shard]:
        """Go through the shards in order."""
        return iter(self.shards)

    @property
    def size_bytes(self) -> int:
        """Size of all shard files."""
        return sum(shard.size_bytes for shard in self.shards)

    @property
    def all_views(self) -> Iterator[TensorView]:
        """Every shard's part of every tensor, and its scales."""
        return (view for shard in self.shards for view in (*shard.tensors.values(), *shard.scales.values()))

    def names(self) -> tuple[str, ...]:
        """All tensor names, in the first shard's order, then the others' own."""
        return tuple(dict.fromkeys(name for shard in self.shards for name in shard.tensors))

    def views(self, name: str) -> tuple[TensorView, ...]:
        """Give one tensor's part in each shard that has it."""
        return tuple(shard.tensors[name] for shard in self.shards if name in shard.tensors)

    def stored_name(self, name: str) -> str:
        """Give a tensor's name as its file has it, for messages."""
        return next((shard.stored[name] for shard in self.shards if name in shard.stored), name)


def read_catalog(storage: Storage, shards: tuple[ShardFiles, ...], scales: Sequence[str] = ()) -> Catalog:
    """Read all headers; what is wrong in any file is reported at once as an InputError.

    Whether several files are ranks or parts of one rank is told by what they hold. ``scales`` are the paths of
    their scales, one a rank, where there are any.
    """
    paths = [path for files in shards for path in files.paths]
    found = read_headers(storage, paths, _find_names)
    by_path = {file.path: file for file in found}
    groups, notes = _group([[by_path[path] for path in files.paths] for files in shards])
    shards_read = tuple(_make_shard(group) for group in groups)
    if scales:
        shards_read = _add_scales(storage, shards_read, scales)
    return Catalog(shards_read, (*notes, *describe_files(found)))


def _add_scales(storage: Storage, shards: Sequence[Shard], paths: Sequence[str]) -> tuple[Shard, ...]:
    count, folder = len(shards), posixpath.dirname(paths[0]) or "."
    missing = [scales_name(rank) for rank in range(len(paths), count)]
    if missing or len(paths) > count:
        what = f"{', '.join(missing[:_MOST_SHOWN])} missing" if missing else f"{paths[count]} is beyond"
        raise InputError(
            f"{folder}: scales for {len(paths)} shards, and there are {count}: {what}; download the files of one model"
        )
    found = read_headers(storage, paths, lambda _path, names: Names({name: name for name in names}, {}, {}))
    return tuple(replace(shard, scales=file.tensors) for shard, file in zip(shards, found, strict=True))


_MOST_SHOWN = 8


def _group(ranks: list[list[FileTensors]]) -> tuple[list[list[FileTensors]], tuple[str, ...]]:
    """Ranks hold parts of the same tensors; files that share no tensor are parts of one rank."""
    files = [file for rank in ranks for file in rank]
    distinct = {name for file in files for name in file.tensors}
    if len(ranks) == 1 or len(ranks) < len(files) or sum(len(file.tensors) for file in files) > len(distinct):
        return ranks, ()
    note = f"{name_files(files)}: no two of them hold the same tensor, so they are parts of one shard"
    return [files], (note,)


def _make_shard(files: Iterable[FileTensors]) -> Shard:
    tensors: dict[str, TensorView] = {}
    stored: dict[str, str] = {}
    paths = []
    size_bytes = 0
    for file in files:
        for name, view in file.tensors.items():
            if name in tensors:
                raise InputError(f"{file.path}: {name} is also in {tensors[name].region.path}")
            tensors[name] = view
        stored |= file.stored
        paths.append(file.path)
        size_bytes += file.size_bytes
    return Shard(posixpath.basename(paths[0]), tuple(paths), size_bytes, tensors, stored)


def _find_names(path: str, names: Iterable[str]) -> Names:
    found = read_names(names)
    if not found.kept:
        raise InputError(
            f"{path}: no model in it; it holds {', '.join(list(found.aside)[:8])}, expected a dict of Meta's tensors"
        )
    return found
