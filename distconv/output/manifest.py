"""A manifest: what a model's tensors are, whatever files they lie in.

It has no word of files, chunks, workers or times, so that two of them are equal, byte for byte, where the
tensors are. ``schemas/manifest.json`` beside this describes it.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from distconv.errors import InputError
from distconv.formats.plain_json import is_document, parse_object
from distconv.layout.dtypes import DTYPES, DType
from distconv.moving.digests import ALGORITHM
from distconv.moving.values import Tally
from distconv.output.receipt import XXH3
from distconv.output.values import WrongValueError, check, check_digest, take
from distconv.storage.base import Storage, read_small

FORMAT = "distconv-manifest"
VERSION = 1
_LIMIT_BYTES = 64 << 20
"""A model of 100,000 tensors takes 20 MB."""


@dataclass(frozen=True, slots=True)
class Listed:
    """One tensor: its digest is that of its elements, row by row, in hex."""

    name: str
    shape: tuple[int, ...]
    dtype: DType
    digest: str
    tally: Tally

    @property
    def elements(self) -> int:
        """Number of elements."""
        product = 1
        for extent in self.shape:
            product *= extent
        return product


@dataclass(frozen=True, slots=True)
class Manifest:
    """All tensors by their names."""

    tensors: Mapping[str, Listed]

    @property
    def elements(self) -> int:
        """Number of elements of all."""
        return sum(listed.elements for listed in self.tensors.values())

    @property
    def size_bytes(self) -> int:
        """Bytes of all data."""
        return sum(listed.elements * listed.dtype.size_bytes for listed in self.tensors.values())

    @property
    def digest(self) -> str:
        """SHA-256 in hex of what the manifest says of its tensors: one word for the whole model."""
        return hashlib.sha256(json.dumps(self._rows(), sort_keys=True).encode()).hexdigest()

    def to_json(self) -> dict[str, object]:
        """Give it as its file has it."""
        return {
            "format": FORMAT,
            "version": VERSION,
            "elements": self.elements,
            "size_bytes": self.size_bytes,
            "sha256": self.digest,
            "tensors": self._rows(),
        }

    def to_bytes(self) -> bytes:
        """Give the file, which begins with its format."""
        return (json.dumps(self.to_json(), indent=1) + "\n").encode()

    def _rows(self) -> dict[str, object]:
        return {name: _make_row(listed) for name, listed in sorted(self.tensors.items())}


def make_manifest(tensors: Iterable[Listed]) -> Manifest:
    """Take tensors as a manifest."""
    return Manifest({listed.name: listed for listed in tensors})


def _make_row(listed: Listed) -> dict[str, object]:
    tally = listed.tally
    odd = {"nan": tally.nan, "infinite": tally.infinite, "zero": tally.zero}
    return {
        "dtype": listed.dtype.name,
        "shape": list(listed.shape),
        ALGORITHM: listed.digest,
        **{key: value for key, value in odd.items() if value},
    }


def is_manifest_head(head: bytes) -> bool:
    """Whether a file that begins so is a manifest."""
    return is_document(head, FORMAT)


def is_manifest(content: Mapping[str, object]) -> bool:
    """Whether a JSON object says that it is a manifest."""
    return content.get("format") == FORMAT


def read_manifest(storage: Storage, path: str) -> Manifest:
    """Read a manifest; InputError where it is none, or damaged."""
    content = parse_object(path, read_small(storage, path, _LIMIT_BYTES))
    if not is_manifest(content):
        raise InputError(f"{path}: no manifest of distconv's; `distconv manifest` makes one")
    try:
        return _read(content)
    except WrongValueError as wrong:
        raise InputError(f"{path}: damaged, or of another version of distconv: {wrong}") from None


def _read(content: Mapping[str, object]) -> Manifest:
    version = take(content, "version", int, "the manifest")
    check(version == VERSION, f"its version is {version}, expected {VERSION}")
    rows = take(content, "tensors", dict, "the manifest")
    manifest = make_manifest(_read_row(name, take(rows, name, dict, "the tensors")) for name in rows)
    digest = take(content, "sha256", str, "the manifest")
    check(digest == manifest.digest, "its own digest differs")
    return manifest


def _read_row(name: str, row: Mapping[str, object]) -> Listed:
    dtype, shape = take(row, "dtype", str, name), take(row, "shape", list, name)
    check(dtype in DTYPES, f"dtype of {name:.80} is unknown")
    whole = all(type(extent) is int and extent >= 0 for extent in shape)
    check(whole, f"shape of {name:.80} has what is no whole number, or less than 0")
    digest = take(row, ALGORITHM, str, name)
    check_digest(digest, XXH3, name)
    counts = {key: take(row, key, int, name) for key in ("nan", "infinite") if key in row}
    zero = "zero" in row and take(row, "zero", bool, name)
    return Listed(name, tuple(shape), DTYPES[dtype], digest, Tally(**counts, zero=zero))
