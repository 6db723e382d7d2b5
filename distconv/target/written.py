"""What the files of a model folder say they hold: index, chunk headers, JSON objects."""

import json
import math
from dataclasses import dataclass

from distconv.errors import OutputError
from distconv.planning.chunks import INDEX_NAME, SINGLE_NAME
from distconv.storage import Storage, join, opened, read_range, read_small
from distconv.tensors import DTYPES, DType

_HEADER_LIMIT_BYTES = 100 << 20
_INDEX_LIMIT_BYTES = 100 << 20
_DTYPES_BY_CODE = {dtype.code: dtype for dtype in DTYPES.values()}


def read_object(storage: Storage, path: str) -> dict[str, object]:
    """Read a file that holds a JSON object; OutputError where it does not."""
    try:
        found = json.loads(read_small(storage, path, _INDEX_LIMIT_BYTES))
    except (ValueError, RecursionError) as error:
        raise OutputError(f"{path}: not JSON ({error})") from None
    if not isinstance(found, dict):
        raise OutputError(f"{path}: expected a JSON object")
    return found


def list_chunks(storage: Storage, output: str) -> tuple[str, ...]:
    """Give the names of the chunk files that the index names, or the single one."""
    if storage.find(join(output, INDEX_NAME)) is not None:
        weight_map = read_object(storage, join(output, INDEX_NAME)).get("weight_map")
        if not isinstance(weight_map, dict):
            raise OutputError(f"{join(output, INDEX_NAME)}: no weight_map")
        return tuple(sorted({str(name) for name in weight_map.values()}))
    if storage.find(join(output, SINGLE_NAME)) is not None:
        return (SINGLE_NAME,)
    raise OutputError(f"{output}: neither {INDEX_NAME} nor {SINGLE_NAME}; the conversion is not finished")


@dataclass(frozen=True, slots=True)
class Written:
    """A tensor as OUTPUT's header names it."""

    path: str
    offset_bytes: int
    dtype: DType
    shape: tuple[int, ...]

    @property
    def elements(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)


def read_header(storage: Storage, path: str) -> dict[str, Written]:
    """Read a chunk's header, as its file says; OutputError where it is not one."""
    if storage.find(path) is None:
        raise OutputError(f"{path}: missing, though the index names it")
    with opened(storage, path) as reader:
        size = int.from_bytes(read_range(reader, 0, 8), "little") if reader.size_bytes >= 8 else -1
        if not 0 <= size <= min(_HEADER_LIMIT_BYTES, reader.size_bytes - 8):
            raise OutputError(f"{path}: no safetensors header")
        text = bytes(read_range(reader, 8, size))
        data_bytes = reader.size_bytes - 8 - size
    try:
        entries = json.loads(text)
        entries.pop("__metadata__", None)
        found = {
            name: Written(
                path,
                8 + size + entry["data_offsets"][0],
                _DTYPES_BY_CODE[entry["dtype"]],
                tuple(entry["shape"]),
            )
            for name, entry in entries.items()
        }
        end = max((entry["data_offsets"][1] for entry in entries.values()), default=0)
    except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise OutputError(f"{path}: damaged safetensors header ({type(error).__name__}: {error})") from None
    if end != data_bytes:
        raise OutputError(f"{path}: {data_bytes:,} bytes of data, its header needs {end:,}")
    return found
