"""Read the pickle of a state dict without running anything that it names.

A pickle is a program. Only the few opcodes that torch writes for a state dict are let
through, and only the few names that such a program needs; each stands for a function here
that notes what a tensor is. Formats: ``torch/serialization.py`` and ``torch/_utils.py``.
"""

import io
import pickle
import pickletools
from collections import OrderedDict
from dataclasses import dataclass
from typing import BinaryIO, cast

from distconv.errors import InputError
from distconv.tensors import DTYPES, DType

LIMIT_BYTES = 48 << 20
"""More than any state dict's description takes (405B: 0.2 MB a shard)."""


@dataclass(frozen=True, slots=True)
class StorageMark:
    """A storage as the pickle names it: ``dtype`` is None for one that counts in bytes."""

    key: str
    dtype: DType | None
    elements: int

    def size_bytes(self) -> int:
        """Size of the storage's data."""
        return self.elements * (self.dtype.size_bytes if self.dtype else 1)


@dataclass(frozen=True, slots=True)
class TensorMark:
    """A tensor as the pickle names it; offset, shape and strides in elements."""

    storage: StorageMark
    dtype: DType
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class _Kind:
    """A storage class or a dtype, which is all that its name is good for here."""

    dtype: DType | None


def _count(value: object) -> int:
    if type(value) is not int or not 0 <= value < 1 << 63:
        message = f"{value!r:.40} is not a count"
        raise InputError(message)
    return value


def _counts(values: object) -> tuple[int, ...]:
    if not isinstance(values, tuple):
        message = f"{values!r:.40} is not a shape"
        raise InputError(message)
    return tuple(_count(value) for value in values)


def _rebuild_tensor(
    storage: object,
    offset: object,
    shape: object,
    strides: object,
    *_rest: object,
    dtype: DType | None = None,
) -> TensorMark:
    if not isinstance(storage, StorageMark):
        message = "a tensor without a storage"
        raise InputError(message)
    dtype = dtype or storage.dtype
    if dtype is None:
        message = "a tensor without a dtype"
        raise InputError(message)
    shape, strides = _counts(shape), _counts(strides)
    if len(shape) != len(strides):
        message = f"a tensor with shape {shape} and strides {strides}"
        raise InputError(message)
    return TensorMark(storage, dtype, _count(offset), shape, strides)


def _rebuild_typed_tensor(  # torch's own order of arguments
    storage: object,
    offset: object,
    shape: object,
    strides: object,
    _requires_grad: object,
    _hooks: object,
    kind: object,
    *_rest: object,
) -> TensorMark:
    if not isinstance(kind, _Kind):
        message = "a tensor without a dtype"
        raise InputError(message)
    return _rebuild_tensor(storage, offset, shape, strides, dtype=kind.dtype)


def _rebuild_parameter(tensor: object, *_rest: object) -> object:
    return tensor


_STORAGES = {
    "HalfStorage": "float16",
    "BFloat16Storage": "bfloat16",
    "FloatStorage": "float32",
    "DoubleStorage": "float64",
    "BoolStorage": "bool",
    "ByteStorage": "uint8",
    "CharStorage": "int8",
    "ShortStorage": "int16",
    "IntStorage": "int32",
    "LongStorage": "int64",
    "ComplexFloatStorage": "complex64",
    "ComplexDoubleStorage": "complex128",
}

_NAMES: dict[tuple[str, str], object] = {
    ("collections", "OrderedDict"): OrderedDict,
    ("torch", "Size"): tuple,
    ("torch._utils", "_rebuild_tensor"): _rebuild_tensor,
    ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor,
    ("torch._utils", "_rebuild_tensor_v3"): _rebuild_typed_tensor,
    ("torch._utils", "_rebuild_parameter"): _rebuild_parameter,
    ("torch._utils", "_rebuild_parameter_with_state"): _rebuild_parameter,
    ("torch.nn.parameter", "Parameter"): _rebuild_parameter,
    ("torch.storage", "UntypedStorage"): _Kind(None),
    **{("torch", name): _Kind(DTYPES[dtype]) for name, dtype in _STORAGES.items()},
    **{("torch", name): _Kind(dtype) for name, dtype in DTYPES.items()},
}

_OPCODES = frozenset(
    {
        "PROTO", "STOP", "MARK", "POP", "POP_MARK", "FRAME",
        "NONE", "NEWTRUE", "NEWFALSE", "INT", "LONG", "BININT", "BININT1", "BININT2", "LONG1",
        "FLOAT", "BINFLOAT",
        "STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE",
        "EMPTY_TUPLE", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3",
        "EMPTY_LIST", "LIST", "APPEND", "APPENDS", "EMPTY_DICT", "DICT", "SETITEM", "SETITEMS",
        "PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE", "GET", "BINGET", "LONG_BINGET",
        "GLOBAL", "STACK_GLOBAL", "REDUCE", "BUILD", "BINPERSID",
    }
)  # fmt: skip


def read_pickle(file: BinaryIO) -> bytes:
    """Read one pickle from where the file stands, and check its opcodes.

    Raises InputError for an opcode that no state dict needs, and for a pickle longer than
    LIMIT_BYTES; both before anything is allocated that the pickle asks for.
    """
    start = file.tell()
    for count, (opcode, argument, _position) in enumerate(pickletools.genops(file), 1):
        if opcode.name not in _OPCODES:
            message = f"the pickle uses {opcode.name}, which no state dict needs; refused as unsafe"
            raise InputError(message)
        # The C unpickler grows its memo to the largest index, however few entries there are.
        if opcode.name in {"PUT", "LONG_BINPUT"} and cast("int", argument) > count:
            message = f"the pickle's memo jumps to {argument}; refused as unsafe"
            raise InputError(message)
        if file.tell() - start > LIMIT_BYTES:
            message = f"its description is larger than {LIMIT_BYTES:,} bytes"
            raise InputError(message)
    end = file.tell()
    file.seek(start)
    return file.read(end - start)


def load_pickle(content: bytes) -> object:
    """Run a checked pickle: containers, numbers, strings and TensorMarks, nothing else."""
    return _Unpickler(io.BytesIO(content), encoding="utf-8").load()


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str, /) -> object:
        try:
            return _NAMES[module, name]
        except KeyError:
            message = f"the pickle names {module}.{name}, which a state dict of tensors does not need; refused as unsafe"
            raise InputError(message) from None

    def persistent_load(self, pid: object, /) -> StorageMark:
        match pid:
            case ("storage", _Kind(dtype=dtype), str(key), str(), int(elements), *view) if view in (
                [],
                [None],
            ):
                return StorageMark(key, dtype, _count(elements))
        message = f"unknown storage {pid!r:.80}"
        raise InputError(message)
