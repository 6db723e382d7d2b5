"""Long bodies are waited for in the kernel: whole, in one read however they come, and not for ever."""

import http.client
import io
import socket
import ssl
import threading
from collections.abc import Callable, Iterator

import pytest

from distconv.storage.http import wire
from distconv.storage.http.wire import BrokenError, Connections, receive_into

CONTENT = bytes(range(256)) * (4 << 10)
HEAD = f"HTTP/1.1 200 OK\r\nContent-Length: {len(CONTENT)}\r\n\r\n".encode()
Answer = Callable[[socket.socket], None]


@pytest.fixture
def serve() -> Iterator[Callable[[Answer], str]]:
    """Give what answers one request on a connection, until the test ends."""
    listener = socket.create_server(("127.0.0.1", 0))
    threads: list[threading.Thread] = []

    def begin(answer: Answer) -> str:
        def run() -> None:
            connected, _address = listener.accept()
            with connected:
                connected.recv(1 << 16)
                answer(connected)

        threads.append(threading.Thread(target=run))
        threads[-1].start()
        return f"http://127.0.0.1:{listener.getsockname()[1]}/file"

    with listener:
        yield begin
        for thread in threads:
            thread.join()


def get(url: str) -> bytes:
    """Get a body into memory of its size."""
    found = bytearray(len(CONTENT))
    counts: list[int] = []
    connections = Connections(ssl.create_default_context)
    connections.exchange(
        "GET", url, {}, (), lambda response: counts.append(receive_into(response, memoryview(found)))
    )
    connections.close()
    return bytes(found[: counts[0]])


def test_a_body_that_comes_in_pieces_is_one_read(
    serve: Callable[[Answer], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []
    read = wire._Incoming.readinto

    def count(self: io.RawIOBase, memory: memoryview) -> int:
        size: int = read(self, memory)  # type: ignore[arg-type]
        sizes.append(size)
        return size

    monkeypatch.setattr(wire._Incoming, "readinto", count)

    def answer(connected: socket.socket) -> None:
        connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connected.sendall(HEAD)
        for first in range(0, len(CONTENT), 4096):
            connected.sendall(CONTENT[first : first + 4096])

    assert get(serve(answer)) == CONTENT
    assert len([size for size in sizes if size >= 8192]) <= 2, "what came with the head, and the rest"


def test_a_body_that_ends_early_is_as_long_as_it_came(serve: Callable[[Answer], str]) -> None:
    assert get(serve(lambda connected: connected.sendall(HEAD + CONTENT[:500_000]))) == CONTENT[:500_000]


def test_a_body_of_which_nothing_more_comes_is_given_up(
    serve: Callable[[Answer], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wire, "_SILENCE_SECONDS", 0.2)
    given_up = threading.Event()

    def answer(connected: socket.socket) -> None:
        connected.sendall(HEAD + CONTENT[:500_000])
        given_up.wait()

    url = serve(answer)
    try:
        with pytest.raises(BrokenError) as caught:
            get(url)
    finally:
        given_up.set()
    assert isinstance(caught.value.cause, TimeoutError)


@pytest.mark.parametrize(
    "head",
    [
        HEAD.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"),
        HEAD.replace(b"HTTP/1.1", b"HTTP/1.0"),
        b"HTTP/1.1 200 OK\r\n\r\n",
    ],
    ids=["closed", "old", "without a length"],
)
def test_the_last_answer_of_a_connection_is_read_to_its_end(
    serve: Callable[[Answer], str], head: bytes
) -> None:
    head_was_read = threading.Event()

    def answer(connected: socket.socket) -> None:
        connected.sendall(head)
        assert head_was_read.wait(60)
        connected.sendall(CONTENT)

    found = bytearray(len(CONTENT))

    def receive(response: http.client.HTTPResponse) -> None:
        head_was_read.set()
        assert receive_into(response, memoryview(found)) == len(CONTENT)

    connections = Connections(ssl.create_default_context)
    connections.exchange("GET", serve(answer), {}, (), receive)
    connections.close()
    assert found == CONTENT
