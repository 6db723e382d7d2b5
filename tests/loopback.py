"""HTTP servers on the loopback that run for a block."""

import contextlib
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Handler(BaseHTTPRequestHandler):
    """Answers on connections that are kept open, and logs nothing."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def log_message(self, *_: object) -> None:
        """Say nothing."""

    def begin_file(self, size_bytes: int, tag: str, *, has_ranges: bool) -> tuple[int, int]:
        """Send the headers of a file, or of the range that is asked for; give where it begins and ends."""
        wanted = self.headers.get("Range", "")
        match = re.fullmatch(r"bytes=(\d+)-(\d+)", wanted) if has_ranges else None
        start, end = (int(match[1]), min(int(match[2]) + 1, size_bytes)) if match else (0, size_bytes)
        self.send_response(206 if match else 200)
        if match:
            self.send_header("Content-Range", f"bytes {start}-{end - 1}/{size_bytes}")
        self.send_header("Content-Length", str(end - start))
        self.send_header("ETag", f'"{tag}"')
        self.end_headers()
        return start, end


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def handle_error(self, *_: object) -> None:
        """Say nothing of clients that went away."""


@contextlib.contextmanager
def serving_with(kind: type[Handler], **fields: object) -> Iterator[int]:
    """Serve by handlers that have these fields, and give the port."""
    server = _Server(("127.0.0.1", 0), type("Handler", (kind,), fields))
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
