"""The whole conversion, decided before a byte moves: files, tensors, copies, offsets."""

import re
from collections import Counter
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from dataclasses import dataclass

from distconv.families.translate import Decisions
from distconv.formats.meta.shards import MOST_SHARDS, default_part_bytes, lay_out_shard, shard_name
from distconv.formats.safetensors.chunks import LARGEST_CHUNK_BYTES, default_chunk_bytes, lay_out_chunks
from distconv.humanize import format_size, list_some
from distconv.layout.dtypes import DType
from distconv.layout.files import File, OutputTensor, Part
from distconv.layout.stripes import Stripe, group_alike, list_sections, split_files
from distconv.layout.units import Checksum, file_of


@dataclass(frozen=True, slots=True)
class Plan:
    """All files, in the order of their names."""

    files: tuple[File, ...]
    decisions: Decisions
    chunk_limit_bytes: int
    """Of tensors in a chunk, or in a part of a shard."""
    part_limit_bytes: int
    """Of tensors in a part of a file that is written in parts."""
    whole_limit_bytes: int = 0
    """A file without a seal is written in parts where it has more tensors than this."""

    @property
    def tensors(self) -> tuple[OutputTensor, ...]:
        """All target tensors, file by file."""
        return tuple(tensor for file in self.files for tensor in file.tensors)

    @property
    def size_bytes(self) -> int:
        """Size of all files."""
        return sum(file.size_bytes for file in self.files)

    @property
    def large_tensors(self) -> tuple[OutputTensor, ...]:
        """The tensors above a chunk's limit, each in a chunk of its own, the largest first."""
        found = (tensor for tensor in self.tensors if tensor.size_bytes > self.chunk_limit_bytes)
        return tuple(sorted(found, key=lambda tensor: -tensor.size_bytes))

    @property
    def dtype(self) -> DType:
        """The type of most elements, which the config names."""
        counts: Counter[DType] = Counter()
        for tensor in self.tensors:
            counts[tensor.dtype] += tensor.elements
        return max(counts, key=lambda dtype: (counts[dtype], dtype.rank))

    def list_units(
        self,
        whole: Container[str] = (),
        find_least: Callable[[File], int] = lambda _file: 0,
        most: int = MOST_SHARDS,
    ) -> tuple[File | Stripe, ...]:
        """Give what workers write at a time; files that ``whole`` names are not split.

        ``find_least`` tells of how many bytes the parts of a file must be at least, ``most`` how many files
        one worker may write at once. Where there is such a least, nothing of a file can be read or written at
        any place before it is committed: there no tensor is cut, and a file without a seal is one unit.
        """
        limit = self.part_limit_bytes

        def split(files: tuple[File, ...]) -> tuple[File | Stripe, ...]:
            needed = max(map(find_least, files))
            if files[0].seal is None and (needed or _tensor_bytes(files[0]) <= self.whole_limit_bytes):
                return files
            least = max(limit // _LEAST_PART // len(files), needed)
            return split_files(files, limit, least, whole, cuts_tensors=not needed)

        return tuple(unit for files in group_alike(self.files, most) for unit in split(files))

    def list_checksums(
        self, units: Sequence[File | Stripe], known: Container[str] = (), *, md5s: bool
    ) -> tuple[Checksum, ...]:
        """Give a unit for each file whose digests are made of all of it, which waits for those of ``units`` that make it.

        With ``md5s`` that is each but ``known`` files; without, each that must be digested before it is committed.
        """
        makers: dict[str, list[str]] = {file.name: [] for file in self.files}
        parts: dict[str, list[Part]] = {file.name: [] for file in self.files}
        for unit in units:
            for section in list_sections(unit):
                makers[file_of(section)].append(unit.name)
                if isinstance(section, Part):
                    parts[section.file].append(section)
        checksums = (
            Checksum(
                file.name,
                file.size_bytes,
                tuple(makers[file.name]),
                md5=md5s,
                whole=bool(parts[file.name]) and file.seal is None,
                tensors=tuple(_list_cut(file, parts[file.name])),
            )
            for file in self.files
        )
        return tuple(unit for unit in checksums if unit.is_open or (md5s and unit.file not in known))


def _tensor_bytes(file: File) -> int:
    return sum(tensor.size_bytes for tensor in file.tensors)


def _list_cut(file: File, parts: Sequence[Part]) -> Iterator[tuple[int, int]]:
    """Give where in a file each tensor begins and ends of which several of its parts have rows."""
    counts = Counter(place for part in parts for place in part.places)
    for place, count in sorted(counts.items()):
        if count > 1:
            yield file.offsets_bytes[place], file.offsets_bytes[place] + file.tensors[place].size_bytes


_NUMBER = re.compile(r"\d+")
_NAMED = 3
_LEAST_PART = 16
"""A part is at least so much of the limit: each costs a request or more, and stores take no tiny ones."""


def describe_plan(plan: Plan) -> tuple[str, ...]:
    """Say what is odd in what will be written."""
    return (*describe_large_tensors(plan), *describe_mixed_types(plan))


def describe_mixed_types(plan: Plan) -> tuple[str, ...]:
    """Say which weights are of another type than the same ones of other layers, which no trainer saves, in one note."""
    kinds: dict[str, list[OutputTensor]] = {}
    for tensor in plan.tensors:
        if tensor.dtype.is_float:
            kinds.setdefault(_NUMBER.sub("*", tensor.name), []).append(tensor)
    strays: list[str] = []
    for members in kinds.values():
        types = Counter(tensor.dtype for tensor in members)
        usual = max(types, key=lambda dtype: types[dtype])
        strays += [f"{one.name} ({one.dtype}, of others {usual})" for one in members if one.dtype != usual]
    if not strays:
        return ()
    return (f"types differ between layers: {list_some(strays, _NAMED)}; `dtype=` makes them one",)


def describe_large_tensors(plan: Plan) -> tuple[str, ...]:
    """Say which chunks are larger than they should be, and why, in at most one note."""
    found = plan.large_tensors
    if not found:
        return ()
    names = list_some([f"{tensor.name} ({format_size(tensor.size_bytes)})" for tensor in found], _NAMED)
    chunks = "1 chunk is" if len(found) == 1 else f"{len(found)} chunks are"
    limit = format_size(plan.chunk_limit_bytes)
    return (f"{chunks} larger than {limit}, as a tensor is never cut over chunks: {names}",)


def make_plan(
    targets: Sequence[OutputTensor], decisions: Decisions, chunk_limit_bytes: int | None = None
) -> Plan:
    """Plan chunks of safetensors; without a limit their size follows from the model's.

    A chunk of up to 5 GB is one worker's, who digests it as it writes it; larger ones are written in parts, of
    which what others wrote is read once more.
    """
    total_bytes = sum(target.size_bytes for target in targets)
    limit = chunk_limit_bytes or default_chunk_bytes(total_bytes)
    files = lay_out_chunks(targets, limit)
    return Plan(files, decisions, limit, default_part_bytes(total_bytes), LARGEST_CHUNK_BYTES)


def make_shard_plan(
    ranks: Sequence[Sequence[OutputTensor]],
    decisions: Decisions,
    part_limit_bytes: int | None = None,
    shared: Mapping[str, str] | None = None,
) -> Plan:
    """Plan a shard for each rank's tensors; ``shared`` are further names of some, see ``lay_out_shard``.

    Shards are written in parts of at most so many bytes of tensors.
    """
    total_bytes = sum(tensor.size_bytes for tensors in ranks for tensor in tensors)
    limit = part_limit_bytes or default_part_bytes(total_bytes)
    files = (lay_out_shard(shard_name(rank), tensors, shared) for rank, tensors in enumerate(ranks))
    return Plan(tuple(files), decisions, limit, limit)
