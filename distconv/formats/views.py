"""A tensor as a view of bytes in a file, whatever the file's format."""

import math
from dataclasses import replace
from typing import NamedTuple

from distconv.formats.marks import TensorMark
from distconv.layout.dtypes import DType
from distconv.layout.regions import Region
from distconv.layout.reshape import merge_axes
from distconv.layout.tensors import Tensor, view_tensor


class TensorView(NamedTuple):
    """A tensor in a file: a strided view of a storage; offset, shape, strides in elements."""

    name: str
    region: Region
    dtype: DType
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    scale: "TensorView | None" = None
    """What each element is multiplied by: of the same shape, though the first axis may be two, with strides of 0."""

    @property
    def value(self) -> DType:
        """The type in which its values come: a scaled one's are products."""
        return self.dtype if self.scale is None else self.scale.dtype

    def whole(self) -> Tensor:
        """Take it as a whole tensor."""
        tensor = view_tensor(self.name, self.dtype, self.region, self.offset, self.shape, self.strides)
        if self.scale is None:
            return tensor
        scale = self.scale.whole()
        return replace(tensor, scale=merge_axes(scale, 0) if len(scale.shape) > len(self.shape) else scale)


def checksum_of(view: TensorView) -> int:
    """Give the CRC32 of a tensor's elements, which is its record's; 0 where that holds others too, or has none."""
    is_whole = view.offset == 0 and math.prod(view.shape) * view.dtype.size_bytes == view.region.size_bytes
    return view.region.crc32 if is_whole else 0


def is_disproved(left: TensorView, right: TensorView) -> bool:
    """Whether checksums of two whole records show that the tensors differ, with no data read."""
    one, other = checksum_of(left), checksum_of(right)
    return bool(one and other) and left.strides == right.strides and one != other


def make_view(name: str, mark: TensorMark, region: Region) -> TensorView:
    """Take a tensor as its file describes it, whose storage lies in a region."""
    return TensorView(name, region, mark.dtype, mark.offset, mark.shape, mark.strides)
