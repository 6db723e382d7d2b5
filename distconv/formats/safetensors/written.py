"""What a Transformers folder says it holds: its index, and the headers of its chunks."""

import re
from collections.abc import Iterator, Mapping

from distconv.errors import InputError, OutputError
from distconv.formats.dcp.folder import find_dcp_folders
from distconv.formats.meta.foreign import describe_folder
from distconv.formats.plain_json import LIMIT_BYTES
from distconv.formats.safetensors.chunks import INDEX_NAME, SINGLE_NAME, file_order, make_header, make_index
from distconv.formats.safetensors.header import read_safetensors
from distconv.formats.safetensors.index import check_index, is_plain_name, read_index
from distconv.formats.safetensors.weights import has_meta_names
from distconv.formats.written import FOR_INPUT, Headers, Written, read_object
from distconv.layout.dtypes import DTYPES
from distconv.storage.base import Storage, is_folder, join, opened, read_range, read_small
from distconv.storage.window import read_by_windows

_CHUNK = re.compile(r"model-\d+-of-\d+\.safetensors")
_PICKLED = re.compile(r"pytorch_model(-\d+-of-\d+)?\.bin")
_DTYPES_BY_CODE = {dtype.code: dtype for dtype in DTYPES.values()}


def list_chunks(storage: Storage, output: str) -> tuple[str, ...]:
    """Give the names of the chunk files that the index names, or the single one.

    OutputError where there is neither, or where a name leads out of the folder.
    """
    path = join(output, INDEX_NAME)
    if storage.find(path) is not None:
        weight_map = read_object(storage, path).get("weight_map")
        if not isinstance(weight_map, dict):
            raise OutputError(f"{path}: no weight_map")
        for name in weight_map.values():
            if not is_plain_name(name):
                raise OutputError(f"{path}: names {ascii(name)[:80]}, expected a file in this folder")
        return tuple(sorted(set(weight_map.values())))
    if storage.find(join(output, SINGLE_NAME)) is not None:
        return (SINGLE_NAME,)
    raise OutputError(f"{output}: {_describe_others(storage, output)}")


def _describe_others(storage: Storage, folder: str) -> str:
    """Say what a folder is that has neither index nor single file, and what looks at it."""
    names = storage.list_names(folder)
    compares = f"`distconv verify OUT --against {folder}` compares"
    if pickled := [name for name in names if _PICKLED.fullmatch(name)]:
        return (
            f"its weights are pickles ({pickled[0]}), expected safetensors; `distconv convert {folder} OUT --like {folder}` "
            f"makes these of them, and {compares} them"
        )
    places = (folder, join(folder, "original"))
    has_others = any(is_folder(storage, place) and has_meta_names(storage, place) for place in places)
    if has_others or find_dcp_folders(storage, folder):
        return (
            "weights in the layout of their maker's or trainer's own code, expected a folder for Transformers; `distconv check "
            f"{folder}` looks at them, `distconv convert {folder} OUT` makes that of them, and {compares} it"
        )
    words = f"neither {INDEX_NAME} nor {SINGLE_NAME}; no model for Transformers, or its conversion is not finished"
    if any(map(_CHUNK.fullmatch, names)):
        return words
    return f"{words}; {describe_folder(storage, folder)}"


def read_header(storage: Storage, path: str) -> dict[str, Written]:
    """Read a chunk's header, as its file says; OutputError where it is not one.

    Every tensor lies inside the file, whatever the header says.
    """
    try:
        with opened(storage, path) as reader:
            found = read_safetensors(read_by_windows(reader))
    except FileNotFoundError:
        raise OutputError(f"{path}: missing, though the index names it") from None
    except InputError as error:
        raise OutputError(str(error).removesuffix(FOR_INPUT)) from None
    return {
        name: Written(path, region.offset_bytes, mark.dtype, mark.shape)
        for name, (mark, region) in found.items()
    }


def find_odd_form(storage: Storage, path: str, tensors: Mapping[str, Written]) -> str | None:
    """Make a chunk's header again of what it says; tell where the file begins otherwise."""
    order = file_order((name, written.dtype) for name, written in tensors.items())
    expected, _offsets = make_header([(name, tensors[name].dtype, tensors[name].shape) for name in order])
    with opened(storage, path) as reader:
        if reader.size_bytes >= len(expected) and read_range(reader, 0, len(expected)) == expected:
            return None
    return f"{path}: its header is not in the one form that its tensors have"


def find_wrong_index(storage: Storage, output: str, headers: Headers) -> Iterator[str]:
    """Make the index again of all chunks' headers, and tell where there is another one."""
    path = join(output, INDEX_NAME)
    if storage.find(path) is None:
        return
    weight_map = {tensor: name for name, tensors in headers.items() for tensor in tensors}
    written = [entry for tensors in headers.values() for entry in tensors.values()]
    index = make_index(
        weight_map,
        sum(entry.elements for entry in written),
        sum(entry.elements * entry.dtype.size_bytes for entry in written),
    )
    try:
        found = read_small(storage, path, LIMIT_BYTES)
    except InputError as error:
        yield str(error)
        return
    if found != index:
        yield f"{path}: does not say what the chunks hold"


def find_index_differences(storage: Storage, output: str, headers: Headers) -> Iterator[str]:
    """Tell where an index that anybody wrote does not say what the chunks hold."""
    path = join(output, INDEX_NAME)
    if storage.find(path) is None:
        return
    try:
        index = read_index(storage, path)
    except InputError as error:
        yield from str(error).splitlines()
        return
    places = {
        name: {tensor: (written.offset_bytes, written.end_bytes) for tensor, written in tensors.items()}
        for name, tensors in headers.items()
    }
    yield from check_index(index, places)
    if not isinstance(read_object(storage, path).get("metadata"), dict):
        yield f"{path}: no metadata, expected an object, which may be empty: Transformers loads no index without it"
