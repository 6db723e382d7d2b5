"""What the names in a torch pickle stand for here: inert marks, and functions of ours that make them.

Nothing is ever looked up or imported by a name of a pickle. Sources of the names and their
arguments: ``torch/serialization.py`` and ``torch/_utils.py``.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from distconv.errors import InputError
from distconv.layout.dtypes import DTYPES, DType

_MOST_DIMENSIONS = 16
_MOST_ARGUMENTS = 16
LIMIT_NAME_CHARACTERS = 1024
"""More than any tensor's or storage's name has."""


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
class Kind:
    """A storage class or a dtype, which is all that its name is good for here."""

    dtype: DType | None


@dataclass(frozen=True, slots=True)
class Class:
    """A class of which the pickle makes objects, see ``Record``; nothing of it is run."""

    name: str
    fields: tuple[str, ...] = ()
    """Attributes that many objects have and no others, in the order in which they are written, see ``take_rows``."""


class Record:
    """An object of a class, with what it was made of and the state that the pickle sets; equal only to itself."""

    __slots__ = ("arguments", "kind", "state")

    def __init__(self, kind: Class, arguments: object, state: object = None) -> None:
        """Begin with a state, or without."""
        self.kind = kind
        self.arguments = arguments
        self.state = state


@dataclass(frozen=True, slots=True)
class Opaque:
    """Anything that a checkpoint holds beside its tensors; what becomes of it is the same."""


OPAQUE: Final = Opaque()

Arguments = tuple[object, ...]


@dataclass(frozen=True, slots=True)
class Function:
    """A name that is called; ``make`` checks the arguments, and raises InputError."""

    make: Callable[[Arguments], object]


def describe(value: object) -> str:
    """Say what a value of a pickle is, in bounded time: it may be nested without end."""
    if type(value) is str:
        return ascii(value[:40])
    if value is None:
        return "None"
    if type(value) is int:
        return str(value) if abs(value) < 1 << 64 else "a number beyond 64 bits"
    return _WORDS.get(type(value)) or f"a {type(value).__name__}"


_WORDS = {
    Class: "a class",
    Function: "a function",
    Kind: "a data type",
    Opaque: "something that is no tensor",
    Record: "an object",
    StorageMark: "a storage",
    TensorMark: "a tensor",
}


def make_storage(identity: object) -> StorageMark:
    """Make a storage of what stands for it: ``('storage', class, key, location, elements)``."""
    if type(identity) is tuple and len(identity) in {5, 6}:
        word, kind, key, location, elements = identity[:5]
        known = type(word) is str and word == "storage" and type(kind) is Kind
        whole = len(identity) == 5 or identity[5] is None
        if known and whole and type(key) is str and type(location) is str:
            if len(key) > LIMIT_NAME_CHARACTERS:
                raise InputError(f"a storage whose name has {len(key):,} characters")
            return StorageMark(key, kind.dtype, _count(elements))
    raise InputError("an unknown kind of storage")


def _count(value: object) -> int:
    if type(value) is not int or not 0 <= value < 1 << 63:
        raise InputError(f"{describe(value)} is not a count")
    return value


def _counts(values: object) -> tuple[int, ...]:
    if type(values) is not tuple:
        raise InputError(f"{describe(values)} is not a shape")
    if len(values) > _MOST_DIMENSIONS:
        raise InputError(f"a tensor of {len(values):,} dimensions, expected at most {_MOST_DIMENSIONS}")
    for value in values:
        _count(value)
    return values


def _make_tensor(storage: object, dtype: DType | None, numbers: Arguments) -> TensorMark:
    offset, shape, strides = numbers
    if type(storage) is not StorageMark:
        raise InputError("a tensor without a storage")
    if dtype is None:
        raise InputError("a tensor without a dtype")
    shape, strides = _counts(shape), _counts(strides)
    if len(shape) != len(strides):
        raise InputError(f"a tensor with shape {shape} and strides {strides}")
    return TensorMark(storage, dtype, _count(offset), shape, strides)


def _rebuild_tensor(arguments: Arguments) -> TensorMark:
    storage, *numbers = arguments[:4]
    return _make_tensor(storage, storage.dtype if type(storage) is StorageMark else None, tuple(numbers))


def _rebuild_typed_tensor(arguments: Arguments) -> TensorMark:
    storage, *numbers = arguments[:4]
    kind = arguments[6]
    return _make_tensor(storage, kind.dtype if type(kind) is Kind else None, tuple(numbers))


def _rebuild_parameter(arguments: Arguments) -> object:
    return arguments[0]


def make_size(arguments: Arguments) -> tuple[object, ...]:
    """Make a ``torch.Size``, whose extents are not looked at here."""
    (extents,) = arguments
    if type(extents) is not tuple:
        raise InputError(f"{describe(extents)} is not a shape")
    return extents


def _make_dict(arguments: Arguments) -> dict[str, object]:
    if arguments:
        # Python 2 gave the entries here; torch has always set them one by one.
        raise InputError("an OrderedDict that is made of its entries, which torch does not write")
    return {}


def taking(least: int, most: int, make: Callable[[Arguments], object]) -> Function:
    """Let a function take so many arguments only."""

    def checked(arguments: Arguments) -> object:
        if not least <= len(arguments) <= most:
            raise InputError(f"a call with {len(arguments):,} arguments, expected {least} to {most}")
        return make(arguments)

    return Function(checked)


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

_BESIDE = {
    "__builtin__": "bool bytes complex dict float frozenset int list long object range set slice str tuple unicode xrange",
    "_codecs": "encode",
    "_io": "BytesIO",
    "argparse": "Namespace",
    "collections": "Counter defaultdict deque",
    "copy_reg": "_reconstructor",
    "datetime": "date datetime timedelta timezone",
    "numpy": "dtype ndarray",
    "numpy.core.multiarray": "_reconstruct scalar",
    "numpy._core.multiarray": "_reconstruct scalar",
    "omegaconf.base": "ContainerMetadata Metadata",
    "omegaconf.dictconfig": "DictConfig",
    "omegaconf.listconfig": "ListConfig",
    "omegaconf.nodes": "AnyNode BooleanNode FloatNode IntegerNode StringNode",
    "pathlib": "Path PosixPath PurePath PurePosixPath PureWindowsPath WindowsPath",
    "torch": "device memory_format layout Generator",
    "torch.serialization": "_get_layout",
    "torch.torch_version": "TorchVersion",
    "typing": "Any",
    "types": "SimpleNamespace",
    "uuid": "UUID",
}
"""What trainers keep beside tensors: settings, counters, states of random generators."""

# Python 3 writes the first names below protocol 3, the second ones from there on.
_BESIDE |= {"builtins": _BESIDE["__builtin__"], "copyreg": _BESIDE["copy_reg"]}

_REBUILD = taking(4, _MOST_ARGUMENTS, _rebuild_tensor)
_PARAMETER = taking(1, 4, _rebuild_parameter)

NAMES: Mapping[tuple[str, str], object] = MappingProxyType(
    {
        **{(module, name): OPAQUE for module, names in _BESIDE.items() for name in names.split()},
        ("collections", "OrderedDict"): taking(0, 1, _make_dict),
        ("torch", "Size"): taking(1, 1, make_size),
        ("torch._utils", "_rebuild_tensor"): _REBUILD,
        ("torch._utils", "_rebuild_tensor_v2"): _REBUILD,
        ("torch._utils", "_rebuild_tensor_v3"): taking(7, _MOST_ARGUMENTS, _rebuild_typed_tensor),
        ("torch._utils", "_rebuild_parameter"): _PARAMETER,
        ("torch._utils", "_rebuild_parameter_with_state"): _PARAMETER,
        ("torch.nn.parameter", "Parameter"): _PARAMETER,
        ("torch.storage", "UntypedStorage"): Kind(None),
        **{("torch", name): Kind(DTYPES[dtype]) for name, dtype in _STORAGES.items()},
        **{("torch", name): Kind(dtype) for name, dtype in DTYPES.items()},
    }
)
"""By module and name. All other names are refused: whoever wrote them meant something else."""
