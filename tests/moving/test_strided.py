"""Tensors that are strided views of their storages: the right bytes, read about once, in bounded memory."""

import json
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from distconv.formats.meta.archive import read_archive
from distconv.formats.views import TensorView
from distconv.layout.dtypes import DTYPES, DType
from distconv.layout.files import OutputTensor
from distconv.moving.contents import make_contents
from distconv.moving.devices import Device, Finish, HostDevice, Scales
from distconv.moving.pieces import Piece
from distconv.moving.sources import Sources
from distconv.storage.base import Access
from distconv.storage.local import LocalStorage
from distconv.storage.local_files import LocalReader
from distconv.verbs.plan import _WORKER_MEMORY_BYTES
from tests.moving.stand_ins import devices
from tests.views import BY_ROWS, ROTARY_QUERY, Way


@dataclass
class WatchedDevice:
    """Notes how much memory blocks take on their way through another device."""

    device: Device
    taken_bytes: list[int] = field(default_factory=list)
    depth: int = 1
    block_bytes: int = 4 << 20
    largest_block_bytes: int = 16 << 20

    def begin(self, size_bytes: int, place_bytes: int) -> memoryview:
        """Note what is read."""
        self.taken_bytes.append(size_bytes)
        return self.device.begin(size_bytes, place_bytes)

    def submit(
        self,
        content: memoryview,
        pieces: Sequence[Piece],
        elements: int,
        stored: DType,
        dtype: DType,
        scales: Scales | None = None,
    ) -> Finish:
        """Note what is made of it."""
        self.taken_bytes[-1] += elements * stored.size_bytes
        return self.device.submit(content, pieces, elements, stored, dtype, scales)


@dataclass(frozen=True, slots=True)
class CountedReader:
    """Counts the requests to a file."""

    reader: LocalReader
    sizes_bytes: list[int]

    @property
    def path(self) -> str:
        """The file's."""
        return self.reader.path

    @property
    def size_bytes(self) -> int:
        """The file's."""
        return self.reader.size_bytes

    @property
    def access(self) -> Access:
        """The file's."""
        return self.reader.access

    def read_into(self, offset_bytes: int, buffer: memoryview) -> None:
        """Note the size, and read."""
        self.sizes_bytes.append(len(buffer))
        self.reader.read_into(offset_bytes, buffer)

    def close(self) -> None:
        """Let go of the file."""
        self.reader.close()


@dataclass(frozen=True, slots=True)
class CountedStorage(LocalStorage):
    """Counts the requests to all files."""

    sizes_bytes: list[int] = field(default_factory=list)
    opened: Counter[str] = field(default_factory=Counter)

    def open(self, path: str) -> CountedReader:  # type: ignore[override]
        """Open a file that counts."""
        self.opened[path] += 1
        return CountedReader(LocalReader(path), self.sizes_bytes)


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give a place for a file."""
    return tmp_path_factory.mktemp("strided") / "shard.pth"


def save(file: Path, tensor: torch.Tensor) -> TensorView:
    """Write a tensor with torch, and find it again."""
    torch.save({"tensor": tensor}, file)
    view = find(str(file))
    assert view.shape == tuple(tensor.shape)
    assert view.strides == tuple(tensor.stride())
    return view


def find(path: str) -> TensorView:
    """Find the tensor of a file."""
    reader = LocalReader(path)
    try:
        mark, record = read_archive(reader)["tensor"]
    finally:
        reader.close()
    return TensorView("tensor", record, mark.dtype, mark.offset, mark.shape, mark.strides)


def target_of(view: TensorView, way: Way = BY_ROWS, head_dim: int = 1) -> OutputTensor:
    """Take a view as a whole tensor."""
    shape, copies = way.join((view,), head_dim)
    return OutputTensor("target", "source", shape, view.dtype, view.dtype, copies)


def move(
    target: OutputTensor, device: Device, block_bytes: int | None = None, storage: LocalStorage | None = None
) -> tuple[bytes, int]:
    """Make a tensor's bytes; gives also how many were read."""
    with Sources(storage or LocalStorage()) as sources:
        contents = [
            bytes(content) for _block, content, _n in make_contents(target, sources, device, block_bytes)
        ]
        return b"".join(contents), sources.bytes_read


def bytes_of(tensor: torch.Tensor) -> bytes:
    """A tensor's elements in order."""
    dense = torch.empty(tensor.shape, dtype=tensor.dtype).copy_(tensor)
    return dense.view(torch.uint8).numpy().tobytes()


@st.composite
def views(draw: st.DrawFn) -> torch.Tensor:
    """A view of any kind that torch can make: permuted, sliced, stepped, expanded, overlapping."""
    dtype = draw(st.sampled_from([torch.bfloat16, torch.float32]))
    shape = draw(st.lists(st.integers(1, 24), min_size=1, max_size=3))
    length = draw(st.integers(1, 200)) + torch.Size(shape).numel()
    storage = torch.randn(length, generator=torch.Generator().manual_seed(length)).to(dtype)
    tensor = storage[-torch.Size(shape).numel() :].view(shape)
    if draw(st.booleans()):
        tensor = tensor.permute(draw(st.permutations(range(len(shape)))))
    for axis, size in enumerate(tensor.shape):
        first = draw(st.integers(0, size - 1))
        tensor = tensor.narrow(axis, first, size - first)
        tensor = tensor[(slice(None),) * axis + (slice(None, None, draw(st.sampled_from([1, 1, 2, 5]))),)]
    kind = draw(st.sampled_from(["as it is", "as it is", "expanded", "overlapping"]))
    if kind == "expanded":
        axis = draw(st.integers(0, tensor.dim() - 1))
        tensor = tensor.narrow(axis, 0, 1).expand(*tensor.shape[:axis], 7, *tensor.shape[axis + 1 :])
    if kind == "overlapping":
        strides = draw(st.tuples(st.integers(0, 4), st.integers(0, 4)))
        last = 4 * strides[0] + 5 * strides[1]
        if last < length:
            tensor = storage.as_strided((5, 6), strides, draw(st.integers(0, length - 1 - last)))
    return tensor


@given(views(), st.integers(1, 300) | st.sampled_from([4096, 1 << 20]))
def test_any_view_is_moved_to_its_bytes_in_blocks_of_any_size(
    file: Path, tensor: torch.Tensor, block_bytes: int
) -> None:
    target = target_of(save(file, tensor))
    distinct = torch.zeros(tensor.untyped_storage().nbytes() // tensor.element_size())
    distinct.as_strided(tensor.shape, tensor.stride(), tensor.storage_offset()).fill_(1)
    for device in devices():
        watched = WatchedDevice(device, depth=device.depth)
        found, bytes_read = move(target, watched, block_bytes)
        assert found == bytes_of(tensor)
        row = tensor[0].numel() * tensor.element_size()
        assert max(watched.taken_bytes) <= 2 * max(block_bytes, row)
        if int(distinct.sum()) == tensor.numel():
            assert bytes_read <= 1.1 * tensor.untyped_storage().nbytes()


@given(st.sampled_from([2, 4, 6]), st.integers(1, 5), st.integers(1, 9), st.booleans(), st.integers(1, 400))
def test_heads_of_a_transposed_view_are_read_once(
    file: Path, head_dim: int, heads: int, columns: int, transposed: bool, block_bytes: int
) -> None:
    tensor = torch.randn(heads * head_dim, columns, generator=torch.Generator().manual_seed(columns))
    tensor = tensor.t().contiguous().t() if transposed else tensor
    found, bytes_read = move(target_of(save(file, tensor), ROTARY_QUERY, head_dim), HostDevice(), block_bytes)
    pairs = tensor.reshape(heads, head_dim // 2, 2, columns).transpose(1, 2)
    assert found == bytes_of(pairs.reshape(heads * head_dim, columns))
    assert bytes_read == tensor.numel() * 4


def wide(rows: int, columns: int) -> torch.Tensor:
    """A matrix of numbers that tell their places."""
    return torch.arange(rows * columns, dtype=torch.int32).view(rows, columns).view(torch.float32)


@pytest.mark.parametrize(
    ("make", "requests", "times"),
    [
        (lambda: wide(3000, 2000), 6, 1.0),
        (lambda: wide(2000, 3000).t(), 2000 * 3, 1.0),
        (lambda: wide(3000, 4000)[:, ::2], 12, 2.0),
        (lambda: wide(6000, 2000)[::2], 3000, 1.0),
        (lambda: wide(3000, 4000)[:, 1000:3000], 3000, 1.0),
        (lambda: wide(3000, 2500)[:, :2000], 8, 1.25),
        (lambda: wide(4000, 3000).t()[:, ::2], 2000 * 3, 1.0),
        (lambda: wide(1, 2000).expand(3000, 2000), 6, 0.002),
        (lambda: wide(3000, 1).expand(3000, 2000), 6, 0.002),
        (lambda: wide(1, 5000).as_strided((3000, 2000), (1, 1)), 6, 0.01),
    ],
    ids=["plain", "transposed", "every other column", "every other row", "half of the columns", "most of the columns",
         "every other column of a transposed one", "one row", "one column", "overlapping rows"],
)  # fmt: skip
def test_large_views_are_read_in_few_requests_and_about_once(
    file: Path, make: object, requests: int, times: float
) -> None:
    """``times`` is of the view's own bytes: what lies between them is read only where that saves requests."""
    tensor: torch.Tensor = make()  # type: ignore[operator]
    target, storage, device = target_of(save(file, tensor)), CountedStorage(), WatchedDevice(HostDevice())
    found, bytes_read = move(target, device, storage=storage)
    assert found == bytes_of(tensor)
    assert bytes_read <= 1.01 * times * tensor.numel() * 4
    assert bytes_read <= 1.1 * max(tensor.untyped_storage().nbytes(), tensor.numel() * 4)
    assert len(storage.sizes_bytes) <= 1.3 * requests + 1
    assert max(device.taken_bytes) <= 2 * (16 << 20)
    plain = tensor.is_contiguous()
    assert (max(device.taken_bytes) <= 2 * (4 << 20)) or not plain


@pytest.mark.slow
@pytest.mark.parametrize(
    ("shape", "stored", "dtype", "most_bytes"),
    [
        ((4096, 8192), "bfloat16", "bfloat16", 36 << 20),
        ((2048, 8192), "float32", "bfloat16", _WORKER_MEMORY_BYTES),
        pytest.param((2048, 8192), "bfloat16", "float32", _WORKER_MEMORY_BYTES, marks=pytest.mark.slow),
        pytest.param((128256, 4096), "bfloat16", "bfloat16", 36 << 20, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_a_large_transposed_matrix_takes_what_a_worker_may_take_and_is_read_once(
    tmp_path: Path, shape: tuple[int, int], stored: str, dtype: str, most_bytes: int
) -> None:
    """In a process of its own, whose growth is what the kernel says that it held at most."""
    path = str(tmp_path / "shard.pth")
    with torch.serialization.skip_data():
        torch.save({"tensor": torch.empty(shape[::-1], dtype=getattr(torch, stored)).t()}, path)
    code = f"from tests.moving.test_strided import measure; print(measure({path!r}, {dtype!r}))"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    grown_bytes, bytes_read, bytes_made = json.loads(ended.stdout)
    elements = shape[0] * shape[1]
    assert bytes_made == elements * DTYPES[dtype].size_bytes
    assert bytes_read <= 1.1 * elements * DTYPES[stored].size_bytes
    assert grown_bytes <= most_bytes


def measure(path: str, dtype: str) -> str:
    """Move a tensor of a file block by block, and tell by how much the process grew."""
    small = save(Path(path).parent / "small.pth", torch.ones(5, 5, dtype=torch.float64).t())
    with Sources(LocalStorage()) as sources:  # which imports what there is to import
        list(make_contents(cast_to(target_of(small), dtype), sources, HostDevice()))
    target = cast_to(target_of(find(path)), dtype)
    before = resident_bytes("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    with Sources(LocalStorage()) as sources:
        made = sum(len(content) for _block, content, _n in make_contents(target, sources, HostDevice()))
        return json.dumps([resident_bytes("VmHWM") - before, sources.bytes_read, made])


def cast_to(target: OutputTensor, dtype: str) -> OutputTensor:
    """The same tensor in another type."""
    return replace(target, dtype=DTYPES[dtype])


def resident_bytes(key: str) -> int:
    """What the kernel says of this process's memory."""
    lines = Path("/proc/self/status").read_text().splitlines()
    (line,) = [line for line in lines if line.startswith(key + ":")]
    return int(line.split()[1]) << 10
