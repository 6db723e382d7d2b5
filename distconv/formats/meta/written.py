"""What the shards of a Meta folder that a conversion wrote say they hold."""

import posixpath
import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from math import prod

from distconv.errors import InputError, OutputError
from distconv.formats.marks import TensorMark
from distconv.formats.meta.archive import locate_records, read_archive
from distconv.formats.meta.archive_layout import lay_out_archive
from distconv.formats.meta.pickle_writer import TensorEntry
from distconv.formats.meta.shards import shard_name
from distconv.formats.meta.small_files import PARAMS_NAME
from distconv.formats.written import FOR_INPUT, Place, Written, list_without_checksum
from distconv.layout.dtypes import contiguous_strides
from distconv.layout.regions import Region
from distconv.storage.base import Reader, Storage, opened, read_range
from distconv.storage.window import read_by_windows

_SHARD = re.compile(r"consolidated\.(\d{2,})\.pth")


def shard_names(count: int) -> tuple[str, ...]:
    """Name the shards of so many model-parallel ranks, in their order."""
    return tuple(map(shard_name, range(count)))


def list_shards(storage: Storage, output: str) -> tuple[str, ...]:
    """Give the names of the shards that are there, in the order of their ranks.

    OutputError where there is none, or no params.json, which is written last.
    """
    entries = [entry for entry in storage.list_folder(output) if not entry.is_folder]
    ranks = {entry.name: int(match[1]) for entry in entries if (match := _SHARD.fullmatch(entry.name))}
    if not ranks:
        raise OutputError(f"{output}: no {shard_names(1)[0]}; the conversion is not finished")
    if PARAMS_NAME not in {entry.name for entry in entries}:
        raise OutputError(
            f"{output}: no {PARAMS_NAME}; the conversion is not finished, or {PARAMS_NAME} was not copied with the shards"
        )
    return tuple(sorted(ranks, key=lambda name: (ranks[name], name)))


def read_shard(storage: Storage, path: str) -> dict[str, Written]:
    """Read what a shard's archive says of its tensors, in its own order, with their CRC32s.

    Every tensor lies inside the file; those of Meta's own and of others may be parts of records, whose CRC32s say nothing
    of them. OutputError where it is no archive that torch.save writes, or where tensors share parts of records: a small
    file could stand for any amount of data.
    """
    try:
        with opened(storage, path) as reader:
            found = read_archive(read_by_windows(reader))
            starts = locate_records(reader, (region for _mark, region in found.values()))
            size_bytes = reader.size_bytes
    except FileNotFoundError:
        raise OutputError(f"{path}: missing") from None
    except InputError as error:
        raise OutputError(str(error).removesuffix(FOR_INPUT)) from None
    written: dict[str, Written] = {}
    owners: dict[Place, str] = {}
    for name, (mark, region) in found.items():
        one = _take(path, mark, region, starts[region])
        owner = owners.setdefault(one.place, name)
        written[name] = one if owner == name else replace(one, shares=owner)
    _refuse_overlaps(path, written, size_bytes)
    return written


def _take(path: str, mark: TensorMark, region: Region, start: int) -> Written:
    """Take a tensor, whose record's CRC32 is its own where it is all of that, one element after the other."""
    in_a_row = mark.strides == contiguous_strides([max(size, 1) for size in mark.shape])
    is_whole = region.size_bytes == prod(mark.shape) * mark.dtype.size_bytes
    return Written(
        path,
        start + mark.offset * mark.dtype.size_bytes,
        mark.dtype,
        mark.shape,
        region.crc32 if region.zipped and is_whole and in_a_row else None,
        strides=None if in_a_row else mark.strides,
    )


def _refuse_overlaps(path: str, tensors: Mapping[str, Written], size_bytes: int) -> None:
    named = sum(found.elements * found.dtype.size_bytes for found in tensors.values() if found.shares is None)
    if named > size_bytes:
        raise OutputError(
            f"{path}: {named:,} bytes of tensors in a file of {size_bytes:,}: several share parts of records; save each as a "
            "copy of its own (`tensor.clone()`)"
        )


def find_odd_form(storage: Storage, path: str, tensors: Mapping[str, Written]) -> str | None:
    """Lay the archive out again from its tensors and their CRC32s; tell where anything but their data differs."""
    # A tensor that is the whole of a record, row by row, has that record's.
    parts = list_without_checksum(tensors)
    if parts:
        return f"{path}: not in the one form that its tensors have: {parts[0]:.80} is part of a record"
    words = f"{path}: its archive is not in the one form that its tensors have"
    stem = posixpath.basename(path).removesuffix(".pth")
    entries = [TensorEntry(name, found.dtype, found.shape, found.shares) for name, found in tensors.items()]
    try:
        layout = lay_out_archive(stem, entries)
    except InputError as error:
        return f"{words}: {error}"
    sealed = layout.seal([found.crc32 or 0 for found in tensors.values() if found.shares is None])
    with opened(storage, path) as reader:
        if reader.size_bytes != layout.size_bytes:
            return f"{words}: {reader.size_bytes:,} bytes, expected {layout.size_bytes:,}"
        at = _find_difference(reader, (*layout.literals, *sealed))
    return None if at is None else f"{words}: byte {at:,} differs"


def _find_difference(reader: Reader, expected: Iterable[tuple[int, bytes]]) -> int | None:
    """Give the offset of the first byte that is not as expected."""
    for offset, content in sorted(expected):
        found = read_range(reader, offset, len(content))
        if found != content:
            return offset + next(i for i, (a, b) in enumerate(zip(found, content, strict=True)) if a != b)
    return None
