"""Models' repositories on the Hugging Face Hub, as a storage that is only read: ``hf://ORG/REPO@COMMIT/…``.

A commit's files are listed once. Where a file's bytes are, the hub is asked once a process, and again once the URL
that it gave has ended; ranges are asked for there. The hub's token goes to the hub alone.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from urllib.parse import urlsplit

from distconv.errors import InputError
from distconv.storage.base import Entry
from distconv.storage.pinning import describe_change
from distconv.storage.web.answers import follow
from distconv.storage.web.client import get_client
from distconv.storage.web.hub_api import find_endpoint, make_own_headers, read_tree, resolve
from distconv.storage.web.hub_paths import normalise, split
from distconv.storage.web.read_only import ReadOnly, expect_file
from distconv.storage.web.remote import Remote, RemoteReader

_OWN_HOSTS = frozenset({"huggingface.co", "hf.co"})
"""Of the public hub, one of which may lead to the other."""


@dataclass(frozen=True, slots=True)
class HubStorage(ReadOnly):
    """A hub; tokens and connections are each process's own."""

    endpoint: str = field(default_factory=find_endpoint)
    pins: Mapping[str, str] | None = field(default=None, kw_only=True)

    def list_folder(self, folder: str) -> tuple[Entry, ...]:
        """All names in a folder, sorted; empty where there is none."""
        place = split(folder)
        if place is None:
            return ()
        found = read_tree(self.endpoint, place).get(place.inner, {})
        return tuple(found[name] for name in sorted(found))

    def find(self, path: str) -> Entry | None:
        """What is at this path, if anything; a file that is pinned is asked for with this process's own token."""
        pinned = self._find_pinned(path)
        place = split(path)
        if pinned is not None:
            try:
                get_client().find(self, pinned)
            except FileNotFoundError:
                return None
            return Entry(os.path.basename(path), False, pinned.size_bytes, pinned.version, pinned.stamp)
        if place is None:
            return None
        if not place.inner:
            read_tree(self.endpoint, place)
            return Entry("", True, 0, "")
        return read_tree(self.endpoint, place).get(place.parent, {}).get(place.name)

    def open(self, path: str) -> RemoteReader:
        """Open a file for reading, without a request where it is known which one it must be."""
        remote = self._find_pinned(path)
        if remote is None:
            entry = expect_file(self, path)
            remote = Remote(path, entry.size_bytes, entry.version, self.endpoint)
        return RemoteReader(self, remote, get_client().read)

    def pinned(self, stamps: Mapping[str, str]) -> "HubStorage":
        """Give the same place, where files that have other stamps than these cannot be read."""
        return replace(self, pins=dict(stamps))

    def real_path(self, path: str) -> str:
        """Give the one spelling that all paths to the same place share."""
        return normalise(path)

    def find_url(self, remote: Remote) -> str:
        """Ask the hub where a file's bytes are now; InputError where it is not the file that is meant."""
        place = split(remote.path)
        assert place is not None  # noqa: S101  it was found by this path
        found = resolve(self.endpoint, remote.path, place)
        if found.version != remote.version or found.size_bytes not in {None, remote.size_bytes}:
            raise InputError(describe_change(remote.path))
        return follow(remote.path, self.endpoint, found.url)

    def find_tag(self, remote: Remote) -> None:
        """Expect none: what bytes' servers call a content is their own affair, as long as it stays the same."""

    def make_headers(self, url: str, remote: Remote) -> Mapping[str, str]:  # noqa: ARG002
        """Give the hub's headers, the token among them, where the URL is the hub's own."""
        return make_own_headers() if self._is_own(url) else {}

    def _is_own(self, url: str) -> bool:
        asked, own = urlsplit(url), urlsplit(self.endpoint)
        if (asked.scheme, asked.netloc) == (own.scheme, own.netloc):
            return True
        return asked.scheme == own.scheme == "https" and {asked.netloc, own.netloc} <= _OWN_HOSTS

    def _find_pinned(self, path: str) -> Remote | None:
        stamp = None if self.pins is None else self.pins.get(path)
        if stamp is None:
            return None
        size, _, version = stamp.partition(" ")
        return Remote(path, int(size), version, self.endpoint)
