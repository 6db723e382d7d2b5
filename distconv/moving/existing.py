"""Whether a file of OUTPUT is there already, and is what is planned."""

from collections.abc import Callable, Mapping, Sequence

from distconv.formats.meta.checksums import update_crc32
from distconv.layout.files import File, Section, list_around
from distconv.moving.digests import ChunkDigests, make_hasher
from distconv.moving.trails import Trail
from distconv.storage.base import Storage, join, opened, read_range
from distconv.storage.blocks import read_blocks
from distconv.storage.parallel import map_at_once

_LOOKS = 16
"""So many files are looked at at once: on a share or in a store each answer takes its time."""


def find_finished(
    storage: Storage, output: str, files: Sequence[File], versions: Mapping[str, str] | None = None
) -> frozenset[str]:
    """Name the files that are there with their size and header; ``versions`` vouch for those that have them."""
    known = versions or {}
    entries = {entry.name: entry for entry in storage.list_folder(output)}
    there = [
        file
        for file in files
        if (entry := entries.get(file.name)) is not None and entry.size_bytes == file.size_bytes
    ]
    vouched = {file.name for file in there if entries[file.name].version == known.get(file.name)}
    asked = [file for file in there if file.name not in vouched]

    def begins_right(file: File, _stopped: Callable[[], bool]) -> bool:
        return _has_head(storage, join(output, file.name), file)

    found = map_at_once(begins_right, asked, _LOOKS)
    return frozenset(vouched | {file.name for file, whole in zip(asked, found, strict=True) if whole})


def is_finished(storage: Storage, path: str, chunk: File) -> bool:
    """Whether a file is there with this chunk's size and header."""
    entry = storage.find(path)
    return entry is not None and entry.size_bytes == chunk.size_bytes and _has_head(storage, path, chunk)


def _has_head(storage: Storage, path: str, chunk: File) -> bool:
    """Whether a file begins with this chunk's header, and is not gone again."""
    try:
        with opened(storage, path) as reader:
            return read_range(reader, 0, len(chunk.head)) == chunk.head
    except FileNotFoundError:
        return False


def is_same(
    storage: Storage,
    path: str,
    unit: Section,
    digests: ChunkDigests,
    advance: Callable[[int], None],
    stopped: Callable[[], bool],
) -> bool:
    """Whether a file that is there has these digests, and around its tensors what is planned of such data."""
    return read_same(storage, path, unit, digests, advance, stopped) is not None


def read_same(
    storage: Storage,
    path: str,
    unit: Section,
    digests: ChunkDigests,
    advance: Callable[[int], None],
    stopped: Callable[[], bool],
    trail: Trail | None = None,
) -> tuple[int, ...] | None:
    """Read a file, or a part of one, that is there, telling of bytes as they are read; ``trail`` goes along.

    Gives the CRC32s of its tensors, or none where nothing is made of them; None where it is not the same.
    """
    hasher, checksums = make_hasher(unit, trail), []
    advance(unit.size_bytes - sum(tensor.size_bytes for tensor in unit.tensors))
    with opened(storage, path) as reader:
        for tensor, first in zip(unit.tensors, unit.offsets_bytes, strict=True):
            checksum = 0
            for content in read_blocks(reader, first, first + tensor.size_bytes, stopped):
                hasher.update(content)
                if unit.trailers:
                    checksum = update_crc32(checksum, content)
                advance(len(content))
            hasher.end_tensor()
            if unit.trailers:
                checksums.append(checksum)
        if hasher.finish() != digests:
            return None
        for literal in list_around(unit, checksums):
            if read_range(reader, literal.offset_bytes, len(literal.content)) != literal.content:
                return None
    return tuple(checksums)
