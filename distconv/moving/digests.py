"""Digests of what was written: XXH3 of 128 bits, as ``xxhsum -H128`` prints it.

A chunk's bytes are made in the order in which they stand in the file, so its digests do not
depend on the size of blocks. XXH3 costs a few percent of a copy; it finds damage, not malice.
"""

from dataclasses import dataclass

from xxhash import xxh3_128

from distconv.storage.base import Buffer

ALGORITHM = "xxh3_128"


@dataclass(frozen=True, slots=True)
class ChunkDigests:
    """Digests in hex: of the whole file, and of each tensor's bytes in the order of the file."""

    file: str
    tensors: tuple[str, ...]


class ChunkHasher:
    """Takes a chunk's bytes in order: the header, then tensor by tensor."""

    def __init__(self, header: bytes) -> None:
        """Begin with the header."""
        self._file = xxh3_128(header)
        self._tensor = xxh3_128()
        self._tensors: list[str] = []

    def update(self, content: Buffer) -> None:
        """Add bytes of the current tensor."""
        self._file.update(content)
        self._tensor.update(content)

    def end_tensor(self) -> None:
        """Say that the next bytes belong to the next tensor."""
        self._tensors.append(self._tensor.hexdigest())
        self._tensor.reset()

    def finish(self) -> ChunkDigests:
        """Give the digests."""
        return ChunkDigests(self._file.hexdigest(), tuple(self._tensors))
