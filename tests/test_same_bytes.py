"""One conversion, one result: whoever moves the bytes, and in whatever pieces."""

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import ray
import torch

import distconv
from distconv.moving import job, sections
from distconv.moving.ray.cluster import start_local
from tests import reference
from tests.checkpoints import Spec
from tests.faults import digest_folder, digest_shards
from tests.moving.fakes import RecordingProgress
from tests.moving.stand_ins import StandIn
from tests.reference import read_tensors
from tests.test_questions import DOUBLED, count_reads
from tests.transformers_models import ModelSpec

Write = Callable[[Spec], Path]

SPEC = Spec(family="llama-2", dim=128, heads=8, kv_heads=4, shards=2, layers=3, dtype=torch.float32)
LIMIT = 150_000
PAYLOADS = [
    0x7FC00000,
    0x7FC12345,
    0xFFC00001,
    0x7F800001,
    0xFFFFFFFF,
    0x7F800000,
    0xFF800000,
    0x80000000,
    0x00000001,
]
"""Quiet and signalling NaNs with and without sign and payload, infinities, minus zero, a subnormal."""


def read_bytes(folder: Path) -> dict[str, bytes]:
    """All files of a folder."""
    return {file.name: file.read_bytes() for file in sorted(folder.iterdir())}


@pytest.fixture(scope="module")
def source(checkpoint: Write, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give a checkpoint of every awkward value, strewn over all of its tensors."""
    made = checkpoint(SPEC)
    folder = tmp_path_factory.mktemp("awkward") / "model"
    folder.mkdir()
    for file in made.iterdir():
        if file.suffix != ".pth":
            (folder / file.name).write_bytes(file.read_bytes())
            continue
        state = torch.load(file, weights_only=True)
        for number, tensor in enumerate(state.values()):
            bits = tensor.view(torch.int32).reshape(-1)
            values = torch.from_numpy(np.array(PAYLOADS, dtype=np.uint32).view(np.int32))
            bits[number % 7 :: 97][: len(values)] = values[: len(bits[number % 7 :: 97])]
            bits[-1] = 0x47C35000  # 100,000, which float16 does not reach
        torch.save(state, folder / file.name)
    return folder


@pytest.fixture(scope="module", params=["auto", "float16", "bfloat16"])
def dtype(request: pytest.FixtureRequest) -> str:
    """Give each type in turn."""
    return str(request.param)


@pytest.fixture(scope="module")
def inline(source: Path, dtype: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """Give the files that threads of this process write."""
    folder = tmp_path_factory.mktemp("inline") / "out"
    report = distconv.convert(source, folder, dtype=dtype, max_shard_size=LIMIT)
    assert report.chunks > 4
    assert (report.became_infinite > 0) == (dtype == "float16")
    return read_bytes(folder)


@pytest.fixture(scope="module")
def _three_slots() -> Iterator[None]:
    start_local(3)
    yield
    ray.shutdown()


@pytest.mark.first(1)
@pytest.mark.usefixtures("_three_slots")
@pytest.mark.parametrize("workers", [2, 1, 3])
def test_any_number_of_ray_workers_gives_the_same_bytes(
    source: Path, tmp_path: Path, inline: dict[str, bytes], dtype: str, workers: int
) -> None:
    distconv.convert(source, tmp_path / "out", dtype=dtype, max_shard_size=LIMIT, workers=workers)
    assert read_bytes(tmp_path / "out") == inline


@pytest.mark.slow
@pytest.mark.usefixtures("_three_slots")
def test_ray_workers_write_the_same_bytes_for_metas_code(
    transformers_model: Callable[[ModelSpec], Path], tmp_path: Path
) -> None:
    source = transformers_model(ModelSpec("llama-3.1"))
    for name, workers in (("inline", None), ("ray", 2)):
        distconv.convert(source, tmp_path / name, to="meta", shards=4, max_shard_size=8_000, workers=workers)
    assert digest_folder(tmp_path / "ray") == digest_folder(tmp_path / "inline")
    distconv.convert(tmp_path / "inline", tmp_path / "again", to="meta", shards=2, workers=2)
    distconv.convert(source, tmp_path / "direct", to="meta", shards=2)
    assert digest_shards(tmp_path / "again") == digest_shards(tmp_path / "direct")


@pytest.mark.slow
@pytest.mark.usefixtures("_three_slots")
def test_ray_workers_compare_and_the_driver_reads_headers(
    checkpoint: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = checkpoint(DOUBLED)
    distconv.convert(source, tmp_path / "inline")
    with monkeypatch.context() as patch:
        inspected = count_reads(patch, source)
        distconv.inspect(source)
    counted, progress = count_reads(monkeypatch, source), RecordingProgress()
    distconv.convert(source, tmp_path / "ray", workers=2, progress=progress)
    assert sum(counted.values()) <= 2 * sum(inspected.values())
    assert any(name.startswith("key heads") for name in progress.units)
    assert digest_folder(tmp_path / "ray") == digest_folder(tmp_path / "inline")


@pytest.mark.product
@pytest.mark.parametrize("block_bytes", [1, 1000, 4096, 30_001, 1 << 30])
def test_any_block_size_gives_the_same_bytes(
    source: Path,
    tmp_path: Path,
    inline: dict[str, bytes],
    dtype: str,
    block_bytes: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(job.Job.__init__, "__defaults__", (block_bytes, *job.Job.__init__.__defaults__[1:]))
    distconv.convert(source, tmp_path / "out", dtype=dtype, max_shard_size=LIMIT)
    assert read_bytes(tmp_path / "out") == inline


@pytest.mark.product
@pytest.mark.parametrize("block_bytes", [1000, 30_001, None])
@pytest.mark.parametrize("kind", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_several_blocks_on_their_way_at_once_give_the_same_bytes(
    source: Path,
    tmp_path: Path,
    inline: dict[str, bytes],
    dtype: str,
    block_bytes: int | None,
    kind: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(job.Job.__init__, "__defaults__", (block_bytes, *job.Job.__init__.__defaults__[1:]))
    monkeypatch.setattr(sections, "lane_device", lambda _name: nullcontext(StandIn(kind)))
    distconv.convert(source, tmp_path / "out", dtype=dtype, max_shard_size=LIMIT)
    assert read_bytes(tmp_path / "out") == inline


def test_stored_payloads_are_kept_and_cast_ones_become_the_quiet_nan(
    source: Path, tmp_path: Path, dtype: str
) -> None:
    distconv.convert(source, tmp_path / "out", dtype=dtype, max_shard_size=LIMIT)
    found = read_tensors(tmp_path / "out")
    quiet = {"float16": 0x7E00, "bfloat16": 0x7FC0}
    for name, expected in reference.convert(source, SPEC).items():
        if dtype == "auto":
            assert torch.equal(found[name].view(torch.int32), expected.view(torch.int32)), name
            continue
        nan = expected.isnan()
        assert nan.any()
        assert (found[name].view(torch.int16)[nan] == quiet[dtype]).all(), name
        assert torch.equal(found[name][~nan], expected.to(getattr(torch, dtype))[~nan]), name


def test_values_that_became_infinite_are_counted(source: Path, tmp_path: Path) -> None:
    report = distconv.convert(source, tmp_path / "out", dtype="float16", max_shard_size=LIMIT)
    expected = reference.convert(source, SPEC)
    before = sum(int(tensor.isinf().sum()) for tensor in expected.values())
    after = sum(int(tensor.to(torch.float16).isinf().sum()) for tensor in expected.values())
    assert report.became_infinite == after - before > 0
    assert any("became infinite" in line for line in report.lines())
