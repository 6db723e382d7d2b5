"""What goes out with TLS goes through the proxy that the environment names."""

import socket
import ssl
import threading
import traceback
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from distconv.errors import UsageError
from distconv.storage.http.wire import BrokenError, Connections
from distconv.storage.s3.refusals import fail
from distconv.storage.web.answers import describe_failure


@contextmanager
def refusing(asked: list[bytes]) -> Iterator[int]:
    """Serve one connection of a proxy that refuses; gives its port."""
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def serve() -> None:
            connection, _address = listening.accept()
            with connection:
                asked.append(connection.recv(4096))
                connection.sendall(b"HTTP/1.1 407 Who are you\r\nContent-Length: 0\r\n\r\n")

        thread = threading.Thread(target=serve)
        thread.start()
        yield listening.getsockname()[1]
        thread.join()


@pytest.mark.parametrize("user", ["", "me:s%40cret@"])
def test_a_proxy_is_asked_for_a_tunnel_to_the_host(monkeypatch: pytest.MonkeyPatch, user: str) -> None:
    asked: list[bytes] = []
    connections = Connections(ssl.create_default_context)
    with refusing(asked) as port:
        monkeypatch.setenv("https_proxy", f"http://{user}127.0.0.1:{port}")
        monkeypatch.delenv("no_proxy", raising=False)
        with pytest.raises(BrokenError, match="Tunnel connection failed: 407"):
            connections.exchange("GET", "https://store.example:8443/key?Signature=x", {}, (), None)
    (request,) = asked
    assert request.startswith(b"CONNECT store.example:8443 HTTP/1.")
    assert b"Signature" not in request
    # base64 of me:s@cret
    assert (b"Proxy-Authorization: Basic bWU6c0BjcmV0" in request) == bool(user)


@pytest.mark.parametrize("proxy", ["http://me:sec/ret@h:1", "http://h:port", "socks5://h:1", "http://[::1"])
def test_a_proxy_that_is_none_is_told_and_not_shown(monkeypatch: pytest.MonkeyPatch, proxy: str) -> None:
    monkeypatch.setenv("https_proxy", proxy)
    monkeypatch.delenv("no_proxy", raising=False)
    with pytest.raises(UsageError, match="HTTPS_PROXY: expected http://") as caught:
        Connections(ssl.create_default_context).exchange("GET", "https://store.example/", {}, (), None)
    assert "sec" not in "".join(traceback.format_exception(caught.value)).replace(__file__, "")


def test_a_proxy_that_does_not_answer_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("https_proxy", "http://me:secret@127.0.0.1:9")
    monkeypatch.delenv("no_proxy", raising=False)
    with pytest.raises(BrokenError) as caught:
        Connections(ssl.create_default_context).exchange("GET", "https://store.example/", {}, (), None)
    for told in (
        describe_failure("https://store.example/file", "store.example", caught.value),
        fail("s3://models/file", "GetObject", "store.example", caught.value),
    ):
        assert "to store.example by the proxy 127.0.0.1:9 failed (Connection refused)" in str(told)


def test_hosts_that_no_proxy_names_are_asked_themselves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    asked: list[bytes] = []
    with refusing(asked) as port, pytest.raises(BrokenError):
        Connections(ssl.create_default_context).exchange("GET", f"https://127.0.0.1:{port}/", {}, (), None)
    assert asked[0][:1] == b"\x16"
