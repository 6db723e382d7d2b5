"""Shards as workers write them, whole or in parts: the bytes that torch saves of the same tensors."""

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import safetensors.torch
import torch
from hypothesis import given
from hypothesis import strategies as st
from xxhash import xxh3_128_hexdigest

from distconv.families.translate import Decisions
from distconv.formats.meta.written import read_shard
from distconv.layout.copies import Copy, Loop
from distconv.layout.dtypes import FLOAT32, DType, contiguous_strides
from distconv.layout.files import OutputTensor, Part
from distconv.layout.regions import Region
from distconv.layout.tensors import Tensor, cut
from distconv.moving.digests import ChunkDigests, PartDigests
from distconv.moving.executor import forget
from distconv.moving.inline import run_inline
from distconv.moving.job import Job, Receipt
from distconv.moving.progress import SilentProgress
from distconv.moving.shared import SharedFiles
from distconv.planning.plan import make_plan, make_shard_plan
from distconv.storage.local import LocalStorage
from distconv.storage.local_files import LocalReader
from tests.formats.shards import DTYPES, same_bytes

SHAPES = st.lists(st.integers(0, 4), min_size=1, max_size=3).map(tuple)
TENSORS = st.lists(st.tuples(SHAPES, st.sampled_from(tuple(DTYPES))), min_size=1, max_size=9)


def stored(name: str, tensor: torch.Tensor, file: Path) -> OutputTensor:
    """Describe a tensor as the bytes that it has in a file of its own."""
    content = tensor.reshape(-1).view(torch.uint8).numpy().tobytes()
    file.write_bytes(content)
    shape = tuple(tensor.shape)
    loops = zip(shape, contiguous_strides(shape), strict=True)
    copy = Copy(
        Region(str(file), 0, len(content), 0, zipped=False), 0, (0,) * len(shape),
        tuple(Loop(extent, stride, axis) for axis, (extent, stride) in enumerate(loops)),
    )  # fmt: skip
    dtype: DType = DTYPES[tensor.dtype]
    return OutputTensor(name, name, shape, dtype, dtype, (copy,) if math.prod(shape) else ())


def forget_part(_part: Part, _attempt: str, _digests: PartDigests) -> None:
    """Keep nothing of a part."""


def write_shards(
    output: Path,
    ranks: list[list[OutputTensor]],
    part_bytes: int,
    block_bytes: int | None = None,
    most: int = 100,
) -> tuple[Receipt, ...]:
    """Write shards of these tensors, in parts of so many bytes, and seal them."""
    storage = LocalStorage()
    plan = make_shard_plan(ranks, Decisions(tied=False, kv_replication=1), part_bytes)
    units = plan.list_units(most=most)
    checksums = plan.list_checksums(units, md5s=False)
    with SharedFiles(storage, str(output), plan.files, units, {}, checksums) as shared:
        job = Job(storage, str(output), "cpu", block_bytes, attempts=shared.attempts)
        keep = shared.hear(job, forget, forget, forget_part)
        return run_inline(job, (*units, *checksums), 2, SilentProgress(), keep=keep)


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
    write_shards(folder / "out", [tensors], part_bytes)
    shard = folder / "out" / "consolidated.00.pth"
    torch.save(state, folder / shard.name)
    assert shard.read_bytes() == (folder / shard.name).read_bytes()
    found = read_shard(LocalStorage(), str(shard))
    assert {name: written.shape for name, written in found.items()} == {
        name: tuple(tensor.shape) for name, tensor in state.items()
    }


Share = Callable[[torch.Tensor, int, int], torch.Tensor]
"""Gives a rank's share of a tensor: share(tensor, rank, ranks)."""


def take_all(tensor: torch.Tensor, _rank: int, _ranks: int) -> torch.Tensor:
    return tensor


def take_rows(tensor: torch.Tensor, rank: int, ranks: int) -> torch.Tensor:
    return tensor.chunk(ranks, 0)[rank]


def take_columns(tensor: torch.Tensor, rank: int, ranks: int) -> torch.Tensor:
    return tensor.chunk(ranks, 1)[rank]


def share_stored(whole: OutputTensor, share: Share, rank: int, ranks: int) -> OutputTensor:
    """Give a rank's share of a tensor that is stored as a whole."""
    axis = {take_rows: 0, take_columns: 1}.get(share)
    if axis is None:
        return whole
    each = whole.shape[axis] // ranks
    part = cut(Tensor("", whole.stored, whole.shape, whole.copies), axis, rank * each, (rank + 1) * each)
    return replace(whole, shape=part.shape, copies=part.copies)


WHOLES = st.lists(
    st.tuples(
        st.integers(1, 4), st.integers(1, 4), st.sampled_from([take_all, take_rows, take_columns]),
        st.sampled_from(tuple(DTYPES)),
    ),
    min_size=1,
    max_size=6,
)  # fmt: skip


@pytest.mark.slow
@same_bytes
@given(
    WHOLES, st.integers(1, 5), st.sampled_from([1, 60, 1 << 20]), st.integers(1, 200) | st.none(),
    st.integers(1, 5), st.booleans(),
)  # fmt: skip
def test_shards_that_are_written_together_have_the_bytes_that_torch_saves_of_each_and_their_source_is_read_once(
    tmp_path_factory: pytest.TempPathFactory,
    described: list[tuple[int, int, Share, torch.dtype]],
    ranks: int,
    part_bytes: int,
    block_bytes: int | None,
    most: int,
    is_cast: bool,
) -> None:
    folder = tmp_path_factory.mktemp("shards")
    (folder / "out").mkdir()
    wholes = {
        f"layers.{number}.weight": torch.randn(rows * ranks, columns * ranks).to(dtype)
        for number, (rows, columns, _share, dtype) in enumerate(described)
    }
    tensors = [stored(name, tensor, folder / name) for name, tensor in wholes.items()]
    if is_cast:
        tensors = [replace(tensor, dtype=FLOAT32) for tensor in tensors]
        wholes = {name: tensor.to(torch.float32) for name, tensor in wholes.items()}
    shares = [share for *_shape, share, _dtype in described]
    planned = [
        [share_stored(tensor, share, rank, ranks) for tensor, share in zip(tensors, shares, strict=True)]
        for rank in range(ranks)
    ]
    receipts = write_shards(folder / "out", planned, part_bytes, block_bytes, most)
    for rank in range(ranks):
        path = folder / f"consolidated.{rank:02}.pth"
        state = {
            name: share(tensor, rank, ranks).clone()
            for (name, tensor), share in zip(wholes.items(), shares, strict=True)
        }
        torch.save(state, path)
        assert (folder / "out" / path.name).read_bytes() == path.read_bytes()
    if most >= ranks:
        times = [ranks if share is take_all else 1 for share in shares]
        sizes = [copy.region.size_bytes for tensor in tensors for copy in tensor.copies]
        read = sum(receipt.bytes_read for receipt in receipts)
        assert read == sum(size * count for size, count in zip(sizes, times, strict=True))


def test_what_several_shards_have_of_a_row_is_read_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = stored("layers.0.weight", torch.randn(512, 4096), tmp_path / "whole")
    planned = [[share_stored(whole, take_columns, rank, 8)] for rank in range(8)]
    sizes: Counter[int] = Counter()
    read_into = LocalReader.read_into

    def note(self: LocalReader, offset_bytes: int, buffer: memoryview) -> None:
        sizes[len(buffer)] += 1
        read_into(self, offset_bytes, buffer)

    monkeypatch.setattr(LocalReader, "read_into", note)
    for most, expected in ((8, {4 << 20: 2}), (1, {2048: 8 * 512})):
        (tmp_path / f"{most}").mkdir()
        write_shards(tmp_path / f"{most}", planned, 1 << 30, most=most)
        assert sizes == expected
        sizes.clear()


@pytest.mark.parametrize("lanes", [1, 2])
def test_who_writes_a_chunk_s_parts_one_behind_the_other_reads_none_of_them_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lanes: int
) -> None:
    wholes = {f"layers.{number}.weight": torch.randn(64, 32) for number in range(lanes)}
    tensors = [stored(name, tensor, tmp_path / name) for name, tensor in wholes.items()]
    (tmp_path / "out").mkdir()
    plan = replace(
        make_plan(tensors, Decisions(tied=False, kv_replication=1), 1),
        part_limit_bytes=700,
        whole_limit_bytes=0,
    )
    units = plan.list_units()
    checksums = plan.list_checksums(units, md5s=False)
    assert (len(units), len(checksums)) == (13 * lanes, lanes)
    read: Counter[str] = Counter()
    read_into = LocalReader.read_into

    def note(self: LocalReader, offset_bytes: int, buffer: memoryview) -> None:
        read[Path(self.path).parent.name] += len(buffer)
        read_into(self, offset_bytes, buffer)

    monkeypatch.setattr(LocalReader, "read_into", note)
    storage, found = LocalStorage(), dict[str, Receipt]()
    with SharedFiles(storage, str(tmp_path / "out"), plan.files, units, {}, checksums) as shared:
        job = Job(storage, str(tmp_path / "out"), "cpu", attempts=shared.attempts)
        keep = shared.hear(job, forget, lambda receipt: found.update({receipt.chunk: receipt}), forget_part)
        run_inline(job, (*units, *checksums), lanes, SilentProgress(), keep=keep)
    for file in plan.files:
        content = (tmp_path / "out" / file.name).read_bytes()
        assert safetensors.torch.load(content).keys() == {tensor.name for tensor in file.tensors}
        own = content[-file.tensors[0].size_bytes :]
        assert found[file.name].digests == ChunkDigests(
            xxh3_128_hexdigest(content), (xxh3_128_hexdigest(own),)
        )
    # Only where one lane is through, and helps the other one, is what it wrote read again.
    assert read["out"] <= (0 if lanes == 1 else plan.files[0].size_bytes)
