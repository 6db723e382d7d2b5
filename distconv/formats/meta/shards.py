"""Shards of a model: each rank's tensors as the file that ``torch.save`` would write of them."""

import posixpath
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from distconv.formats.meta.archive_layout import ArchiveLayout, lay_out_archive
from distconv.formats.meta.pickle_writer import TensorEntry
from distconv.layout.files import File, Literal, OutputTensor

LARGEST_PART_BYTES = 1_000_000_000
SMALLEST_PART_BYTES = 256_000_000
_PARTS_FOR_BALANCE = 256
MOST_SHARDS = 100
"""Meta's names have two digits."""


def default_part_bytes(total_bytes: int) -> int:
    """Choose a part's size from the model's bytes alone.

    Unlike chunks, parts cost no file, so that they may be many: workers end closer together, and an
    interruption costs less. Each is made durable by itself, so that they should not be tiny.
    """
    return min(LARGEST_PART_BYTES, max(SMALLEST_PART_BYTES, total_bytes // _PARTS_FOR_BALANCE))


def shard_name(rank: int) -> str:
    """Name the file of a rank, counted from 0."""
    return f"consolidated.{rank:02d}.pth"


@dataclass(frozen=True, slots=True)
class ArchiveSeal:
    """The end of an archive, which waits for all its tensors."""

    layout: ArchiveLayout

    @property
    def offset_bytes(self) -> int:
        """Where it begins."""
        return self.layout.end_offset_bytes

    @property
    def size_bytes(self) -> int:
        """Its size."""
        return self.layout.size_bytes - self.layout.end_offset_bytes

    def make(self, checksums: Sequence[int]) -> bytes:
        """Make it of the CRC32 of each tensor's data."""
        return self.layout.make_end(checksums)


def lay_out_shard(
    name: str, tensors: Sequence[OutputTensor], shared: Mapping[str, str] | None = None
) -> File:
    """Lay out one shard to the byte; ``shared`` are further names, each by the tensor that it stands for."""
    entries = [TensorEntry(tensor.name, tensor.dtype, tensor.shape) for tensor in tensors]
    by_name = {entry.name: entry for entry in entries}
    entries += [
        TensorEntry(alias, by_name[kept].dtype, by_name[kept].shape, shares=kept)
        for alias, kept in (shared or {}).items()
    ]
    layout = lay_out_archive(posixpath.splitext(name)[0], entries)
    return File(
        name,
        tuple(Literal(start, content) for start, content in layout.literals),
        tuple(tensors),
        tuple(record.offset_bytes for record in layout.storages),
        tuple(record.descriptor for record in layout.storages),
        ArchiveSeal(layout),
    )
