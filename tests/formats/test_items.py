"""Where an item's data begins, and what its tensor is, are what torch wrote; whoever else writes zips is read too."""

import io
import struct
import zipfile
import zlib
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch

from distconv.errors import InputError
from distconv.formats.dcp.boxes import _read_item
from distconv.formats.dcp.items import CutShortError, Heads, Item, _check_extent, find_checksum
from distconv.formats.dcp.metadata import Chunk
from distconv.formats.marks import StorageMark, TensorMark
from distconv.formats.meta.pickles import EndsEarlyError
from distconv.layout.dtypes import DTYPES, FLOAT32, DType
from distconv.storage.base import opened
from distconv.storage.local import LocalStorage

MATRIX = torch.arange(12, dtype=torch.float32).reshape(3, 4)
TENSORS = {
    "float32": MATRIX,
    "bfloat16": MATRIX.to(torch.bfloat16),
    "transposed": MATRIX.t(),
    "a view": torch.arange(40, dtype=torch.float32)[3:27].reshape(4, 6)[:, 1:4],
    "no axes": torch.tensor(2.5),
    "nothing": torch.empty(0, 4),
    "int64": torch.arange(5),
}


class Stream(io.BytesIO):
    """What cannot be sought in, so that sizes stand behind the data."""

    def seekable(self) -> bool:
        return False

    def seek(self, offset: int, whence: int = 0) -> int:
        raise io.UnsupportedOperation

    def tell(self) -> int:
        raise io.UnsupportedOperation


def save(tensor: object) -> bytes:
    file = io.BytesIO()
    torch.save(tensor, file)
    return file.getvalue()


def write_anew(content: bytes, file: io.BytesIO, extra: bytes) -> bytes:
    """Write an archive's records as Python's library does, with one more behind the first."""
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(file, "w") as new:
        for number, name in enumerate(old.namelist()):
            if number == 0:
                new.writestr("archive/extra", extra)
            new.writestr(name, old.read(name))
    return file.getvalue()


def describe(tensor: torch.Tensor, content: bytes) -> tuple[DType, Chunk]:
    dtype = DTYPES[str(tensor.dtype).removeprefix("torch.")]
    return dtype, Chunk((0,) * tensor.dim(), tuple(tensor.shape), "__0_0.distcp", 7, len(content))


def read(content: bytes, tensor: torch.Tensor, heads: Heads | None = None) -> Item:
    return (heads or Heads()).read(bytearray(content), *describe(tensor, content))


def prove(item: Item, content: bytes, tensor: torch.Tensor) -> None:
    """The head ends where the storage's bytes begin, and the mark says where in them the tensor is."""
    data = bytes(tensor.untyped_storage())
    first, end = len(item.head), len(item.head) + item.size_bytes
    assert item.head == content[:first]
    assert content[first:end] == data
    assert (item.mark.offset, item.mark.shape) == (tensor.storage_offset(), tuple(tensor.shape))
    assert item.mark.strides == tensor.stride()


@pytest.mark.parametrize("name", TENSORS)
def test_an_item_of_torch_is_found(name: str) -> None:
    tensor, content = TENSORS[name], save(TENSORS[name])
    item = read(content, tensor)
    prove(item, content, tensor)
    behind = content[len(item.head) + item.size_bytes :]
    assert find_checksum(behind, item.size_bytes) == zlib.crc32(bytes(tensor.untyped_storage()))


@pytest.mark.parametrize("name", TENSORS)
@pytest.mark.parametrize(
    "extra", [b"", b"PK\x07\x08" * 7, bytes(300), struct.pack("<4s3L", b"PK\7\x08", 0, 9, 9)]
)
@pytest.mark.parametrize("streamed", [False, True])
def test_an_item_of_another_writer_is_found(name: str, extra: bytes, streamed: bool) -> None:
    tensor = TENSORS[name]
    content = write_anew(save(tensor), Stream() if streamed else io.BytesIO(), extra)
    assert torch.equal(torch.load(io.BytesIO(content)), tensor)
    prove(read(content, tensor), content, tensor)


WRITERS = {
    "torch": save,
    "a zip": lambda tensor: write_anew(save(tensor), io.BytesIO(), b"PK\x07\x08"),
    "a streamed zip": lambda tensor: write_anew(save(tensor), Stream(), b"PK\x07\x08"),
}


@pytest.mark.parametrize("writer", WRITERS)
def test_of_a_head_that_is_cut_anywhere_more_is_asked_for(writer: str) -> None:
    """Torch pads it, so that the data begins at a multiple of 64 bytes: of the padding nothing may be missing either."""
    content = WRITERS[writer](MATRIX)
    whole = len(read(content, MATRIX).head)
    for size in range(4, whole):
        with pytest.raises((CutShortError, EndsEarlyError)):
            Heads().read(bytearray(content[:size]), *describe(MATRIX, content))
    assert Heads().read(bytearray(content[:whole]), *describe(MATRIX, content)).size_bytes == MATRIX.nbytes


@pytest.mark.parametrize("extra_bytes", [200, 1_000, 7_000, 50_000])
def test_a_long_head_is_read_in_few_steps(tmp_path: Path, extra_bytes: int) -> None:
    content = write_anew(save(MATRIX), io.BytesIO(), bytes(extra_bytes))
    (tmp_path / "__0_0.distcp").write_bytes(b"another" + content)
    with opened(LocalStorage(), str(tmp_path / "__0_0.distcp")) as reader:
        counted = Mock(wraps=reader)
        item = _read_item(counted, *describe(MATRIX, content), Heads())
        prove(item, content, MATRIX)
        assert [call.args[0] for call in counted.read_into.call_args_list] == [7] * {200: 1, 50_000: 3}.get(
            extra_bytes, 2
        )


def test_a_head_without_end_is_read_no_further(tmp_path: Path) -> None:
    content = write_anew(save(MATRIX), io.BytesIO(), bytes(1 << 20))
    (tmp_path / "__0_0.distcp").write_bytes(b"another" + content)
    with opened(LocalStorage(), str(tmp_path / "__0_0.distcp")) as reader:
        counted = Mock(wraps=reader)
        with pytest.raises(CutShortError, match=r"^its head is longer than what was read of it$"):
            _read_item(counted, *describe(MATRIX, content), Heads())
        assert [len(call.args[1]) for call in counted.read_into.call_args_list] == [
            1 << 10,
            8 << 10,
            64 << 10,
        ]


def test_items_are_taken_apart_once_for_each_beginning() -> None:
    """A tensor and a transposed one of its shape take the same bytes, and begin differently."""
    square, heads = torch.arange(16.0).reshape(4, 4), Heads()
    plain, turned = save(square), save(square.t())
    assert len(plain) == len(turned)
    first = read(plain, square, heads)
    assert read(plain, square + 1, heads) is first
    second = read(turned, square.t(), heads)
    assert (first.mark.strides, second.mark.strides) == ((4, 1), (1, 4))
    assert read(turned, square.t(), heads) is second


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (save({"a": 1}), r"^a dict, expected a tensor$"),
        (save("words"), r"^'words', expected a tensor$"),
        (b"words", r"^text, expected a tensor that torch saved$"),
        (bytes(1024), r"^a file of zeros, as a broken download leaves, expected a tensor that torch saved$"),
        (b"PK\3\4" + b"\1" * 200, r"^no record of stored data at byte 0 of an item; the file is damaged$"),
    ],
)
def test_what_is_no_tensor_is_named(content: bytes, said: str) -> None:
    with pytest.raises(InputError, match=said):
        read(content, MATRIX)


@pytest.mark.parametrize(("at", "value"), [(6, 9), (8, 8), (1, 0)])
def test_a_record_that_is_encrypted_or_compressed_or_none_is_refused(at: int, value: int) -> None:
    """At its flags, its method, and the signature of the second record."""
    content = write_anew(save(MATRIX), io.BytesIO(), b"")
    second = content.index(b"PK\3\4", 4)
    for first in (0, second) if at != 1 else (second,):
        damaged = bytearray(content)
        damaged[first + at] = value
        with pytest.raises(
            InputError, match=f"^no record of stored data at byte {first} of an item; the file is da"
        ):
            read(bytes(damaged), MATRIX)


def test_an_item_is_the_one_that_the_metadata_says() -> None:
    content = save(MATRIX)
    dtype, chunk = describe(MATRIX, content)
    needed = len(read(content, MATRIX).head) + MATRIX.nbytes
    assert (
        Heads().read(bytearray(content), dtype, chunk._replace(size_bytes=needed)).size_bytes == MATRIX.nbytes
    )
    other = (
        r"^holds a float32 of shape \(3, 4\) at byte 7, expected a {} of \({}\): the file is of another step"
    )
    with pytest.raises(InputError, match=other.format("float32", "4, 3")):
        Heads().read(bytearray(content), dtype, chunk._replace(sizes=(4, 3)))
    with pytest.raises(InputError, match=other.format("float16", "3, 4")):
        Heads().read(bytearray(content), DTYPES["float16"], chunk)
    words = rf"^the item at byte 7 has {needed - 1} bytes, its data needs {needed}; the file is damaged$"
    with pytest.raises(InputError, match=words):
        Heads().read(bytearray(content), dtype, chunk._replace(size_bytes=needed - 1))


def test_a_tensor_lies_in_its_storage() -> None:
    mark = TensorMark(StorageMark("0", FLOAT32, 12), FLOAT32, 2, (2, 5), (5, 1))
    assert _check_extent(mark) is mark
    for behind in (
        TensorMark(mark.storage, FLOAT32, 3, (2, 5), (5, 1)),
        TensorMark(mark.storage, DTYPES["float64"], 2, (2, 5), (5, 1)),
    ):
        with pytest.raises(InputError, match=r"^a tensor of 1[23] elements in a storage of 48 bytes$"):
            _check_extent(behind)


def test_a_checksum_is_that_of_so_much_data() -> None:
    small, large = struct.Struct("<4s3L"), struct.Struct("<4sL2Q")
    assert find_checksum(small.pack(b"PK\7\x08", 5, 48, 48), 48) == 5
    assert find_checksum(large.pack(b"PK\7\x08", 6, 48, 48), 48) == 6
    assert find_checksum(large.pack(b"PK\7\x08", 6, 1 << 33, 1 << 33), 1 << 33) == 6
    for behind in (
        b"",
        small.pack(b"PK\7\x08", 5, 48, 48)[:-1],
        small.pack(b"PK\3\4", 5, 48, 48),
        small.pack(b"PK\7\x08", 5, 40, 48),
        small.pack(b"PK\7\x08", 5, 40, 40),
    ):
        assert find_checksum(behind, 48) == 0
