"""What stands in OUTPUT, by its own journal or receipt."""

import json
import posixpath
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from distconv.errors import InputError, OutputError
from distconv.families.translate import Decisions
from distconv.formats.plain_json import LIMIT_BYTES
from distconv.moving.digests import ALGORITHM, ChunkDigests
from distconv.moving.shared import UnfinishedFile
from distconv.output.ownership import is_owned, is_owner_file
from distconv.output.receipt import read_receipt
from distconv.output.targets import JOURNAL_NAME, RECEIPT_NAME, TRANSFORMERS, Target, is_partial
from distconv.output.unfinished import read_unfinished
from distconv.storage.base import Storage, is_file, join, read_small
from distconv.version import VERSION


@dataclass(frozen=True, slots=True)
class RecordedDigests:
    """Digests of a finished file: of the whole, if there is one, and of its tensors by name."""

    file: str | None
    tensors: Mapping[str, str]
    md5: str | None = None
    """Of the whole, in hex."""
    version: str | None = None
    """Of its entry, where no other content ever has it."""

    def in_order(self, names: Iterable[str]) -> ChunkDigests | None:
        """Give them in the order of the file, which no record keeps; None where they are others' than these."""
        names = tuple(names)
        if self.tensors.keys() != set(names):
            return None
        return ChunkDigests(self.file, tuple(self.tensors[name] for name in names))


@dataclass(frozen=True, slots=True)
class Found:
    """What stands in OUTPUT before a conversion."""

    entries: Mapping[str, int]
    """Sizes in bytes of all files and folders but owners' and what was never finished."""
    left_bytes: int
    """Of files that were never finished."""
    conversion: object
    """Identity of the conversion that was there; None where nothing tells."""
    digests: Mapping[str, RecordedDigests]
    unfinished: Mapping[str, UnfinishedFile]
    """Files that were being written in parts, with those that are durable."""

    def find_vouched(self, storage: Storage, output: str) -> dict[str, str]:
        """Give the versions of finished files that are the very ones that were recorded."""
        recorded = {name: found.version for name, found in self.digests.items() if found.version is not None}
        entries = storage.list_folder(output) if recorded else ()
        return {entry.name: entry.version for entry in entries if recorded.get(entry.name) == entry.version}

    def list_md5s(self, names: Iterable[str]) -> dict[str, str]:
        """Give the MD5s that are recorded of finished files."""
        return {name: md5 for name in names if (md5 := self.digests[name].md5) is not None}


def look_at_output(storage: Storage, output: str) -> Found:
    """Look at OUTPUT, and read what its journal or receipt says; OutputError where it is a file."""
    if is_file(storage, output):
        raise OutputError(f"{output}: a file, expected a folder")
    listed = storage.list_folder(output)
    entries = {
        found.name: found.size_bytes
        for found in listed
        if not is_owner_file(found.name) and not is_partial(found.name)
    }
    left_bytes = sum(found.size_bytes for found in listed if is_partial(found.name))
    # The journal counts more: it stands until the very end.
    for name in (JOURNAL_NAME, RECEIPT_NAME):
        if name in entries:
            try:
                return Found(entries, left_bytes, *read_record(storage, join(output, name)))
            except FileNotFoundError:
                # Who had the folder has just made it whole.
                if name in storage.list_names(output):
                    raise
                return look_at_output(storage, output)
    return Found(entries, left_bytes, None, {}, {})


def read_record(
    storage: Storage, path: str
) -> tuple[object, dict[str, RecordedDigests], dict[str, UnfinishedFile]]:
    """Read a journal or a receipt; a damaged one tells nothing."""
    try:
        content = json.loads(read_small(storage, path, LIMIT_BYTES))
        digests = {
            chunk["name"]: RecordedDigests(
                chunk.get(ALGORITHM),
                dict(chunk["tensors"].items()),
                _read_md5(chunk.get("md5")),
                chunk.get("version"),
            )
            for chunk in content["chunks"]
        }
        return (
            content["conversion"],
            digests,
            read_unfinished(content.get("unfinished"), posixpath.dirname(path)),
        )
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError, InputError):
        return None, {}, {}


def _read_md5(found: object) -> str | None:
    return found if isinstance(found, str) and re.fullmatch("[0-9a-f]{32}", found) else None


def find_decisions(
    storage: Storage, output: str, target: Target, family: str, source: Mapping[str, object]
) -> Decisions | None:
    """Give what this version decided by INPUT's data, where OUTPUT's journal or receipt tells of the same INPUT.

    ``source`` describes INPUT's files, as ``Source.describe`` does. Only looks; None where nothing tells.
    """
    there = storage.list_names(output)
    for name in (JOURNAL_NAME, RECEIPT_NAME):
        if name not in there:
            continue
        try:
            found, _digests, _unfinished = read_record(storage, join(output, name))
        except FileNotFoundError:
            continue
        if isinstance(found, dict) and _is_of(found, target, family, source):
            tied, replication = found.get("tied"), found.get("kv_replication")
            if type(tied) is bool and type(replication) is int and replication > 0:
                return Decisions(tied, replication)
    return None


def _is_of(identity: Mapping[str, object], target: Target, family: str, source: Mapping[str, object]) -> bool:
    """Whether a conversion into this format asked the same of the same files."""
    told = (identity.get("to", TRANSFORMERS.name), *map(identity.get, ("distconv", "family", "source")))
    return told == (target.name, VERSION, family, source)


def is_recorded(storage: Storage, output: str, identity: dict[str, object]) -> bool:
    """Whether OUTPUT has the receipt of this very conversion, and is nobody's any more; only looks."""
    there = storage.list_names(output)
    # Its owner is about to finish, or was killed or kept from it as it did: what is left of that has to go.
    if RECEIPT_NAME not in there or is_owned(there) or any(map(is_partial, there)):
        return False
    try:
        return read_receipt(storage, join(output, RECEIPT_NAME)).identity == identity
    except (OutputError, FileNotFoundError):
        return False


def find_attempts(storage: Storage, output: str, identity: dict[str, object]) -> frozenset[str]:
    """Name the unfinished files that this very conversion may go on with.

    Whoever may still write into them writes the same bytes.
    """
    if JOURNAL_NAME not in storage.list_names(output):
        return frozenset()
    try:
        conversion, _digests, unfinished = read_record(storage, join(output, JOURNAL_NAME))
    except FileNotFoundError:
        return frozenset()
    if conversion != identity:
        return frozenset()
    return frozenset(posixpath.basename(file.attempt) for file in unfinished.values())
