"""Distributed checkpoints of any size whose data is a hole: torch's own description, and heads and tails of its items."""

import itertools
import os
import pickle
from pathlib import Path

import torch
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)

from tests.checkpoints import Spec

Extents = tuple[int, ...]
_HEAD_BYTES, _TAIL_BYTES = 1500, 1300
"""What stands before an item's data takes 704 bytes, what stands behind it hardly more."""


def list_shapes(spec: Spec) -> dict[str, Extents]:
    """Give the tensors of a Llama by Meta's names, as torchtitan has them."""
    dim, keys, ffn, vocab = spec.dim, spec.stored_kv_heads * spec.head_dim, spec.ffn_dim, spec.vocab_size
    shapes: dict[str, Extents] = {"tok_embeddings.weight": (vocab, dim)}
    for layer in range(spec.layers):
        here = f"layers.{layer}."
        shapes |= {
            f"{here}attention.wq.weight": (dim, dim), f"{here}attention.wk.weight": (keys, dim),
            f"{here}attention.wv.weight": (keys, dim), f"{here}attention.wo.weight": (dim, dim),
            f"{here}feed_forward.w1.weight": (ffn, dim), f"{here}feed_forward.w2.weight": (dim, ffn),
            f"{here}feed_forward.w3.weight": (ffn, dim), f"{here}attention_norm.weight": (dim,),
            f"{here}ffn_norm.weight": (dim,),
        }  # fmt: skip
    return shapes | {"norm.weight": (dim,), "output.weight": (vocab, dim)}


def write_sparse_dcp(folder: Path, spec: Spec, ranks: int) -> Path:
    """Write what so many ranks of FSDP save of a Llama, in float32, each its rows of each tensor."""
    folder.mkdir()
    files = [os.open(folder / f"__{rank}_0.distcp", os.O_WRONLY | os.O_CREAT) for rank in range(ranks)]
    ends, items = [0] * ranks, dict[Extents, tuple[int, bytes, bytes]]()
    state, places = dict[str, TensorStorageMetadata](), dict[MetadataIndex, _StorageInfo]()
    for name, shape in list_shapes(spec).items():
        chunks = []
        for rank, (first, rows) in enumerate(_cut(shape[0], ranks)):
            sizes, offsets = (rows, *shape[1:]), (first, *(0 for _ in shape[1:]))
            if sizes not in items:
                items[sizes] = _make_item(folder, sizes)
            size, head, tail = items[sizes]
            os.pwrite(files[rank], head, ends[rank])
            os.pwrite(files[rank], tail, ends[rank] + size - len(tail))
            chunks.append(ChunkStorageMetadata(torch.Size(offsets), torch.Size(sizes)))
            place = MetadataIndex(name, torch.Size(offsets), rank)
            places[place] = _StorageInfo(f"__{rank}_0.distcp", ends[rank], size)
            ends[rank] += size
        properties = TensorProperties(dtype=torch.float32)
        state[name] = TensorStorageMetadata(properties, torch.Size(shape), chunks)
    for file in files:
        os.close(file)
    metadata = Metadata(state, {name: (name,) for name in state}, places)
    (folder / ".metadata").write_bytes(pickle.dumps(metadata, protocol=4))
    return folder


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
