"""Reading ahead: the same bytes as without, few requests of a good size, bounded memory, an end when told to."""

import itertools
import struct
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from distconv.errors import InputError, Interrupted
from distconv.layout.copies import Copy, Loop
from distconv.layout.dtypes import BFLOAT16, FLOAT32, FLOAT64
from distconv.layout.files import OutputTensor
from distconv.layout.regions import Region
from distconv.layout.stripes import stack
from distconv.moving.cells import Cells, cut
from distconv.moving.contents import Contents, expect_requests
from distconv.moving.devices import HostDevice
from distconv.moving.sources import Sources
from distconv.storage.base import Access, ignore
from distconv.storage.http import ranges
from distconv.storage.local import LocalStorage
from tests.moving.stand_ins import StandIn
from tests.patience import HANG_SECONDS
from tests.views import Case, cases


@dataclass(frozen=True)
class Far:
    """Files in memory that say what access to them costs, and note what is asked for."""

    files: dict[str, bytes]
    access: Access
    asked: list[tuple[str, int, int]] = field(default_factory=list)
    gate: threading.Event | None = None

    def open(self, path: str) -> "FarReader":
        """Open one of them."""
        return FarReader(self, path, len(self.files[path]), self.access)


@dataclass(frozen=True)
class FarReader:
    """One of them."""

    far: Far
    path: str
    size_bytes: int
    access: Access

    def read_into(self, offset_bytes: int, buffer: memoryview) -> None:
        """Give what is there, and never more."""
        self.read_vector(offset_bytes, (buffer,))

    def read_vector(
        self, offset_bytes: int, buffers: Sequence[memoryview], told: Callable[[int], object] = ignore
    ) -> None:
        """Give what is there, and never more."""
        if self.far.gate is not None:
            self.far.gate.wait()
        self.far.asked.append((self.path, offset_bytes, sum(map(len, buffers))))
        first = offset_bytes
        for buffer in buffers:
            found = self.far.files[self.path][offset_bytes : offset_bytes + len(buffer)]
            assert len(found) == len(buffer), "beyond the end of the file"
            buffer[:] = found
            offset_bytes += len(buffer)
            told(offset_bytes - first)

    def close(self) -> None:
        """Do nothing."""


def make_header(extra_bytes: int) -> bytes:
    """Make a zip record's local header as its fields are."""
    return struct.pack("<4s5H3L2H", b"PK\x03\x04", 0, 0, 0, 0, 0, 0, 0, 0, 9, extra_bytes) + b"n" * 9


@dataclass
class Shelf:
    """Puts the storages of cases into files, some in records of a zip."""

    files: dict[str, bytes] = field(default_factory=dict)

    def put(self, case: Case, number: int, before: int, extra: int | None) -> OutputTensor:
        """Give the case's tensor, its storages in files of its own; without ``extra`` not in a zip."""
        unit = case.target.stored.size_bytes
        moved = {}
        for region, elements in case.contents.items():
            path = f"{number} {region.path}"
            header = b"" if extra is None else make_header(extra) + b"x" * extra
            data = elements.astype(f"u{unit}").tobytes()
            self.files[path] = b"." * before + header + data
            moved[region] = Region(path, before, len(data), 0, zipped=extra is not None)
        copies = tuple(copy._replace(region=moved[copy.region]) for copy in case.target.copies)
        return replace(case.target, copies=copies)


ONE_TYPE = st.sampled_from([(BFLOAT16,), (FLOAT32,), (FLOAT64,)])
UNITS = st.lists(
    st.tuples(
        ONE_TYPE.flatmap(lambda types: cases(types=types)),
        st.integers(0, 70),
        st.none() | st.integers(0, 100) | st.integers(450, 700),
    ),
    min_size=1,
    max_size=4,
)
ACCESSES = st.builds(
    Access,
    gap_bytes=st.integers(0, 300),
    request_bytes=st.integers(8, 5000),
    ahead_bytes=st.integers(1, 20_000),
)


@given(UNITS, ACCESSES, st.integers(1, 4096) | st.none(), st.booleans())
def test_what_is_read_ahead_is_made_into_the_same_bytes(
    units: list[tuple[Case, int, int | None]], access: Access, block_bytes: int | None, several: bool
) -> None:
    shelf = Shelf()
    tensors = [shelf.put(case, number, *where) for number, (case, *where) in enumerate(units)]
    far = Far(shelf.files, access)
    device = StandIn() if several else HostDevice()
    with Sources(far) as sources:  # type: ignore[arg-type]  # it is only read from
        contents = Contents(tensors, [0] * len(tensors), sources, device, block_bytes)
        for place, (case, *_where) in enumerate(units):
            found = b"".join(bytes(content) for _block, content, _infinite in contents.of(place))
            assert found == case.expected.astype(f"u{case.target.stored.size_bytes}").tobytes()


def stack_shares(
    data: "np.ndarray[tuple[int, int], np.dtype[np.uint16]]", at: int, shards: int
) -> OutputTensor:
    """Give the column shares of a matrix, which are written together."""
    region, share = Region("f", at, data.nbytes, 0, zipped=False), data.shape[1] // shards
    parts = []
    for number in range(shards):
        loops = (Loop(data.shape[0], data.shape[1], 0), Loop(share, 1, 1))
        copy = Copy(region, number * share, (0, 0), loops)
        parts.append(OutputTensor("t", "", (data.shape[0], share), BFLOAT16, BFLOAT16, (copy,)))
    stacked = stack(parts)
    assert stacked is not None
    return stacked


@given(
    st.lists(st.tuples(st.sampled_from([2, 3, 5, 9, 33]), st.integers(1, 8)), min_size=1, max_size=6),
    st.integers(300, 1000),
    st.sampled_from([2, 4]),
)
def test_shares_that_are_written_together_are_cut_whole_of_each(
    sizes: list[tuple[int, int]], request_bytes: int, shards: int
) -> None:
    """Memory of 64 bytes a cell, so that a block's lies in several, whose last one has one row."""
    random = np.random.default_rng(0)
    matrices = [random.integers(0, 1 << 16, (rows, 32 * units), dtype=np.uint16) for rows, units in sizes]
    places = np.cumsum([0, *(matrix.nbytes for matrix in matrices)]).tolist()
    tensors = [stack_shares(matrix, at, shards) for matrix, at in zip(matrices, places, strict=False)]
    files = {"f": b"".join(matrix.tobytes() for matrix in matrices)}
    far = Far(files, Access(gap_bytes=64, request_bytes=request_bytes, ahead_bytes=8192))
    with Sources(far) as sources:  # type: ignore[arg-type]  # it is only read from
        contents = Contents(tensors, [0] * len(tensors), sources, HostDevice(), 512)
        for place, matrix in enumerate(matrices):
            found = [bytearray() for _ in range(shards)]
            for _block, content, _infinite in contents.of(place):
                share = len(content) // shards
                for number in range(shards):
                    found[number] += content[number * share : (number + 1) * share]
            assert found == [part.tobytes() for part in np.split(matrix, shards, axis=1)]


def matrices(
    count: int, rows: int, row: int, *, shards: int = 1
) -> tuple[dict[str, bytes], list[OutputTensor]]:
    """Make matrices whose columns lie in so many files, one behind the other in each, as records of a zip."""
    header = make_header(3) + b"xxx"
    size = rows * row * 2
    files = {f"{shard}": (header + bytes(size)) * count for shard in range(shards)}
    tensors = []
    for number in range(count):
        regions = [Region(path, number * (len(header) + size), size, 0, zipped=True) for path in files]
        copies = tuple(
            Copy(region, 0, (0, shard * row), (Loop(rows, row, 0), Loop(row, 1, 1)))
            for shard, region in enumerate(regions)
        )
        tensors.append(OutputTensor(f"{number}", "", (rows, row * shards), BFLOAT16, BFLOAT16, copies))
    return files, tensors


ACCESS = Access(gap_bytes=1 << 16, request_bytes=1 << 20, ahead_bytes=6 << 20)


@pytest.mark.parametrize("shards", [1, 3, 8])
def test_requests_are_of_a_good_size_and_headers_come_with_the_data(shards: int) -> None:
    files, tensors = matrices(3, 3000, 1024, shards=shards)
    far = Far(files, ACCESS)
    with Sources(far) as sources:  # type: ignore[arg-type]  # it is only read from
        contents = Contents(tensors, [0, 0, 0], sources, HostDevice(), 128 << 10)
        for place in range(3):
            assert not any(any(content) for _block, content, _infinite in contents.of(place))
        total = sum(tensor.size_bytes for tensor in tensors)
        good = min(ACCESS.request_bytes, ACCESS.ahead_bytes // 2 // shards)
        assert len(far.asked) <= 1.2 * total / good + len(tensors) * shards
        assert total <= sources.bytes_read == sum(size for _path, _first, size in far.asked) <= 1.01 * total


def test_no_more_is_asked_for_than_is_to_be_read_ahead() -> None:
    files, tensors = matrices(1, 64_000, 1024)
    gate = threading.Event()
    far = Far(files, ACCESS, gate=gate)
    with Sources(far) as sources:  # type: ignore[arg-type]  # it is only read from
        gate.set()
        contents = Contents(tensors, [0], sources, HostDevice())
        given_bytes = 0
        for _block, content, _infinite in contents.of(0):
            given_bytes += len(content)
            assert sources.bytes_read - given_bytes <= ACCESS.ahead_bytes
    assert len(far.asked) == expect_requests(tensors, ACCESS)


def test_of_many_files_what_a_block_wants_is_asked_for_at_once() -> None:
    """There is room for the ranges of a few of them only."""
    files, tensors = matrices(1, 60, 16 << 10, shards=16)
    left, all_asked = itertools.count(15, -1), threading.Event()

    class Together(threading.Event):
        """Opens once each file has been asked."""

        def wait(self, timeout: float | None = None) -> bool:
            """Wait for the others."""
            if next(left) <= 0:
                all_asked.set()
            assert all_asked.wait(HANG_SECONDS if timeout is None else timeout)
            return True

    access = replace(ACCESS, ahead_bytes=1 << 20)
    with Sources(Far(files, access, gate=Together())) as sources:  # type: ignore[arg-type]  # it is only read from
        contents = Contents(tensors, [0], sources, HostDevice())
        found = sum(len(content) for _block, content, _infinite in contents.of(0))
    assert found == tensors[0].size_bytes


def test_what_has_come_of_an_answer_is_used_while_the_rest_comes() -> None:
    files, tensors = matrices(1, 3000, 1024)
    used = threading.Event()

    class Slow(FarReader):
        """A file of which each answer ends once some of what it began with was used."""

        def read_vector(
            self, offset_bytes: int, buffers: Sequence[memoryview], told: Callable[[int], object] = ignore
        ) -> None:
            """Give the first half, wait, and give all."""
            half = sum(map(len, buffers)) // 2
            super().read_vector(offset_bytes, cut(buffers, 0, half))
            told(half)
            assert used.wait(HANG_SECONDS)
            super().read_vector(offset_bytes, buffers, told)

    class Place(Far):
        """Where it lies."""

        def open(self, path: str) -> Slow:
            """Open it."""
            return Slow(self, path, len(self.files[path]), self.access)

    with Sources(Place(files, ACCESS)) as sources:  # type: ignore[arg-type]  # it is only read from
        contents = Contents(tensors, [0], sources, HostDevice(), 128 << 10)
        blocks = contents.of(0)
        found = len(next(blocks)[1])
        used.set()
        assert found + sum(len(content) for _block, content, _infinite in blocks) == tensors[0].size_bytes


def test_who_is_told_to_stop_does_not_wait_for_an_answer() -> None:
    files, tensors = matrices(1, 3000, 1024)
    gate, stop = threading.Event(), threading.Event()
    stop.set()
    with Sources(Far(files, ACCESS, gate=gate)) as sources:  # type: ignore[arg-type]  # it is only read from
        try:
            with pytest.raises(Interrupted):
                Contents(tensors, [0], sources, HostDevice(), stopped=stop.is_set)
        finally:
            gate.set()


def test_an_answer_that_is_an_error_is_raised_where_its_block_is_needed() -> None:
    files, tensors = matrices(2, 3000, 1024)
    header = len(make_header(3)) + 3
    files["0"] = files["0"][: header + 3000 * 2048] + b"damage" + files["0"][header + 3000 * 2048 + 6 :]
    with Sources(Far(files, ACCESS)) as sources:  # type: ignore[arg-type]  # it is only read from
        contents = Contents(tensors, [0, 0], sources, HostDevice())
        with pytest.raises(InputError, match="no record header of stored data at byte 6,144,042"):
            list(itertools.chain(contents.of(0), contents.of(1)))


@given(st.integers(1, 200 << 10), st.lists(st.integers(1, 60 << 10) | st.none(), max_size=60))
def test_cells_never_overlap_and_are_given_while_there_is_room(size: int, steps: list[int | None]) -> None:
    memory = Cells(size)
    count = size // memory.cell_bytes
    held: list[tuple[int, list[int], list[memoryview]]] = []
    for number, step in enumerate(steps):
        if step is None:
            if held:
                value, cells, runs = held.pop(number % len(held))
                assert all((np.frombuffer(run, np.uint8) == value).all() for run in runs)
                for cell in cells:
                    memory.give_back(cell)
            continue
        taken = memory.take(step)
        if taken is None:
            used = sum(len(cells) for _value, cells, _runs in held)
            assert (count - used) * memory.cell_bytes < step
            continue
        runs = cut(memory.list_runs(taken), 0, step)
        assert sum(map(len, runs)) == step
        for run in runs:
            run[:] = bytes([number % 256]) * len(run)
        held.append((number % 256, taken, runs))
    for value, cells, runs in held:
        assert all((np.frombuffer(run, np.uint8) == value).all() for run in runs)
        for cell in cells:
            memory.give_back(cell)
    whole = memory.take(count * memory.cell_bytes)
    assert whole is not None
    assert len(memory.list_runs(whole)) <= 1, "neighbours are one run"


@given(st.lists(st.binary(max_size=9), max_size=9), st.integers(0, 40), st.integers(0, 40))
def test_what_is_cut_out_of_runs_is_what_lies_there(runs: list[bytes], first: int, size: int) -> None:
    found = cut([memoryview(run) for run in runs], first, size)
    assert b"".join(found) == b"".join(runs)[first : first + size]
    assert all(found)


def test_a_local_file_is_read_when_it_is_needed(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(bytes(64 << 20))
    region = Region(str(tmp_path / "file"), 0, 64 << 20, 0, zipped=False)
    copies = (Copy(region, 0, (0,), (Loop(32 << 20, 1, 0),)),)
    tensor = OutputTensor("t", "", (32 << 20,), BFLOAT16, BFLOAT16, copies)
    with Sources(LocalStorage()) as sources:
        given_bytes = 0
        for _block, content, _infinite in Contents((tensor,), (0,), sources, HostDevice()).of(0):
            given_bytes += len(content)
            assert sources.bytes_read == given_bytes


@pytest.mark.parametrize("shards", [1, 8])
def test_a_layer_of_70b_takes_no_more_requests_than_8_mib_each(shards: int) -> None:
    """Wo and w2 are cut by columns, the others by rows; the shapes of Llama 2 70B, in elements."""
    by_columns, by_rows = [(8192, 8192), (8192, 28672)], [(8192, 8192), (1024, 8192), (1024, 8192)]
    by_rows += [(28672, 8192)] * 2
    tensors = [
        *(cut_tensor(shape, shards, axis=1) for shape in by_columns),
        *(cut_tensor(shape, shards, axis=0) for shape in by_rows),
    ]
    total = sum(tensor.size_bytes for tensor in tensors)
    assert expect_requests(tensors, ranges.ACCESS) <= 1.01 * total / (8 << 20)


def cut_tensor(shape: tuple[int, int], shards: int, *, axis: int) -> OutputTensor:
    """Make a matrix of which each of so many files holds some rows or columns."""
    part = tuple(size // shards if place == axis else size for place, size in enumerate(shape))
    copies = []
    for shard in range(shards):
        start = tuple(shard * part[place] if place == axis else 0 for place in range(2))
        region = Region(f"{shard}", 0, 2 * part[0] * part[1], 0, zipped=False)
        copies.append(Copy(region, 0, start, (Loop(part[0], part[1], 0), Loop(part[1], 1, 1))))
    return OutputTensor("t", "", shape, BFLOAT16, BFLOAT16, tuple(copies))
