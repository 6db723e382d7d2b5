"""HTTP/1.1 on connections that are used again; bodies go out of, and come into, the caller's memory."""

import base64
import contextlib
import http.client
import io
import os
import socket
import ssl
import struct
import threading
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from urllib.parse import unquote, urlsplit

from distconv.errors import UsageError
from distconv.storage.base import Buffer
from distconv.storage.http.address import split_address

_CONNECT_SECONDS = 10.0
_SILENCE_SECONDS = 60.0
_HEAD_BYTES = 8 << 10
_LONG_BYTES = 64 << 10

Receive = Callable[[http.client.HTTPResponse], None]
"""Takes the body of an answer that succeeded."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What a server answers; without the body where ``Receive`` took it."""

    status: int
    headers: Mapping[str, str]
    """Names in lower case."""
    body: bytes


class BrokenError(Exception):
    """A connection failed; its cause tells how. Whether the request was carried out is unknown."""

    def __init__(self, cause: BaseException, *, was_idle: bool, by: str = "") -> None:
        """``was_idle``: the server may only have grown tired of waiting for a next request; ``by`` names a proxy."""
        super().__init__(str(cause))
        self.cause, self.was_idle, self.by = cause, was_idle, by

    @property
    def said(self) -> str:
        """What an answer was that was none, where that is known better than by its error's type."""
        return str(self.cause) if type(self.cause) is http.client.HTTPException else type(self.cause).__name__


class Connections:
    """Connections of one process, by scheme and host."""

    def __init__(self, make_context: Callable[[], ssl.SSLContext]) -> None:
        """Begin with none."""
        self._make_context = make_context
        self._context: ssl.SSLContext | None = None
        self._idle: dict[tuple[str, str], list[http.client.HTTPConnection]] = {}
        self._lock = threading.Lock()

    def exchange(
        self,
        method: str,
        url: str,
        headers: Mapping[str, str],
        body: Sequence[Buffer],
        receive: Receive | None,
    ) -> Answer:
        """Send a request and read the answer; BrokenError where a connection fails."""
        parts = urlsplit(url)
        place = parts.scheme, parts.netloc
        connection, was_idle = self._take(place)
        try:
            if not was_idle:
                _open(connection)
            target = f"{parts.path}?{parts.query}" if parts.query else parts.path
            response, is_sound = _send(connection, method, target, headers, body)
            found = _take_body(response, receive)
            is_sound = is_sound and response.isclosed() and not response.will_close
        except (OSError, http.client.HTTPException) as error:
            connection.close()
            if was_idle:
                # The others have waited as long as this one.
                self.close()
            by = f" by the proxy {connection.host}:{connection.port}"
            is_direct = connection.host.lower() == parts.hostname
            raise BrokenError(error, was_idle=was_idle, by="" if is_direct else by) from error
        except BaseException:
            connection.close()
            raise
        if is_sound:
            with self._lock:
                self._idle.setdefault(place, []).append(connection)
        else:
            connection.close()
        return Answer(response.status, {name.lower(): value for name, value in response.getheaders()}, found)

    def close(self) -> None:
        """Close connections that are idle; takes no lock, as a process that forked meanwhile could never."""
        for idle in list(self._idle.values()):
            with contextlib.suppress(IndexError):
                while True:
                    idle.pop().close()

    def _take(self, place: tuple[str, str]) -> tuple[http.client.HTTPConnection, bool]:
        with self._lock:
            idle = self._idle.get(place)
            with contextlib.suppress(IndexError):
                if idle:
                    return idle.pop(), True
            if place[0] == "https" and self._context is None:
                self._context = self._make_context()
        return _make_connection(place, self._context), False


def trust(certificates: str, variable: str) -> ssl.SSLContext:
    """Trust what the system trusts, and certificates in a file or folder; UsageError, by ``variable``, where these are none."""
    context = ssl.create_default_context()
    kind = "capath" if os.path.isdir(certificates) else "cafile"
    try:
        context.load_verify_locations(**{kind: certificates})
    except OSError as error:
        reason = (
            os.strerror(error.errno)
            if error.errno and not isinstance(error, ssl.SSLError)
            else "no certificates"
        )
        raise UsageError(
            f"{certificates}: {reason}; {variable} should name a file of certificates as PEM, or a folder of them"
        ) from None
    return context


def _make_connection(place: tuple[str, str], context: ssl.SSLContext | None) -> http.client.HTTPConnection:
    """Make a connection; with TLS through HTTPS_PROXY, where that is set and NO_PROXY does not name the host."""
    scheme, host = place
    if scheme != "https":
        return http.client.HTTPConnection(host, timeout=_CONNECT_SECONDS)
    proxy = None if urllib.request.proxy_bypass(host) else urllib.request.getproxies().get("https")
    if not proxy:
        return http.client.HTTPSConnection(host, timeout=_CONNECT_SECONDS, context=context)
    parts = split_address(proxy if "://" in proxy else f"http://{proxy}")
    if parts is None:
        # It may have a password.
        raise UsageError("HTTPS_PROXY: expected http://[USER:PASSWORD@]HOST[:PORT]")
    connection = http.client.HTTPSConnection(
        parts.hostname or "", parts.port or 80, timeout=_CONNECT_SECONDS, context=context
    )
    user = f"{unquote(parts.username or '')}:{unquote(parts.password or '')}"
    basic = f"Basic {base64.b64encode(user.encode()).decode()}"
    connection.set_tunnel(host, headers={"Proxy-Authorization": basic} if parts.username else {})
    return connection


def _open(connection: http.client.HTTPConnection) -> None:
    connection.connect()
    connection.sock.settimeout(_SILENCE_SECONDS)
    if not isinstance(connection.sock, ssl.SSLSocket):
        connection.sock = _Socket(connection.sock)


class _Socket:
    """What ``http.client`` needs of a socket; a long body is waited for in the kernel.

    As it comes in small pieces, Python would wake for each, and threads would wait for its lock more than for bytes.
    """

    def __init__(self, connected: socket.socket) -> None:
        """Take a socket that is connected."""
        self._socket = connected
        silence = struct.pack("@ll", int(_SILENCE_SECONDS), int(_SILENCE_SECONDS % 1 * 1e6))
        connected.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, silence)

    def sendall(self, content: Buffer) -> None:
        """Send all of it."""
        self._socket.sendall(content)

    def makefile(self, _mode: str) -> io.BufferedReader:
        """Give what an answer is read from."""
        return io.BufferedReader(_Incoming(self._socket), _HEAD_BYTES)

    def close(self) -> None:
        """Close the connection."""
        self._socket.close()


class _Incoming(io.RawIOBase):
    """What comes in on a socket, which stays open for it when the connection is closed, as that is after a last answer."""

    def __init__(self, connected: socket.socket) -> None:
        self._socket = connected
        self._short = connected.makefile("rb", buffering=0)

    def close(self) -> None:
        self._short.close()
        super().close()

    def readable(self) -> bool:
        return True

    def readinto(self, memory: memoryview) -> int:  # type: ignore[override]
        """Take what is there, of a long run all; TimeoutError where nothing comes for too long."""
        if len(memory) < _LONG_BYTES:
            return self._short.readinto(memory) or 0
        self._socket.setblocking(True)
        try:
            return self._socket.recv_into(memory, 0, socket.MSG_WAITALL)
        except BlockingIOError:
            raise TimeoutError("timed out") from None
        finally:
            self._socket.settimeout(_SILENCE_SECONDS)


def _send(
    connection: http.client.HTTPConnection,
    method: str,
    target: str,
    headers: Mapping[str, str],
    body: Sequence[Buffer],
) -> tuple[http.client.HTTPResponse, bool]:
    """Give the answer, and whether all of the request was sent before it."""
    size = sum(len(block) for block in body)
    if size or method in {"PUT", "POST"}:
        headers = {**headers, "Content-Length": str(size)}
    try:
        connection.request(method, target, body=iter(body) if size else None, headers=dict(headers))
    except (BrokenPipeError, ConnectionResetError):
        # Who refuses may say so, and close, before it has read all.
        return connection.getresponse(), False
    return connection.getresponse(), True


def _take_body(response: http.client.HTTPResponse, receive: Receive | None) -> bytes:
    try:
        if receive is not None and response.status in {200, 206}:
            receive(response)
            return b""
        return response.read()
    except BaseException:
        # Where no other request may follow, the socket is the answer's.
        response.close()
        raise


def receive_into(response: http.client.HTTPResponse, buffer: memoryview) -> int:
    """Fill a buffer; gives how many bytes came before the body's end."""
    filled = 0
    while filled < len(buffer):
        count = response.readinto(buffer[filled:])
        if count == 0:
            break
        filled += count
    return filled
