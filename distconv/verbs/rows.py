"""Rows of tensors as a comparison sees them: read whole from INPUT's parts, joined, cast.

This is another path than the worker's, which copies by strides that the plan computed. Memory is
bounded: a band of rows at a time.
"""

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from distconv.families.cuts import Cut
from distconv.formats.views import TensorView
from distconv.formats.written import Written
from distconv.layout.dtypes import STORABLE, DType, extent_elements
from distconv.moving.pieces import Piece
from distconv.moving.sources import Sources
from distconv.storage.base import Reader
from distconv.storage.blocks import read_together
from distconv.storage.parallel import map_ahead
from distconv.verbs.dequantize import dequantize

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Rows = npt.NDArray[np.unsignedinteger]

BAND_BYTES = 4 << 20
"""Stays in a core's cache, in which it is gone through several times."""
_BANDS_AHEAD = 8
"""Where answers take time, and bands are no larger than they are to be."""


def band_rows(columns: int, stored: DType, head: int = 1) -> int:
    """Give how many rows are read at once: whole heads of ``head`` rows each, one at least."""
    return max(1, BAND_BYTES // max(1, columns * stored.size_bytes * head)) * head


def join_shapes(views: Sequence[TensorView], axis: int | None) -> tuple[int, ...]:
    """Give the shape that parts have together."""
    shape = views[0].shape
    if axis is None:
        return shape
    return (*shape[:axis], sum(view.shape[axis] for view in views), *shape[axis + 1 :])


def count_copies(views: Sequence[TensorView], rows: int) -> int:
    """Tell how often each key head is stored in INPUT's parts, where OUTPUT has so many rows of them in all.

    Once, where the parts cannot be grouped so.
    """
    times, rest = divmod(sum(view.shape[0] for view in views), rows) if rows else (1, 0)
    alike = len({view.shape for view in views}) == 1
    return times if times > 1 and not rest and alike and len(views) % times == 0 else 1


def group_copies(views: Sequence[TensorView], cut: Cut, copies: int) -> list[tuple[TensorView, ...]]:
    """Give the parts that differ, in order, each with the others that should hold the same."""
    if cut.axis is None:
        return [(views[0],)]
    return [tuple(views[first : first + copies]) for first in range(0, len(views), copies)]


def read_bands(
    cut: Cut, parts: Sequence[tuple[TensorView, ...]], shape: tuple[int, ...], sources: Sources, head: int = 1
) -> Iterator[tuple[int, "Rows"]]:
    """Give a whole tensor as (first row, rows), each row one run of all its elements; whole heads at a time."""
    columns = math.prod(shape[1:])

    def read(first: int, count: int) -> "Rows":
        found = read_whole_rows(cut, parts, first, count, sources)
        return found.reshape(len(found), columns)

    band = band_rows(columns, parts[0][0].value, head)
    yield from read_ahead(read, shape[0], band, sources.open(parts[0][0].region.path))


def read_ahead(
    read: Callable[[int, int], "Rows"], rows: int, band: int, reader: Reader, band_bytes: int = BAND_BYTES
) -> Iterator[tuple[int, "Rows"]]:
    """Give each band of rows as (first row, rows); ``read`` gives so many from a first one on.

    Where answers take time, as those of ``reader`` may, the next ones are read meanwhile: of larger bands fewer.
    """

    def read_from(first: int) -> tuple[int, "Rows"]:
        return first, read(first, min(band, rows - first))

    ahead = min(_BANDS_AHEAD, max(1, _BANDS_AHEAD * BAND_BYTES // max(1, band_bytes)))
    ahead = ahead if reader.access.ahead_bytes else 0
    yield from map_ahead(read_from, range(0, rows, band), ahead)


def read_whole_rows(
    cut: Cut, parts: Sequence[tuple[TensorView, ...]], first: int, count: int, sources: Sources
) -> "Rows":
    """Read rows of the whole tensor, wherever in the shards they lie."""
    import numpy as np

    if cut.axis == 1:
        return np.concatenate(
            [read_rows(view, first, count, sources) for (view,) in parts if view.shape[1]], axis=1
        )
    found = []
    for begin, start, rows, views in _list_runs(cut, parts):
        low, high = max(first - begin, 0), min(first + count - begin, rows)
        if low >= high:
            continue
        part, *twins = (read_rows(view, start + low, high - low, sources) for view in views)
        # Written once though the copies differ: no row of it can be right.
        found.append(part if all((part == twin).all() for twin in twins) else ~part)
    return found[0] if len(found) == 1 else np.concatenate(found)


def _list_runs(
    cut: Cut, parts: Sequence[tuple[TensorView, ...]]
) -> Iterator[tuple[int, int, int, tuple[TensorView, ...]]]:
    """Give runs of rows in the whole's order: where each begins there and in its part, how long it is, whose it is."""
    begin = 0
    for group in range(cut.groups):
        for views in parts:
            rows = views[0].shape[0] // cut.groups
            yield begin, group * rows, rows, views
            begin += rows


def read_rows(view: TensorView, first: int, count: int, sources: Sources) -> "Rows":
    """Read some rows of a part, whatever its strides, and hardly more than them; scaled ones as products.

    Where rows lie apart, or columns do, each is read by itself.
    """
    found = _read_stored(view, first, count, sources)
    return found if view.scale is None else dequantize(found, view, view.scale, first, sources)


def _read_stored(view: TensorView, first: int, count: int, sources: Sources) -> "Rows":
    import numpy as np
    from numpy.lib.stride_tricks import as_strided

    unit = view.dtype.size_bytes
    extents = (count, *view.shape[1:])
    start = view.offset + first * view.strides[0]
    apart = max(range(len(extents)), key=lambda axis: view.strides[axis])
    if extent_elements(extents, view.strides) <= 2 * math.prod(extents):
        ranges, along = 1, extents
    else:
        ranges, along = extents[apart], (*extents[:apart], 1, *extents[apart + 1 :])
    found = []
    for number in range(ranges):
        piece = Piece(
            view.region,
            start + number * view.strides[apart],
            extent_elements(along, view.strides),
            along,
            view.strides,
            0,
            along,
        )
        content = np.frombuffer(sources.read(piece, unit), dtype=f"u{unit}")
        found.append(as_strided(content, along, [unit * stride for stride in view.strides]))
    return np.ascontiguousarray(found[0] if len(found) == 1 else np.concatenate(found, axis=apart))


def choose_dtype(pairs: Iterable[tuple[DType, Written]]) -> DType | None:
    """Tell the type that tensors were cast to, by most of their elements; None where each has INPUT's own.

    ``pairs`` are what INPUT has a tensor stored as, and what OUTPUT has of it. Where any is quantized all were cast.
    """
    kept, found, quantized = 0, Counter[DType](), False
    for stored, written in pairs:
        if not written.dtype.is_float:
            continue
        quantized = quantized or stored not in STORABLE
        found[written.dtype] += written.elements
        kept += written.elements if written.dtype == stored else 0
    if not found:
        return None
    dtype, cast = found.most_common(1)[0]
    return dtype if cast > kept or quantized else None


def cast_rows(rows: "Rows", stored: DType, dtype: DType) -> "Rows":
    """Give contiguous rows in another type; any NaN becomes the quiet one with no payload."""
    if stored == dtype:
        return rows
    import torch

    block = torch.from_numpy(rows.view(f"i{stored.size_bytes}").reshape(-1)).view(getattr(torch, stored.name))
    cast = block.to(getattr(torch, dtype.name))
    # Zero over zero would carry a sign; torch's own constant is the quiet NaN of every type.
    cast = torch.where(block.isnan(), torch.tensor(float("nan"), dtype=cast.dtype), cast)
    return cast.contiguous().view(torch.uint8).numpy()


def find_difference(expected: "Rows", found: "Rows", row_bytes: int, dtype: DType) -> tuple[int, int] | None:
    """Give the row and the column, in elements, of the first byte that differs of contiguous ones."""
    import numpy as np

    # NumPy lets other lanes have the interpreter meanwhile, which a comparison of bytes does not.
    kind = np.uint8 if expected.nbytes % 8 else np.uint64
    if np.array_equal(expected.reshape(-1).view(kind), found.reshape(-1).view(kind)):
        return None
    differ = expected.reshape(-1).view(np.uint8) != found.reshape(-1).view(np.uint8)
    row, column = divmod(int(differ.argmax()), row_bytes)
    return row, column // dtype.size_bytes


def read_bytes(reader: Reader, offset_bytes: int, size_bytes: int) -> "Rows":
    """Read a range into memory of its own."""
    import numpy as np

    return np.frombuffer(read_together(reader, offset_bytes, size_bytes), np.uint8)
