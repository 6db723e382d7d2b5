"""A real file server on the loopback that behaves like Meta's, and misbehaves on demand."""

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from pathlib import Path

from tests.loopback import Handler, serving_with

SECRET = "Policy=c2VjcmV0cG9saWN5&Signature=S1gn4tUr3~Zz&Key-Pair-Id=K15QRJLYKIFSLZ"
FORBIDDEN = b'<?xml version="1.0"?><Error><Code>AccessDenied</Code><Message>Access denied</Message></Error>'


@dataclass
class Files:
    """A folder that is served to those who know the secret."""

    folder: Path
    secret: str = SECRET
    has_ranges: bool = True
    cuts: list[int] = field(default_factory=list)
    """After so many bytes the connection is cut, one entry for each answer about weights."""
    answers: list[tuple[int, dict[str, str], bytes]] = field(default_factory=list)
    """Given in place of the next answers."""
    corrupted: dict[str, int] = field(default_factory=dict)
    """How often a file comes with its first byte changed."""
    seconds_a_block: float = 0.0
    stalls: int = 0
    """So many answers about weights stop after their headers for two seconds."""
    refused: Callable[[str], bool] = lambda name: False
    raw: Callable[[str, str], bytes | None] = lambda name, wanted: None
    """Given a name and a range, every byte that is sent, the status line included, before the connection ends."""
    served_bytes: int = 0
    asked: list[tuple[str, str]] = field(default_factory=list)
    port: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/*?{SECRET}"


class _Handler(Handler, BaseHTTPRequestHandler):
    files: Files

    def do_HEAD(self) -> None:
        self.send_error(403)

    def do_GET(self) -> None:
        name, _, query = self.path.lstrip("/").partition("?")
        wanted = self.headers.get("Range", "")
        with self.files.lock:
            self.files.asked.append((name, wanted))
            answer = self.files.answers.pop(0) if self.files.answers else None
        path = self.files.folder / name
        raw = self.files.raw(name, wanted)
        if raw is not None:
            self.close_connection = True
            with contextlib.suppress(OSError):
                self.connection.sendall(raw)
            return
        if answer is None and (query != self.files.secret or self.files.refused(name) or not path.is_file()):
            answer = (403, {"Content-Type": "application/xml"}, FORBIDDEN)
        if answer is not None:
            self.give(*answer)
        else:
            self.give_file(name, path)

    def give(self, status: int, headers: dict[str, str], body: bytes) -> None:
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def give_file(self, name: str, path: Path) -> None:
        found = path.stat()
        start, end = self.begin_file(found.st_size, str(found.st_mtime_ns), has_ranges=self.files.has_ranges)
        limit = self.find_limit(name, end - start)
        with self.files.lock:
            stalled = self.files.stalls > 0 and limit > 1
            self.files.stalls -= stalled
        if stalled:
            self.wfile.flush()
            time.sleep(2)
        with path.open("rb") as file, contextlib.suppress(ConnectionError):
            file.seek(start)
            position = start
            while position < end and position - start < limit:
                block = bytearray(file.read(min(1 << 18, end - position, limit - (position - start))))
                with self.files.lock:
                    if position == 0 and end - start > 1 and self.files.corrupted.get(name, 0):
                        self.files.corrupted[name] -= 1
                        block[0] ^= 1
                    self.files.served_bytes += len(block)
                self.wfile.write(block)
                position += len(block)
                time.sleep(self.files.seconds_a_block)
        if position < end:
            self.close_connection = True
            with contextlib.suppress(OSError):
                self.connection.shutdown(socket.SHUT_RDWR)

    def find_limit(self, name: str, size: int) -> int:
        with self.files.lock:
            if name.endswith(".pth") and size > 1 and self.files.cuts:
                return self.files.cuts.pop(0)
        return size


@contextlib.contextmanager
def serving(files: Files) -> Iterator[Files]:
    """Serve for the block."""
    with serving_with(_Handler, files=files) as files.port:
        yield files
