"""Shards as workers write them, whole or in parts: the bytes that torch saves of the same tensors."""

import math
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from distconv.families.translate import Decisions
from distconv.formats.meta.written import read_shard
from distconv.layout.copies import Copy, Loop
from distconv.layout.dtypes import DType, contiguous_strides
from distconv.layout.files import OutputTensor
from distconv.layout.regions import Region
from distconv.moving.executor import forget
from distconv.moving.inline import run_inline
from distconv.moving.job import Job
from distconv.moving.progress import SilentProgress
from distconv.moving.shared import SharedFiles
from distconv.planning.plan import make_shard_plan
from distconv.storage.local import LocalStorage
from tests.formats.shards import DTYPES, same_bytes

SHAPES = st.lists(st.integers(0, 4), min_size=1, max_size=3).map(tuple)
TENSORS = st.lists(st.tuples(SHAPES, st.sampled_from(tuple(DTYPES))), min_size=1, max_size=9)


def stored(name: str, tensor: torch.Tensor, file: Path) -> OutputTensor:
    """Describe a tensor as the bytes that it has in a file of its own."""
    content = bytes(tensor.untyped_storage())
    file.write_bytes(content)
    shape = tuple(tensor.shape)
    loops = zip(shape, contiguous_strides(shape), strict=True)
    copy = Copy(
        Region(str(file), 0, len(content), 0, zipped=False), 0, (0,) * len(shape),
        tuple(Loop(extent, stride, axis) for axis, (extent, stride) in enumerate(loops)),
    )  # fmt: skip
    dtype: DType = DTYPES[tensor.dtype]
    return OutputTensor(name, name, shape, dtype, dtype, (copy,) if math.prod(shape) else ())


def write_shard(output: Path, tensors: list[OutputTensor], part_bytes: int) -> Path:
    """Write the only shard of these tensors, in parts of so many bytes, and seal it."""
    storage = LocalStorage()
    plan = make_shard_plan([tensors], Decisions(tied=False, kv_replication=1), part_bytes)
    units = plan.list_units()
    with SharedFiles(storage, str(output), plan.files, units, {}) as shared:
        job = Job(storage, str(output), "cpu", attempts=shared.attempts)
        keep = shared.hear(job, forget, lambda _part, _attempt, _digests: None)
        run_inline(job, units, 2, SilentProgress(), keep=keep)
    return output / plan.files[0].name


@same_bytes
@given(TENSORS, st.sampled_from([1, 20, 1 << 20]))
def test_a_shard_with_tensors_of_no_elements_has_the_bytes_that_torch_saves(
    tmp_path_factory: pytest.TempPathFactory,
    described: list[tuple[tuple[int, ...], torch.dtype]],
    part_bytes: int,
) -> None:
    folder = tmp_path_factory.mktemp("shards")
    state = {
        f"layers.{number}.weight": torch.randn(shape).to(dtype)
        for number, (shape, dtype) in enumerate(described)
    }
    tensors = [stored(name, tensor, folder / name) for name, tensor in state.items()]
    (folder / "out").mkdir()
    shard = write_shard(folder / "out", tensors, part_bytes)
    torch.save(state, folder / shard.name)
    assert shard.read_bytes() == (folder / shard.name).read_bytes()
    found = read_shard(LocalStorage(), str(shard))
    assert {name: written.shape for name, written in found.items()} == {
        name: tuple(tensor.shape) for name, tensor in state.items()
    }
