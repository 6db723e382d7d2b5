"""One file server behind a link: what it answers, told in words that never hold the link."""

import contextlib
import logging
import re
import ssl
import threading
from collections.abc import Iterator
from dataclasses import dataclass

import requests

from distconv.downloads.link import REQUEST_PAGE, Link
from distconv.errors import ConversionError, InputError

CONNECT_SECONDS, READ_SECONDS = 15.0, 30.0
BLOCK_BYTES = 1 << 20
SMALL_BYTES = 64 << 20
_TALKATIVE = {"urllib3", "requests"}
# Of at most 18 digits: more would be no size, and int() refuses thousands of them.
_LENGTH = re.compile(r"[0-9]{1,18}")
_RANGE = re.compile(r"bytes ([0-9]{1,18})-([0-9]{1,18})/([0-9]{1,18})")
WEB_PAGE = (
    "a web page instead of the file; paste the link of Meta's e-mail itself, and sign in where your network "
    "asks for it"
)
_CODE = re.compile(rb"<Code>(\w+)</Code>")


class PassingError(Exception):
    """Something that may go better after a while."""

    def __init__(self, message: str, after_seconds: float = 0.0) -> None:
        """Take what happened, and for how long the server asks to be left alone."""
        super().__init__(message)
        self.after_seconds = after_seconds


class RefusedError(InputError):
    """The server does not give this file."""


@dataclass(frozen=True, slots=True)
class Remote:
    """A file as the server has it."""

    size_bytes: int
    tag: str
    """Changes when the content does: the ETag, else the date; empty where the server gives neither."""
    has_ranges: bool


class Server:
    """Asks for files; safe to use from several threads."""

    def __init__(self, link: Link) -> None:
        """Remember the link; nothing is asked yet."""
        self._link = link
        self._local = threading.local()
        self._sessions: list[requests.Session] = []
        # A program that logs everything would otherwise write the signed query into its log.
        self._veil = _Veil(link.secret)
        # A filter counts for its own logger alone, not for those below it.
        known = [name for name in logging.root.manager.loggerDict if name.partition(".")[0] in _TALKATIVE]
        self._loggers = [logging.getLogger(name) for name in known]
        for logger in self._loggers:
            logger.addFilter(self._veil)

    @property
    def host(self) -> str:
        """Who is asked."""
        return self._link.host

    def close(self) -> None:
        """End all connections, and leave the loggers as they were."""
        for session in self._sessions:
            session.close()
        for logger in self._loggers:
            logger.removeFilter(self._veil)

    def look(self, name: str) -> Remote:
        """Ask for a file's size. Meta's servers refuse HEAD, so one byte is asked for."""
        with self._answer(name, "bytes=0-0") as response:
            if response.status_code == requests.codes.requested_range_not_satisfiable:
                return Remote(0, "", has_ranges=True)
            is_part = response.status_code == requests.codes.partial_content
            whole = _RANGE.fullmatch(response.headers.get("Content-Range", ""))
            # The length of a part says nothing about the file.
            size_bytes = int(whole[3]) if is_part and whole else None if is_part else _length(response)
            if size_bytes is None:
                raise InputError(
                    f"{name}: {self._link.host} does not tell its size; is this Meta's own link?"
                )
            return Remote(size_bytes, _tag(response), has_ranges=is_part)

    def read_small(self, name: str) -> bytes:
        """Read a small file whole."""
        with self._answer(name, None) as response:
            expected = _length(response)
            found = bytearray()
            for block in self._blocks(response):
                found += block
                if len(found) > SMALL_BYTES:
                    raise InputError(f"{name}: larger than {SMALL_BYTES:,} bytes, expected a small file")
            if expected is not None and len(found) != expected:
                raise PassingError(f"the connection ended after {len(found):,} of {expected:,} bytes")
            return bytes(found)

    def read_range(self, name: str, remote: Remote, start: int, end: int) -> Iterator[bytes]:
        """Give a range's bytes as they come; they may end early, by PassingError or without."""
        with self._answer(name, f"bytes={start}-{end - 1}") as response:
            skip = self._find_skip(name, remote, response, start)
            left = end - start
            for block in self._blocks(response):
                kept = block[skip : skip + left]
                skip -= min(skip, len(block))
                left -= len(kept)
                if kept:
                    yield kept
                if left == 0:
                    return

    def _find_skip(self, name: str, remote: Remote, response: requests.Response, start: int) -> int:
        """Tell how many bytes come before the range's own; the file must still be the same one."""
        tag = _tag(response)
        whole = _RANGE.fullmatch(response.headers.get("Content-Range", ""))
        if response.status_code == requests.codes.requested_range_not_satisfiable:
            size_bytes, skip = 0, 0
        elif response.status_code != requests.codes.partial_content:
            # The server gives the file whole, whatever was asked for.
            length = _length(response)
            size_bytes, skip = remote.size_bytes if length is None else length, start
        elif whole is None or int(whole[1]) != start:
            raise PassingError("the server gave another part than it was asked for")
        else:
            size_bytes, skip = int(whole[3]), 0
        if size_bytes != remote.size_bytes or (tag and remote.tag and tag != remote.tag):
            raise ConversionError(
                f"{name}: changed on {self._link.host} while it came; run the same command again to get it anew"
            )
        return skip

    @contextlib.contextmanager
    def _answer(self, name: str, wanted: str | None) -> Iterator[requests.Response]:
        headers = {"Accept-Encoding": "identity"} | ({"Range": wanted} if wanted else {})
        try:
            response = self._session().get(
                self._link.url(name), headers=headers, stream=True, timeout=(CONNECT_SECONDS, READ_SECONDS)
            )
        except requests.exceptions.SSLError as error:
            raise ConversionError(self._describe_tls(error)) from None
        # ValueError: a redirect to what is no address.
        except (requests.RequestException, ValueError) as error:
            # Its text holds the URL, so only its kind is told.
            raise PassingError(f"{self._link.host}: {_describe(error)}") from None
        with response:
            self._check(name, response, is_range=wanted is not None)
            yield response

    def _check(self, name: str, response: requests.Response, *, is_range: bool) -> None:
        status = response.status_code
        if status in {requests.codes.ok, requests.codes.partial_content}:
            if "html" in response.headers.get("Content-Type", "").lower():
                raise InputError(f"{name}: {self._link.host} answered with {WEB_PAGE}")
            coding = response.headers.get("Content-Encoding", "identity").strip().lower()
            if coding not in {"", "identity"}:
                # Its sizes would be those of what comes over, not those of the file.
                raise InputError(
                    f"{name}: {self._link.host} gives it compressed ({coding}), which was not asked for; does a "
                    f"proxy lie between?"
                )
            return
        if is_range and status == requests.codes.requested_range_not_satisfiable:
            return
        if status in {408, 425, 429} or status >= 500:
            after = response.headers.get("Retry-After", "")
            raise PassingError(
                f"{self._link.host} answered {status} {response.reason}".strip(),
                float(after) if _LENGTH.fullmatch(after) else 0.0,
            )
        raise RefusedError(self._describe_refusal(name, status, _read_head(response)))

    def _describe_refusal(self, name: str, status: int, body: bytes) -> str:
        code = _CODE.search(body)
        said = f"{status}, {code[1].decode()}" if code else f"{status}"
        words = f"{name}: {self._link.host} refuses it ({said}); "
        if self._link.has_expired():
            return f"{words}the URL ended on {self._link.expires:%Y-%m-%d %H:%M} UTC: ask for a new one at {REQUEST_PAGE}"
        if code and code[1] == b"RequestTimeTooSkewed":
            return f"{words}set this machine's clock"
        return (
            f"{words}a URL ends after 24 hours or a few downloads, and serves only the models that it was asked "
            f"for: ask for a new one at {REQUEST_PAGE}"
        )

    def _describe_tls(self, error: requests.exceptions.SSLError) -> str:
        # requests wraps the error of ssl twice; its own text holds the URL.
        inner = getattr(error.args[0], "reason", None) if error.args else None
        cause = inner.args[0] if isinstance(inner, Exception) and inner.args else inner
        why = cause.verify_message if isinstance(cause, ssl.SSLCertVerificationError) else "TLS failed"
        return (
            f"{self._link.host}: no secure connection ({why}); behind a proxy that inspects traffic set "
            f"REQUESTS_CA_BUNDLE to its certificate"
        )

    def _blocks(self, response: requests.Response) -> Iterator[bytes]:
        try:
            yield from response.iter_content(BLOCK_BYTES)
        except requests.RequestException as error:
            raise PassingError(_describe(error)) from None

    def _session(self) -> requests.Session:
        """Give this thread's own session: they are not made to be shared."""
        if not hasattr(self._local, "session"):
            self._local.session = requests.Session()
            self._sessions.append(self._local.session)
        session: requests.Session = self._local.session
        return session


class _Veil(logging.Filter):
    """Drops records that hold the secret."""

    def __init__(self, secret: str) -> None:
        super().__init__()
        self._secret = secret

    def filter(self, record: logging.LogRecord) -> bool:
        return self._secret not in record.getMessage()


def _read_head(response: requests.Response) -> bytes:
    with contextlib.suppress(requests.RequestException):
        return next(response.iter_content(4096), b"")
    return b""


def _length(response: requests.Response) -> int | None:
    """Read how many bytes an answer has; None where it does not say so, or not as a number."""
    found = response.headers.get("Content-Length", "")
    return int(found) if _LENGTH.fullmatch(found) else None


def _tag(response: requests.Response) -> str:
    """Read what changes when the file does."""
    tag: str = response.headers.get("ETag", "").removeprefix("W/") or response.headers.get(
        "Last-Modified", ""
    )
    return tag


def _describe(error: requests.RequestException | ValueError) -> str:
    """Say what kind of trouble it was, without its text."""
    if isinstance(error, requests.exceptions.ProxyError):
        return "the proxy cannot be reached or refuses"
    if isinstance(error, requests.Timeout):
        return "no answer in time"
    if isinstance(error, requests.exceptions.ChunkedEncodingError):
        return "the connection was cut"
    if "NameResolutionError" in str(error):
        return "no such host is known; is this machine online?"
    if isinstance(error, ValueError):
        return "it leads to what is no address"
    return "the connection failed"
