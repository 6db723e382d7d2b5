"""What tensors the shards hold, and where: read from headers alone."""

from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from distconv.errors import InputError
from distconv.source.archive import Record, read_archive
from distconv.source.files import ShardFiles
from distconv.storage import Storage, opened
from distconv.tensors import DType

_OPENERS = 16


@dataclass(frozen=True, slots=True)
class TensorView:
    """A tensor in a shard: a strided view of a storage; offset, shape, strides in elements."""

    name: str
    record: Record
    dtype: DType
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Shard:
    """One model-parallel rank's tensors by name."""

    name: str
    paths: tuple[str, ...]
    size_bytes: int
    tensors: Mapping[str, TensorView]


@dataclass(frozen=True, slots=True)
class Catalog:
    """All shards of a checkpoint, in the order of their ranks."""

    shards: tuple[Shard, ...]

    def __iter__(self) -> Iterator[Shard]:
        """Go through the shards in order."""
        return iter(self.shards)

    @property
    def size_bytes(self) -> int:
        """Size of all shard files."""
        return sum(shard.size_bytes for shard in self.shards)

    def names(self) -> tuple[str, ...]:
        """All tensor names, in the first shard's order, then the others' own."""
        return tuple(dict.fromkeys(name for shard in self.shards for name in shard.tensors))

    def views(self, name: str) -> tuple[TensorView, ...]:
        """Give one tensor's part in each shard that has it."""
        return tuple(shard.tensors[name] for shard in self.shards if name in shard.tensors)


def read_catalog(storage: Storage, shards: tuple[ShardFiles, ...]) -> Catalog:
    """Read all headers; what is wrong in any shard is reported at once as an InputError."""
    with ThreadPoolExecutor(min(_OPENERS, len(shards))) as pool:
        outcomes = list(pool.map(lambda files: _try_read_shard(storage, files), shards))
    findings = [str(outcome) for outcome in outcomes if isinstance(outcome, InputError)]
    if findings:
        raise InputError.of(findings)
    return Catalog(tuple(outcome for outcome in outcomes if isinstance(outcome, Shard)))


def _try_read_shard(storage: Storage, files: ShardFiles) -> Shard | InputError:
    try:
        return _read_shard(storage, files)
    except InputError as error:
        return error


def _read_shard(storage: Storage, files: ShardFiles) -> Shard:
    tensors: dict[str, TensorView] = {}
    size_bytes = 0
    for path in files.paths:
        with opened(storage, path) as reader:
            found = read_archive(reader)
            size_bytes += reader.size_bytes
        for name, (mark, record) in found.items():
            if name in tensors:
                raise InputError(f"{path}: {name} is also in {tensors[name].record.path}")
            tensors[name] = TensorView(name, record, mark.dtype, mark.offset, mark.shape, mark.strides)
    return Shard(files.name, files.paths, size_bytes, tensors)
