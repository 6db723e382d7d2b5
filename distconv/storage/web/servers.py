"""Files on web servers, as a storage that is only read: ``http(s)://HOST/FOLDER/FILE``.

A server lists no folder, so that names are tried, by a request for one byte each. A folder holds what is there of
``NAMES``, of ``consolidated.00.pth``, ``.01`` and so on to the first that is missing, of scales beside them, and of what an index
(``*.index.json``) names; it holds no folders, and is there where any of these is. A file is known by its strong ETag.
"""

import errno
import json
import os
import posixpath
import re
from collections.abc import Iterable, Mapping
from concurrent.futures import wait
from dataclasses import dataclass, field, replace
from urllib.parse import quote, urlsplit

from distconv.errors import InputError, UsageError
from distconv.storage.base import Entry, read_small
from distconv.storage.parallel import submit
from distconv.storage.web.client import get_client
from distconv.storage.web.look import look
from distconv.storage.web.read_only import ReadOnly
from distconv.storage.web.remote import Remote, RemoteReader

INDEXES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
_SHARDS, _SCALES = "consolidated.{:02d}.pth", "fp8_scales_{}.pt"
NAMES = (
    "params.json", "tokenizer.model", "tekken.json", "checklist.chk", "consolidated.pth", "consolidated.safetensors",
    "config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "added_tokens.json",
    "special_tokens_map.json", "model.safetensors", "pytorch_model.bin", *INDEXES, _SCALES.format(0), "int4_scales_0.pt",
    "LICENSE", "LICENSE.txt", "LICENSE.md", "USE_POLICY.md", "USE_POLICY.txt",
)  # fmt: skip
"""Tried in every folder."""
_SHARDS_AT_ONCE = 8
_MOST_NUMBERED = 256
_FILE = re.compile(r".*\.(pth|pt|bin|ckpt|safetensors|json|model|chk|txt|md)|LICENSE|USE_POLICY")
"""Names that no folder has."""
_INDEX_BYTES = 64 << 20
_MOST_NAMED = 2048
_KEPT = "/%:@!$&'()*+,;=~-._"


@dataclass(frozen=True, slots=True)
class WebStorage(ReadOnly):
    """All web servers; connections are each process's own."""

    pins: Mapping[str, str] | None = field(default=None, kw_only=True)
    _listed: dict[str, tuple[Entry, ...]] = field(
        default_factory=dict, kw_only=True, repr=False, compare=False
    )
    """What folders were found to hold: a folder is looked at once."""

    def list_folder(self, folder: str) -> tuple[Entry, ...]:
        """All names in a folder that can be found, sorted; empty where there is none."""
        folder = folder.rstrip("/")
        if folder not in self._listed:
            found = {entry.name: entry for entry in (*_look_at(folder, NAMES), *_look_for(folder, _SHARDS))}
            if _SCALES.format(0) in found:
                found |= {entry.name: entry for entry in _look_for(folder, _SCALES)}
            for index in INDEXES:
                if index in found:
                    named = self._read_names(posixpath.join(folder, index)) - found.keys()
                    found |= {entry.name: entry for entry in _look_at(folder, sorted(named))}
            self._listed[folder] = tuple(found[name] for name in sorted(found))
        return self._listed[folder]

    def find(self, path: str) -> Entry | None:
        """What is at this path now, if anything."""
        name = posixpath.basename(path)
        found = look(path, make_url(path)) if urlsplit(path).path.strip("/") else None
        if found is not None or _FILE.fullmatch(name):
            return found
        return Entry(name, True, 0, "") if self.list_folder(path) else None

    def open(self, path: str) -> RemoteReader:
        """Open a file for reading, without a request where it is known which one it must be."""
        stamp = None if self.pins is None else self.pins.get(path)
        if stamp is not None:
            size, _, tag = stamp.partition(" ")
            return RemoteReader(self, Remote(path, int(size), tag), get_client().read)
        entry = look(path, make_url(path))
        if entry is None:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
        return RemoteReader(self, Remote(path, entry.size_bytes, entry.version), get_client().read)

    def pinned(self, stamps: Mapping[str, str]) -> "WebStorage":
        """Give the same place, where files that have other stamps than these cannot be read."""
        return replace(self, pins=dict(stamps))

    def real_path(self, path: str) -> str:
        """Give the one spelling that all paths to the same place share; above a server there is nothing."""
        parts = urlsplit(path)
        inner = posixpath.normpath(f"/{parts.path}").lstrip("/")
        return f"{parts.scheme}://{parts.netloc}/{inner}"

    def find_url(self, remote: Remote) -> str:
        """Give the URL that the path is."""
        return make_url(remote.path)

    def find_tag(self, remote: Remote) -> str:
        """Give the ETag that the file had when it was found."""
        return remote.version

    def make_headers(self, url: str, remote: Remote) -> Mapping[str, str]:  # noqa: ARG002
        """Ask for the file that was found, and no other."""
        return {"If-Match": remote.version}

    def _read_names(self, index: str) -> set[str]:
        """Give the files that an index names; whoever reads it as an index says what is wrong with it."""
        try:
            content = json.loads(read_small(self, index, _INDEX_BYTES))
            named = {name for name in content["weight_map"].values() if isinstance(name, str)}
        except (AttributeError, LookupError, RecursionError, TypeError, ValueError):
            return set()
        if len(named) > _MOST_NAMED:
            raise InputError(f"{index}: names {len(named):,} files, expected at most {_MOST_NAMED:,}")
        return {name for name in named if "/" not in name and name not in {"", ".", ".."}}


def check_url(url: str) -> str:
    """Take a URL as it was given; UsageError, which shows no secret, where it is none that can be read."""
    try:
        parts = urlsplit(url)
        host, _port = parts.hostname, parts.port
    except ValueError:
        raise UsageError("a URL that is none: expected http(s)://HOST[:PORT]/FOLDER") from None
    if not host or "@" in parts.netloc or parts.query or parts.fragment:
        raise UsageError(
            f"{parts.scheme}://{host or ''}…: expected http(s)://HOST[:PORT]/FOLDER without a user, a password or a query"
        )
    if host in {"huggingface.co", "hf.co", "www.huggingface.co"}:
        repo = "/".join(parts.path.strip("/").split("/")[:2])
        raise UsageError(f"{url}: a page of the hub; give hf://{repo}[@REVISION][/FOLDER]")
    return url.rstrip("/")


def make_url(path: str) -> str:
    """Give the URL that is asked for."""
    parts = urlsplit(path)
    return f"{parts.scheme}://{parts.netloc}{quote(parts.path, safe=_KEPT) or '/'}"


def _look_at(folder: str, names: Iterable[str]) -> list[Entry]:
    """Look at many names at once."""
    paths = [posixpath.join(folder, name) for name in names]
    looks = [submit(look, path, make_url(path)) for path in paths]
    wait(looks)
    return [entry for one in looks if (entry := one.result()) is not None]


def _look_for(folder: str, numbered: str) -> list[Entry]:
    """Look for files by their numbers, to the first that is missing; InputError where none ever is."""
    found: list[Entry] = []
    while len(found) % _SHARDS_AT_ONCE == 0:
        first = len(found)
        names = [numbered.format(number) for number in range(first, first + _SHARDS_AT_ONCE)]
        there = {entry.name: entry for entry in _look_at(folder, names)}
        for name in names:
            if name not in there:
                return found
            found.append(there[name])
        if len(found) >= _MOST_NUMBERED:
            raise InputError(
                f"{folder}: seems to hold {numbered.format(0)} to {name} and more; does the server answer with a page for "
                "every name? Log in, correct the URL, or download the files first"
            )
    return found
