"""Shards for tests: state dicts described to the writer, and files put together as workers would."""

import random
import sys
import zlib
from collections.abc import Iterable
from pathlib import Path

import pytest
import torch

from distconv.formats.meta.archive_layout import lay_out_archive
from distconv.formats.meta.pickle_writer import TensorEntry
from distconv.layout.dtypes import STORABLE

STEM = "consolidated.00"
DTYPES = {getattr(torch, dtype.name): dtype for dtype in STORABLE}

same_bytes = pytest.mark.skipif(
    sys.platform != "linux", reason="the serialization id follows the order of libstdc++'s hash tables"
)

State = dict[str, torch.Tensor]
Runs = Iterable[tuple[int, bytes]]


def fresh(text: str) -> str:
    """Give text as an object of its own: torch's pickler recalls constants such as "cpu" that are names too."""
    return text.encode("utf-8", "surrogatepass").decode("utf-8", "surrogatepass")


def entries_of(state: State) -> list[TensorEntry]:
    owners: dict[int, str] = {}
    entries = []
    for name, tensor in state.items():
        owner = owners.setdefault(tensor.untyped_storage()._cdata, name)
        dtype = DTYPES[tensor.dtype]
        entries.append(TensorEntry(name, dtype, tuple(tensor.shape), None if owner == name else owner))
    return entries


def storages_of(state: State) -> list[bytes]:
    storages = {tensor.untyped_storage()._cdata: tensor.untyped_storage() for tensor in state.values()}
    return [bytes(storage) for storage in storages.values()]


def write_runs(path: Path, runs: Runs) -> None:
    with path.open("r+b") as file:
        for offset_bytes, content in runs:
            file.seek(offset_bytes)
            file.write(content)


def write_shard(path: Path, state: State) -> None:
    """Write the tensors as a worker would, in no order, the rest before and after."""
    layout = lay_out_archive(path.stem, entries_of(state))
    path.touch()
    write_runs(path, layout.literals)
    contents = storages_of(state)
    placed = [
        (record.offset_bytes, content) for record, content in zip(layout.storages, contents, strict=True)
    ]
    write_runs(path, random.Random(len(state)).sample(placed, len(placed)))
    write_runs(path, layout.seal([zlib.crc32(content) for content in contents]))
