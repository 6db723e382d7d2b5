"""A .pth file's storages: where each one's bytes lie, in zip and in legacy files.

Sources of the formats: ``torch/serialization.py``; APPNOTE.TXT of the zip format, 4.3.7
(local header). The zip's central directory is the truth about its records; torch's way of
computing offsets instead is wrong for re-zipped files.
"""

import io
import posixpath
import struct
import zipfile
import zlib
from collections.abc import Iterable
from typing import BinaryIO, cast

from distconv.errors import InputError, escape
from distconv.formats.content import HEAD_BYTES, describe_content
from distconv.formats.marks import TensorMark
from distconv.formats.meta.legacy import read_legacy
from distconv.formats.meta.machine import Language
from distconv.formats.meta.pickles import LIMIT_BYTES, STATE_DICT, load_pickle
from distconv.formats.state import flatten_state
from distconv.layout.regions import Region
from distconv.storage.base import Buffer, Reader, read_range
from distconv.storage.parallel import submit

_LOCAL_HEADER = struct.Struct("<4s5H3L2H")
LOCAL_HEADER_BYTES = _LOCAL_HEADER.size
_LOCAL_SIGNATURE = b"PK\x03\x04"
_TABLE_LIMIT_BYTES = 4 << 20
"""A record takes about 70 (405B: 0.1 MB a shard); reading as much takes a second."""
_SHOWN_CHARACTERS = 80
"""So much of a foreign name is shown: it may have 65,535."""


def locate_data(reader: Reader, record: Region) -> int:
    """Give the offset of a record's first data byte, having checked its local header."""
    if not record.zipped:
        return record.offset_bytes
    return find_data(read_range(reader, record.offset_bytes, LOCAL_HEADER_BYTES), record, reader.size_bytes)


def locate_records(reader: Reader, records: Iterable[Region]) -> dict[Region, int]:
    """Give the offset of each record's first data byte; where answers take time their headers are asked for at once."""
    if not reader.access.ahead_bytes:
        return {record: locate_data(reader, record) for record in records}
    asked = {record: submit(locate_data, reader, record) for record in records}
    return {record: start.result() for record, start in asked.items()}


def find_data(header: Buffer, record: Region, file_bytes: int) -> int:
    """Give the offset of a record's first data byte, from its local header's first bytes."""
    signature, _version, flags, method, *_rest, name_bytes, extra_bytes = _LOCAL_HEADER.unpack(header)
    if signature != _LOCAL_SIGNATURE or method != zipfile.ZIP_STORED or flags & 1:
        raise InputError(
            f"{record.path}: no record header of stored data at byte {record.offset_bytes:,}; the file is damaged"
        )
    start: int = record.offset_bytes + _LOCAL_HEADER.size + name_bytes + extra_bytes
    if start + record.size_bytes > file_bytes:
        raise InputError(
            f"{record.path}: the record at byte {record.offset_bytes:,} ends at byte "
            f"{start + record.size_bytes:,}, the file at {file_bytes:,}; the file is truncated"
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
        """Read up to so many bytes; more than a table of records takes is an InputError."""
        left = max(0, self._reader.size_bytes - self._position)
        size = left if size is None or size < 0 else min(size, left)
        if size > _TABLE_LIMIT_BYTES:
            message = f"a zip archive whose table of records is larger than {_TABLE_LIMIT_BYTES:,} bytes"
            raise InputError(message)
        try:
            content = read_range(self._reader, self._position, size)
        except OSError as error:
            raise _ReadFailedError from error
        self._position += size
        return bytes(content)


def may_be_archive(head: bytes) -> bool:
    """Whether a file that begins so may be one of torch's, whatever its name says."""
    return head.startswith((_LOCAL_SIGNATURE, b"\x80"))


def describe_other(head: bytes) -> str:
    """Say what a file is that begins so, and is none of torch's."""
    return f"it is {describe_content(head)}, expected a torch checkpoint"


def read_archive(reader: Reader, language: Language = STATE_DICT) -> dict[str, tuple[TensorMark, Region]]:
    """Read a .pth file's description, of what a pickle may say: each tensor with the record of its storage.

    Whatever a parser raises on damaged bytes becomes one InputError that names the file.
    """
    head = bytes(read_range(reader, 0, min(HEAD_BYTES, reader.size_bytes)))
    try:
        if head.startswith(_LOCAL_SIGNATURE):
            found = _read_zip(reader, language)
        elif head[:1] == b"\x80":
            found = read_legacy(reader)
        else:
            raise InputError(describe_other(head))
        for name, (tensor, record) in found.items():
            _check_extent(name, tensor, record)
    except InputError as error:
        message = str(error)
        raise InputError(
            message if message.startswith(reader.path) else f"{reader.path}: {message}"
        ) from None
    except OSError:
        raise
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


def _check_extent(name: str, tensor: TensorMark, record: Region) -> None:
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


def _read_zip(reader: Reader, language: Language) -> dict[str, tuple[TensorMark, Region]]:
    members = _list_members(reader)
    described = [name for name in members if posixpath.basename(name) == "data.pkl"]
    if len(described) != 1:
        holds = ", ".join(map(_shown, list(members.values())[:4])) or "nothing"
        raise InputError(
            f"a zip archive without one data.pkl (it holds {holds}), expected a torch checkpoint"
        )
    prefix = posixpath.dirname(described[0])
    order = members.get(posixpath.join(prefix, "byteorder"))
    if order is not None and (found := _read_record(reader, order)) != b"little":
        raise InputError(
            f"byte order {found[:16]!r}, expected b'little'; save it again on a little-endian machine"
        )
    tensors = flatten_state(load_pickle(_read_record(reader, members[described[0]]), 0, language)[0])
    records: dict[str, Region] = {}
    for mark in {tensor.storage.key: tensor.storage for tensor in tensors.values()}.values():
        name = posixpath.join(prefix, "data", mark.key)
        if name not in members:
            raise InputError(f"no record {name}, which its tensors need")
        records[mark.key] = _make_record(reader, members[name])
    return {name: (tensor, records[tensor.storage.key]) for name, tensor in tensors.items()}


def _list_members(reader: Reader) -> dict[str, zipfile.ZipInfo]:
    """Read the table of records; no two have one name or share bytes."""
    members: dict[str, zipfile.ZipInfo] = {}
    try:
        with zipfile.ZipFile(cast("BinaryIO", RangeFile(reader))) as archive:
            for member in archive.infolist():
                if members.setdefault(member.orig_filename, member) is not member:
                    raise InputError(f"the record {_shown(member)} is there twice")
    except _ReadFailedError as error:
        raise cast("OSError", error.__cause__) from None
    # Offsets that lead nowhere.
    except OSError as error:
        raise _damaged(reader, error) from None
    _check_apart(members.values())
    return members


def _shown(member: zipfile.ZipInfo) -> str:
    return escape(member.orig_filename[:_SHOWN_CHARACTERS])


def _check_apart(members: Iterable[zipfile.ZipInfo]) -> None:
    """Refuse records that share bytes: a small file could stand for any amount of data."""
    end = 0
    for member in sorted(members, key=lambda member: member.header_offset):
        if member.header_offset < end:
            raise InputError(f"the record {_shown(member)} begins inside of another one; the file is damaged")
        # Its name and padding come on top, and are told by its local header alone.
        end = member.header_offset + _LOCAL_HEADER.size + member.compress_size


def _read_record(reader: Reader, member: zipfile.ZipInfo) -> bytes:
    """Read the whole content of a small record, and compare it with its CRC32."""
    record = _make_record(reader, member)
    if record.size_bytes > LIMIT_BYTES:
        message = f"the record {_shown(member)} is larger than {LIMIT_BYTES:,} bytes"
        raise InputError(message)
    content = bytes(read_range(reader, locate_data(reader, record), record.size_bytes))
    if record.crc32 and zlib.crc32(content) != record.crc32:
        raise InputError(
            f"the record {_shown(member)} differs from its CRC32; the file is damaged: download it again"
        )
    return content


def _check_stored(member: zipfile.ZipInfo) -> None:
    if member.compress_type != zipfile.ZIP_STORED or member.flag_bits & 1:
        raise InputError(
            f"the record {_shown(member)} is compressed or encrypted, expected stored data; "
            "save the checkpoint again with torch.save"
        )
    if member.compress_size != member.file_size:
        raise InputError(f"the record {_shown(member)} claims two sizes; the file is damaged")


def _make_record(reader: Reader, member: zipfile.ZipInfo) -> Region:
    _check_stored(member)
    end = member.header_offset + _LOCAL_HEADER.size + len(member.orig_filename) + member.file_size
    if member.header_offset < 0 or end > reader.size_bytes:
        raise InputError(
            f"the record {_shown(member)} ends at byte {end:,}, the file at {reader.size_bytes:,}; "
            "the file is truncated or damaged: download it again"
        )
    return Region(reader.path, member.header_offset, member.file_size, member.CRC, zipped=True)
