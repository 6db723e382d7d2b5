"""A safetensors file's tensors: where each one's bytes lie.

Source of the format: ``safetensors/src/tensor.rs`` 0.8.0: the header's length in eight bytes,
the header as JSON, then the data, which the tensors tile.
"""

import math

from distconv.errors import InputError
from distconv.formats.marks import StorageMark, TensorMark
from distconv.formats.plain_json import LIMIT_BYTES, parse_json
from distconv.formats.state import LIMIT_TENSORS
from distconv.layout.dtypes import DTYPES, contiguous_strides
from distconv.layout.regions import Region
from distconv.storage.base import Reader, read_range

_LENGTH_BYTES = 8
_MOST_AXES = 8
_LARGEST = 1 << 60
_DTYPES_BY_CODE = {dtype.code: dtype for dtype in DTYPES.values()}


def is_safetensors(head: bytes) -> bool:
    """Whether a file that begins so is a safetensors file, whatever its name says.

    No header is so long that the last bytes of its length are used; neither a zip nor a
    pickle nor text has zeros and a brace there.
    """
    return head[5:_LENGTH_BYTES] == bytes(3) and head[_LENGTH_BYTES : _LENGTH_BYTES + 1] == b"{"


def read_safetensors(reader: Reader) -> dict[str, tuple[TensorMark, Region]]:
    """Read a safetensors file's header: each tensor with the record of its data.

    Names that the file's metadata gives for one that is there, as ``save_model`` writes them
    for shared tensors, stand for the same data. Raises InputError for anything damaged.
    """
    return read_with_metadata(reader)[0]


Found = dict[str, tuple[TensorMark, Region]]


def read_with_metadata(reader: Reader) -> tuple[Found, dict[str, str]]:
    """Read a header as ``read_safetensors`` does; also give what the file says of itself."""
    try:
        return _read(reader)
    except InputError as error:
        message = str(error)  # a reader names its file itself
        raise InputError(
            message if message.startswith(reader.path) else f"{reader.path}: {message}"
        ) from None


def _read(reader: Reader) -> tuple[Found, dict[str, str]]:
    size = int.from_bytes(read_range(reader, 0, _LENGTH_BYTES), "little")
    start = _LENGTH_BYTES + size
    if start > reader.size_bytes:
        raise InputError(
            f"a safetensors file whose header ends at byte {start:,}, the file at {reader.size_bytes:,}; "
            "the file is truncated or damaged: download it again"
        )
    if size > LIMIT_BYTES:
        raise InputError(
            f"a safetensors file whose header has {size:,} bytes, expected at most {LIMIT_BYTES:,}"
        )
    try:
        entries = parse_json(bytes(read_range(reader, _LENGTH_BYTES, size)))
    except ValueError as error:
        raise InputError(
            f"a safetensors file whose header is not JSON ({error}); the file is damaged: download it again"
        ) from None
    if not isinstance(entries, dict):
        raise InputError(
            "a safetensors file whose header is no JSON object; the file is damaged: download it again"
        )
    metadata = _take_metadata(entries)
    if len(entries) > LIMIT_TENSORS:
        raise InputError(f"more than {LIMIT_TENSORS:,} tensors in one file; refused as unsafe")
    found = {name: _make_tensor(reader.path, start, name, entry) for name, entry in entries.items()}
    if not found:
        raise InputError(
            "a safetensors file without a tensor, expected a torch checkpoint or the tensors of a model"
        )
    _check_tiles(found, start, reader.size_bytes)
    for name, kept in metadata.items():
        if name not in found and kept in entries:
            found[name] = found[kept]
    return found, metadata


def _take_metadata(entries: dict[str, object]) -> dict[str, str]:
    """Take what the file says of itself, text by name, from a header's entries; loaders refuse anything else."""
    metadata = entries.pop("__metadata__", None)
    texts = metadata if isinstance(metadata, dict) else {}
    if (texts is not metadata and metadata is not None) or not all(
        isinstance(text, str) for text in texts.values()
    ):
        raise InputError(
            f"a safetensors file whose __metadata__ is {metadata!r:.40}, expected text by name; loaders refuse it"
        )
    return texts


def _make_tensor(path: str, start: int, name: str, entry: object) -> tuple[TensorMark, Region]:
    """Check one entry of the header; offsets in it are in bytes from the header's end."""
    if not isinstance(entry, dict):
        raise InputError(f"{name:.80}: no object in its header; the file is damaged")
    code, shape, offsets = (entry.get(key) for key in ("dtype", "shape", "data_offsets"))
    dtype = _DTYPES_BY_CODE.get(code) if isinstance(code, str) else None
    if dtype is None:
        raise InputError(f"{name:.80}: stored as {code!r:.40}, which distconv does not read")
    axes, ends = _counts(shape), _counts(offsets)
    if axes is None or len(axes) > _MOST_AXES or ends is None or len(ends) != 2:
        raise InputError(f"{name:.80}: shape {shape!r:.80} at bytes {offsets!r:.80}; the file is damaged")
    elements = math.prod(axes)
    first, last = ends
    if last - first != elements * dtype.size_bytes:
        raise InputError(
            f"{name:.80}: {last - first:,} bytes of data, its shape needs {elements * dtype.size_bytes:,}; "
            "the file is damaged"
        )
    storage = StorageMark(name, dtype, elements)
    mark = TensorMark(storage, dtype, 0, axes, contiguous_strides(axes))
    return mark, Region(path, start + first, last - first, 0, zipped=False)


def _counts(values: object) -> tuple[int, ...] | None:
    """Take a list of sizes; None where it is none."""
    if not isinstance(values, list) or not all(
        type(value) is int and 0 <= value < _LARGEST for value in values
    ):
        return None
    return tuple(values)


def _check_tiles(found: dict[str, tuple[TensorMark, Region]], start: int, end: int) -> None:
    """Tensors follow each other without gaps from the header to the end of the file."""
    position = start
    for record in sorted(
        (record for _mark, record in found.values()),
        key=lambda record: (record.offset_bytes, record.size_bytes),
    ):
        if record.offset_bytes != position:
            raise InputError(
                f"data at byte {record.offset_bytes:,}, expected at {position:,}; the file is damaged: download it again"
            )
        position += record.size_bytes
    if position != end:
        raise InputError(
            f"its tensors end at byte {position:,}, the file at {end:,}; the file is truncated or damaged: download it again"
        )
