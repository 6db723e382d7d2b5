"""Where the boxes of a distributed checkpoint's tensors lie: the heads of their items, read at once."""

import itertools
import threading
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from time import perf_counter

from distconv.errors import InputError, Stopped
from distconv.formats.boxes import Box, BoxedTensor
from distconv.formats.dcp.items import (
    DESCRIPTOR_BYTES,
    HEAD_BYTES,
    CutShortError,
    Heads,
    Item,
    find_checksum,
)
from distconv.formats.dcp.metadata import METADATA_NAME, Chunk, Metadata
from distconv.formats.meta.pickles import EndsEarlyError
from distconv.formats.views import make_view
from distconv.humanize import shorten
from distconv.layout.dtypes import DType
from distconv.layout.regions import Region
from distconv.storage.base import Reader, Storage, join, opened, read_range
from distconv.storage.parallel import read_at_once
from distconv.storage.window import read_by_windows

_OPENERS = 32
_FIRST_OPENERS = 1
_SLOW_SECONDS = 200e-6
"""Reads that take longer wait for storage, and more of them wait together; others only wait for the interpreter's lock."""
_JUDGED = 32
"""Items by which that is told."""
_BATCH = 512
"""Items that one opener reads of a file: many enough to open it for, few enough to have many openers on a large one."""
_LONGEST_HEAD_BYTES = 64 << 10
_MOST_FINDINGS = 16


_Wanted = tuple[str, DType, Chunk]
"""A box, and name and type of the tensor of which it is one."""


@dataclass(frozen=True, slots=True)
class _Batch:
    """Items of one file, by where they stand in it."""

    path: str
    items: Sequence[_Wanted]


def read_boxes(
    storage: Storage, folder: str, metadata: Metadata, names: Collection[str]
) -> Mapping[str, BoxedTensor]:
    """Read the heads of some tensors' items; InputError with every file that is missing, cut short or another's."""
    batches = list(_make_batches(storage, folder, metadata, names))
    heads = Heads()
    turns = threading.Semaphore(_FIRST_OPENERS)

    def read(batch: _Batch, stopped: Callable[[], bool]) -> list[tuple[str, Box]]:
        with turns, opened(storage, batch.path) as reader:
            began, near = perf_counter(), read_by_windows(reader)
            found = list(_read_items(near, batch.items[:_JUDGED], heads, stopped))
            if perf_counter() - began > _SLOW_SECONDS * len(found):
                turns.release()  # one more from now on
            found += _read_items(near, batch.items[_JUDGED:], heads, stopped)
            return found

    outcomes = read_at_once(read, batches, _OPENERS)
    found: dict[str, list[Box]] = {name: [] for name in names}
    for outcome in outcomes:
        for name, box in outcome:
            found[name].append(box)
    return {
        name: BoxedTensor(name, metadata.tensors[name].dtype, metadata.tensors[name].shape, tuple(boxes))
        for name, boxes in found.items()
    }


def _make_batches(
    storage: Storage, folder: str, metadata: Metadata, names: Collection[str]
) -> Iterator[_Batch]:
    """Order the boxes by their files; InputError with the files that are missing, or end before a box does."""
    files: defaultdict[str, list[_Wanted]] = defaultdict(list)
    for name in names:
        tensor = metadata.tensors[name]
        for chunk in tensor.chunks:
            files[chunk.file].append((name, tensor.dtype, chunk))
    sizes = {entry.name: entry.size_bytes for entry in storage.list_folder(folder) if not entry.is_folder}
    findings: list[str] = []
    for file, wanted in files.items():
        wanted.sort(key=lambda one: one[2].offset_bytes)
        findings += _find_shared(join(folder, file), wanted)
        end, name = max((chunk.offset_bytes + chunk.size_bytes, name) for name, _dtype, chunk in wanted)
        if file not in sizes:
            findings.append(
                f"{join(folder, file)}: missing, {METADATA_NAME} names it for {wanted[0][0]} and {len(wanted) - 1:,} "
                "more boxes; copy the files of all ranks into one folder"
            )
        elif sizes[file] < end:
            findings.append(
                f"{join(folder, file)}: {sizes[file]:,} bytes, {name} ends at byte {end:,}; the file is truncated: copy it again"
            )
    if findings:
        raise InputError.of(shorten(findings, _MOST_FINDINGS))
    for file, wanted in sorted(files.items()):
        for first in range(0, len(wanted), _BATCH):
            yield _Batch(join(folder, file), wanted[first : first + _BATCH])


def _find_shared(path: str, wanted: Sequence[_Wanted]) -> Iterator[str]:
    """Tell of boxes, in the order of a file, that lie in the bytes of others: torch writes each by itself."""
    for (before, _, one), (name, _, next_one) in itertools.pairwise(wanted):
        is_within = next_one.offset_bytes < one.offset_bytes + one.size_bytes
        # The same one again fills its place twice, which is told later.
        if is_within and (name, next_one) != (before, one):
            yield (
                f"{path}: {METADATA_NAME} has {name} at byte {next_one.offset_bytes:,}, within {before}, which ends at "
                f"{one.offset_bytes + one.size_bytes:,}: the description is damaged, copy it again"
            )


def _read_items(
    reader: Reader, items: Sequence[_Wanted], heads: Heads, stopped: Callable[[], bool]
) -> Iterator[tuple[str, Box]]:
    path = reader.path
    for name, dtype, chunk in items:
        if stopped():
            raise Stopped("stopped")
        try:
            item = _read_item(reader, dtype, chunk, heads)
        except InputError as error:
            raise InputError(f"{path}: {name}: {error}") from None
        start = chunk.offset_bytes + len(item.head)
        region = Region(path, start, item.size_bytes, 0, zipped=False)
        yield name, Box(chunk.first, make_view(name, item.mark, region))


def _read_item(reader: Reader, dtype: DType, chunk: Chunk, heads: Heads) -> Item:
    size = HEAD_BYTES
    while True:
        size = min(size, chunk.size_bytes)
        try:
            return heads.read(read_range(reader, chunk.offset_bytes, size), dtype, chunk)
        except (CutShortError, EndsEarlyError):
            if size in {chunk.size_bytes, _LONGEST_HEAD_BYTES}:
                raise
            size = min(size * 8, _LONGEST_HEAD_BYTES)


def read_checksums(storage: Storage, regions: Sequence[Region]) -> list[Region]:
    """Read the CRC32s that stand behind the data of one file's items; those without one are left out."""
    found = []
    with opened(storage, regions[0].path) as reader:
        near = read_by_windows(reader)
        for region in sorted(regions, key=lambda region: region.offset_bytes):
            end = region.offset_bytes + region.size_bytes
            size = min(DESCRIPTOR_BYTES, reader.size_bytes - end)
            crc32 = find_checksum(bytes(read_range(near, end, size)), region.size_bytes)
            if crc32:
                found.append(region._replace(crc32=crc32))
    return found
