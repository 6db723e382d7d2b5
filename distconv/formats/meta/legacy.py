"""Checkpoints that torch.save wrote before it wrote zips: five pickles, then the storages.

Source of the format: ``_legacy_save`` of ``torch/serialization.py``.
"""

import struct
from collections.abc import Iterable

from distconv.errors import InputError
from distconv.formats.marks import StorageMark, TensorMark, describe
from distconv.formats.meta.pickles import LIMIT_BYTES, EndsEarlyError, load_pickle
from distconv.formats.state import flatten_state
from distconv.layout.regions import Region
from distconv.storage.base import Reader, read_range

_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_LEGACY_PROTOCOL = 1001
_WINDOW_BYTES = 1 << 20


def read_legacy(reader: Reader) -> dict[str, tuple[TensorMark, Region]]:
    """Read five pickles; then each storage is an int64 element count and its raw bytes."""
    (magic, protocol, system, state, keys), end = _read_pickles(reader, 5)
    if type(magic) is not int or magic != _LEGACY_MAGIC or protocol != _LEGACY_PROTOCOL:
        raise InputError("a pickle that torch.save did not write, expected a torch checkpoint")
    if isinstance(system, dict) and system.get("little_endian") is not True:
        raise InputError("saved on a big-endian machine; save it again on a little-endian one")
    tensors = flatten_state(state)
    if type(keys) is not list:
        raise InputError("no list of storages")
    marks = {tensor.storage.key: tensor.storage for tensor in tensors.values()}
    records = _legacy_records(reader, end, marks, keys)
    return {name: (tensor, records[tensor.storage.key]) for name, tensor in tensors.items()}


def _read_pickles(reader: Reader, count: int) -> tuple[list[object], int]:
    """Read pickles that stand in a row at the beginning of a file; gives also where they end.

    How long they are is only known when they have been run, so a window is widened until it holds them.
    """
    most = min(LIMIT_BYTES, reader.size_bytes)
    size = min(_WINDOW_BYTES, most)
    while True:
        window = bytes(read_range(reader, 0, size))
        found: list[object] = []
        position = 0
        try:
            while len(found) < count:
                value, position = load_pickle(window, position)
                found.append(value)
        except EndsEarlyError:
            if size == reader.size_bytes:
                raise
            if size == LIMIT_BYTES:
                message = f"its description is larger than {LIMIT_BYTES:,} bytes"
                raise InputError(message) from None
            size = min(4 * size, most)
        else:
            return found, position


def _legacy_records(
    reader: Reader, position: int, marks: dict[str, StorageMark], keys: Iterable[object]
) -> dict[str, Region]:
    records: dict[str, Region] = {}
    for key in keys:
        mark = marks.get(key) if type(key) is str else None
        if mark is None:
            raise InputError(
                f"storage {describe(key)} belongs to no tensor of the state dict, so its size is unknown"
            )
        if mark.key in records:
            raise InputError(f"storage {mark.key} is there twice; the file is damaged")
        (elements,) = struct.unpack("<q", read_range(reader, position, 8))
        position += 8
        if elements != mark.elements or position + mark.size_bytes() > reader.size_bytes:
            raise InputError(
                f"storage {mark.key} has {elements:,} elements, expected {mark.elements:,}, "
                f"in a file of {reader.size_bytes:,} bytes; the file is truncated or damaged"
            )
        records[mark.key] = Region(reader.path, position, mark.size_bytes(), 0, zipped=False)
        position += mark.size_bytes()
    missing = sorted(set(marks) - set(records))
    if missing:
        raise InputError(f"no data for storage {missing[0]}; the file is truncated or damaged")
    return records
