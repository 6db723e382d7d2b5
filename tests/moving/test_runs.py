"""Runs of bytes are those of the file, in their order, whatever lies between them and however they are put together."""

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from xxhash import xxh3_128

from distconv.layout.dtypes import DTYPES
from distconv.layout.files import OutputTensor
from distconv.layout.regions import Region
from distconv.layout.tensors import view_tensor
from distconv.layout.units import Examination, Gap, split_examination
from distconv.moving.examine import examine
from distconv.moving.executor import forget
from distconv.moving.job import Job
from distconv.moving.progress import SilentProgress
from distconv.moving.running import run_units
from distconv.storage.local import LocalStorage
from tests.extent import share

BF16 = DTYPES["bfloat16"]


def take(
    path: Path, offset: int, shape: tuple[int, ...], strides: tuple[int, ...], dtype: str
) -> OutputTensor:
    """Take a view of a file's bfloat16 elements as a tensor of a type."""
    region = Region(str(path), offset, path.stat().st_size - offset, 0, zipped=False)
    tensor = view_tensor(f"at {offset}", BF16, region, 0, shape, strides)
    return OutputTensor(tensor.name, tensor.name, shape, BF16, DTYPES[dtype], tensor.copies)


def look(path: Path, tensor: OutputTensor) -> torch.Tensor:
    """Read the same with torch."""
    offset = int(tensor.name.removeprefix("at "))
    flat = torch.frombuffer(
        bytearray(path.read_bytes()[offset : len(path.read_bytes()) // 2 * 2]), dtype=torch.bfloat16
    )
    if not tensor.copies:
        return torch.empty(tensor.shape, dtype=getattr(torch, tensor.dtype.name))
    steps = [1] * len(tensor.shape)
    for loop in tensor.copies[0].loops:
        steps[loop.axis] = loop.source_step
    return flat.as_strided(tensor.shape, steps).to(getattr(torch, tensor.dtype.name)).contiguous()


@settings(max_examples=share(60))
@given(data=st.data())
def test_digests_are_of_the_elements_in_their_order(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    path = tmp_path_factory.mktemp("runs") / "file"
    torch.manual_seed(data.draw(st.integers(0, 99)))
    path.write_bytes(torch.randn(600).bfloat16().view(torch.uint8).numpy().tobytes())
    runs: list[OutputTensor | Gap] = []
    position = 0
    for _ in range(data.draw(st.integers(1, 8))):
        rows, columns = data.draw(st.integers(0, 5)), data.draw(st.integers(1, 6))
        kind = data.draw(st.sampled_from(["plain", "plain", "gap", "transposed", "cast", "elsewhere"]))
        size = 2 * rows * columns
        if kind == "gap":
            runs.append(Gap(str(path), position, position + size))
        elif kind == "transposed":
            runs.append(take(path, position, (columns, rows), (1, columns), "bfloat16"))
        elif kind == "cast":
            runs.append(take(path, position, (rows, columns), (columns, 1), "float32"))
        else:
            start = position if kind == "plain" else data.draw(st.integers(0, 300)) * 2
            runs.append(take(path, start, (rows, columns), (columns, 1), "bfloat16"))
        position += size
    unit = Examination("all", tuple(runs))
    told: list[int] = []
    found = examine(Job(LocalStorage(), "", "cpu"), unit, told.append, lambda: False).found
    expected = [
        xxh3_128(look(path, tensor).reshape(-1).clone().view(torch.uint8).numpy().tobytes()).hexdigest()
        for tensor in unit.tensors
    ]
    assert found is not None
    assert list(found.tensors) == expected
    assert sum(told) == unit.size_bytes
    # Neither how many read nor how much at a time changes anything.
    parts = split_examination(unit, data.draw(st.integers(1, 200)))
    receipts = run_units(Job(LocalStorage(), "", "cpu"), parts, None, SilentProgress(), forget)
    assert [digest for receipt in receipts for digest in receipt.found.tensors] == expected


def test_a_file_that_became_shorter_is_told_and_others_are_looked_at(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(64))
    unit = Examination("all", (take(path, 0, (32,), (1,), "bfloat16"),))
    path.write_bytes(bytes(63))
    found = examine(Job(LocalStorage(), "", "cpu"), unit, lambda _size: None, lambda: False).found
    assert found is not None
    assert found.problem is not None
    assert str(path) in found.problem
