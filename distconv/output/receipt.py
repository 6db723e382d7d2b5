"""What distconv.json says: read once, every value checked, into types that the rest can trust.

Its own digest finds damage; it proves nothing about who wrote it, so that a name in it leads nowhere
but to a file that a conversion writes.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeVar

from distconv.errors import InputError, OutputError
from distconv.formats.plain_json import LIMIT_BYTES
from distconv.formats.safetensors.chunks import INDEX_NAME, chunk_name
from distconv.moving.digests import ALGORITHM
from distconv.output.finalise import CONFIG_NAME, is_sidecar
from distconv.sidecars.config import to_json
from distconv.storage.base import Storage, read_small

_SHA256 = re.compile(r"[0-9a-f]{64}")
_XXH3 = re.compile(r"[0-9a-f]{32}")
_WORD = re.compile(r"[A-Za-z0-9.+_-]{1,64}")


@dataclass(frozen=True, slots=True)
class RecordedChunk:
    """One chunk as it was written; digests in hex, those of ``tensors`` by name."""

    name: str
    size_bytes: int
    digest: str
    tensors: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class RecordedSource:
    """A file of INPUT: a small one by its SHA-256, a shard by its size and what its headers say."""

    name: str
    sha256: str
    size_bytes: int | None
    """None for a small file, whose digest is that of its content."""


@dataclass(frozen=True, slots=True)
class Conversion:
    """What was converted, and how."""

    version: str
    family: str
    instruct: bool
    dtype: str
    max_shard_size: int
    sources: tuple[RecordedSource, ...]


@dataclass(frozen=True, slots=True)
class ModelReceipt:
    """A whole, undamaged receipt."""

    conversion: Conversion
    identity: Mapping[str, object]
    """The same as it stands in the file, to be compared with that of another conversion."""
    chunks: tuple[RecordedChunk, ...]
    files: Mapping[str, str]
    """SHA-256 in hex of every file beside the chunks, by name."""
    content: bytes


def digest_receipt(content: Mapping[str, object]) -> str:
    """Give the SHA-256 of a receipt's content, its own digest left out."""
    rest = {key: value for key, value in content.items() if key != "sha256"}
    return hashlib.sha256(to_json(rest)).hexdigest()


def read_receipt(storage: Storage, path: str) -> ModelReceipt:
    """Read a receipt; OutputError where it is damaged, or not what a conversion writes."""
    try:
        content = read_small(storage, path, LIMIT_BYTES)
        found = json.loads(content)
        # Whatever is nested too deeply for JSON is not what a conversion wrote.
        whole = (
            isinstance(found, dict)
            and found.get("sha256") == digest_receipt(found)
            and to_json(found) == content
        )
    except (ValueError, RecursionError) as error:
        raise OutputError(f"{path}: not JSON ({error})") from None
    except InputError as error:
        raise OutputError(str(error)) from None
    if not whole:
        raise OutputError(f"{path}: damaged or changed, its own digest differs")
    try:
        return _make_receipt(found, content)
    except _Wrong as wrong:
        raise OutputError(f"{path}: not a receipt of a finished conversion: {wrong}") from None


class _Wrong(ValueError):
    """A value is not what a conversion writes there."""


_T = TypeVar("_T")


def _take(row: Mapping[str, object], key: str, kind: type[_T], where: str) -> _T:
    """Give a value of exactly this type: True is no number."""
    value = row.get(key)
    if type(value) is not kind:
        raise _Wrong(f"{key} of {where} is {_show(value)}, expected {_KINDS[kind]}")
    # mypy does not take the comparison above for what it is.
    assert isinstance(value, kind)  # noqa: S101
    return value


_KINDS: Mapping[type, str] = {
    str: "text", int: "a whole number", bool: "true or false", list: "a list", dict: "an object",
}  # fmt: skip


def _show(value: object) -> str:
    """Show a value in a message, briefly and as ASCII."""
    if isinstance(value, (dict, list)):
        return _KINDS[type(value)]
    text = ascii(value)
    return text if len(text) <= 80 else f"{text[:80]}…"


def _make_receipt(found: Mapping[str, object], content: bytes) -> ModelReceipt:
    identity = _take(found, "conversion", dict, "the receipt")
    rows = _take(found, "chunks", list, "the receipt")
    chunks = tuple(_make_chunk(row, number, len(rows)) for number, row in enumerate(rows, 1))
    files = _take(found, "files", dict, "the receipt")
    for name in files:
        _check(is_sidecar(name), f"it names {_show(name)}, which no conversion writes")
        _check_digest(_take(files, name, str, "the files"), _SHA256, name)
    marks = {CONFIG_NAME, INDEX_NAME} if len(chunks) > 1 else {CONFIG_NAME}
    _check(
        marks == files.keys() & {CONFIG_NAME, INDEX_NAME}, f"its files are not those of {len(chunks)} chunks"
    )
    return ModelReceipt(_make_conversion(identity), identity, chunks, files, content)


def _make_chunk(row: object, number: int, count: int) -> RecordedChunk:
    name = chunk_name(number, count)
    if not isinstance(row, dict) or row.get("name") != name:
        raise _Wrong(f"chunk {number} is not {name}")
    tensors = _take(row, "tensors", dict, name)
    for tensor in tensors:
        _check_digest(_take(tensors, tensor, str, name), _XXH3, name)
    digest = _take(row, ALGORITHM, str, name)
    _check_digest(digest, _XXH3, name)
    return RecordedChunk(name, _take(row, "size_bytes", int, name), digest, tensors)


def _make_conversion(identity: Mapping[str, object]) -> Conversion:
    where = "the conversion"
    sources = _take(identity, "source", dict, where)
    words = {key: _take(identity, key, str, where) for key in ("distconv", "family", "dtype")}
    for key, word in words.items():
        _check(_WORD.fullmatch(word) is not None, f"{key} of {where} is {_show(word)}")
    return Conversion(
        version=words["distconv"],
        family=words["family"],
        instruct=_take(identity, "instruct", bool, where),
        dtype=words["dtype"],
        max_shard_size=_take(identity, "max_shard_size", int, where),
        sources=tuple(_make_source(name, sources) for name in sources),
    )


def _make_source(name: str, sources: Mapping[str, object]) -> RecordedSource:
    row = _take(sources, name, dict, "the source")
    if "sha256" in row:
        digest, size_bytes = _take(row, "sha256", str, name), None
    else:
        digest, size_bytes = _take(row, "headers_sha256", str, name), _take(row, "size_bytes", int, name)
    _check_digest(digest, _SHA256, name)
    return RecordedSource(name, digest, size_bytes)


def _check(holds: bool, otherwise: str) -> None:
    if not holds:
        raise _Wrong(otherwise)


def _check_digest(digest: str, pattern: re.Pattern[str], where: str) -> None:
    _check(pattern.fullmatch(digest) is not None, f"{_show(digest)} of {_show(where)} is no digest")
