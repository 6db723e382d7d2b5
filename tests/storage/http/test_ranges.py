"""Whatever comes in how many pieces, memory holds the range that was asked for, and nothing else is taken for it."""

import http.client
import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distconv.errors import InputError
from distconv.storage.http import retry
from distconv.storage.http.ranges import Range
from distconv.storage.http.retry import TransientError, persist

FILE = bytes(range(256)) * 4


class Socket:
    def __init__(self, content: bytes) -> None:
        self.content = content

    def makefile(self, _mode: str) -> io.BytesIO:
        return io.BytesIO(self.content)


def answer(first: int, end: int, sent: int, total: int = len(FILE)) -> http.client.HTTPResponse:
    """Give an answer with a range of the file, of which so many bytes come."""
    head = f"HTTP/1.1 206 Partial\r\nContent-Length: {end - first}\r\nContent-Range: bytes {first}-{end - 1}/{total}"
    response = http.client.HTTPResponse(Socket(head.encode() + b"\r\n\r\n" + FILE[first : first + sent]))  # type: ignore[arg-type]
    response.begin()
    return response


@given(
    sizes=st.lists(st.integers(1, 100), min_size=1, max_size=5),
    offset=st.integers(0, 500),
    cuts=st.lists(st.integers(0, 60), max_size=6),
)
def test_a_range_is_filled_however_often_it_is_cut(sizes: list[int], offset: int, cuts: list[int]) -> None:
    buffers = [memoryview(bytearray(size)) for size in sizes]
    wanted = Range("path", len(FILE), offset, buffers)
    for cut in [*cuts, sum(sizes)]:
        if wanted.next == wanted.end:
            break
        first, end = (int(number) for number in wanted.header.removeprefix("bytes=").split("-"))
        response = answer(first, end + 1, min(cut, end + 1 - first))
        if cut < end + 1 - first:
            with pytest.raises(http.client.HTTPException):
                wanted.receive(response)
        else:
            wanted.receive(response)
    assert b"".join(buffers) == FILE[offset : offset + sum(sizes)]


@pytest.mark.parametrize(("first", "end", "total"), [(1, 9, 1024), (0, 8, 1025), (0, 7, 1024), (0, 9, 1024)])
def test_another_range_than_was_asked_for_is_not_taken(first: int, end: int, total: int) -> None:
    memory = bytearray(8)
    with pytest.raises(http.client.HTTPException):
        Range("path", len(FILE), 0, [memoryview(memory)]).receive(answer(first, end, end - first, total))
    assert memory == bytes(8)


@pytest.mark.parametrize("size", ["Transfer-Encoding: chunked", "Connection: close"])
def test_a_range_may_come_without_a_word_on_its_length(size: str) -> None:
    body = b"3\r\n\x08\x09\x0a\r\n5\r\n\x0b\x0c\x0d\x0e\x0f\r\n0\r\n\r\n" if "chunked" in size else FILE[8:16]
    head = f"HTTP/1.1 206 Partial\r\n{size}\r\nContent-Range: bytes 8-15/{len(FILE)}\r\n\r\n"
    response = http.client.HTTPResponse(Socket(head.encode() + body))  # type: ignore[arg-type]
    response.begin()
    memory = bytearray(8)
    Range("path", len(FILE), 8, [memoryview(memory)]).receive(response)
    assert memory == FILE[8:16]


def test_a_range_of_another_length_than_it_says_names_both() -> None:
    head = b"HTTP/1.1 206 Partial\r\nContent-Length: 9\r\nContent-Range: bytes 0-7/1024\r\n\r\n"
    response = http.client.HTTPResponse(Socket(head + FILE))  # type: ignore[arg-type]
    response.begin()
    with pytest.raises(
        http.client.HTTPException, match="asked for bytes 0-7/1024, got 'bytes 0-7/1024' in 9 bytes"
    ):
        Range("path", len(FILE), 0, [memoryview(bytearray(8))]).receive(response)


def test_a_range_beyond_the_end_is_refused_before_anything_is_asked() -> None:
    with pytest.raises(InputError, match="ends at byte 1,024, expected data up to byte 1,025"):
        Range("path", len(FILE), 1020, [memoryview(bytearray(5))])


def test_what_a_server_asks_for_is_waited_for_beyond_ones_own_patience_but_not_for_ever(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = [0.0]
    monkeypatch.setattr(retry.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(retry.time, "sleep", lambda seconds: now.__setitem__(0, now[0] + seconds))

    def fail() -> None:
        error = TransientError(11, "busy", "path")
        error.after_seconds = 100.0
        raise error

    with pytest.raises(OSError, match="busy"):
        persist(fail, 200.0)
    assert 900 < now[0] <= 1100
