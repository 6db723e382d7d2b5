"""What distconv.json says: read once, every value checked, into types that the rest can trust.

Its own digest finds damage; it proves nothing about who wrote it, so that a name in it leads nowhere
but to a file that a conversion writes.
"""

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from distconv.errors import InputError, OutputError
from distconv.formats.plain_json import LIMIT_BYTES
from distconv.moving.digests import ALGORITHM
from distconv.output.targets import RECEIPT_NAME, TARGETS, TRANSFORMERS, Target, tell_target
from distconv.output.values import WORD, WrongValueError, check, check_digest, show, take
from distconv.sidecars.config import to_json
from distconv.storage.base import Storage, join, read_small

_SHA256 = re.compile(r"[0-9a-f]{64}")
XXH3 = _MD5 = re.compile(r"[0-9a-f]{32}")


@dataclass(frozen=True, slots=True)
class RecordedChunk:
    """One file of weights as it was written; digests in hex, those of ``tensors`` by name."""

    name: str
    size_bytes: int
    digest: str | None
    """Of the whole file; None where several workers wrote parts of it."""
    tensors: Mapping[str, str]
    md5: str | None = None
    """Of the whole file, where the format has a list of them."""

    def to_row(self) -> dict[str, object]:
        """Give it as receipt and journal have it."""
        whole = {} if self.digest is None else {ALGORITHM: self.digest}
        if self.md5 is not None:
            whole["md5"] = self.md5
        return {"name": self.name, "size_bytes": self.size_bytes, **whole, "tensors": dict(self.tensors)}


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

    target: Target
    shards: int | None
    """Model-parallel ranks of Meta's; None for another target."""
    version: str
    family: str
    instruct: bool
    dtype: str
    max_shard_size: int | None
    """In bytes; for another target of the parts that one worker writes at a time."""
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


def make_receipt(
    identity: Mapping[str, object],
    chunks: Iterable[Mapping[str, object]],
    files: Mapping[str, str],
    libraries: Mapping[str, str],
) -> bytes:
    """Make a receipt of what was converted, rows of the files of weights, and the others' SHA-256 in hex."""
    content: dict[str, object] = {
        "conversion": identity,
        "chunks": list(chunks),
        "files": dict(files),
        "libraries": dict(libraries),
    }
    return to_json(content | {"sha256": digest_receipt(content)})


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
    except WrongValueError as wrong:
        raise OutputError(f"{path}: not a receipt of a finished conversion: {wrong}") from None


def find_conversion(storage: Storage, output: str) -> Conversion | None:
    """Give what OUTPUT's receipt says of the conversion, if there is a good one."""
    if storage.find(join(output, RECEIPT_NAME)) is None:
        return None
    try:
        return read_receipt(storage, join(output, RECEIPT_NAME)).conversion
    except OutputError:  # a damaged receipt is a finding, and no reason not to look further
        return None


def find_target(storage: Storage, output: str) -> Target:
    """Tell the format of OUTPUT by its receipt, and without a good one by names."""
    recorded = find_conversion(storage, output)
    return tell_target(storage, output) if recorded is None else recorded.target


def _make_receipt(found: Mapping[str, object], content: bytes) -> ModelReceipt:
    identity = take(found, "conversion", dict, "the receipt")
    target = _take_target(identity)
    rows = take(found, "chunks", list, "the receipt")
    names = target.name_files(len(rows))
    chunks = tuple(
        _make_chunk(row, number, name, target)
        for number, (row, name) in enumerate(zip(rows, names, strict=True), 1)
    )
    files = take(found, "files", dict, "the receipt")
    for name in files:
        check(target.is_recorded(name), f"it names {show(name)}, which no conversion writes")
        check_digest(take(files, name, str, "the files"), _SHA256, name)
    check(
        set(target.list_marks(len(rows))) == files.keys() & set(target.marks),
        f"its files are not those of {len(chunks)} {target.noun}s",
    )
    return ModelReceipt(_make_conversion(identity, target, len(rows)), identity, chunks, files, content)


def _take_target(identity: Mapping[str, object]) -> Target:
    """Give the target; receipts of older versions name none, and knew one only."""
    if "to" not in identity:
        return TRANSFORMERS
    name = take(identity, "to", str, "the conversion")
    check(name in TARGETS, f"to of the conversion is {show(name)}, expected one of {', '.join(TARGETS)}")
    return TARGETS[name]


def _make_chunk(row: object, number: int, name: str, target: Target) -> RecordedChunk:
    if not isinstance(row, dict) or row.get("name") != name:
        raise WrongValueError(f"{target.noun} {number} is not {name}")
    tensors = take(row, "tensors", dict, name)
    for tensor in tensors:
        check_digest(take(tensors, tensor, str, name), XXH3, name)
    digest = None
    if target.whole_digest or row.get(ALGORITHM) is not None:
        digest = take(row, ALGORITHM, str, name)
        check_digest(digest, XXH3, name)
    md5 = None
    if row.get("md5") is not None:
        md5 = take(row, "md5", str, name)
        check_digest(md5, _MD5, name)
    return RecordedChunk(name, take(row, "size_bytes", int, name), digest, tensors, md5)


def _make_conversion(identity: Mapping[str, object], target: Target, count: int) -> Conversion:
    where = "the conversion"
    sources = take(identity, "source", dict, where)
    words = {key: take(identity, key, str, where) for key in ("distconv", "family", "dtype")}
    for key, word in words.items():
        check(WORD.fullmatch(word) is not None, f"{key} of {where} is {show(word)}")
    shards = limit = None
    if target is TRANSFORMERS or identity.get("max_shard_size") is not None:
        limit = take(identity, "max_shard_size", int, where)
    if target is not TRANSFORMERS:
        shards = take(identity, "shards", int, where)
        check(shards == count, f"shards of {where} is {show(shards)}, it has {count} {target.noun}s")
    return Conversion(
        target=target,
        shards=shards,
        version=words["distconv"],
        family=words["family"],
        instruct=take(identity, "instruct", bool, where),
        dtype=words["dtype"],
        max_shard_size=limit,
        sources=tuple(_make_source(name, sources) for name in sources),
    )


def _make_source(name: str, sources: Mapping[str, object]) -> RecordedSource:
    row = take(sources, name, dict, "the source")
    if "sha256" in row:
        digest, size_bytes = take(row, "sha256", str, name), None
    else:
        digest, size_bytes = take(row, "headers_sha256", str, name), take(row, "size_bytes", int, name)
    check_digest(digest, _SHA256, name)
    return RecordedSource(name, digest, size_bytes)
