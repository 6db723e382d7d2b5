"""Shards of 4 GiB and more: what torch writes around the data, and what zipfile finds; no data is touched."""

import math
import mmap
import zipfile
import zlib
from collections.abc import Iterable
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from distconv.formats.meta.archive_layout import ArchiveLayout, lay_out_archive
from distconv.formats.meta.pickle_writer import TensorEntry
from distconv.layout.dtypes import STORABLE
from tests.formats.shards import STEM, State, entries_of, same_bytes, write_runs

GIB = 1 << 30
MAP_NORESERVE = 0x4000  # of Linux; the standard library names it from 3.13 on

large_entries = st.lists(
    st.tuples(st.lists(st.integers(0, 1 << 13), max_size=3).map(tuple), st.sampled_from(STORABLE)),
    max_size=30,
).map(lambda found: [TensorEntry(f"w{number}", dtype, shape) for number, (shape, dtype) in enumerate(found)])


def checksum_of(number: int, size_bytes: int) -> int:
    """Give CRC32s that tell records apart."""
    return number * 0x01010101 if size_bytes else 0


def seal_of(layout: ArchiveLayout) -> tuple[tuple[int, bytes], ...]:
    return layout.seal(
        [checksum_of(number, record.size_bytes) for number, record in enumerate(layout.storages)]
    )


@given(large_entries)
def test_literals_storages_and_seal_tile_the_file(entries: list[TensorEntry]) -> None:
    layout = lay_out_archive(STEM, entries)
    extents = [(offset, len(content)) for offset, content in (*layout.literals, *seal_of(layout))]
    extents += [(record.offset_bytes, record.size_bytes) for record in layout.storages if record.size_bytes]
    position = 0
    for offset_bytes, size_bytes in sorted(extents):
        assert offset_bytes == position
        position += size_bytes
    assert position == layout.size_bytes


@given(large_entries)
def test_zipfile_reads_names_offsets_sizes_and_checksums_however_large(
    tmp_path_factory: pytest.TempPathFactory, entries: list[TensorEntry]
) -> None:
    layout = lay_out_archive(STEM, entries)
    path = tmp_path_factory.mktemp("sparse") / f"{STEM}.pth"
    path.touch()
    write_runs(path, (*layout.literals, *seal_of(layout)))
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
        assert [member.filename for member in members] == [
            f"{STEM}/{record.name}" for record in layout.records
        ]
        found = [member for member in members if "/data/" in member.filename]
        for number, (member, entry, record) in enumerate(zip(found, entries, layout.storages, strict=True)):
            size_bytes = math.prod(entry.shape) * entry.dtype.size_bytes
            assert member.file_size == member.compress_size == record.size_bytes == size_bytes
            assert checksum_of(number, size_bytes) == member.CRC
            with archive.open(member):
                assert archive.fp.tell() == record.offset_bytes
    path.unlink()


def empty_tensors(shapes: Iterable[tuple[int, ...]], dtype: torch.dtype) -> State:
    """Make tensors of any size in memory that is never touched, each in a storage of its own."""
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | MAP_NORESERVE
    state: State = {}
    for number, shape in enumerate(shapes):
        size_bytes = math.prod(shape) * dtype.itemsize
        untouched = mmap.mmap(-1, max(size_bytes, mmap.PAGESIZE), flags=flags)
        flat = (
            torch.frombuffer(untouched, dtype=dtype, count=math.prod(shape)) if size_bytes else torch.empty(0)
        )
        state[f"layers.{number}.weight"] = flat.to(dtype).view(shape)
    return state


SIZES = [
    pytest.param([((1 << 31) - 1,), (3,), (0,)], id="a record of one element less than 4 GiB, and records behind it"),
    pytest.param([(1 << 31,), (3,), (0,), (2, 0)], id="a record of 4 GiB, and records behind it"),
    pytest.param([(5,), ((1 << 31) + 1,), (1 << 16, 1 << 15)], id="records beyond 4 GiB that begin beyond 4 GiB"),
    pytest.param([(1 << 20, 500)] * 9, id="records of 1 GB, past 4 GiB"),
    pytest.param([(16, 1 << 31)], id="more elements than fit into 32 bits"),
    *(pytest.param([((1 << 31) - less,), (3,), (3,)], id=f"{2 * less} bytes before 4 GiB") for less in range(250, 700, 16)),
]  # fmt: skip


@same_bytes
@pytest.mark.parametrize("shapes", SIZES)
def test_headers_of_large_files_are_those_that_torch_writes(
    tmp_path: Path, shapes: list[tuple[int, ...]]
) -> None:
    state = empty_tensors(shapes, torch.bfloat16)
    path = tmp_path / f"{STEM}.pth"
    with torch.serialization.skip_data():
        torch.save(state, path)
    layout = lay_out_archive(STEM, entries_of(state))
    assert layout.size_bytes == path.stat().st_size
    with path.open("rb") as file:
        # Without data torch takes all CRC32s for 0.
        for offset_bytes, content in (*layout.literals, *layout.seal([0] * len(layout.storages))):
            file.seek(offset_bytes)
            assert file.read(len(content)) == content, offset_bytes


class Stream:
    """Takes what torch writes, in order, and keeps all but the tensors' data."""

    def __init__(self) -> None:
        self.size_bytes = 0
        self.small: dict[int, bytes] = {}

    def write(self, content: memoryview) -> int:
        """Take the next bytes."""
        if len(content) < GIB:
            self.small[self.size_bytes] = bytes(content)
        self.size_bytes += len(content)
        return len(content)

    def flush(self) -> None:
        """Do nothing."""


@same_bytes
@pytest.mark.slow
def test_a_record_of_4_gib_with_its_checksum_is_what_torch_streams() -> None:
    state = empty_tensors([(1 << 31,), (3,)], torch.bfloat16)
    stream = Stream()
    torch.save(state, stream)
    layout = lay_out_archive("archive", entries_of(state))
    checksums = [zlib.crc32(memoryview(tensor.view(torch.uint8).numpy())) for tensor in state.values()]
    ours = dict((*layout.literals, *layout.seal(checksums)))
    ours[layout.storages[1].offset_bytes] = bytes(6)
    assert layout.size_bytes == stream.size_bytes
    assert joined(ours) == joined(stream.small)


def joined(runs: dict[int, bytes]) -> dict[int, bytes]:
    """Join runs that adjoin."""
    found: dict[int, bytearray] = {}
    start = end = -1
    for offset_bytes, content in sorted(runs.items()):
        if offset_bytes != end:
            start = offset_bytes
        found.setdefault(start, bytearray()).extend(content)
        end = offset_bytes + len(content)
    return {offset_bytes: bytes(content) for offset_bytes, content in found.items()}
