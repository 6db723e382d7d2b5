"""What files that a conversion wrote say they hold: tensors, and JSON objects."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass

from distconv.errors import InputError, OutputError
from distconv.formats.plain_json import LIMIT_BYTES, decode_json
from distconv.formats.views import TensorView
from distconv.layout.dtypes import DType, contiguous_strides, extent_elements
from distconv.layout.regions import Region
from distconv.storage.base import Storage, read_small

Place = tuple[int, int, tuple[int, ...]]


@dataclass(frozen=True, slots=True)
class Written:
    """A tensor as the header of OUTPUT's file names it; its elements lie in a row, where ``strides`` do not say otherwise."""

    path: str
    offset_bytes: int
    dtype: DType
    shape: tuple[int, ...]
    crc32: int | None = None
    """Of its bytes, as the file itself says; None where it says nothing of these alone."""
    shares: str | None = None
    """The earlier tensor of the file whose data this is as well; receipts record that one only."""
    strides: tuple[int, ...] | None = None
    """In elements, of one whose elements lie apart, or in another order."""

    @property
    def elements(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def end_bytes(self) -> int:
        """Where in the file its data ends."""
        extent = self.elements if self.strides is None else extent_elements(self.shape, self.strides)
        return self.offset_bytes + extent * self.dtype.size_bytes

    @property
    def place(self) -> Place:
        """What only tensors of the same data have, of those of one file: where it lies, in which order."""
        order = () if self.strides is None else (*self.shape, *self.strides)
        return self.offset_bytes, self.end_bytes, order


def list_without_checksum(tensors: Mapping[str, Written]) -> list[str]:
    """Name tensors of which the file itself has no CRC32 that is theirs alone."""
    return [name for name, found in tensors.items() if found.crc32 is None]


FOR_INPUT = ": download it again"
"""Ends messages on damaged files; what a conversion wrote is nowhere to be had again."""

Headers = Mapping[str, Mapping[str, Written]]
"""By the file's name and the tensor's."""


def read_object(storage: Storage, path: str) -> dict[str, object]:
    """Read a file that holds a JSON object; OutputError where it does not."""
    try:
        found = json.loads(decode_json(read_small(storage, path, LIMIT_BYTES)))
    except (ValueError, RecursionError) as error:
        raise OutputError(f"{path}: not JSON ({error})") from None
    except InputError as error:
        raise OutputError(str(error)) from None
    if not isinstance(found, dict):
        raise OutputError(f"{path}: expected a JSON object")
    return found


def view_written(name: str, written: Written) -> TensorView:
    """Take a tensor of a file that was written as one to be read."""
    size = written.end_bytes - written.offset_bytes
    region = Region(written.path, written.offset_bytes, size, 0, zipped=False)
    strides = contiguous_strides(written.shape) if written.strides is None else written.strides
    return TensorView(name, region, written.dtype, 0, written.shape, strides)
