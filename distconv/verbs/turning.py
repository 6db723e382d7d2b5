"""What operations do to the rows of a tensor, by indices of rows: another way than the plan's.

Rows come and go as (number of the first one, rows), each row one run of all its elements.
"""

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from distconv.families.operations import ROTARY, TRANSPOSED, Operation, TileTable
from distconv.verbs.rows import BAND_BYTES

if TYPE_CHECKING:
    from distconv.verbs.rows import Rows

    Bands = Iterable[tuple[int, Rows]]


def list_head_rows(operation: Operation, head_dim: int) -> int:
    """Give how many rows an operation must see together."""
    return head_dim if operation is ROTARY else 1


def turn(
    operation: Operation, bands: "Bands", shape: tuple[int, ...], head_dim: int
) -> Iterator[tuple[int, "Rows"]]:
    """Make Transformers' rows of Meta's, whose whole shape this is; tables are small, a transposed matrix is held whole."""
    if operation is ROTARY:
        for first, rows in bands:
            yield first, rows[_halve(len(rows), head_dim)]
    elif operation is TRANSPOSED:
        yield from _take_columns(_take_whole(bands))
    elif isinstance(operation, TileTable):
        yield from _lay_tiles(operation, _take_whole(bands), shape)
    else:
        yield from bands


def turn_back(operation: Operation, bands: "Bands", head_dim: int) -> Iterator[tuple[int, "Rows"]]:
    """Make Meta's rows of Transformers'."""
    if operation is ROTARY:
        for first, rows in bands:
            yield first, rows[_interleave(len(rows), head_dim)]
    elif operation is TRANSPOSED:
        yield from _take_columns(_take_whole(bands))
    elif isinstance(operation, TileTable):
        yield 0, _gather_tiles(operation, _take_whole(bands))
    else:
        yield from bands


def _take_columns(whole: "Rows") -> "Bands":
    """Give columns as rows, some at a time: whoever takes them makes copies."""
    step = max(1, BAND_BYTES // max(1, whole[:, :1].nbytes))
    for first in range(0, whole.shape[1], step):
        yield first, whole[:, first : first + step].T


def _take_whole(bands: "Bands") -> "Rows":
    import numpy as np

    return np.concatenate([rows for _first, rows in bands])


def _lay_tiles(table: TileTable, whole: "Rows", shape: tuple[int, ...]) -> Iterator[tuple[int, "Rows"]]:
    import numpy as np

    sides, size = shape[:2], shape[2] * shape[3]
    places = whole.reshape(*sides, size)
    yield 0, np.zeros((1, table.tiles * size), whole.dtype)
    for number, (rows, columns) in enumerate(table.ratios, 1):
        row = np.zeros((1, table.tiles * size), whole.dtype)
        row[0, : rows * columns * size] = places[:rows, :columns].reshape(-1)
        yield number, row


def _gather_tiles(table: TileTable, whole: "Rows") -> "Rows":
    import numpy as np

    size = whole.shape[1] // table.tiles
    found = np.zeros((table.tiles, table.tiles, size), whole.dtype)
    # The first ratio that has a place is written last.
    for number, (rows, columns) in reversed([*enumerate(table.ratios, 1)]):
        found[:rows, :columns] = whole[number, : rows * columns * size].reshape(rows, columns, size)
    return found.reshape(table.tiles, table.tiles * size)


def _halve(rows: int, head: int) -> list[int]:
    """Meta's row for each of Transformers': row h, p, i is Meta's row h, 2 i + p."""
    half = head // 2
    return [
        start + 2 * (place % half) + place // half for start in range(0, rows, head) for place in range(head)
    ]


def _interleave(rows: int, head: int) -> list[int]:
    """Transformers' row for each of Meta's: row h, 2 i + p is Transformers' row h, p, i."""
    return [
        start + place % 2 * (head // 2) + place // 2
        for start in range(0, rows, head)
        for place in range(head)
    ]
