"""The whole conversion, decided before a byte moves: files, tensors, copies, offsets."""

from collections import Counter
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass

from distconv.families.translate import Decisions
from distconv.formats.meta.shards import MOST_SHARDS, default_part_bytes, lay_out_shard, shard_name
from distconv.formats.safetensors.chunks import default_chunk_bytes, lay_out_chunks
from distconv.humanize import format_size
from distconv.layout.dtypes import DType
from distconv.layout.files import File, OutputTensor
from distconv.layout.stripes import Stripe, group_alike, list_sections, split_files
from distconv.layout.units import Checksum, file_of


@dataclass(frozen=True, slots=True)
class Plan:
    """All files, in the order of their names."""

    files: tuple[File, ...]
    decisions: Decisions
    chunk_limit_bytes: int
    """Of tensors in a chunk, or in a part of a file that is written in parts."""

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
        one worker may write at once.
        """
        limit = self.chunk_limit_bytes

        def split(files: tuple[File, ...]) -> tuple[File | Stripe, ...]:
            least = max(limit // _LEAST_PART // len(files), *map(find_least, files))
            return split_files(files, limit, least, whole)

        return tuple(unit for files in group_alike(self.files, most) for unit in split(files))

    def list_checksums(
        self, units: Sequence[File | Stripe], known: Container[str] = ()
    ) -> tuple[Checksum, ...]:
        """Give each file's MD5 as a unit that waits for those of ``units`` that make it; none of ``known`` files."""
        makers: dict[str, list[str]] = {file.name: [] for file in self.files}
        for unit in units:
            for section in list_sections(unit):
                makers[file_of(section)].append(unit.name)
        return tuple(
            Checksum(file.name, file.size_bytes, tuple(makers[file.name]))
            for file in self.files
            if file.name not in known
        )


_NAMED = 3
_LEAST_PART = 16
"""A part is at least so much of the limit: each costs a request or more, and stores take no tiny ones."""


def describe_large_tensors(plan: Plan) -> tuple[str, ...]:
    """Say which chunks are larger than they should be, and why, in at most one note."""
    found = plan.large_tensors
    if not found:
        return ()
    names = ", ".join(f"{tensor.name} ({format_size(tensor.size_bytes)})" for tensor in found[:_NAMED])
    more = f" and {len(found) - _NAMED} more" if len(found) > _NAMED else ""
    chunks = "1 chunk is" if len(found) == 1 else f"{len(found)} chunks are"
    limit = format_size(plan.chunk_limit_bytes)
    return (f"{chunks} larger than {limit}, as a tensor is never cut: {names}{more}",)


def make_plan(
    targets: Sequence[OutputTensor], decisions: Decisions, chunk_limit_bytes: int | None = None
) -> Plan:
    """Plan chunks of safetensors; without a limit their size follows from the model's."""
    limit = chunk_limit_bytes or default_chunk_bytes(sum(target.size_bytes for target in targets))
    return Plan(lay_out_chunks(targets, limit), decisions, limit)


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
    return Plan(tuple(files), decisions, limit)
