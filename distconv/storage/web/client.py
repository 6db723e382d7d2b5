"""Requests for files' ranges: each file is looked for once, asked for where it was found, and found again once that ends.

A URL may be signed, and so a secret: messages name hosts, and the path that a person gave.
"""

import atexit
import errno
import http.client
import os
import ssl
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from distconv.errors import ConversionError, InputError
from distconv.storage.base import Told, ignore
from distconv.storage.http.ranges import Range
from distconv.storage.http.retry import TransientError, Window, persist
from distconv.storage.http.wire import Answer, BrokenError, Connections, Receive, trust
from distconv.storage.pinning import describe_change
from distconv.storage.requests import count_request
from distconv.storage.web.answers import (
    ENDED,
    check_answer,
    describe_failure,
    find_wait,
    follow,
    is_redirect,
    is_transient,
    refuse,
    take_body,
)
from distconv.storage.web.remote import Finder, Remote
from distconv.version import VERSION

LARGEST_WINDOW = 64
"""So many requests a process has under way at most."""
PATIENCE_SECONDS, FIRST_PATIENCE_SECONDS = 120.0, 10.0
"""How long what may pass is tried again; a server that never answered is more likely wrong than down."""
MOST_REDIRECTS = 5
_MOST_RENEWALS = 2
"""So often is a file found anew where nothing came from where it was found."""
_HEADERS = {"User-Agent": f"distconv/{VERSION}", "Accept-Encoding": "identity", "Accept": "*/*"}


@dataclass(slots=True)
class _Found:
    """Where a file is, and the ETags that its content has: the one it must have, or the first that each URL gave."""

    url: str
    expected: str | None
    tags: dict[str, str] = field(default_factory=dict)
    has_served: bool = False
    """Whether anything came from there."""

    def is_same(self, url: str, tag: str) -> bool:
        """Whether an answer with this ETag is of the file that was found; safe to ask from several threads."""
        return tag == (self.expected or self.tags.setdefault(url, tag))


class Client:
    """What a process has for the web; safe to use from several threads."""

    def __init__(self) -> None:
        """Begin with nothing."""
        self.window = Window(LARGEST_WINDOW)
        self._connections = Connections(make_context)
        self._found: dict[Remote, _Found] = {}
        self._finding: dict[Remote, threading.Lock] = {}
        self._lock = threading.Lock()
        self._answered: set[str] = set()

    def read(
        self,
        finder: Finder,
        remote: Remote,
        offset_bytes: int,
        buffers: Sequence[memoryview],
        told: Told = ignore,
    ) -> None:
        """Fill memory from an offset of a file, by one request.

        InputError where the file is another one by now, or ends before; ConversionError where it is refused.
        """
        wanted = Range(remote.path, remote.size_bytes, offset_bytes, buffers, told)
        if wanted.next == wanted.end:
            return
        persist(
            lambda: self._read_once(finder, remote, wanted), self._find_patience(remote), lambda: wanted.next
        )

    def find(self, finder: Finder, remote: Remote) -> None:
        """Look for a file, if that was not done before."""
        self._find(finder, remote)

    def close(self) -> None:
        """Let go of connections that nobody uses; others are made where they are needed."""
        self._connections.close()

    def ask(self, path: str, url: str, headers: Mapping[str, str], receive: Receive | None) -> Answer:
        """Send a GET once; TransientError where it may go better after a while."""
        host = urlsplit(url).netloc
        with self.window.entered() as slow:
            count_request("GET")
            try:
                answer = self._connections.exchange("GET", url, {**_HEADERS, **headers}, (), receive)
            except BrokenError as broken:
                # Its text may hold the URL.
                raise describe_failure(path, host, broken) from None
            self._answered.add(host)
            if is_transient(answer.status):
                if answer.status in {429, 503}:
                    slow()
                error = TransientError(errno.EAGAIN, f"{host} answers {answer.status}", path)
                error.after_seconds = find_wait(answer.headers)
                raise error
        return answer

    def _read_once(self, finder: Finder, remote: Remote, wanted: Range) -> None:
        found, is_fresh = self._find(finder, remote)
        redirects, renewals = 0, 0
        while redirects <= MOST_REDIRECTS:
            answer = self._ask_for(finder, remote, wanted, found)
            if answer.status in {200, 206}:
                return
            if is_redirect(answer.status):
                redirects += 1
                found.url = follow(remote.path, found.url, answer.headers.get("location", ""))
            elif answer.status in ENDED and (found.has_served or not is_fresh or renewals < _MOST_RENEWALS):
                renewals += not found.has_served
                self._forget(remote, found)
                found, is_fresh = self._find(finder, remote)
            else:
                raise refuse(remote, urlsplit(found.url).netloc, answer.status)
        raise ConversionError(f"{remote.path}: {urlsplit(found.url).netloc} leads from one place to the next")

    def _ask_for(self, finder: Finder, remote: Remote, wanted: Range, found: _Found) -> Answer:
        url = found.url

        def receive(response: http.client.HTTPResponse) -> None:
            # Before the body: what is cut goes on with the same file only.
            if not found.is_same(url, check_answer(response, remote)):
                raise InputError(describe_change(remote.path))
            found.has_served = True
            take_body(response, remote, wanted)

        headers = {"Range": wanted.header, **finder.make_headers(url, remote)}
        return self.ask(remote.path, url, headers, receive)

    def _find(self, finder: Finder, remote: Remote) -> tuple[_Found, bool]:
        """Give where a file is, and whether that was asked just now."""
        with self._lock:
            found = self._found.get(remote)
            finding = self._finding.setdefault(remote, threading.Lock())
        if found is not None:
            return found, False
        with finding:
            found = self._found.get(remote)
            if found is not None:
                return found, True
            found = self._found[remote] = _Found(finder.find_url(remote), finder.find_tag(remote))
            return found, True

    def _forget(self, remote: Remote, found: _Found) -> None:
        with self._lock:
            # Somebody else may have found it anew meanwhile.
            if self._found.get(remote) is found:
                del self._found[remote]

    def _find_patience(self, remote: Remote) -> float:
        found = self._found.get(remote)
        is_known = found is not None and urlsplit(found.url).netloc in self._answered
        return PATIENCE_SECONDS if is_known else FIRST_PATIENCE_SECONDS


def make_context() -> ssl.SSLContext:
    """Trust what the system trusts, and the certificates that Python's other clients bring or are told of."""
    import certifi

    return trust(os.environ.get("REQUESTS_CA_BUNDLE") or certifi.where(), "REQUESTS_CA_BUNDLE")


_client = Client()


def get_client() -> Client:
    """Give this process's client."""
    return _client


def _close() -> None:
    _client.close()


def _forget() -> None:
    """Let a forked process make its own: its parent uses the connections, and may have held a lock."""
    global _client  # noqa: PLW0603
    # That closes this process's descriptors; the parent's connections stay open.
    _close()
    _client = Client()


atexit.register(_close)
os.register_at_fork(after_in_child=_forget)
