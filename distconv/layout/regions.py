"""Stored runs of bytes: of millions, which are cheap as tuples."""

from typing import NamedTuple


class Region(NamedTuple):
    """The bytes of one storage in a file.

    In a zip, ``offset_bytes`` is that of the record's local header, whose length is only in
    itself: it is read when the data is needed, so that a catalog of a whole model costs no
    read a tensor.
    """

    path: str
    offset_bytes: int
    size_bytes: int
    crc32: int
    """Of the data, from the zip's central directory; 0 where nothing is recorded."""
    zipped: bool

    @property
    def is_stored(self) -> bool:
        """Whether it lies in a file, which ``ZEROS`` do not."""
        return bool(self.path)


ZEROS = Region("", 0, 1 << 62, 0, zipped=False)
"""Zeros without end, which lie in no file: what a tensor has that INPUT has not."""
