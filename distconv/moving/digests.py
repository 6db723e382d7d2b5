"""Digests of what was written: XXH3 of 128 bits, as ``xxhsum -H128`` prints it.

A chunk's bytes are made in the order in which they stand in the file, so its digests do not
depend on the size of blocks. XXH3 costs a few percent of a copy; it finds damage, not malice.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from xxhash import xxh3_128

from distconv.layout.files import Part, Section
from distconv.moving.trails import Trail
from distconv.storage.base import Buffer

ALGORITHM = "xxh3_128"


@dataclass(frozen=True, slots=True)
class ChunkDigests:
    """Digests in hex: of the whole file, and of each tensor's bytes in the order of the file.

    That of the file is None where it is not made from its first byte to its last one.
    """

    file: str | None
    tensors: tuple[str, ...]


NO_DIGESTS = ChunkDigests(None, ())
"""Of a unit that makes no file."""


@dataclass(frozen=True, slots=True)
class PartDigests:
    """Digests in hex of each tensor in a part of a file, and what tells a part that cannot be read yet."""

    tensors: tuple[str, ...]
    version: str | None = None
    """Of the part as it is stored, see ``PartWriter.finish``; None where it can be read."""
    checksums: tuple[int, ...] = ()
    """CRC32 of each tensor's data; recorded only where there is a version."""


class ChunkHasher:
    """Takes a file's tensors in order, byte by byte, and what stands before them if it is to be digested as well."""

    def __init__(self, head: bytes | None, trail: Trail | None = None, places: Sequence[int] = ()) -> None:
        """Begin with what stands before the tensors; None where there is more than that between them, or not all.

        A ``trail`` goes along with what follows it: tensors of the file's ``places``, or rows of these.
        """
        self._file = None if head is None else xxh3_128(head)
        self._trail, self._places = trail, iter(places)
        self._turn()
        self._tensor = xxh3_128()
        self._tensors: list[str] = []

    def update(self, content: Buffer) -> None:
        """Add bytes of the current tensor."""
        if self._file is not None:
            self._file.update(content)
        self._tensor.update(content)
        if self._trail is not None:
            self._trail.update(content)

    def end_tensor(self) -> None:
        """Say that the next bytes belong to the next tensor."""
        self._tensors.append(self._tensor.hexdigest())
        self._tensor.reset()
        self._turn()

    def _turn(self) -> None:
        place = next(self._places, None)
        if self._trail is not None and place is not None:
            self._trail.turn_to(place)

    def finish(self) -> ChunkDigests:
        """Give the digests."""
        return ChunkDigests(None if self._file is None else self._file.hexdigest(), tuple(self._tensors))


def make_hasher(section: Section, trail: Trail | None = None) -> ChunkHasher:
    """Give what takes the tensors of a file, or of a part of one, and lets a ``trail`` go along."""
    return ChunkHasher(section.plain_head, trail, section.places if isinstance(section, Part) else ())
