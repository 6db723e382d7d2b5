"""What tensors the shards hold, and where: read from headers alone."""

import posixpath
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from distconv.errors import InputError
from distconv.formats.marks import TensorMark
from distconv.formats.meta.archive import read_archive
from distconv.formats.meta.layouts import ShardFiles
from distconv.formats.meta.names import Names, describe_names, read_names, refuse_twins
from distconv.formats.safetensors.header import is_safetensors, read_safetensors
from distconv.layout.dtypes import DType
from distconv.layout.regions import Region
from distconv.storage.base import Reader, Storage, opened, read_range

_OPENERS = 16


@dataclass(frozen=True, slots=True)
class TensorView:
    """A tensor in a shard: a strided view of a storage; offset, shape, strides in elements."""

    name: str
    region: Region
    dtype: DType
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Shard:
    """One model-parallel rank's tensors by Meta's names."""

    name: str
    paths: tuple[str, ...]
    size_bytes: int
    tensors: Mapping[str, TensorView]
    stored: Mapping[str, str] = field(default_factory=dict)
    """The file's own names, where they are longer than Meta's."""


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
        """Every shard's part of every tensor."""
        return (view for shard in self.shards for view in shard.tensors.values())

    def names(self) -> tuple[str, ...]:
        """All tensor names, in the first shard's order, then the others' own."""
        return tuple(dict.fromkeys(name for shard in self.shards for name in shard.tensors))

    def views(self, name: str) -> tuple[TensorView, ...]:
        """Give one tensor's part in each shard that has it."""
        return tuple(shard.tensors[name] for shard in self.shards if name in shard.tensors)

    def stored_name(self, name: str) -> str:
        """Give a tensor's name as its file has it, for messages."""
        return next((shard.stored[name] for shard in self.shards if name in shard.stored), name)


@dataclass(frozen=True, slots=True)
class _File:
    """One file's tensors by Meta's names."""

    path: str
    size_bytes: int
    tensors: Mapping[str, TensorView]
    stored: Mapping[str, str]
    names: Names


def read_catalog(storage: Storage, shards: tuple[ShardFiles, ...]) -> Catalog:
    """Read all headers; what is wrong in any file is reported at once as an InputError.

    Whether several files are ranks or parts of one rank is told by what they hold.
    """
    paths = [path for files in shards for path in files.paths]
    with ThreadPoolExecutor(min(_OPENERS, len(paths))) as pool:
        outcomes = dict(zip(paths, pool.map(lambda path: _try_read_file(storage, path), paths), strict=True))
    findings = [str(outcome) for outcome in outcomes.values() if isinstance(outcome, InputError)]
    if findings:
        raise InputError.of(findings)
    found = [outcome for outcome in outcomes.values() if isinstance(outcome, _File)]
    by_path = {file.path: file for file in found}
    groups, notes = _group([[by_path[path] for path in files.paths] for files in shards])
    stripped: Counter[str] = Counter()
    aside: Counter[str] = Counter()
    for file in found:
        stripped.update(file.names.stripped)
        aside.update(file.names.aside)
    where = found[0].path if len(found) == 1 else f"{found[0].path} and {len(found) - 1} more"
    notes += describe_names(stripped, aside, where)
    return Catalog(tuple(_make_shard(group) for group in groups), notes)


def _group(ranks: list[list[_File]]) -> tuple[list[list[_File]], tuple[str, ...]]:
    """Ranks hold parts of the same tensors; files that share no tensor are parts of one rank."""
    files = [file for rank in ranks for file in rank]
    distinct = {name for file in files for name in file.tensors}
    if len(ranks) == 1 or len(ranks) < len(files) or sum(len(file.tensors) for file in files) > len(distinct):
        return ranks, ()
    note = f"{files[0].path} and {len(files) - 1} more: no two of them hold the same tensor, so they are parts of one rank"
    return [files], (note,)


def _make_shard(files: Iterable[_File]) -> Shard:
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


def _try_read_file(storage: Storage, path: str) -> _File | InputError:
    try:
        with opened(storage, path) as reader:
            return _read_file(reader)
    except InputError as error:
        return error


def _read_file(reader: Reader) -> _File:
    """Read a file by what it is, not by what it is called."""
    head = bytes(read_range(reader, 0, min(_HEAD_BYTES, reader.size_bytes)))
    found = read_safetensors(reader) if is_safetensors(head) else read_archive(reader)
    names = read_names(found)
    tensors: dict[str, TensorView] = {}
    stored: dict[str, str] = {}
    for own, name in names.kept.items():
        view = _make_view(name, *found[own])
        if tensors.setdefault(name, view) != view:
            raise refuse_twins(reader.path, stored.get(name, name), own, name)
        if own != name:
            stored[name] = own
    if not tensors:
        raise InputError(
            f"{reader.path}: no model in it; it holds {', '.join(list(names.aside)[:8])}, expected a dict of Meta's tensors"
        )
    return _File(reader.path, reader.size_bytes, tensors, stored, names)


_HEAD_BYTES = 16


def _make_view(name: str, mark: TensorMark, region: Region) -> TensorView:
    return TensorView(name, region, mark.dtype, mark.offset, mark.shape, mark.strides)
