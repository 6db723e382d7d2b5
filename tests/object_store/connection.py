"""HTTP/1.1 over one connection, at a rate: heads and bodies in, answers out."""

import contextlib
import email.utils
import http
import itertools
import socket
import struct
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from tests.object_store.bodies import Body
from tests.object_store.errors import Disconnected

BLOCK_BYTES = 256 << 10
SO_MAX_PACING_RATE = 47  # asm-generic/socket.h; Python does not name it
UNLIMITED = (1 << 8 * struct.calcsize("@L")) - 1
RUNS = 512  # at once: less than any system's IOV_MAX
HEAD_LIMIT_BYTES = 64 << 10


@dataclass(frozen=True, slots=True)
class Head:
    """What stands before a request's body: names of headers in lower case, the target as it was sent."""

    verb: str
    target: str
    headers: dict[str, str]

    @property
    def body_bytes(self) -> int:
        return int(self.headers.get("content-length", "0"))


@dataclass(frozen=True, slots=True)
class Answer:
    """What is answered: text, or bytes of a body from an offset on."""

    status: int
    headers: dict[str, str] = field(default_factory=dict)
    text: bytes = b""
    body: Body | None = None
    offset_bytes: int = 0
    size_bytes: int = 0

    @property
    def length(self) -> int:
        return self.size_bytes if self.body else len(self.text)


class Pace:
    """Lets bytes of one connection pass at a rate, in bytes a second; nought for no limit.

    What goes out is paced by the kernel (``SO_MAX_PACING_RATE``, socket(7)), what comes in by waiting at a body's end:
    a store that woke for every few milliseconds of each connection would take from the client what is measured.
    """

    def __init__(self, connected: socket.socket, rate: Callable[[], float]) -> None:
        self._socket, self._rate, self._set = connected, rate, 0

    def begin(self) -> float:
        """Take the rate as it is now, and give the time."""
        rate = int(self._rate())
        if rate != self._set:
            limit = struct.pack("@L", rate or UNLIMITED)
            self._socket.setsockopt(socket.SOL_SOCKET, SO_MAX_PACING_RATE, limit)
            self._set = rate
        return time.monotonic()

    def end(self, began: float, size_bytes: int) -> None:
        """Wait until so many bytes have had their time since then."""
        if self._set:
            time.sleep(max(0.0, began + size_bytes / self._set - time.monotonic()))


class Connection:
    """A client's connection. All methods raise ``Disconnected`` once it has gone."""

    def __init__(self, connected: socket.socket, pace: Pace) -> None:
        self._socket, self._pace = connected, pace
        self.client: str = connected.getpeername()[0]
        self._ahead = bytearray()
        self._block = memoryview(bytearray(BLOCK_BYTES))
        self.sent_bytes = 0  # of the last answer's body
        connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def read_head(self) -> Head:
        """Wait for a request."""
        while (end := self._ahead.find(b"\r\n\r\n")) < 0:
            with broken_off():
                came = self._socket.recv(HEAD_LIMIT_BYTES)
            if not came or len(self._ahead) > HEAD_LIMIT_BYTES:
                raise Disconnected
            self._ahead += came
        first, *lines = bytes(self._ahead[:end]).decode("latin-1").split("\r\n")
        del self._ahead[: end + 4]
        verb, target, _version = first.split(" ", 2)
        pairs = (line.partition(":") for line in lines)
        return Head(verb, target, {name.lower().strip(): value.strip() for name, _colon, value in pairs})

    def read_body(
        self,
        head: Head,
        *,
        limit_bytes: int | None = None,
        into: memoryview | None = None,
        block: Callable[[memoryview], object] | None = None,
    ) -> None:
        """Read a request's body ``into`` memory of its size, and give it to a function block by block.

        At ``limit_bytes`` the connection is reset. What nobody wants is not even copied (``MSG_TRUNC``, tcp(7)).
        """
        if head.headers.get("expect", "").lower() == "100-continue":
            self._send(b"HTTP/1.1 100 Continue\r\n\r\n")
        size_bytes, came = head.body_bytes, 0
        began = self._pace.begin()
        flags = socket.MSG_TRUNC if into is None and block is None else socket.MSG_WAITALL
        while came < size_bytes:
            if limit_bytes is not None and came >= limit_bytes:
                self.reset()
            size = min(BLOCK_BYTES, size_bytes - came)
            target = self._block[:size] if into is None else into[came : came + size]
            size = self._receive(target, flags)
            if block:
                block(target[:size])
            came += size
        self._pace.end(began, came)

    def _receive(self, target: memoryview, flags: int) -> int:
        """Receive some bytes, and give how many: first those that came with the head."""
        if self._ahead:
            size = min(len(target), len(self._ahead))
            target[:size] = self._ahead[:size]
            del self._ahead[:size]
            return size
        with broken_off():
            size = self._socket.recv_into(target, 0, flags)
        if not size:
            raise Disconnected
        return size

    def send(
        self, answer: Answer, *, without_body: bool, date: float, limit_bytes: int | None = None
    ) -> None:
        """Answer; after ``limit_bytes`` of the body the connection ends."""
        self.sent_bytes = 0
        lines = [f"HTTP/1.1 {answer.status} {http.HTTPStatus(answer.status).phrase}"]
        headers = {"Date": email.utils.formatdate(date, usegmt=True), "Server": "stand-in"} | answer.headers
        if answer.status not in {204, 304}:
            headers.setdefault("Content-Length", str(answer.length))
        lines += [f"{name}: {value}" for name, value in headers.items()]
        head = "\r\n".join([*lines, "", ""]).encode("latin-1")
        length = 0 if without_body or answer.status in {204, 304} else answer.length
        allowed = length if limit_bytes is None else min(length, limit_bytes)
        self._pace.begin()
        if answer.body:
            self._send(head, socket.MSG_MORE if allowed else 0)
            self._send_body(answer.body, answer.offset_bytes, allowed)
        else:
            self._send(head + answer.text[:allowed])
            self.sent_bytes = allowed
        if allowed < length:
            self.close()
            raise Disconnected

    def _send(self, content: bytes, flags: int = 0) -> None:
        with broken_off():
            self._socket.sendall(content, flags)

    def _send_body(self, body: Body, offset_bytes: int, size_bytes: int) -> None:
        # From memory rather than by sendfile: pages of 4 KiB cost both ends more than the copy does.
        end = offset_bytes + size_bytes
        while offset_bytes < end:
            runs = itertools.islice(body.runs(offset_bytes, end - offset_bytes), RUNS)
            with broken_off():
                sent = self._socket.sendmsg(runs)
            offset_bytes, self.sent_bytes = offset_bytes + sent, self.sent_bytes + sent

    def close(self) -> None:
        """End the connection in order."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()

    def reset(self) -> None:
        """End the connection with RST, and raise ``Disconnected``."""
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._socket.close()
        raise Disconnected


@contextlib.contextmanager
def broken_off() -> Iterator[None]:
    """Let a connection's errors be one."""
    try:
        yield
    except OSError as error:
        raise Disconnected from error
