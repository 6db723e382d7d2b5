"""The device ``cuda``: the host's bytes whichever way is gone, what a lane keeps, and what goes wrong on a GPU."""

import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import torch

import distconv
from distconv.errors import ConversionError, DeviceError
from distconv.layout.dtypes import BFLOAT16, DTYPES, FLOAT16, FLOAT32, DType
from distconv.layout.regions import Region
from distconv.moving import job, lane_devices
from distconv.moving.devices import GPU_MEMORY_BYTES, Finish, Scales
from distconv.moving.pieces import Piece
from distconv.moving.torch_device import TorchDevice
from distconv.verbs.convert import run_units
from tests.checkpoints import Spec
from tests.faults import read_data
from tests.moving.fakes import RecordingProgress
from tests.moving.stand_ins import Late, StandIn, pretended_gpu

Write = Callable[[Spec], Path]
WIDE = {"dim": 128, "heads": 8, "kv_heads": 4, "layers": 1, "dtype": torch.float32}


@pytest.fixture(params=["stand-in", pytest.param("gpu", marks=pytest.mark.gpu)])
def _cuda(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Have the device ``cuda``: torch's CPU in its place, which does all at the last moment, or a GPU; for small blocks too."""
    monkeypatch.setattr(TorchDevice, "small_bytes", 0)
    with nullcontext() if request.param == "gpu" else pretended_gpu(Late):
        yield


SPECS = [
    *(Spec("llama-2", **WIDE, shards=2, layout=layout) for layout in ("separate", "packed", "transposed", "apart")),
    Spec("llama-3.1", **(WIDE | {"kv_heads": 8}), shards=4, doubled_kv=True, norm_dtype=torch.bfloat16),
    Spec("llama-3.2", **(WIDE | {"dtype": torch.bfloat16}), tied=True),
]  # fmt: skip
WAYS: dict[str, dict[str, object]] = {
    "to transformers": {},
    "to one shard": {"to": "meta", "shards": 1},
    "to four shards": {"to": "meta", "shards": 4},
    "to float16": {"dtype": "float16"},
    "to bfloat16": {"dtype": "bfloat16"},
    "to float32": {"dtype": "float32"},
    "back, to bfloat16": {"to": "meta", "shards": 2, "dtype": "bfloat16"},
}


@pytest.mark.product
@pytest.mark.usefixtures("_cuda")
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: f"{spec.family} {spec.layout}")
def test_every_operation_gives_the_bytes_of_the_host(
    checkpoint: Write, tmp_path: Path, spec: Spec, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Each way meets each size of blocks.
    block_bytes = (1001, 30_001, None)[(SPECS.index(spec) + list(WAYS).index(way)) % 3]
    source, options = checkpoint(spec), dict(WAYS[way])
    if way.startswith("back"):
        distconv.convert(source, tmp_path / "transformers")
        source = tmp_path / "transformers"
    distconv.convert(source, tmp_path / "host", **options, max_shard_size=150_000)
    monkeypatch.setattr(job.Job.__init__, "__defaults__", (block_bytes, *job.Job.__init__.__defaults__[1:]))
    distconv.convert(source, tmp_path / "cuda", **options, max_shard_size=150_000, device="cuda")
    assert read_data(tmp_path / "cuda") == read_data(tmp_path / "host")


def test_a_lane_opens_its_device_once_for_all_its_units(checkpoint: Write, tmp_path: Path) -> None:
    with pretended_gpu() as opened:
        report = distconv.convert(
            checkpoint(SPECS[0]), tmp_path / "out", max_shard_size=10_000, dtype="float16", device="cuda"
        )
    assert report.chunks > 8, "more than lanes"
    assert set(Counter(opened).values()) == {1}
    assert {name.partition(" ")[0] for name in opened} == {"lane"}


def test_small_blocks_are_made_on_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    device = TorchDevice("cpu")
    monkeypatch.setattr("distconv.moving.torch_device._gather", None)
    bits = np.arange(1 << 16, dtype=np.uint32)
    piece = Piece(Region("shard", 0, 0, 0, zipped=False), 0, 256 * 256, (256, 256), (1, 256), 0, (256, 1))
    for start in (0, 1 << 15):
        memory = device.begin(bits.nbytes, start)
        memory[:] = (bits + start).tobytes()
        found, _infinite = device.submit(memory, [piece], bits.size, FLOAT32, FLOAT32)()
        assert bytes(found) == (bits + start).reshape(256, 256).T.tobytes()


def test_memory_lies_in_its_page_as_its_block_does_in_the_files() -> None:
    memory = StandIn().begin(10_000, 5 * 4096 + 24)
    assert len(memory) == 10_000
    begins = np.frombuffer(memory, np.uint8).ctypes.data
    again = StandIn().begin(10_000, 24)
    assert begins % 8 == np.frombuffer(again, np.uint8).ctypes.data % 8 == 0


class Failing(StandIn):
    """A GPU that fails at its third block, as often as is said."""

    error: RuntimeError
    left = 0

    def submit(
        self,
        content: memoryview,
        pieces: Sequence[Piece],
        elements: int,
        stored: DType,
        dtype: DType,
        scales: Scales | None = None,
    ) -> Finish:
        """Fail on the way."""
        if self._begun >= 3 and Failing.left:
            Failing.left -= 1
            pieces = [_Raising(self.error)]  # type: ignore[list-item]
        return super().submit(content, pieces, elements, stored, dtype, scales)


class _Raising:
    """A piece at which the device fails."""

    def __init__(self, error: RuntimeError) -> None:
        self._error = error

    @property
    def is_straight(self) -> bool:
        raise self._error


FULL = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 16.00 MiB.")
DEAD = RuntimeError(
    "CUDA error: uncorrectable ECC error encountered\nCUDA kernel errors might be asynchronous"
)
BUG = RuntimeError("setStorage: sizes [3], strides [1] are out of bounds for storage of size 2")


def convert_failing(
    source: Path, output: Path, error: RuntimeError, times: int, monkeypatch: pytest.MonkeyPatch
) -> tuple[RecordingProgress, list[str]]:
    """Convert on a GPU that fails; the scheduler lets units rest for no time."""
    monkeypatch.setattr(Failing, "error", error, raising=False)
    monkeypatch.setattr(Failing, "left", times)
    progress = RecordingProgress()
    with pretended_gpu(Failing) as opened:
        distconv.convert(
            source, output, dtype="float16", max_shard_size=150_000, device="cuda", progress=progress
        )
    return progress, opened


def test_a_unit_for_which_the_gpu_had_no_memory_is_made_again(
    checkpoint: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    progress, _opened = convert_failing(checkpoint(SPECS[0]), tmp_path / "cuda", FULL, 1, monkeypatch)
    (note,) = (note for note in progress.notes if note.startswith("starts again"))
    assert note.startswith(
        "starts again: the GPU, or memory that it can reach, is full (CUDA out of memory. Tried"
    )
    assert "`gpus_per_worker=`" in note
    distconv.convert(checkpoint(SPECS[0]), tmp_path / "host", dtype="float16", max_shard_size=150_000)
    assert read_data(tmp_path / "cuda") == read_data(tmp_path / "host")


@pytest.mark.slow
def test_a_gpu_that_stays_full_is_said_once_and_leaves_nothing_that_looks_whole(
    checkpoint: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ConversionError, match=r"failed 3 times, the last time with: the GPU, or .* is full"):
        convert_failing(checkpoint(SPECS[0]), tmp_path / "cuda", FULL, 1000, monkeypatch)
    assert not (tmp_path / "cuda" / "model.safetensors.index.json").exists()


def test_a_lost_gpu_is_not_asked_again_and_the_cpu_goes_on_to_the_same_bytes(
    checkpoint: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.modules[run_units.__module__], "_INLINE_LANES", 1)
    progress, opened = convert_failing(checkpoint(SPECS[0]), tmp_path / "cuda", DEAD, 1000, monkeypatch)
    (note,) = (note for note in progress.notes if note.startswith("starts again"))
    assert (
        "is lost to this process (CUDA error: uncorrectable ECC error encountered), which goes on with"
        in note
    )
    assert opened == ["lane 0"]
    distconv.convert(checkpoint(SPECS[0]), tmp_path / "host", dtype="float16", max_shard_size=150_000)
    assert read_data(tmp_path / "cuda") == read_data(tmp_path / "host")


def test_a_mistake_of_ours_is_not_called_the_gpus(
    checkpoint: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ConversionError, match="RuntimeError: setStorage") as caught:
        convert_failing(checkpoint(SPECS[0]), tmp_path / "cuda", BUG, 1, monkeypatch)
    assert not isinstance(caught.value, DeviceError)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_worker_without_a_gpu_says_on_which_host_and_why() -> None:
    with (
        pytest.raises(
            ConversionError, match=r".+: device cuda: torch sees no GPU here \(.+\); use `device='cpu'`"
        ),
        lane_devices.lane_device("cuda"),
    ):
        pass


def test_each_thread_has_a_device_of_its_own_and_keeps_it_for_the_next_unit() -> None:
    found = []

    def open_twice() -> None:
        for _ in range(2):
            with lane_devices.lane_device("cpu") as device:
                found.append(device)

    for _ in range(2):
        thread = threading.Thread(target=open_twice)
        thread.start()
        thread.join()
    assert found[0] is found[1]
    assert found[2] is found[3]
    assert found[1] is not found[2]


def test_who_is_in_use_is_not_given_to_another_nor_is_one_whose_unit_failed() -> None:
    with lane_devices.lane_device("cpu") as outer, lane_devices.lane_device("cpu") as inner:
        assert outer is not inner
    with pytest.raises(KeyError), lane_devices.lane_device("cpu") as failed:
        raise KeyError
    with lane_devices.lane_device("cpu") as other:
        assert other is not failed


@pytest.mark.gpu
@pytest.mark.parametrize("stored", [one for one in DTYPES.values() if one.rank >= 0], ids=str)
@pytest.mark.parametrize("dtype", [FLOAT16, BFLOAT16, FLOAT32], ids=str)
def test_blocks_on_their_way_take_no_more_of_the_gpu_than_is_planned(stored: DType, dtype: DType) -> None:
    device, unit = TorchDevice("cuda"), max(stored.size_bytes, dtype.size_bytes)
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    elements = device.block_bytes // unit
    columns = elements // 64
    piece = Piece(
        Region("shard", 0, 0, 0, zipped=False), 0, 64 * columns, (64, columns), (1, 64), 0, (columns, 1)
    )
    for _round in range(2):
        finishes = []
        for _block in range(device.depth):
            memory = device.begin(64 * columns * stored.size_bytes, 0)
            finishes.append(device.submit(memory, [piece], 64 * columns, stored, dtype))
        for finish in finishes:
            finish()
    assert torch.cuda.max_memory_allocated() - before <= GPU_MEMORY_BYTES
