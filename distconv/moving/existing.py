"""Whether a file of OUTPUT is there already, and is what is planned."""

from collections.abc import Callable

from distconv.formats.meta.checksums import update_crc32
from distconv.layout.files import File, Section
from distconv.moving.digests import ChunkDigests, ChunkHasher
from distconv.storage.base import Storage, opened, read_range
from distconv.storage.blocks import read_blocks


def is_finished(storage: Storage, path: str, chunk: File) -> bool:
    """Whether a file is there with this chunk's size and header."""
    entry = storage.find(path)
    if entry is None or entry.size_bytes != chunk.size_bytes:
        return False
    try:
        with opened(storage, path) as reader:
            return read_range(reader, 0, len(chunk.head)) == chunk.head
    except FileNotFoundError:
        return False


def is_same(
    storage: Storage,
    path: str,
    file: File,
    digests: ChunkDigests,
    advance: Callable[[int], None],
    stopped: Callable[[], bool],
) -> bool:
    """Whether a file that is there has these digests, and around its tensors what is planned of such data."""
    found, checksums = read_digests(storage, path, file, advance, stopped)
    if found != digests:
        return False
    sealed = () if file.seal is None else file.seal.make(checksums)
    with opened(storage, path) as reader:
        return all(
            read_range(reader, literal.offset_bytes, len(literal.content)) == literal.content
            for literal in (*file.literals, *sealed)
        )


def read_digests(
    storage: Storage, path: str, unit: Section, advance: Callable[[int], None], stopped: Callable[[], bool]
) -> tuple[ChunkDigests, tuple[int, ...]]:
    """Digest a file, or a part of one, that is there, telling of bytes as they are read.

    Gives the CRC32s of its tensors too, where a seal is made of them.
    """
    hasher, checksums, sealed = ChunkHasher(unit.plain_head), [], unit.is_sealed
    advance(unit.size_bytes - sum(tensor.size_bytes for tensor in unit.tensors))
    with opened(storage, path) as reader:
        for tensor, first in zip(unit.tensors, unit.offsets_bytes, strict=True):
            checksum = 0
            for content in read_blocks(reader, first, first + tensor.size_bytes, stopped):
                hasher.update(content)
                if sealed:
                    checksum = update_crc32(checksum, content)
                advance(len(content))
            hasher.end_tensor()
            checksums.append(checksum)
    return hasher.finish(), tuple(checksums) if sealed else ()
