"""TLS, regions and names that no object can have."""

import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from distconv.errors import ConversionError, UsageError
from distconv.storage.base import join, opened, read_range
from distconv.storage.http.wire import Answer
from distconv.storage.requests import count_requests
from distconv.storage.s3.client import Call, Client, connect
from distconv.storage.s3.listing import list_objects
from distconv.storage.s3.place import Place
from distconv.storage.s3.storage import S3Storage
from distconv.storage.s3.uploads import list_parts, list_uploads
from tests.object_store import Fault, ObjectStore
from tests.storage.s3.test_verbs import begun
from tests.tls import serve, write_certificate


@pytest.fixture
def secure(stand: ObjectStore, tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """Give the URL of the stand-in behind TLS, and the file with the certificate."""
    pytest.importorskip("cryptography.x509")
    certificate = write_certificate(tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve, args=(listener, context, stand.port))
        thread.start()
        url = f"https://127.0.0.1:{listener.getsockname()[1]}"
        yield url, certificate
        connect(Place(url, profile="stand")).close()
        listener.shutdown(socket.SHUT_RDWR)
        thread.join()


def test_what_goes_over_tls_arrives_whole_and_is_read_whole(
    secure: tuple[str, Path], stand: ObjectStore, folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    url, certificate = secure
    monkeypatch.setenv("AWS_CA_BUNDLE", str(certificate))
    storage = S3Storage(Place(url, profile="stand"))
    content = bytes(range(256)) * (80 << 10)
    assert begun(storage, join(folder, "file"), content).commit()
    with opened(storage, join(folder, "file")) as reader:
        assert read_range(reader, 0, len(content)) == content
    assert {record.headers["x-amz-content-sha256"] for record in stand.requests("UploadPart")} == {
        "UNSIGNED-PAYLOAD"
    }


def test_a_certificate_that_nobody_trusts_is_told_at_once(secure: tuple[str, Path]) -> None:
    url, _certificate = secure
    storage = S3Storage(Place(url, profile="stand"))
    with pytest.raises(ConversionError, match=r"the certificate of .* is not trusted"):
        storage.find("s3://models/file")


@pytest.mark.parametrize(("name", "said"), [("none.pem", "No such file"), ("text.pem", "no certificates")])
def test_certificates_that_are_none_are_told_with_who_names_them(
    secure: tuple[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, said: str
) -> None:
    (tmp_path / "text.pem").write_text("text")
    monkeypatch.setenv("AWS_CA_BUNDLE", str(tmp_path / name))
    with pytest.raises(UsageError, match=f"{name}: {said}.*; AWS_CA_BUNDLE should name"):
        S3Storage(Place(secure[0], profile="stand")).find("s3://models/file")


PAGE = b"<html><body>Please log in</body></html>"
ASK: dict[str, Callable[[S3Storage, Client], object]] = {
    "find": lambda storage, _client: storage.find("s3://models/file"),
    "open": lambda storage, _client: storage.open("s3://models/file"),
    "objects": lambda _storage, client: list(list_objects(client, "models", "folder/")),
    "uploads": lambda _storage, client: list(list_uploads(client, "models", "folder/")),
    "parts": lambda _storage, client: list_parts(client, "models", "file", "upload"),
}


@pytest.mark.parametrize("asked", ASK)
@pytest.mark.parametrize(
    ("status", "headers", "kind"),
    [
        (200, {}, OSError),
        (200, {"content-length": str(len(PAGE)), "etag": 'W/"1"'}, OSError),
        (302, {"location": "https://login.example/?secret"}, ConversionError),
    ],
)
def test_an_answer_of_somebody_else_is_not_taken_for_an_empty_place(
    held: S3Storage, monkeypatch: pytest.MonkeyPatch, asked: str, status: int, headers: dict[str, str],
    kind: type[Exception],
) -> None:  # fmt: skip
    client = connect(held.place)
    monkeypatch.setattr(client._connections, "exchange", lambda *_: Answer(status, headers, PAGE))
    with pytest.raises(kind, match=r"is the endpoint right") as caught:
        ASK[asked](held, client)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("is_told_in", ["header", "body"])
def test_a_bucket_of_another_region_is_asked_for_there(
    profiles: Path, monkeypatch: pytest.MonkeyPatch, is_told_in: str
) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "A")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "B")
    client = Client(Place())
    asked: list[tuple[str, bool]] = []

    def exchange(_method: str, url: str, headers: dict[str, str], *_rest: object) -> Answer:
        asked.append((url, "/eu-west-3/s3/" in headers["Authorization"]))
        if len(asked) > 1:
            return Answer(200, {}, b"")
        if is_told_in == "header":
            return Answer(301, {"x-amz-bucket-region": "eu-west-3"}, b"")
        code = "<Code>AuthorizationHeaderMalformed</Code><Region>eu-west-3</Region>"
        return Answer(400, {}, f"<Error>{code}</Error>".encode())

    monkeypatch.setattr(client._connections, "exchange", exchange)
    for _time in range(2):
        client.ask(Call("GetObject", "GET", "models", "file"))
    assert asked == [
        ("https://models.s3.us-east-1.amazonaws.com/file", False),
        ("https://models.s3.eu-west-3.amazonaws.com/file", True),
        ("https://models.s3.eu-west-3.amazonaws.com/file", True),
    ]


@pytest.mark.parametrize("name", ["a\0b", "a" * 1025, "\udcff", "/etc/passwd"])
def test_there_is_nothing_where_no_object_can_have_the_name(held: S3Storage, name: str) -> None:
    assert held.find(join("s3://models/folder", name)) is None
    assert connect(held.place).window.limit > 0


def test_of_two_who_complete_at_once_one_does(held: S3Storage, stand: ObjectStore, folder: str) -> None:
    path = join(folder, "file")
    for number in range(20):
        writers = [begun(held, f"{path}{number}", bytes([which])) for which in range(3)]
        together = threading.Barrier(3)
        done: dict[int, bool] = {}

        def commit(
            which: int, writers: list = writers, together: threading.Barrier = together, done: dict = done
        ) -> None:  # type: ignore[type-arg]
            writers[which].finish()
            together.wait()
            done[which] = writers[which].commit()

        threads = [threading.Thread(target=commit, args=(which,)) for which in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        (winner,) = (which for which, is_done in done.items() if is_done)
        assert held.read_now(f"{path}{number}", 9) == bytes([winner])
        for writer in writers:
            writer.abort()
    assert len(held.list_names(folder)) == 20


def test_connections_that_the_store_has_closed_meanwhile_cost_one_try(
    held: S3Storage, stand: ObjectStore, folder: str
) -> None:
    stand.fault(Fault("hold", "HeadObject", times=8, gate="all"))
    with ThreadPoolExecutor(8) as pool:
        found = [pool.submit(held.find, join(folder, "file")) for _number in range(8)]
        stand.wait_held("all", 8)
        stand.release("all")
        assert [one.result() for one in found] == [None] * 8
    connections = connect(held.place)._connections
    (idle,) = connections._idle.values()
    assert len(idle) >= 8
    for connection in idle:
        connection.sock._socket.shutdown(socket.SHUT_RDWR)
    before = count_requests()["HeadObject"]
    assert held.find(join(folder, "file")) is None
    assert count_requests()["HeadObject"] == before + 2
    assert len(idle) == 1
