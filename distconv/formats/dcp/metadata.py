"""The ``.metadata`` of a distributed checkpoint: which tensors there are, in which boxes, and in which files.

Source of the format: ``torch/distributed/checkpoint/metadata.py`` and ``filesystem.py`` of torch 2.13: the
pickle of a ``Metadata``, whose nine classes are inert records here.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import NamedTuple

from distconv.errors import InputError, escape
from distconv.formats.boxes import Extents
from distconv.formats.content import HEAD_BYTES, describe_content
from distconv.formats.marks import NAMES, OPAQUE, Class, Kind, Record, describe
from distconv.formats.meta.machine import Language
from distconv.formats.meta.pickles import load_pickle
from distconv.formats.safetensors.index import is_plain_name
from distconv.humanize import shorten
from distconv.layout.dtypes import DTYPES, DType
from distconv.storage.base import Storage, read_small

METADATA_NAME = ".metadata"
LIMIT_BYTES = 384 << 20
"""A 405B on 512 ranks takes 92 MB, and three times as much with its optimizer's two states."""
_MOST_STEPS = 1 << 28
_MOST_FINDINGS = 8

_METADATA = "torch.distributed.checkpoint.metadata"
_CHUNK = Class("ChunkStorageMetadata", ("offsets", "sizes"))
_INDEX = Class("MetadataIndex", ("fqn", "index", "offset"))
_PLACE = Class("_StorageInfo", ("relative_path", "offset", "length"))
_CLASSES = {
    kind.name: kind
    for kind in (
        _CHUNK, _INDEX, _PLACE, Class("Metadata"), Class("TensorStorageMetadata"), Class("BytesStorageMetadata"),
        Class("TensorProperties"), Class("StorageMeta"),
    )
}  # fmt: skip


LANGUAGE = Language(
    MappingProxyType(
        {
            **{(_METADATA, name): kind for name, kind in _CLASSES.items()},
            ("torch.distributed.checkpoint.filesystem", "_StorageInfo"): _CLASSES["_StorageInfo"],
            (_METADATA, "_MEM_FORMAT_ENCODING"): OPAQUE,
            ("torch.serialization", "_get_layout"): OPAQUE,
            ("torch", "device"): OPAQUE,
            ("torch", "Size"): NAMES["torch", "Size"],
            # From Python 3.13 on in a module of its own, and back again from 3.14 on.
            **{
                (module, name): OPAQUE
                for module in ("pathlib", "pathlib._local")
                for name in ("Path", "PosixPath", "WindowsPath", "PurePosixPath", "PureWindowsPath")
            },
            **{("torch", name): NAMES["torch", name] for name in DTYPES},
        }
    ),
    _MOST_STEPS,
    refusal="torch.distributed.checkpoint does not write; refused as unsafe",
    again="copy it again",
    rows={_CHUNK: (_CHUNK,), _PLACE: (_INDEX, _PLACE)},
)


class Chunk(NamedTuple):
    """A box of a tensor, in elements, and the bytes of a file that hold it: one of millions, which are cheap as tuples."""

    first: Extents
    sizes: Extents
    file: str
    """A name in the folder."""
    offset_bytes: int
    size_bytes: int


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """A tensor and its boxes."""

    dtype: DType
    shape: Extents
    chunks: tuple[Chunk, ...]


@dataclass(frozen=True, slots=True)
class Metadata:
    """All that a checkpoint holds, by the names that its trainer gave."""

    tensors: Mapping[str, StoredTensor]
    others: tuple[str, ...]
    """What is no tensor: steps, settings, states of loaders."""

    def file_names(self) -> tuple[str, ...]:
        """All files that hold tensors, sorted."""
        return tuple(sorted({chunk.file for tensor in self.tensors.values() for chunk in tensor.chunks}))


def read_metadata(storage: Storage, path: str) -> Metadata:
    """Read a checkpoint's ``.metadata``; InputError with what is wrong, or with what torch does not write."""
    content = read_small(storage, path, LIMIT_BYTES)
    if content[:1] not in {b"", b"\x80"}:
        raise InputError(
            f"{path}: {describe_content(content[:HEAD_BYTES])}, expected the pickle that torch writes; copy it again"
        )
    try:
        found, end = load_pickle(content, 0, LANGUAGE)
        if end != len(content):
            raise InputError(f"{len(content) - end:,} bytes behind the pickle; the file is damaged")
        return _make_metadata(found)
    except InputError as error:
        raise InputError.of([f"{path}: {line}" for line in str(error).splitlines()]) from None
    except RecursionError:
        raise InputError(f"{path}: nested too deeply; refused as unsafe") from None


def _state(value: object, kind: str) -> Mapping[object, object]:
    """Give the attributes of an object of a class."""
    if type(value) is not Record or value.kind.name != kind or type(value.state) is not dict:
        raise InputError(f"{_describe(value)}, expected a {kind}; the file is damaged")
    return value.state


def _fields(value: object, kind: Class) -> tuple[object, ...]:
    """Give the fields of an object of a class of which there are many, whether it was taken at once or not."""
    if type(value) is Record and value.kind is kind:
        state = value.state
        if type(state) is tuple and len(state) == len(kind.fields):
            return state
        if type(state) is dict:
            return tuple(map(state.get, kind.fields))
    raise InputError(f"{_describe(value)}, expected a {kind.name}; the file is damaged")


def _describe(value: object) -> str:
    return f"a {value.kind.name}" if type(value) is Record else describe(value)


def _make_metadata(found: object) -> Metadata:
    state = _state(found, "Metadata")
    entries, stored = state.get("state_dict_metadata"), state.get("storage_data")
    if type(entries) is not dict or type(stored) is not dict:
        raise InputError("no state_dict_metadata or no storage_data; the file is damaged")
    places = _take_places(stored)
    tensors: dict[str, StoredTensor] = {}
    others: list[str] = []
    findings: list[str] = []
    files: set[str] = set()
    for name, entry in entries.items():
        if type(name) is not str:
            raise InputError(f"an entry is named {describe(name)}; the file is damaged")
        if type(entry) is Record and entry.kind.name == "BytesStorageMetadata":
            others.append(name)
            continue
        try:
            tensors[name] = _make_tensor(_state(entry, "TensorStorageMetadata"), places.get(name, {}), files)
        except InputError as error:
            findings.append(f"{escape(name)}: {error}")
    if findings:
        raise InputError.of(shorten(findings, _MOST_FINDINGS))
    return Metadata(tensors, tuple(others))


_Places = dict[str, dict[Extents, Record]]
"""By tensor and box."""


def _take_places(stored: Mapping[object, object]) -> _Places:
    """Order what says where boxes are stored."""
    places: _Places = {}
    for index, place in stored.items():
        name, _number, first = _fields(index, _INDEX)
        if type(name) is not str or type(place) is not Record:
            raise InputError(f"a place of {_describe(name)} is {_describe(place)}; the file is damaged")
        if first is None:  # what is no tensor has no box
            continue
        box = _counts(first)
        if places.setdefault(name, {}).setdefault(box, place) is not place:
            raise InputError(f"{escape(name)}: the box at {box} is stored twice; the file is damaged")
    return places


def _counts(values: object) -> Extents:
    if type(values) is not tuple:
        raise InputError(f"{describe(values)} is not a shape; the file is damaged")
    for value in values:  # of millions, each a few: a generator would take twice as long
        if type(value) is not int or not 0 <= value < 1 << 60:
            raise InputError(f"{describe(value)} is not an extent; the file is damaged")
    return values


def _make_tensor(
    state: Mapping[object, object], places: Mapping[Extents, Record], files: set[str]
) -> StoredTensor:
    """Take a tensor, whose boxes lie in ``places``; ``files`` are those whose names have been proved."""
    shape = _counts(state.get("size"))
    dtype = _take_dtype(state.get("properties"))
    chunks = state.get("chunks")
    if type(chunks) is not list:
        raise InputError("no list of its boxes; the file is damaged")
    return StoredTensor(dtype, shape, tuple(_make_chunks(shape, chunks, places, files)))


def _take_dtype(properties: object) -> DType:
    """Take the type, the first of what a ``TensorProperties`` gives as its state."""
    state = properties.state if type(properties) is Record else None
    kind = state[0] if type(state) is tuple and state else None
    if type(kind) is not Kind or kind.dtype is None:
        raise InputError("no data type; the file is damaged")
    return kind.dtype


def _make_chunks(
    shape: Extents, chunks: list[object], places: Mapping[Extents, Record], files: set[str]
) -> Iterator[Chunk]:
    for chunk in chunks:
        first, sizes = map(_counts, _fields(chunk, _CHUNK))
        if len(first) != len(shape) or len(sizes) != len(shape):
            raise InputError(f"a box of {sizes} at {first} of shape {shape}; the file is damaged")
        if 0 in sizes:
            continue
        place = places.get(first)
        if place is None:
            raise InputError(
                f"the box at {first} is stored nowhere; a rank's part was not saved, or was lost"
            )
        file, offset, length = _fields(place, _PLACE)
        if type(file) is not str or file not in files:
            file = _take_file_name(file, first)
            files.add(file)
        if type(offset) is not int or type(length) is not int or offset < 0 or length <= 0:
            raise InputError(f"the box at {first} has no place in {file}; the file is damaged")
        if type(place.state) is dict and place.state.get("transform_descriptors"):
            raise InputError(
                f"the box at {first} was compressed or otherwise transformed as it was saved, which distconv does not "
                "undo; save it again without extensions of the writer"
            )
        yield Chunk(first, sizes, file, offset, length)


def _take_file_name(file: object, first: Extents) -> str:
    if not is_plain_name(file):
        raise InputError(f"the box at {first} is in {describe(file)}, expected a file in this folder")
    return file
