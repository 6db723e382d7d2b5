"""What a .pth file may not exceed, and what is said of it then, to the letter."""

import io
import struct
import zipfile
from pathlib import Path

import pytest
import torch

from distconv.errors import InputError
from distconv.formats.marks import StorageMark, TensorMark
from distconv.formats.meta import archive as archives
from distconv.formats.meta import legacy
from distconv.formats.meta.archive import (
    RangeFile,
    _check_extent,
    _damaged,
    _make_record,
    find_data,
    read_archive,
)
from distconv.formats.meta.catalog import read_catalog
from distconv.formats.meta.layouts import ShardFiles
from distconv.layout.dtypes import DTYPES
from distconv.layout.regions import Region
from tests.formats.test_archive import DAMAGED, STORAGE, read, refused, save
from tests.fuzz import MemoryReader
from tests.programs import make_legacy, text


@pytest.fixture
def good(tmp_path: Path) -> Path:
    """Give a good file, to be damaged."""
    return save(tmp_path / "s.pth", {"a": torch.arange(12.0).view(3, 4), "b": torch.ones(4)})


class FailingReader(MemoryReader):
    """A file of which only the beginning can be read."""

    def read_into(self, offset_bytes: int, buffer: memoryview) -> None:
        """Fail behind the first bytes."""
        if offset_bytes:
            raise OSError(5, "the disk fails")
        super().read_into(offset_bytes, buffer)


class ShortReader(MemoryReader):
    """A file that is shorter than it was said to be."""

    def __init__(self, content: bytes) -> None:
        """Give the first half only."""
        super().__init__(content[: len(content) // 2])
        self.size_bytes = len(content)


def test_what_cannot_be_read_is_no_damage(good: Path) -> None:
    with pytest.raises(OSError, match="the disk fails"):
        read_archive(FailingReader(good.read_bytes()))


def test_a_reader_is_a_file_for_whoever_wants_one() -> None:
    file, plain = RangeFile(MemoryReader(b"abcdef")), io.BytesIO(b"abcdef")
    for act in (
        lambda found: found.read(2), lambda found: found.seek(0), lambda found: found.tell(), lambda found: found.read(),
        lambda found: found.seek(-2, io.SEEK_END), lambda found: found.read(9), lambda found: found.seek(3),
        lambda found: found.seek(-1, io.SEEK_CUR), lambda found: found.read(None), lambda found: found.seek(99),
        lambda found: found.read(1), lambda found: found.tell(),
    ):  # fmt: skip
        assert act(file) == act(plain)
    with pytest.raises(OSError, match=r"^seek to -2$"):
        file.seek(-8, io.SEEK_END)
    file.seek(0)
    assert (file.read(0), file.read(1), file.tell()) == (b"", b"a", 1)


def test_a_table_of_records_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archives, "_TABLE_LIMIT_BYTES", 5)
    assert RangeFile(MemoryReader(b"abcdef")).read(5) == b"abcde"
    with pytest.raises(InputError) as raised:
        RangeFile(MemoryReader(b"abcdef")).read()
    assert str(raised.value) == "a zip archive whose table of records is larger than 5 bytes"


def test_a_record_has_one_size() -> None:
    member = zipfile.ZipInfo("name")
    member.file_size, member.compress_size = 5, 6
    with pytest.raises(InputError) as raised:
        _make_record(MemoryReader(bytes(99)), member)
    assert str(raised.value) == "the record name claims two sizes; the file is damaged"


def test_a_reader_that_names_its_file_is_not_named_again(good: Path) -> None:
    with pytest.raises(InputError) as raised:
        read_archive(ShortReader(good.read_bytes()))
    assert str(raised.value) == "fuzzed.pth: the file is truncated"


@pytest.mark.parametrize(
    ("shape", "strides", "offset", "end"),
    [
        ((1, 4), (9, 1), 8, None),
        ((1, 4), (9, 1), 9, 52),
        ((0, 4), (9, 1), 12, None),
        ((0, 4), (9, 1), 13, 52),
    ],
)
def test_a_view_lies_in_its_storage(
    shape: tuple[int, ...], strides: tuple[int, ...], offset: int, end: int | None
) -> None:
    storage = StorageMark("0", DTYPES["float32"], 12)
    view = TensorMark(storage, DTYPES["float32"], offset, shape, strides)
    record = Region("file", 0, 48, 0, zipped=True)
    if end is None:
        _check_extent("a", view, record)
        return
    with pytest.raises(InputError) as raised:
        _check_extent("a", view, record)
    assert str(raised.value) == f"a: reaches to byte {end} of a storage of 48 bytes"


def test_the_description_is_bounded(good: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with zipfile.ZipFile(good) as archive:
        size = archive.getinfo("s/data.pkl").file_size
    monkeypatch.setattr(archives, "LIMIT_BYTES", size)
    assert len(read(good).shards[0].tensors) == 2
    monkeypatch.setattr(archives, "LIMIT_BYTES", size - 1)
    assert refused(good) == f"{good}: the record s/data.pkl is larger than {size - 1} bytes"


def test_a_record_that_ends_behind_the_file_is_refused() -> None:
    member = zipfile.ZipInfo("name")
    member.header_offset, member.file_size, member.compress_size, member.CRC = 100, 5, 5, 7
    region = _make_record(MemoryReader(bytes(139)), member)
    assert region == Region("fuzzed.pth", 100, 5, 7, zipped=True)
    with pytest.raises(InputError) as raised:
        _make_record(MemoryReader(bytes(138)), member)
    assert str(raised.value) == (
        "the record name ends at byte 139, the file at 138; "
        "the file is truncated or damaged: download it again"
    )


def test_a_local_header_is_that_of_stored_data_which_ends_in_the_file() -> None:
    plain = struct.pack("<4s5H3L2H", b"PK\x03\x04", 20, 0, 0, 0, 0, 0, 5, 5, 3, 4)
    record = Region("file", 100, 5, 0, zipped=True)
    assert find_data(plain, record, 142) == 137
    with pytest.raises(InputError) as raised:
        find_data(plain, record, 141)
    assert str(raised.value) == (
        "file: the record at byte 100 ends at byte 142, the file at 141; the file is truncated"
    )
    for place, value in ((0, b"X"), (6, b"\1"), (8, b"\x08")):
        with pytest.raises(InputError) as raised:
            find_data(plain[:place] + value + plain[place + 1 :], record, 142)
        assert str(raised.value) == ("file: no record header of stored data at byte 100; the file is damaged")


@pytest.mark.parametrize(
    ("programs", "words"),
    [
        ({4: b"](" + text("0") + text("0") + b"e"}, "storage 0 is there twice; the file is damaged"),
        ({4: b"]K\0a"}, "storage 0 belongs to no tensor of the state dict, so its size is unknown"),
        ({4: b"](" + text("1") + b"e"}, "storage '1' belongs to no tensor of the state dict, so its size is unknown"),
        ({4: b"]"}, f"no data for storage 0; {DAMAGED}"),
        ({4: b"}"}, "no list of storages"),
        ({0: b"K\x01"}, "a pickle that torch.save did not write, expected a torch checkpoint"),
        ({1: b"K\x01"}, "a pickle that torch.save did not write, expected a torch checkpoint"),
        ({2: b"}" + text("little_endian") + b"\x89s"}, "saved on a big-endian machine; save it again on a little-endian one"),
    ],
)  # fmt: skip
def test_the_five_pickles_of_a_legacy_file_are_as_torch_writes_them(
    programs: dict[int, bytes], words: str
) -> None:
    with pytest.raises(InputError) as raised:
        read_archive(MemoryReader(make_legacy(programs)))
    assert str(raised.value) == f"fuzzed.pth: {words}"


def test_each_storage_of_a_legacy_file_has_its_size_before_it() -> None:
    good = make_legacy({})
    ((mark, region),) = read_archive(MemoryReader(good)).values()
    assert region == Region("fuzzed.pth", len(good) - 48, 48, 0, zipped=False)
    assert (region.crc32, region.zipped, mark.shape) == (0, False, (3, 4))
    for content, elements in ((good[:-1], 12), (good[:-56] + struct.pack("<q", -1) + bytes(48), -1)):
        with pytest.raises(InputError) as raised:
            read_archive(MemoryReader(content))
        assert str(raised.value) == (
            f"fuzzed.pth: storage 0 has {elements} elements, expected 12, "
            f"in a file of {len(content):,} bytes; {DAMAGED}"
        )


def test_a_legacy_description_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    content = make_legacy({2: text("x" * 5000)})
    monkeypatch.setattr(legacy, "_WINDOW_BYTES", 100)
    assert list(read_archive(MemoryReader(content))) == ["a"]
    monkeypatch.setattr(legacy, "LIMIT_BYTES", 5000)
    with pytest.raises(InputError, match=r"^fuzzed\.pth: its description is larger than 5,000 bytes$"):
        read_archive(MemoryReader(content))


def test_whatever_a_parser_raises_is_one_short_line() -> None:
    error = _damaged(MemoryReader(b""), KeyError("x" * 200))
    assert str(error) == (
        f"fuzzed.pth: not a readable torch checkpoint (KeyError: '{'x' * 119}); {DAMAGED}: download it again"
    )
    assert "(ValueError: two lines)" in str(_damaged(MemoryReader(b""), ValueError("two\n  lines")))


def test_files_that_share_no_tensor_are_parts_of_one_shard_and_that_is_said(tmp_path: Path) -> None:
    paths = [save(tmp_path / f"{name}.pth", {name: torch.ones(2)}) for name in "ab"]
    single = read(paths[0])
    assert (len(single.shards), single.notes) == (1, ())
    ranks = tuple(ShardFiles(number, (str(path),)) for number, path in enumerate(paths))
    both = read_catalog(STORAGE, ranks)
    (shard,) = both
    assert (shard.name, shard.paths) == ("a.pth", tuple(map(str, paths)))
    assert shard.size_bytes == both.size_bytes == sum(path.stat().st_size for path in paths)
    assert both.notes == (
        f"{paths[0]} and 1 more: no two of them hold the same tensor, so they are parts of one shard",
    )
