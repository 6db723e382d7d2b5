"""What the shards of a Meta folder that a conversion wrote say they hold."""

import posixpath
import re
from collections.abc import Iterable, Mapping
from math import prod

from distconv.errors import InputError, OutputError
from distconv.formats.marks import TensorMark
from distconv.formats.meta.archive import locate_records, read_archive
from distconv.formats.meta.archive_layout import lay_out_archive
from distconv.formats.meta.files import PARAMS_NAME
from distconv.formats.meta.pickle_writer import TensorEntry
from distconv.formats.meta.shards import shard_name
from distconv.formats.written import FOR_INPUT, Written
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
        raise OutputError(f"{output}: no {PARAMS_NAME}; the conversion is not finished")
    return tuple(sorted(ranks, key=lambda name: (ranks[name], name)))


def read_shard(storage: Storage, path: str) -> dict[str, Written]:
    """Read what a shard's archive says of its tensors, in its own order, with their CRC32s.

    Every tensor lies inside the file. OutputError where it is no archive that torch.save writes, or
    where a tensor is not the whole of a record, row by row.
    """
    try:
        with opened(storage, path) as reader:
            found = read_archive(read_by_windows(reader))
            starts = locate_records(reader, (region for _mark, region in found.values()))
    except FileNotFoundError:
        raise OutputError(f"{path}: missing") from None
    except InputError as error:
        raise OutputError(str(error).removesuffix(FOR_INPUT)) from None
    odd = [name for name, (mark, region) in found.items() if not _is_plain(mark, region)]
    if odd:
        raise OutputError(
            f"{path}: not in the one form that its tensors have: {odd[0]:.80} is part of a record"
        )
    owners: dict[Region, str] = {}
    for name, (_mark, region) in found.items():
        owners.setdefault(region, name)
    return {
        name: Written(
            path,
            starts[region],
            mark.dtype,
            mark.shape,
            region.crc32,
            None if owners[region] == name else owners[region],
        )
        for name, (mark, region) in found.items()
    }


def _is_plain(mark: TensorMark, region: Region) -> bool:
    """Whether a tensor is all of a zip's record, one element after the other."""
    plain = (0, contiguous_strides([max(size, 1) for size in mark.shape]))
    whole = region.size_bytes == prod(mark.shape) * mark.dtype.size_bytes
    return region.zipped and whole and (mark.offset, mark.strides) == plain


def find_odd_form(storage: Storage, path: str, tensors: Mapping[str, Written]) -> str | None:
    """Lay the archive out again from its tensors and their CRC32s; tell where anything but their data differs."""
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
