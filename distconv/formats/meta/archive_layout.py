"""A shard's zip archive as torch.save lays it out: where each byte stands, and what it is.

All offsets follow from names, dtypes and shapes; a tensor's descriptor waits for its CRC32, and
serialization id and directory for those of all. Sources: torch 2.13,
``caffe2/serialize/inline_container.cc`` (order, padding) and its ``miniz-3.0.2`` (records);
APPNOTE.TXT of the zip format, 4.3.7 (local header), 4.3.9 (descriptor), 4.3.12 (directory),
4.3.14 to 4.3.16 (its end), 4.5.3 (zip64).
"""

import struct
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from distconv.formats.meta.pickle_writer import TensorEntry, make_data_pickle
from distconv.formats.meta.serialization_id import make_serialization_id

_LOCAL_HEADER = struct.Struct("<4s5H3L2H")
_CENTRAL_HEADER = struct.Struct("<4s6H3L5H2L")
_ZIP64_END = struct.Struct("<4sQ2H2L4Q")
_ZIP64_LOCATOR = struct.Struct("<4sLQL")
_END = struct.Struct("<4s4H2LH")
_ALIGNMENT_BYTES = 64
_LARGE = (1 << 32) - 1
"""Sizes and offsets from here on stand in fields of 64 bits."""
_UTF8 = 0x0800
_DESCRIPTOR_FOLLOWS = 0x0008
_ID_NAME = ".data/serialization_id"
_ID_BYTES = 40


@dataclass(frozen=True, slots=True)
class Record:
    """One record; ``offset_bytes`` is that of its data in the file.

    ``content`` is None where the tensors' data decides it: of storages, and of the serialization id.
    """

    name: str
    path: bytes
    header_offset_bytes: int
    offset_bytes: int
    size_bytes: int
    content: bytes | None

    @property
    def descriptor(self) -> "Descriptor":
        """What follows the data."""
        return Descriptor(self.size_bytes, max(self.size_bytes, self.header_offset_bytes) >= _LARGE)

    @property
    def end_bytes(self) -> int:
        """Where the record ends, its descriptor included."""
        return self.offset_bytes + self.size_bytes + self.descriptor.size_bytes


_SHORT_DESCRIPTOR, _LONG_DESCRIPTOR = struct.Struct("<4s3L"), struct.Struct("<4sL2Q")


@dataclass(frozen=True, slots=True)
class Descriptor:
    """What follows a record's data: CRC32 and twice the size; nothing follows an empty record."""

    data_bytes: int
    is_large: bool
    """Whether sizes take 64 bits."""

    @property
    def size_bytes(self) -> int:
        """Its own size."""
        if not self.data_bytes:
            return 0
        return (_LONG_DESCRIPTOR if self.is_large else _SHORT_DESCRIPTOR).size

    def make(self, checksum: int) -> bytes:
        """Make it of the data's CRC32."""
        if not self.data_bytes:
            return b""
        form = _LONG_DESCRIPTOR if self.is_large else _SHORT_DESCRIPTOR
        return form.pack(b"PK\x07\x08", checksum, self.data_bytes, self.data_bytes)


@dataclass(frozen=True, slots=True)
class ArchiveLayout:
    """A file of ``size_bytes``, which ``literals``, the storages' data with their descriptors and the end tile.

    ``literals`` are (offset in bytes, content) of what is known before any data is.
    ``storages`` are the records of those tensors that share no earlier one's, in their order.
    """

    size_bytes: int
    literals: tuple[tuple[int, bytes], ...]
    storages: tuple[Record, ...]
    records: tuple[Record, ...]

    @property
    def end_offset_bytes(self) -> int:
        """Where the end begins: the content of the serialization id, and the directory."""
        return self.records[-1].offset_bytes

    def make_end(self, checksums: Sequence[int]) -> bytes:
        """Make the end, from the storages' CRC32s in their order.

        Raises ValueError where these are not as many as the storages.
        """
        if len(checksums) != len(self.storages):
            raise ValueError(f"{len(checksums):,} CRC32s for {len(self.storages):,} storages")
        given = iter(checksums)
        known = [
            next(given) if record.content is None else zlib.crc32(record.content)
            for record in self.records[:-1]
        ]
        identity = make_serialization_id(
            [record.name for record in self.records[:-1]],
            [crc32 for record, crc32 in zip(self.records, known, strict=False) if record.size_bytes],
        )
        last_crc32 = zlib.crc32(identity)
        descriptor = self.records[-1].descriptor.make(last_crc32)
        return identity + descriptor + _make_end(self.records, [*known, last_crc32])

    def seal(self, checksums: Sequence[int]) -> tuple[tuple[int, bytes], ...]:
        """Give (offset in bytes, content) of all that waits for the storages' CRC32s: descriptors and end.

        Raises ValueError where these are not as many as the storages.
        """
        end = self.make_end(checksums)
        descriptors = (
            (record.offset_bytes + record.size_bytes, record.descriptor.make(crc32))
            for record, crc32 in zip(self.storages, checksums, strict=True)
            if record.size_bytes
        )
        return (*descriptors, (self.end_offset_bytes, end))


def lay_out_archive(stem: str, entries: Sequence[TensorEntry]) -> ArchiveLayout:
    """Lay out the file ``<stem>.pth`` of a dict with these entries.

    Raises InputError as ``number_storages`` does.
    """
    records: list[Record] = []
    literals: list[tuple[int, bytes]] = []
    pending, position, start = bytearray(), 0, 0
    for name, size_bytes, content in _list_contents(entries):
        path = f"{stem}/{name}".encode()
        header = _make_local_header(path, position, size_bytes)
        record = Record(name, path, position, position + len(header), size_bytes, content)
        records.append(record)
        pending += header
        position = record.end_bytes
        if content is not None:
            pending += content + record.descriptor.make(zlib.crc32(content))
        elif size_bytes:
            literals.append((start, bytes(pending)))
            pending, start = bytearray(), position
    end = _make_end(records, [0] * len(records))
    storages = tuple(record for record in records[:-1] if record.content is None)
    return ArchiveLayout(position + len(end), tuple(literals), storages, tuple(records))


def _list_contents(entries: Sequence[TensorEntry]) -> Iterator[tuple[str, int, bytes | None]]:
    """Give each record's name, size in bytes and, where known, content, in the order of the file."""
    data_pickle = make_data_pickle(entries)
    yield "data.pkl", len(data_pickle), data_pickle
    yield ".format_version", 1, b"1"
    yield ".storage_alignment", 2, b"64"
    yield "byteorder", 6, b"little"
    owners = (entry for entry in entries if entry.shares is None)
    for number, entry in enumerate(owners):
        yield f"data/{number}", entry.elements * entry.dtype.size_bytes, None
    yield "version", 2, b"3\n"
    yield _ID_NAME, _ID_BYTES, None


def _make_local_header(path: bytes, header_offset_bytes: int, size_bytes: int) -> bytes:
    """Make what stands before the data, which begins at a multiple of 64 bytes; CRC32 and sizes follow it."""
    # The size as stored is not known to miniz here: it writes a zero.
    zip64 = _make_zip64([size_bytes, 0] if size_bytes >= _LARGE else [], header_offset_bytes)
    unpadded = header_offset_bytes + _LOCAL_HEADER.size + len(path) + len(zip64) + 4
    padding = -unpadded % _ALIGNMENT_BYTES
    extra = zip64 + struct.pack("<2sH", b"FB", padding) + b"Z" * padding
    fields = (b"PK\x03\x04", 0, _flags(size_bytes), 0, 0, 0, 0, 0, 0, len(path), len(extra))
    return _LOCAL_HEADER.pack(*fields) + path + extra


def _make_end(records: Sequence[Record], checksums: Sequence[int]) -> bytes:
    """Make what follows the last record: the directory and its three ends."""
    directory = b"".join(map(_make_central_header, records, checksums))
    start = records[-1].end_bytes
    end = start + len(directory)
    count = len(records)
    short_count = min(count, 0xFFFF)
    return b"".join(
        (
            directory,
            _ZIP64_END.pack(b"PK\x06\x06", 44, 0x031E, 45, 0, 0, count, count, len(directory), start),
            _ZIP64_LOCATOR.pack(b"PK\x06\x07", 0, end, 1),
            _END.pack(b"PK\x05\x06", 0, 0, short_count, short_count, len(directory), min(start, _LARGE), 0),
        )
    )


def _make_central_header(record: Record, crc32: int) -> bytes:
    """Make a record's entry in the directory."""
    size = record.size_bytes
    zip64 = _make_zip64([size, size] if size >= _LARGE else [], record.header_offset_bytes)
    capped, offset = min(size, _LARGE), min(record.header_offset_bytes, _LARGE)
    lengths = (len(record.path), len(zip64), 0)
    fields = (b"PK\x01\x02", 0, 0, _flags(size), 0, 0, 0, crc32, capped, capped, *lengths, 0, 0, 0, offset)
    return _CENTRAL_HEADER.pack(*fields) + record.path + zip64


def _make_zip64(sizes: Sequence[int], header_offset_bytes: int) -> bytes:
    """Make the extra field of what does not fit into 32 bits; nothing where all does."""
    values = [*sizes, *([header_offset_bytes] if header_offset_bytes >= _LARGE else [])]
    return struct.pack(f"<2H{len(values)}Q", 1, 8 * len(values), *values) if values else b""


def _flags(size_bytes: int) -> int:
    return _UTF8 | (_DESCRIPTOR_FOLLOWS if size_bytes else 0)
