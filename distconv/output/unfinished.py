"""Parts of unfinished files as the journal has them."""

import posixpath
from collections.abc import Mapping

from distconv.moving.digests import PartDigests
from distconv.moving.shared import UnfinishedFile
from distconv.output.targets import is_partial
from distconv.storage.base import join


def make_unfinished(files: Mapping[str, tuple[str, Mapping[int, PartDigests]]]) -> dict[str, object]:
    """Give, by file, what it is open as, without its folder, and its durable parts."""
    return {
        name: {
            "attempt": posixpath.basename(attempt),
            "parts": {str(number): _make_part(digests) for number, digests in sorted(parts.items())},
        }
        for name, (attempt, parts) in files.items()
    }


def read_unfinished(found: object, output: str) -> dict[str, UnfinishedFile]:
    """Read what ``make_unfinished`` gave; nothing of what is not in its form."""
    if not isinstance(found, dict):
        return {}
    files = ((name, _read_file(entry, output)) for name, entry in found.items())
    return {name: file for name, file in files if file is not None}


def _read_file(entry: object, output: str) -> UnfinishedFile | None:
    if not isinstance(entry, dict):
        return None
    attempt, parts = entry.get("attempt"), entry.get("parts")
    if not isinstance(attempt, str) or not is_partial(attempt) or not isinstance(parts, dict):
        return None
    read = {int(number): _read_part(part) for number, part in parts.items() if number.isdecimal()}
    known = {number: part for number, part in read.items() if part is not None}
    return UnfinishedFile(join(output, attempt), known)


def _make_part(part: PartDigests) -> dict[str, object]:
    found: dict[str, object] = {"tensors": list(part.tensors)}
    if part.version is not None:
        found |= {"version": part.version, "crc32": list(part.checksums)}
    return found


def _read_part(part: object) -> PartDigests | None:
    if not isinstance(part, dict):
        return None
    tensors, version, checksums = part.get("tensors"), part.get("version"), part.get("crc32", [])
    if not isinstance(tensors, list) or not isinstance(checksums, list):
        return None
    is_sound = (
        all(isinstance(digest, str) for digest in tensors)
        and all(type(checksum) is int and 0 <= checksum < 1 << 32 for checksum in checksums)
        and (version is None or isinstance(version, str))
        and len(checksums) == (0 if version is None else len(tensors))
    )
    return PartDigests(tuple(tensors), version, tuple(checksums)) if is_sound else None
