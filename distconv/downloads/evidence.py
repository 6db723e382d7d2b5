"""What shows that an answer is the file that was asked for: its checksum, or else what is in it."""

import json
from collections.abc import Callable
from dataclasses import dataclass

from distconv.errors import InputError
from distconv.formats.content import HEAD_BYTES, describe_content
from distconv.formats.meta.archive import read_archive
from distconv.formats.meta.checklist import Listed, compare_crc32, compare_md5
from distconv.storage.base import Storage, opened, read_range


@dataclass(frozen=True, slots=True)
class Look:
    """What was found in a file."""

    fault: str | None
    """Why it cannot be the file, if it cannot, as the end of a sentence about it."""
    reason: str = ""
    """What it seems to be instead."""
    has_checksums: bool = False
    """Whether all of its tensors' bytes were compared with checksums in the file itself."""


def compare_shard(
    storage: Storage, listed: Listed, advance: Callable[[int], None], stopped: Callable[[], bool]
) -> Look:
    """Compare a shard with the MD5 that its checklist gives."""
    if compare_md5(storage, listed, advance, stopped) is None:
        return Look(None)
    with opened(storage, listed.path) as reader:
        head = bytes(read_range(reader, 0, min(HEAD_BYTES, reader.size_bytes)))
    kind = describe_content(head)
    is_likely = head.startswith((b"PK", b"\x80")) or kind.startswith("unknown")
    return Look("its MD5 is wrong", "" if is_likely else f"it is {kind}")


def look_at_shard(
    storage: Storage, path: str, advance: Callable[[int], None], stopped: Callable[[], bool]
) -> Look:
    """Read a shard's headers, which tell of truncation, and its data where the zip has their CRC32."""
    try:
        with opened(storage, path) as reader:
            tensors = read_archive(reader)
        records = tuple(dict.fromkeys(record for _tensor, record in tensors.values()))
        with_checksum = [record for record in records if record.crc32]
        difference = next(compare_crc32(storage, path, with_checksum, advance, stopped), None)
    except InputError as error:
        return Look("it is no shard", str(error).removeprefix(f"{path}: "))
    if not records:
        return Look("it is no shard", "a torch checkpoint without tensors")
    if difference is not None:
        return Look(
            "its bytes are not those that its own checksums tell of", difference.removeprefix(f"{path}: ")
        )
    return Look(None, has_checksums=len(with_checksum) == len(records))


def has_checksums(storage: Storage, path: str) -> bool:
    """Whether a file begins as a zip does, whose records' CRC32 tell in the end whether it is right."""
    found = storage.find(path)
    if found is None or found.size_bytes < len(_ZIP):
        return False
    with opened(storage, path) as reader:
        return read_range(reader, 0, len(_ZIP)) == _ZIP


_ZIP = b"PK\x03\x04"


def describe_wrong_params(content: bytes) -> str | None:
    """Say what params.json is, as the end of a sentence, where it does not say how wide a model is."""
    try:
        found = json.loads(content)
    except (ValueError, RecursionError):
        return describe_content(content[:HEAD_BYTES])
    scopes = [found, *found.values()] if isinstance(found, dict) else []
    return None if any(isinstance(scope, dict) and "dim" in scope for scope in scopes) else "JSON without dim"


def describe_wrong_text(content: bytes) -> str | None:
    """Say what a licence is, as the end of a sentence, where it is no text for people."""
    kind = describe_content(content[:HEAD_BYTES])
    is_page = kind.startswith("an HTML")
    return (
        kind if not content.strip() or is_page or b"\0" in content or content.lstrip()[:1] == b"{" else None
    )
