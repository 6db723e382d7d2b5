"""A tensor as a view of bytes in a file, whatever the file's format."""

from dataclasses import dataclass

from distconv.formats.marks import TensorMark
from distconv.layout.dtypes import DType
from distconv.layout.regions import Region
from distconv.layout.tensors import Tensor, view_tensor


@dataclass(frozen=True, slots=True)
class TensorView:
    """A tensor in a file: a strided view of a storage; offset, shape, strides in elements."""

    name: str
    region: Region
    dtype: DType
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    def whole(self) -> Tensor:
        """Take it as a whole tensor."""
        return view_tensor(self.name, self.dtype, self.region, self.offset, self.shape, self.strides)


def make_view(name: str, mark: TensorMark, region: Region) -> TensorView:
    """Take a tensor as its file describes it, whose storage lies in a region."""
    return TensorView(name, region, mark.dtype, mark.offset, mark.shape, mark.strides)
