"""Requests to a store: signed, counted, sent on kept connections, and tried again where that may help."""

import atexit
import errno
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from urllib.parse import quote, urlsplit
from xml.etree import ElementTree as ET

from distconv.storage.base import Buffer
from distconv.storage.http.retry import TransientError, Window, persist
from distconv.storage.http.wire import Answer, BrokenError, Connections, Receive
from distconv.storage.requests import count_request
from distconv.storage.s3.access import find_access, host_of, make_context
from distconv.storage.s3.documents import parse
from distconv.storage.s3.place import Place, make_path
from distconv.storage.s3.refusals import SLOW, fail, find_region, is_transient, read_answer, refuse

LARGEST_WINDOW = 64
"""So many requests a process has under way at most."""
_FIRST_PATIENCE_SECONDS = 10.0
"""An endpoint that never answered is more likely wrong than down."""


@dataclass(frozen=True, slots=True)
class Call:
    """One request."""

    operation: str
    """As S3 calls it; by this it is counted and named in messages."""
    method: str
    bucket: str
    key: str = ""
    query: Mapping[str, str] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)
    body: Sequence[Buffer] = ()

    @property
    def path(self) -> str:
        """What it is about, in messages."""
        return make_path(self.bucket, self.key or self.query.get("prefix", ""))


class Client:
    """What a process has for one place; safe to use from several threads."""

    def __init__(self, place: Place) -> None:
        """Find credentials and endpoint; ConversionError where there are none."""
        self.place = place
        self.access = find_access(place)
        self.window = Window(LARGEST_WINDOW)
        self._connections = Connections(partial(make_context, place))
        self._regions: dict[str, str] = {}
        self._has_answered = False

    @property
    def patience_seconds(self) -> float:
        """How long to try again now."""
        patience = self.place.patience_seconds
        return patience if self._has_answered else min(patience, _FIRST_PATIENCE_SECONDS)

    def ask(
        self,
        call: Call | Callable[[], Call],
        *,
        accept: frozenset[int] = frozenset(),
        receive: Receive | None = None,
        progress: Callable[[], object] = lambda: None,
    ) -> Answer:
        """Send a request, again and again where what fails may pass; for what may be done twice.

        Answers that refuse are raised unless ``accept`` has their status. What is asked may be another each
        time; ``progress`` tells how far it came.
        """

        def attempt() -> Answer:
            asked = call if isinstance(call, Call) else call()
            return self.ask_once(asked, accept=accept, receive=receive)

        return persist(attempt, self.patience_seconds, progress)

    def ask_once(
        self, call: Call, *, accept: frozenset[int] = frozenset(), receive: Receive | None = None
    ) -> Answer:
        """Send a request once; TransientError where it is unknown whether it was carried out."""
        with self.window.entered() as slow:
            answer, code = read_answer(self._send(call, receive))
            if is_transient(answer.status, code):
                if code in SLOW or answer.status in {429, 503}:
                    slow()
                reason = f"{call.operation}: {self._host} answers {answer.status} {code}".rstrip()
                raise TransientError(errno.EAGAIN, reason, call.path)
        if answer.status < 300 or answer.status in accept:
            return answer
        if self._learn_region(call, answer):
            error = TransientError(errno.EAGAIN, f"{call.operation}: asked in the wrong region", call.path)
            error.at_once = True
            raise error
        if call.method == "HEAD" and answer.status in {400, 403}:
            # An answer to HEAD has no body that would say why.
            ranged = {**call.headers, "Range": "bytes=0-0"}
            self.ask_once(replace(call, method="GET", headers=ranged), accept=frozenset({404, 416}))
            reason = f"HEAD is refused ({answer.status}), GET of the same is not; does a proxy lie between?"
            raise TransientError(errno.EAGAIN, f"{call.operation}: {reason}", call.path)
        raise refuse(call.path, call.operation, answer, code, self.access.identity)

    def ask_xml(self, call: Call, root: str, *, accept: frozenset[int] = frozenset()) -> ET.Element | None:
        """Send a request whose answer is XML of this root; None where it was refused with what ``accept`` has.

        OSError where anything else comes under a status of success: who asks what there is must not take it for nothing.
        """
        answer = self.ask(call, accept=accept)
        if answer.status >= 300:
            return None
        found = parse(answer.body)
        if found is None or found.tag != root:
            reason = (
                f"{self._host} answers what is no {root}; is the endpoint right, or does a proxy lie between?"
            )
            raise OSError(errno.EREMOTEIO, f"{call.operation}: {reason}", call.path)
        return found

    def close(self) -> None:
        """Let go of connections that nobody uses; others are made where they are needed."""
        self._connections.close()

    def _send(self, call: Call, receive: Receive | None) -> Answer:
        region = self._regions.get(call.bucket, self.access.region)
        url = self._make_url(call, region)
        headers = self.access.sign(call.method, url, call.headers, region)
        count_request(call.operation)
        try:
            answer = self._connections.exchange(call.method, url, headers, call.body, receive)
        except BrokenError as broken:
            error = fail(call.path, call.operation, self._host, broken)
            if isinstance(error, TransientError):
                error.at_once = broken.was_idle
            raise error from broken.cause
        self._has_answered = True
        return answer

    def _make_url(self, call: Call, region: str) -> str:
        endpoint = urlsplit(self.access.find_endpoint(region))
        # A dot in the bucket's name is more than a certificate's wildcard covers.
        is_virtual = self.access.is_virtual and (endpoint.scheme == "http" or "." not in call.bucket)
        host = f"{call.bucket}.{endpoint.netloc}" if is_virtual else endpoint.netloc
        path = "/" if is_virtual else f"/{call.bucket}/"
        path = endpoint.path + (path + quote(call.key, safe="/-_.~") if call.key else path)
        query = "&".join(f"{name}={quote(value, safe='-_.~')}" for name, value in sorted(call.query.items()))
        return f"{endpoint.scheme}://{host}{path}" + (f"?{query}" if query else "")

    def _learn_region(self, call: Call, answer: Answer) -> bool:
        region = find_region(answer)
        known = self._regions.get(call.bucket, self.access.region)
        if not self.access.follows_region or not region or region == known:
            return False
        self._regions[call.bucket] = region
        return True

    @property
    def _host(self) -> str:
        return host_of(self.access.endpoint)


_clients: dict[Place, Client] = {}
_lock = threading.Lock()


def connect(place: Place) -> Client:
    """Give this process's client of a place."""
    with _lock:
        client = _clients.get(place)
        if client is None:
            client = _clients[place] = Client(place)
        return client


def _close() -> None:
    for client in list(_clients.values()):
        client.close()


def _forget() -> None:
    """Let a forked process make its own: its parent uses the connections, and may have held the lock."""
    global _lock  # noqa: PLW0603
    _lock = threading.Lock()
    # That closes this process's descriptors; the parent's connections stay open.
    _close()
    _clients.clear()


atexit.register(_close)
os.register_at_fork(after_in_child=_forget)
