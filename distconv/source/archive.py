"""A .pth file's storages: where each one's bytes lie, in zip and in legacy files.

Sources of the formats: ``torch/serialization.py``; APPNOTE.TXT of the zip format, 4.3.7
(local header). The zip's central directory is the truth about its records; torch's way of
computing offsets instead is wrong for re-zipped files.
"""

import io
import posixpath
import struct
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass
from typing import BinaryIO, cast

from distconv.errors import InputError
from distconv.source.content import HEAD_BYTES, describe_content
from distconv.source.pickles import (
    LIMIT_BYTES,
    StorageMark,
    TensorMark,
    load_pickle,
    read_pickle,
)
from distconv.source.state import flatten_state
from distconv.storage import Reader, read_range

_LOCAL_HEADER = struct.Struct("<4s5H3L2H")
_LOCAL_SIGNATURE = b"PK\x03\x04"
_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_LEGACY_PROTOCOL = 1001


@dataclass(frozen=True, slots=True)
class Record:
    """The bytes of one storage.

    In a zip, ``offset_bytes`` is that of the record's local header, whose length is only in
    itself: ``locate_data`` reads it when the data is needed, so that a catalog of a whole
    model costs no read a tensor.
    """

    path: str
    offset_bytes: int
    size_bytes: int
    crc32: int
    """Of the data, from the zip's central directory; 0 where nothing is recorded."""
    zipped: bool


def locate_data(reader: Reader, record: Record) -> int:
    """Give the offset of a record's first data byte, having checked its local header."""
    if not record.zipped:
        return record.offset_bytes
    header = read_range(reader, record.offset_bytes, _LOCAL_HEADER.size)
    signature, _version, flags, method, *_rest, name_bytes, extra_bytes = _LOCAL_HEADER.unpack(header)
    if signature != _LOCAL_SIGNATURE or method != zipfile.ZIP_STORED or flags & 1:
        raise InputError(
            f"{record.path}: no record header of stored data at byte {record.offset_bytes:,}; the file is damaged"
        )
    start: int = record.offset_bytes + _LOCAL_HEADER.size + name_bytes + extra_bytes
    if start + record.size_bytes > reader.size_bytes:
        raise InputError(
            f"{record.path}: the record at byte {record.offset_bytes:,} ends at byte "
            f"{start + record.size_bytes:,}, the file at {reader.size_bytes:,}; the file is truncated"
        )
    return start


class _ReadFailedError(Exception):
    """Wraps an OSError on its way through a parser that would take it for damage."""


class RangeFile(io.RawIOBase):
    """A reader as a binary file, for the standard library's parsers; bounded in what it gives."""

    def __init__(self, reader: Reader) -> None:
        """Stand at the first byte."""
        self._reader = reader
        self._position = 0

    def readable(self) -> bool:
        """Say that it can be read."""
        return True

    def seekable(self) -> bool:
        """Say that it can be moved in."""
        return True

    def tell(self) -> int:
        """Give the position in bytes."""
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Move to a position in bytes."""
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._reader.size_bytes}[whence]
        if base + offset < 0:
            message = f"seek to {base + offset}"
            raise OSError(message)
        self._position = base + offset
        return self._position

    def read(self, size: int = -1) -> bytes:
        """Read up to so many bytes; more than LIMIT_BYTES at once is an InputError."""
        left = max(0, self._reader.size_bytes - self._position)
        size = left if size is None or size < 0 else min(size, left)
        if size > LIMIT_BYTES:
            message = f"its description is larger than {LIMIT_BYTES:,} bytes"
            raise InputError(message)
        try:
            content = read_range(self._reader, self._position, size)
        except OSError as error:
            raise _ReadFailedError from error
        self._position += size
        return bytes(content)

    def readinto(self, buffer: bytearray | memoryview) -> int:  # type: ignore[override]
        """Fill a buffer as far as the file goes; the buffered reader above calls it."""
        content = self.read(len(buffer))
        buffer[: len(content)] = content
        return len(content)


class _BoundedReader(io.BufferedReader):
    """Buffers a file, and allocates no more than the file can fill: a length is only a claim."""

    def __init__(self, file: RangeFile, size_bytes: int) -> None:
        super().__init__(file, 1 << 16)
        self._size_bytes = size_bytes

    def read(self, size: int | None = -1, /) -> bytes:
        """Read up to so many bytes."""
        left = self._size_bytes - self.tell()
        size = left if size is None or size < 0 else min(size, left)
        if size > LIMIT_BYTES:
            message = f"its description is larger than {LIMIT_BYTES:,} bytes"
            raise InputError(message)
        return super().read(size)


def read_archive(reader: Reader) -> dict[str, tuple[TensorMark, Record]]:
    """Read a .pth file's description: each tensor with the record of its storage.

    Whatever a parser raises on damaged bytes becomes one InputError that names the file.
    """
    head = bytes(read_range(reader, 0, min(HEAD_BYTES, reader.size_bytes)))
    try:
        if head.startswith(_LOCAL_SIGNATURE):
            found = _read_zip(reader)
        elif head[:1] == b"\x80":
            found = _read_legacy(reader)
        else:
            raise InputError(f"it is {describe_content(head)}, expected a torch checkpoint")
        for name, (tensor, record) in found.items():
            _check_extent(name, tensor, record)
    except InputError as error:
        message = str(error)
        raise InputError(
            message if message.startswith(reader.path) else f"{reader.path}: {message}"
        ) from None
    except _ReadFailedError as error:
        raise cast("OSError", error.__cause__) from None
    # Mutated headers make the parsers raise nearly anything; all of it means the same.
    except Exception as error:  # noqa: BLE001
        raise _damaged(reader, error) from None
    return found


def _damaged(reader: Reader, error: Exception) -> InputError:
    reason = " ".join(str(error).split())[:120]
    return InputError(
        f"{reader.path}: not a readable torch checkpoint ({type(error).__name__}: {reason}); "
        "the file is truncated or damaged: download it again"
    )


def _check_extent(name: str, tensor: TensorMark, record: Record) -> None:
    claimed = tensor.storage.size_bytes()
    if claimed != record.size_bytes:
        raise InputError(f"{name}: its storage has {record.size_bytes:,} bytes, expected {claimed:,}")
    if 0 in tensor.shape:
        end = tensor.offset
    else:
        last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.strides, strict=True))
        end = tensor.offset + last + 1
    if end * tensor.dtype.size_bytes > record.size_bytes:
        raise InputError(
            f"{name}: reaches to byte {end * tensor.dtype.size_bytes:,} of a storage of {record.size_bytes:,} bytes"
        )


def _read_zip(reader: Reader) -> dict[str, tuple[TensorMark, Record]]:
    with zipfile.ZipFile(cast("BinaryIO", RangeFile(reader))) as archive:
        members: dict[str, zipfile.ZipInfo] = {}
        for member in archive.infolist():
            if members.setdefault(member.orig_filename, member) is not member:
                raise InputError(f"the record {member.orig_filename} is there twice")
        described = [name for name in members if posixpath.basename(name) == "data.pkl"]
        if len(described) != 1:
            found = ", ".join(list(members)[:4]) or "nothing"
            raise InputError(
                f"a zip archive without one data.pkl (it holds {found}), expected a torch checkpoint"
            )
        prefix = posixpath.dirname(described[0])
        _check_byte_order(archive, members, posixpath.join(prefix, "byteorder"))
        _check_stored(members[described[0]])
        # Read in a bounded way: a record's claimed size is only a claim.
        content = archive.read(members[described[0]])
        tensors = flatten_state(load_pickle(read_pickle(io.BytesIO(content))))
        records: dict[str, Record] = {}
        for mark in {tensor.storage.key: tensor.storage for tensor in tensors.values()}.values():
            name = posixpath.join(prefix, "data", mark.key)
            if name not in members:
                raise InputError(f"no record {name}, which its tensors need")
            records[mark.key] = _make_record(reader, members[name])
    return {name: (tensor, records[tensor.storage.key]) for name, tensor in tensors.items()}


def _check_byte_order(archive: zipfile.ZipFile, members: dict[str, zipfile.ZipInfo], name: str) -> None:
    if name in members:
        _check_stored(members[name])
        order = archive.read(members[name])
        if order != b"little":
            raise InputError(
                f"byte order {order[:16]!r}, expected b'little'; save it again on a little-endian machine"
            )


def _check_stored(member: zipfile.ZipInfo) -> None:
    if member.compress_type != zipfile.ZIP_STORED or member.flag_bits & 1:
        raise InputError(
            f"the record {member.orig_filename} is compressed or encrypted, expected stored data; "
            "save the checkpoint again with torch.save"
        )
    if member.compress_size != member.file_size:
        raise InputError(f"the record {member.orig_filename} claims two sizes; the file is damaged")


def _make_record(reader: Reader, member: zipfile.ZipInfo) -> Record:
    _check_stored(member)
    end = member.header_offset + _LOCAL_HEADER.size + len(member.orig_filename) + member.file_size
    if member.header_offset < 0 or end > reader.size_bytes:
        raise InputError(
            f"the record {member.orig_filename} ends at byte {end:,}, the file at {reader.size_bytes:,}; "
            "the file is truncated or damaged: download it again"
        )
    return Record(reader.path, member.header_offset, member.file_size, member.CRC, zipped=True)


def _read_legacy(reader: Reader) -> dict[str, tuple[TensorMark, Record]]:
    """Read five pickles; then each storage is an int64 element count and its raw bytes."""
    file = cast("BinaryIO", _BoundedReader(RangeFile(reader), reader.size_bytes))
    magic, protocol, system = (load_pickle(read_pickle(file)) for _ in range(3))
    if magic != _LEGACY_MAGIC or protocol != _LEGACY_PROTOCOL:
        raise InputError("a pickle that torch.save did not write, expected a torch checkpoint")
    if isinstance(system, dict) and system.get("little_endian") is not True:
        raise InputError("saved on a big-endian machine; save it again on a little-endian one")
    tensors = flatten_state(load_pickle(read_pickle(file)))
    keys = load_pickle(read_pickle(file))
    if not isinstance(keys, list):
        raise InputError("no list of storages")
    marks = {tensor.storage.key: tensor.storage for tensor in tensors.values()}
    records = _legacy_records(reader, file.tell(), marks, keys)
    return {name: (tensor, records[tensor.storage.key]) for name, tensor in tensors.items()}


def _legacy_records(
    reader: Reader, position: int, marks: dict[str, StorageMark], keys: Iterable[object]
) -> dict[str, Record]:
    records = {}
    for key in keys:
        mark = marks.get(str(key))
        if mark is None:
            raise InputError(
                f"storage {key!r:.40} belongs to no tensor of the state dict, so its size is unknown"
            )
        (elements,) = struct.unpack("<q", read_range(reader, position, 8))
        position += 8
        if elements != mark.elements or position + mark.size_bytes() > reader.size_bytes:
            raise InputError(
                f"storage {mark.key} has {elements:,} elements, expected {mark.elements:,}, "
                f"in a file of {reader.size_bytes:,} bytes; the file is truncated or damaged"
            )
        records[mark.key] = Record(reader.path, position, mark.size_bytes(), 0, zipped=False)
        position += mark.size_bytes()
    missing = sorted(set(marks) - set(records))
    if missing:
        raise InputError(f"no data for storage {missing[0]}; the file is truncated or damaged")
    return records
