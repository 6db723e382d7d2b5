"""What a web server says of a file: told by an answer to a request for its first byte.

HEAD is refused by some servers, and does not tell whether ranges are known.
"""

import http.client
import posixpath
from collections.abc import Mapping
from urllib.parse import urlsplit

from distconv.errors import InputError
from distconv.storage.base import Entry
from distconv.storage.http.retry import persist
from distconv.storage.http.wire import Answer
from distconv.storage.web.answers import follow, is_redirect, read_tag
from distconv.storage.web.client import FIRST_PATIENCE_SECONDS, MOST_REDIRECTS, get_client

_ABSENT = frozenset({403, 404, 405, 410})
"""Some stores answer 403 where there is nothing, so as not to tell what there is."""


class _Seen(Exception):
    """The headers of an answer whose body is not wanted; carries them past whoever would read it."""

    def __init__(self, headers: Mapping[str, str]) -> None:
        super().__init__()
        self.headers = headers


def look(path: str, url: str) -> Entry | None:
    """Look at a file; None where there is none.

    InputError where nothing would tell that it changes: where the server gives no strong ETag or no size.
    """
    found = _ask(path, url)
    if found is None:
        return None
    status, headers = found
    host = urlsplit(url).netloc
    if status == 401:
        raise InputError(f"{path}: {host} wants a login (401), and none is sent; download it first")
    is_page = "text/html" in headers.get("content-type", "").lower()
    if status in _ABSENT or (is_page and not path.endswith((".md", ".txt"))):
        return None
    if status >= 300 and status != 416:
        raise InputError(f"{path}: {host} answers {status}")
    is_part = status in {206, 416}
    size = (
        headers.get("content-range", "").rpartition("/")[2] if is_part else headers.get("content-length", "")
    )
    if not size.isascii() or not size.isdecimal() or len(size) > 18:
        raise InputError(f"{path}: {host} does not tell its size; download it first")
    tag = headers.get("etag", "")
    if not read_tag(tag):
        kind = f"a weak one ({tag})" if tag else "none"
        raise InputError(
            f"{path}: {host} gives {kind}, expected a strong ETag: without one nothing tells that the file changes "
            "while it is read; download it first, or serve it otherwise"
        )
    return Entry(posixpath.basename(path), False, int(size), tag, f"{int(size)} {tag}")


def _ask(path: str, url: str) -> tuple[int, Mapping[str, str]] | None:
    """Give status and headers of an answer, redirects followed; None where they lead to a folder."""

    def receive(response: http.client.HTTPResponse) -> None:
        if response.status == 200:
            raise _Seen({name.lower(): value for name, value in response.getheaders()})
        response.read()

    for _redirect in range(MOST_REDIRECTS):
        asked = url

        def attempt(asked: str = asked) -> Answer:
            return get_client().ask(path, asked, {"Range": "bytes=0-0"}, receive)

        try:
            answer = persist(attempt, FIRST_PATIENCE_SECONDS)
        except _Seen as seen:
            return 200, seen.headers
        if not is_redirect(answer.status):
            return answer.status, answer.headers
        url = follow(path, asked, answer.headers.get("location", ""))
        if urlsplit(url).path.endswith("/"):
            return None
    raise InputError(f"{path}: {urlsplit(url).netloc} leads from one place to the next")
