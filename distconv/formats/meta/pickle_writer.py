"""A shard's ``data.pkl``: the state dict without its data, as torch.save pickles it.

Byte for byte what CPython's C pickler makes of a plain dict of tensors, each an object of its
own: protocol 2, memo numbers in order of first use, entries in batches of 1,000
(``Modules/_pickle.c``, ``batch_dict_exact``; ``torch/_tensor.py``, ``_reduce_ex_internal``;
``torch/serialization.py``, ``persistent_id``).
"""

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

from distconv.errors import InputError
from distconv.layout.dtypes import BFLOAT16, FLOAT16, FLOAT32, FLOAT64, DType, contiguous_strides

_STORAGE_CLASSES = {
    BFLOAT16: b"ctorch\nBFloat16Storage\n",
    FLOAT16: b"ctorch\nHalfStorage\n",
    FLOAT32: b"ctorch\nFloatStorage\n",
    FLOAT64: b"ctorch\nDoubleStorage\n",
}
_REBUILD = b"ctorch._utils\n_rebuild_tensor_v2\n"
_ORDERED_DICT = b"ccollections\nOrderedDict\n"
_BATCH_ENTRIES = 1000
_SHORT_TUPLES = {0: b")", 1: b"\x85", 2: b"\x86", 3: b"\x87"}


@dataclass(frozen=True, slots=True)
class TensorEntry:
    """A contiguous tensor of the state dict; ``shape`` in elements.

    ``shares`` names an earlier entry in whose storage this one lies, whole, as tied weights do.
    """

    name: str
    dtype: DType
    shape: tuple[int, ...]
    shares: str | None = None

    @property
    def elements(self) -> int:
        """How many elements it has."""
        return prod(self.shape)


def number_storages(entries: Sequence[TensorEntry]) -> tuple[int, ...]:
    """Give the number of each entry's storage, counted from 0 in the order of first use.

    Raises InputError, with all findings, for names that are there twice, dtypes that weights
    are not saved in, and storages that cannot be shared.
    """
    findings: list[str] = []
    known: dict[str, tuple[TensorEntry, int]] = {}
    storages: list[int] = []
    count = 0
    for entry in entries:
        owner, storage = (
            known.get(entry.shares, (None, count)) if entry.shares is not None else (entry, count)
        )
        if entry.name in known:
            findings.append(f"{entry.name!a}: there twice, expected once")
        if entry.dtype not in _STORAGE_CLASSES:
            findings.append(f"{entry.name!a}: dtype {entry.dtype}, expected a type of weights")
        if owner is None or (owner.dtype, owner.elements) != (entry.dtype, entry.elements):
            findings.append(
                f"{entry.name!a}: {entry.elements:,} elements of {entry.dtype} in the storage of "
                f"{entry.shares!a}, expected an earlier entry of as many and of this dtype"
            )
        count = max(count, storage + 1)
        known[entry.name] = entry, storage
        storages.append(storage)
    if findings:
        raise InputError.of(findings)
    return tuple(storages)


def make_data_pickle(entries: Sequence[TensorEntry]) -> bytes:
    """Make ``data.pkl`` of a dict with these entries; InputError as in ``number_storages``."""
    pickle = _Pickle()
    storages = number_storages(entries)
    if len(entries) == 1:
        pickle.add_entry(entries[0], storages[0])
        pickle.content += b"s"
    elif entries:
        # A batch that is full is followed by another one, be it empty.
        for start in range(0, len(entries) + 1, _BATCH_ENTRIES):
            pickle.content += b"("
            stop = start + _BATCH_ENTRIES
            for entry, storage in zip(entries[start:stop], storages[start:stop], strict=True):
                pickle.add_entry(entry, storage)
            pickle.content += b"u"
    return bytes(pickle.content + b".")


class _Pickle:
    """A pickle that grows; the memo gives the number of what is written once and recalled later."""

    __slots__ = ("_count", "_memo", "content")

    def __init__(self) -> None:
        """Begin with the dict, which is empty at first."""
        self.content = bytearray(b"\x80\x02}")
        self._memo: dict[bytes, int] = {}
        self._count = 0
        self._memoise()

    def add_entry(self, entry: TensorEntry, storage: int) -> None:
        """Write a name and its tensor: a call of torch's function, and the call's arguments."""
        # Names are never recalled: each is an object of its own, even one that reads "cpu".
        self.content += _text(entry.name)
        self._memoise()
        self._once(_REBUILD)
        self.content += b"(("
        self._once(_text("storage"))
        self._once(_STORAGE_CLASSES[entry.dtype])
        self._once(_text(str(storage)))
        self._once(_text("cpu"))
        self.content += _integer(entry.elements) + b"t"
        self._memoise()
        self.content += b"Q" + _integer(0)
        self._add_sizes(entry.shape)
        # For strides torch takes an empty axis as one of one element.
        self._add_sizes(contiguous_strides([max(size, 1) for size in entry.shape]))
        self.content += b"\x89"
        self._once(_ORDERED_DICT)
        for opcodes in (b")R", b"t", b"R"):
            self.content += opcodes
            self._memoise()

    def _add_sizes(self, sizes: Sequence[int]) -> None:
        closing = _SHORT_TUPLES.get(len(sizes))
        self.content += b"" if closing else b"("
        self.content += b"".join(map(_integer, sizes)) + (closing or b"t")
        if sizes:
            self._memoise()

    def _once(self, opcodes: bytes) -> None:
        number = self._memo.get(opcodes)
        if number is None:
            self._memo[opcodes] = self._count
            self.content += opcodes
            self._memoise()
        else:
            self.content += (
                struct.pack("<cB", b"h", number) if number < 256 else struct.pack("<cL", b"j", number)
            )

    def _memoise(self) -> None:
        number = self._count
        self.content += struct.pack("<cB", b"q", number) if number < 256 else struct.pack("<cL", b"r", number)
        self._count += 1


def _text(text: str) -> bytes:
    encoded = text.encode("utf-8", "surrogatepass")
    return struct.pack("<cL", b"X", len(encoded)) + encoded


def _integer(value: int) -> bytes:
    """Write a number that is not negative."""
    if value < 1 << 8:
        return struct.pack("<cB", b"K", value)
    if value < 1 << 16:
        return struct.pack("<cH", b"M", value)
    if value < 1 << 31:
        return struct.pack("<cL", b"J", value)
    size_bytes = value.bit_length() // 8 + 1  # with a sign
    return struct.pack("<cB", b"\x8a", size_bytes) + value.to_bytes(size_bytes, "little")
