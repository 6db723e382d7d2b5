"""Tensors of which several files hold boxes: what the ranks of a trainer saved."""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from distconv.formats.views import TensorView
from distconv.layout.copies import Copy
from distconv.layout.dtypes import DType
from distconv.layout.regions import Region
from distconv.layout.tensors import Tensor, view_part
from distconv.storage.base import Storage

Extents = tuple[int, ...]


class Box(NamedTuple):
    """A part of a tensor, in a file, and the coordinates of the tensor at which it begins."""

    first: Extents
    view: TensorView


@dataclass(frozen=True, slots=True)
class BoxedTensor:
    """A tensor by the name that its files have; nothing is proved of its boxes yet."""

    name: str
    dtype: DType
    shape: Extents
    boxes: tuple[Box, ...]

    def whole(self) -> Tensor:
        """Take the boxes as one tensor."""
        return Tensor(self.name, self.dtype, self.shape, tuple(map(place, self.boxes)))


def place(box: Box) -> Copy:
    """Let what a part, which has elements, is read by land where the part lies."""
    view = box.view
    return view_part(view.region, view.offset, view.shape, view.strides, box.first)


@dataclass(frozen=True, slots=True)
class Described:
    """What is known of a tensor before its files are opened."""

    dtype: DType
    shape: Extents


@dataclass(frozen=True, slots=True)
class TrainedFiles:
    """A checkpoint as a trainer's ranks left it: which files there are, and what they say they hold."""

    folder: str
    form: str
    """What it is, for people."""
    weights: tuple[str, ...]
    """Paths of all files that say or hold what the tensors are."""
    tensors: Mapping[str, Described]
    """By the names that the files have, those of optimizers included."""
    others: tuple[str, ...]
    """Names of what is no tensor."""
    read: Callable[[Storage, Collection[str]], Mapping[str, BoxedTensor]]
    """Read where some of the tensors lie, by the same names; InputError with all that is wrong with the files."""
    read_checksums: Callable[[Storage, Sequence[Region]], list[Region]]
    """Give those of some regions of one file of which it has a CRC32, with that."""
    read_again: Callable[[Storage], "TrainedFiles"]
    """Look at the same folder anew."""
    notes: tuple[str, ...] = ()


def list_views(tensors: Iterable[BoxedTensor]) -> Iterator[TensorView]:
    """Give all parts of some tensors."""
    return (box.view for tensor in tensors for box in tensor.boxes)
