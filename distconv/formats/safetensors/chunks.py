"""How tensors are grouped into files, and each file's header: as Transformers would do it.

Sources: ``save_pretrained`` of transformers 5.23 for a model that came from
``from_pretrained``; ``safetensors/src/tensor.rs`` 0.8.0 for the order within a file.
"""

import json
from collections.abc import Iterable, Mapping, Sequence

from distconv.layout.dtypes import DType
from distconv.layout.files import File, Literal, OutputTensor

SINGLE_NAME = "model.safetensors"
INDEX_NAME = "model.safetensors.index.json"
LARGEST_CHUNK_BYTES = 5_000_000_000
SMALLEST_CHUNK_BYTES = 256_000_000
_CHUNKS_FOR_BALANCE = 64
_MEGABYTE = 1_000_000


def default_chunk_bytes(total_bytes: int) -> int:
    """Choose a chunk size from the model's bytes alone, so that every run gives the same files.

    About 64 chunks balance the workers; above 5 GB a chunk is unwieldy, and below 256 MB
    there is nothing to gain.
    """
    wanted = -(-total_bytes // _CHUNKS_FOR_BALANCE // _MEGABYTE) * _MEGABYTE
    return min(LARGEST_CHUNK_BYTES, max(SMALLEST_CHUNK_BYTES, wanted))


def natural_key(name: str) -> tuple[tuple[int, int, str, int], ...]:
    """Sort key that puts ``layers.2`` before ``layers.10``, part by part of the dotted name."""
    return tuple(_part_key(part) for part in name.split("."))


def _part_key(part: str) -> tuple[int, int, str, int]:
    if part.isdecimal():
        return (0, int(part), "", -1)
    text = part.rstrip("0123456789")
    return (1, 0, text, int(part[len(text) :]) if len(text) < len(part) else -1)


def group_tensors(sizes_bytes: Mapping[str, int], limit_bytes: int) -> tuple[tuple[str, ...], ...]:
    """Group names into chunks, greedily in natural order.

    A tensor above the limit gets a chunk of its own, numbered where it is met, while the open
    chunk stays open and is numbered after it.
    """
    chunks: list[tuple[str, ...]] = []
    open_names: list[str] = []
    open_bytes = 0
    for name in sorted(sizes_bytes, key=natural_key):
        size = sizes_bytes[name]
        if size > limit_bytes:
            chunks.append((name,))
            continue
        if open_names and open_bytes + size > limit_bytes:
            chunks.append(tuple(open_names))
            open_names, open_bytes = [], 0
        open_names.append(name)
        open_bytes += size
    if open_names:
        chunks.append(tuple(open_names))
    return tuple(chunks)


def chunk_name(number: int, count: int) -> str:
    """Name chunk ``number``, counted from 1, of ``count``."""
    return SINGLE_NAME if count == 1 else f"model-{number:05d}-of-{count:05d}.safetensors"


def file_order(tensors: Iterable[tuple[str, DType]]) -> tuple[str, ...]:
    """Order tensors within a file: by type, highest rank first, then by name."""
    ordered = sorted(tensors, key=lambda item: (-item[1].rank, item[0].encode()))
    return tuple(name for name, _dtype in ordered)


def make_header(tensors: Sequence[tuple[str, DType, tuple[int, ...]]]) -> tuple[bytes, tuple[int, ...]]:
    """Make a safetensors header, its length and padding included, and each tensor's offset in the file.

    ``tensors`` are in file order, with their shapes.
    """
    entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
    ends = [0]
    for name, dtype, shape in tensors:
        size = dtype.size_bytes
        for extent in shape:
            size *= extent
        entries[name] = {
            "dtype": dtype.code,
            "shape": list(shape),
            "data_offsets": [ends[-1], ends[-1] + size],
        }
        ends.append(ends[-1] + size)
    text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    header = len(text).to_bytes(8, "little") + text
    return header, tuple(len(header) + start for start in ends[:-1])


def make_index(weight_map: Mapping[str, str], parameters: int, size_bytes: int) -> bytes:
    """Make ``model.safetensors.index.json``."""
    index = {
        "metadata": {"total_parameters": parameters, "total_size": size_bytes},
        "weight_map": dict(weight_map),
    }
    return (json.dumps(index, indent=2, sort_keys=True) + "\n").encode()


def lay_out_chunks(tensors: Sequence[OutputTensor], limit_bytes: int) -> tuple[File, ...]:
    """Group tensors into chunks and lay each one out to the byte."""
    by_name = {tensor.name: tensor for tensor in tensors}
    groups = group_tensors({name: tensor.size_bytes for name, tensor in by_name.items()}, limit_bytes)
    chunks = []
    for number, names in enumerate(groups, 1):
        ordered = [by_name[name] for name in file_order((name, by_name[name].dtype) for name in names)]
        header, offsets = make_header([(tensor.name, tensor.dtype, tensor.shape) for tensor in ordered])
        chunks.append(File(chunk_name(number, len(groups)), (Literal(0, header),), tuple(ordered), offsets))
    return tuple(chunks)


def make_index_file(chunks: Sequence[File]) -> dict[str, bytes]:
    """Give the index's content by its name; nothing where a single chunk needs none."""
    if len(chunks) == 1:
        return {}
    weight_map = {tensor.name: chunk.name for chunk in chunks for tensor in chunk.tensors}
    tensors = [tensor for chunk in chunks for tensor in chunk.tensors]
    parameters = sum(tensor.elements for tensor in tensors)
    size_bytes = sum(tensor.size_bytes for tensor in tensors)
    return {INDEX_NAME: make_index(weight_map, parameters, size_bytes)}
