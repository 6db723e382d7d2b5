"""Distributed checkpoints of any size: torch's own description, and items as its writer makes them, of any content."""

import io
import itertools
import pickle
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import BinaryIO

import torch
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)

from tests.checkpoints import Spec, shapes

Extents = tuple[int, ...]
WriteItem = Callable[[BinaryIO, Extents], object]
"""Writes one tensor of these sizes at the end of a file."""
_HEAD_BYTES, _TAIL_BYTES = 1500, 1300
"""What stands before an item's data takes 704 bytes, what stands behind it hardly more."""


def write_ranks(folder: Path, spec: Spec, ranks: int, dtype: torch.dtype, write_item: WriteItem) -> Path:
    """Write what so many ranks of FSDP2 save of a Llama under torchtitan's names, each its rows of each tensor."""
    folder.mkdir(parents=True)
    state, places = dict[str, TensorStorageMetadata](), dict[MetadataIndex, _StorageInfo]()
    with ExitStack() as stack:
        files = [stack.enter_context((folder / f"__{rank}_0.distcp").open("wb")) for rank in range(ranks)]
        for name, shape, _axis in shapes(spec):
            chunks = []
            for rank, (first, rows) in enumerate(_cut(shape[0], ranks)):
                sizes, offsets = (rows, *shape[1:]), torch.Size((first, *(0 for _ in shape[1:])))
                start = files[rank].tell()
                write_item(files[rank], sizes)
                chunks.append(ChunkStorageMetadata(offsets, torch.Size(sizes)))
                place = _StorageInfo(f"__{rank}_0.distcp", start, files[rank].tell() - start)
                places[MetadataIndex(name, offsets, rank)] = place
            properties = TensorProperties(dtype=dtype)
            state[name] = TensorStorageMetadata(properties, torch.Size(shape), chunks)
    metadata = Metadata(state, {name: (name,) for name in state}, places)
    (folder / ".metadata").write_bytes(pickle.dumps(metadata, protocol=4))
    return folder


def write_sparse_ranks(folder: Path, spec: Spec, ranks: int) -> Path:
    """Write ranks' files in float32 whose data is a hole."""
    items = dict[Extents, tuple[int, bytes, bytes]]()

    def write_item(file: BinaryIO, sizes: Extents) -> None:
        if sizes not in items:
            items[sizes] = _make_item(folder, sizes)
        size, head, tail = items[sizes]
        end = file.tell() + size
        file.write(head)
        file.seek(end - len(tail))
        file.write(tail)

    return write_ranks(folder, spec, ranks, torch.float32, write_item)


def save_item(file: BinaryIO, tensor: torch.Tensor) -> None:
    """Write a tensor as an item."""
    item = io.BytesIO()
    torch.save(tensor, item)
    file.write(item.getbuffer())


def _cut(rows: int, ranks: int) -> list[Extents]:
    """Cut rows as FSDP2 does; the last ranks may have none."""
    step = -(-rows // ranks)
    starts = itertools.takewhile(lambda start: start < rows, range(0, step * ranks, step))
    return [(start, min(step, rows - start)) for start in starts]


def _make_item(folder: Path, sizes: Extents) -> tuple[int, bytes, bytes]:
    """Give an item's size, and what torch.save writes before and behind the data."""
    path = folder / "item"
    with torch.serialization.skip_data():
        torch.save(torch.empty(sizes), path)
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(_HEAD_BYTES)
        file.seek(max(0, size - _TAIL_BYTES))
        tail = file.read()
    path.unlink()
    return size, head, tail
