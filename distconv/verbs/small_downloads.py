"""A release's small files: fetched whole, and looked at before any gets its name."""

import hashlib
import os
from collections.abc import Mapping, Sequence
from functools import partial

from distconv.downloads.evidence import describe_wrong_params, describe_wrong_text
from distconv.downloads.link import ANEW
from distconv.downloads.patience import Patience
from distconv.downloads.releases import CHECKLIST, LEGAL, PARAMS, TOKENIZER, TOKENIZER_CHECKLIST
from distconv.downloads.server import RefusedError, Server
from distconv.errors import InputError
from distconv.formats.meta.checklist import Listed, parse_checklist
from distconv.formats.meta.legal import is_of_meta
from distconv.moving.progress import Progress
from distconv.output.loading import SMALL_FILE_BYTES
from distconv.sidecars.tokenizer import make_vocabulary
from distconv.storage.base import Storage, read_small, write_small

_DISPENSABLE = {*LEGAL, CHECKLIST, TOKENIZER_CHECKLIST}
"""What a release may lack."""


class SmallFiles:
    """What came of them so far; one thread uses it."""

    def __init__(self, server: Server, storage: Storage, patience: Patience, progress: Progress) -> None:
        """Begin with none."""
        self.fetched_bytes = self.by_md5 = 0
        self.unproved: list[str] = []
        """Files that were compared with nothing."""
        self.notes: list[str] = []
        self._server, self._storage, self._patience, self._progress = server, storage, patience, progress

    def fetch(self, wanted: Sequence[tuple[str, str]]) -> tuple[dict[str, Listed], int]:
        """Fetch small files; gives what the checklists among them say, and how many came.

        All are looked at before any gets its name.
        """
        contents: dict[str, tuple[str, bytes]] = {}
        listed: dict[str, Listed] = {}
        for name, path in wanted:
            base = os.path.basename(path)
            content = self._fetch_if_served(name, base)
            if content is None or (base in LEGAL and self._is_somebody_elses(path, content)):
                continue
            contents[path] = name, content
            if base in {CHECKLIST, TOKENIZER_CHECKLIST}:
                listed |= {
                    entry.path: entry for entry in parse_checklist(path, os.path.dirname(path), content)
                }
        proved = {
            path: self._prove_small(name, path, content, listed) for path, (name, content) in contents.items()
        }
        for path, content in proved.items():
            write_small(self._storage, path, content)
        return listed, len(contents)

    def _fetch_if_served(self, name: str, base: str) -> bytes | None:
        """Fetch a small file; None for one that a release may lack."""
        try:
            content = self._read_small(name)
        except RefusedError:
            if base not in _DISPENSABLE:
                raise
            if base == CHECKLIST:
                self.notes.append(f"{name} is not served: MD5 cannot be compared")
            return None
        if base not in _DISPENSABLE:
            return content
        fault = describe_wrong_text(content) if base in LEGAL or not content.strip() else None
        if fault is not None:
            self.notes.append(f"{name}: left out, as what the server gives is {fault}")
            return None
        return content

    def _is_somebody_elses(self, path: str, content: bytes) -> bool:
        """Whether a licence or policy stands there that is none of Meta's, as a project's own; it stays."""
        if self._storage.find(path) is None or is_of_meta(self._storage, path):
            return False
        if read_small(self._storage, path, SMALL_FILE_BYTES) == content:
            return False
        self.notes.append(
            f"{path}: does not read like Meta's, and stays as it is; the model's own was not written"
        )
        return True

    def _read_small(self, name: str) -> bytes:
        content = self._patience.ask(partial(self._server.read_small, name), name)
        self.fetched_bytes += len(content)
        return content

    def _prove_small(self, name: str, path: str, content: bytes, listed: Mapping[str, Listed]) -> bytes:
        """Give a small file's content as it should be, fetched once more where it first is not."""
        entry = listed.get(path)
        if entry is not None:
            if _md5(content) != entry.md5:
                self._progress.note(f"{name}: its MD5 is wrong; fetching it again")
                content = self._read_small(name)
            if _md5(content) != entry.md5:
                raise InputError(f"{name}: its MD5 is wrong twice in a row; {ANEW}")
            self.by_md5 += 1
            return content
        base = os.path.basename(path)
        if base == PARAMS and (wrong := describe_wrong_params(content)):
            raise InputError(
                f"{name}: {self._server.host} gives {wrong}, expected a model's dimensions; {ANEW}"
            )
        if base == TOKENIZER:
            make_vocabulary(path, content)
        if base in {PARAMS, TOKENIZER}:
            self.unproved.append(path)
        return content


def _md5(content: bytes) -> str:
    return hashlib.md5(content, usedforsecurity=False).hexdigest()
