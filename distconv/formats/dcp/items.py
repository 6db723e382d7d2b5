"""Where the data of a distributed checkpoint's item begins, and in which order its elements lie.

An item of a ``.distcp`` file is what ``torch.save`` writes of one tensor: a zip of its own, whose first record
says which strides the tensor has. Whatever stands before the data is the same in all items of one shape and type,
so that it is taken apart once for each. Source: ``filesystem.py`` of torch 2.13; APPNOTE.TXT of the zip format, 4.3.7.
"""

import struct
from dataclasses import dataclass

from distconv.errors import InputError
from distconv.formats.boxes import Extents
from distconv.formats.content import describe_content
from distconv.formats.dcp.metadata import Chunk
from distconv.formats.marks import TensorMark, describe
from distconv.formats.meta.pickles import load_pickle
from distconv.layout.dtypes import DType, extent_elements

HEAD_BYTES = 1024
"""What stands before the data takes 704 in torch 2.13, and hardly more for longer shapes."""
_LOCAL = struct.Struct("<4s5H3L2H")
_LOCAL_SIGNATURE, _DESCRIPTOR_SIGNATURE = b"PK\x03\x04", b"PK\x07\x08"
_DESCRIPTOR = struct.Struct("<4s3L")
_LARGE_DESCRIPTOR = struct.Struct("<4sL2Q")
DESCRIPTOR_BYTES = _LARGE_DESCRIPTOR.size
"""What follows a record's data takes no more."""
_STREAMED, _ENCRYPTED = 8, 1
_DESCRIPTION, _DATA = b"data.pkl", b"data"
_LONGER = "its head is longer than what was read of it"


class CutShortError(InputError):
    """What stands before the data is longer than what was read."""


@dataclass(frozen=True, slots=True)
class Item:
    """What an item says of its tensor, whose data begins behind the head."""

    head: bytes
    mark: TensorMark
    size_bytes: int
    """Of its data."""


class Heads:
    """Takes items apart, each kind once; safe to use from several threads."""

    def __init__(self) -> None:
        """Begin without any."""
        self._known: dict[tuple[str, Extents, int], Item] = {}

    def read(self, head: bytearray, dtype: DType, chunk: Chunk) -> Item:
        """Give what an item says that begins so.

        InputError where it is none, or not the one that ``.metadata`` says, CutShortError where more is needed.
        """
        # Most begin as the last one of their kind did, byte for byte: what is compared is not hashed, and not read again.
        kind = dtype.name, chunk.sizes, chunk.size_bytes
        item = self._known.get(kind)
        if item is None or not head.startswith(item.head):
            item = _read_head(bytes(head))
            _check_item(item, dtype, chunk)
            self._known[kind] = item
        return item


def _read_head(head: bytes) -> Item:
    if not head.startswith(_LOCAL_SIGNATURE):
        raise InputError(f"{describe_content(head)}, expected a tensor that torch saved")
    mark, position = None, 0
    while True:
        name, start, flags, size = _read_local(head, position)
        folder, _, last = name.rpartition(b"/")
        if mark is not None and folder.endswith(_DATA) and last == mark.storage.key.encode():
            return Item(head[:start], _check_extent(mark), mark.storage.size_bytes())
        if last == _DESCRIPTION:
            mark, end = _read_description(head, start)
        else:
            end = start + size if not flags & _STREAMED else _find_end(head, start)
        position = end + (_DESCRIPTOR.size if flags & _STREAMED else 0)


def _check_extent(mark: TensorMark) -> TensorMark:
    """Refuse a tensor that reaches behind its storage."""
    end = mark.offset + extent_elements(mark.shape, mark.strides)
    if end * mark.dtype.size_bytes > mark.storage.size_bytes():
        raise InputError(f"a tensor of {end:,} elements in a storage of {mark.storage.size_bytes():,} bytes")
    return mark


def _read_local(head: bytes, position: int) -> tuple[bytes, int, int, int]:
    """Give a record's name, where its content begins, its flags, and its size, which is 0 where it was streamed."""
    if position + _LOCAL.size > len(head):
        raise CutShortError(_LONGER)
    signature, _version, flags, method, _time, _date, _crc, size, _whole, name, extra = _LOCAL.unpack_from(
        head, position
    )
    if signature != _LOCAL_SIGNATURE or method or flags & _ENCRYPTED:
        raise InputError(f"no record of stored data at byte {position:,} of an item; the file is damaged")
    first = position + _LOCAL.size
    start = first + name + extra
    if start > len(head):
        raise CutShortError(_LONGER)
    return head[first : first + name], start, flags, size


def _read_description(head: bytes, start: int) -> tuple[TensorMark, int]:
    found, end = load_pickle(head, start)
    if type(found) is not TensorMark:
        raise InputError(f"{describe(found)}, expected a tensor")
    return found, end


def _find_end(head: bytes, start: int) -> int:
    """Find where a streamed record's content ends: its descriptor gives the size that it has there."""
    end = head.find(_DESCRIPTOR_SIGNATURE, start)
    while end >= 0 and end + _DESCRIPTOR.size <= len(head):
        if _DESCRIPTOR.unpack_from(head, end)[2] == end - start:
            return end
        end = head.find(_DESCRIPTOR_SIGNATURE, end + 1)
    raise CutShortError(_LONGER)


def find_checksum(behind: bytes, size_bytes: int) -> int:
    """Give the CRC32 of so much data from what stands behind it; 0 where that has none."""
    for form in (_LARGE_DESCRIPTOR, _DESCRIPTOR):
        if len(behind) >= form.size:
            signature, crc32, stored, whole = form.unpack_from(behind)
            if signature == _DESCRIPTOR_SIGNATURE and stored == whole == size_bytes:
                return int(crc32)
    return 0


def _check_item(item: Item, dtype: DType, chunk: Chunk) -> None:
    """Compare an item with what ``.metadata`` says of it; InputError where it is another's."""
    mark = item.mark
    if mark.shape != chunk.sizes or mark.dtype != dtype:
        raise InputError(
            f"holds a {mark.dtype} of shape {mark.shape} at byte {chunk.offset_bytes:,}, expected a {dtype} of "
            f"{chunk.sizes}: the file is of another step, or of another run"
        )
    end_bytes = len(item.head) + item.size_bytes
    if end_bytes > chunk.size_bytes:
        raise InputError(
            f"the item at byte {chunk.offset_bytes:,} has {chunk.size_bytes:,} bytes, its data needs "
            f"{end_bytes:,}; the file is damaged"
        )
