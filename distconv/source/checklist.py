"""Checksums that came with INPUT: Meta's checklists, and the CRC32 of every record of a zip.

A checklist has a line ``<md5>  <name>`` for each file beside it, in every generation of
Meta's downloads; a name may begin with ``./``, and an asterisk may mark it as binary.
"""

import posixpath
import re
from collections.abc import Iterator
from dataclasses import dataclass

from distconv.errors import InputError
from distconv.source.content import describe_content
from distconv.source.files import SourceFiles
from distconv.storage import Storage, join, read_small

CHECKLIST_NAMES = ("checklist.chk", "tokenizer_checklist.chk")
_LINE = re.compile(r"([0-9a-fA-F]{32})[ \t]+\*?(\S.*)")
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
                found = tuple(_parse(path, folder, read_small(storage, path, _LIMIT_BYTES)))
            except InputError as error:
                findings.append(str(error))
                continue
            listed |= {entry.path: entry for entry in found}
    return tuple(listed.values()), tuple(findings)


def _parse(path: str, folder: str, content: bytes) -> Iterator[Listed]:
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
