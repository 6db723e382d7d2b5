"""Checksums that came with INPUT: Meta's checklists, and the CRC32 of every record of a zip.

A checklist has a line ``<md5>  <name>`` for each file beside it, in every generation of
Meta's downloads; a name may begin with ``./``, and an asterisk may mark it as binary.
"""

import hashlib
import posixpath
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from distconv.errors import InputError
from distconv.formats.content import describe_content
from distconv.formats.meta.archive import locate_records
from distconv.formats.meta.checksums import update_crc32
from distconv.formats.meta.files import SourceFiles
from distconv.layout.regions import Region
from distconv.storage.base import Storage, join, opened, read_small
from distconv.storage.blocks import read_blocks

CHECKLIST_NAMES = ("checklist.chk", "tokenizer_checklist.chk")
_LINE = re.compile(r"([0-9a-fA-F]{32})[ \t]+\*?(\S.{0,1023})")
_LIMIT_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Listed:
    """A file and the MD5 that its checklist gives, in lower case."""

    path: str
    md5: str
    checklist: str


def read_checklists(storage: Storage, files: SourceFiles) -> tuple[tuple[Listed, ...], tuple[str, ...]]:
    """Read all checklists beside the shards and the tokenizer; also what is wrong with them."""
    folders = [files.folder, *([posixpath.dirname(files.tokenizer) or "."] if files.tokenizer else [])]
    listed: dict[str, Listed] = {}
    findings = []
    for folder in dict.fromkeys(folders):
        for name in CHECKLIST_NAMES:
            path = join(folder, name)
            # In the parent folder only the tokenizer's list is about this model.
            if storage.find(path) is None or (folder != files.folder and name == CHECKLIST_NAMES[0]):
                continue
            try:
                found = tuple(parse_checklist(path, folder, read_small(storage, path, _LIMIT_BYTES)))
            except InputError as error:
                findings.append(str(error))
                continue
            listed |= {entry.path: entry for entry in found}
    return tuple(listed.values()), tuple(findings)


def parse_checklist(path: str, folder: str, content: bytes) -> Iterator[Listed]:
    """Read the lines of a checklist that lies in this folder; InputError where it is none."""
    for number, line in enumerate(content.decode("utf-8", "replace").splitlines(), 1):
        if not line.strip():
            continue
        match = _LINE.fullmatch(line.strip())
        if match is None:
            raise InputError(
                f"{path}: line {number} is no `md5  name`; the file is {describe_content(content)}"
            )
        name = posixpath.normpath(match[2])
        if posixpath.isabs(name) or name.startswith(".."):
            raise InputError(f"{path}: line {number} names {match[2]}, which lies outside of its folder")
        yield Listed(join(folder, name), match[1].lower(), path)


def compare_md5(
    storage: Storage, listed: Listed, advance: Callable[[int], None], stopped: Callable[[], bool]
) -> str | None:
    """Read a whole file and say how it differs from what its checklist gives, if it does."""
    digest = hashlib.md5(usedforsecurity=False)
    with opened(storage, listed.path) as reader:
        for block in read_blocks(reader, 0, reader.size_bytes, stopped):
            digest.update(block)
            advance(len(block))
    if digest.hexdigest() == listed.md5:
        return None
    return f"{listed.path}: MD5 {digest.hexdigest()}, {listed.checklist} gives {listed.md5}; download the file again"


def compare_crc32(
    storage: Storage,
    path: str,
    records: Sequence[Region],
    advance: Callable[[int], None],
    stopped: Callable[[], bool],
) -> Iterator[str]:
    """Read a shard's records and say how each that differs does from what the zip's directory gives."""
    with opened(storage, path) as reader:
        for record, first in locate_records(reader, records).items():
            found = 0
            for block in read_blocks(reader, first, first + record.size_bytes, stopped):
                found = update_crc32(found, block)
                advance(len(block))
            if found != record.crc32:
                yield (
                    f"{path}: CRC32 {found:08x} of the record at byte {record.offset_bytes:,}, "
                    f"its header gives {record.crc32:08x}; download the file again"
                )
