"""What an answer to a request for a range means to those who asked."""

import errno
import http.client
import os
import re
import socket
import ssl
from collections.abc import Mapping
from urllib.parse import urljoin, urlsplit

from distconv.errors import ConversionError, InputError
from distconv.storage.http.ranges import Range
from distconv.storage.http.retry import TransientError
from distconv.storage.http.wire import BrokenError
from distconv.storage.pinning import describe_change
from distconv.storage.web.remote import Remote

_WHOLE_BYTES = 16 << 20
"""So large may a file be that comes whole where a range was asked for."""
_TRANSIENT = frozenset({408, 425, 429, 500, 502, 503, 504})
_REDIRECT = frozenset({301, 302, 303, 307, 308})
ENDED = frozenset({401, 403, 404, 410})
"""How servers answer to a signed URL that has ended."""
_SECONDS = re.compile(r"[0-9]{1,6}")
_LIMIT = re.compile(r'"\w+"\s*;\s*r\s*=\s*0\s*;\s*t\s*=\s*([0-9]{1,6})')
"""The header ``RateLimit`` of draft-ietf-httpapi-ratelimit-headers, where nothing remains."""


def is_transient(status: int) -> bool:
    """Whether the same request may succeed the next time."""
    return status in _TRANSIENT


def is_redirect(status: int) -> bool:
    """Whether an answer leads elsewhere."""
    return status in _REDIRECT


def find_wait(headers: Mapping[str, str]) -> float:
    """Give for how many seconds a server asks to be left alone; names of headers are in lower case."""
    after = headers.get("retry-after", "").strip()
    if _SECONDS.fullmatch(after):
        return float(after)
    limit = _LIMIT.search(headers.get("ratelimit", ""))
    return float(limit[1]) if limit else 0.0


def read_tag(tag: str | None) -> str:
    """Give an ETag without its quotes, empty where it is weak: equal only byte by byte (RFC 9110, 8.8.1)."""
    found = (tag or "").strip()
    return found[1:-1] if len(found) > 2 and found[0] == found[-1] == '"' else ""


def check_answer(response: http.client.HTTPResponse, remote: Remote) -> str:
    """Give an answer's ETag, if it has one; InputError where it is of another size than ``remote``, or not as stored."""
    coding = response.getheader("Content-Encoding", "identity").strip().lower()
    if coding not in {"", "identity"}:
        raise InputError(
            f"{remote.path}: comes compressed ({coding}), which was not asked for; does a proxy lie between?"
        )
    total = response.getheader("Content-Range", "").rpartition("/")[2]
    if response.status == 200:
        total = response.getheader("Content-Length", "")
    if total.isdecimal() and int(total) != remote.size_bytes:
        raise InputError(describe_change(remote.path))
    return response.getheader("ETag", "")


def take_body(response: http.client.HTTPResponse, remote: Remote, wanted: Range) -> None:
    """Take what an answer brings; HTTPException where it is another range or ends before."""
    if response.status == 206 or wanted.is_whole:
        wanted.receive(response)
    elif remote.size_bytes <= _WHOLE_BYTES:
        content = response.read(remote.size_bytes + 1)
        if len(content) != remote.size_bytes:
            raise http.client.IncompleteRead(b"", remote.size_bytes - len(content))
        wanted.take(content)
    else:
        raise InputError(
            f"{remote.path}: comes whole where a range of it was asked for; give a server that knows ranges, or "
            "download it first"
        )


def describe_failure(path: str, host: str, broken: BrokenError) -> Exception:
    """Give the error that a failed connection stands for; none of it is from what was sent."""
    cause = broken.cause
    if isinstance(cause, ssl.SSLCertVerificationError):
        return ConversionError(
            f"{path}: no secure connection to {host} ({cause.verify_message}); behind a proxy that inspects "
            "traffic set REQUESTS_CA_BUNDLE to its certificate"
        )
    if isinstance(cause, socket.gaierror):
        reason = "no such host is known"
    elif isinstance(cause, OSError) and not isinstance(cause, ssl.SSLError) and cause.errno:
        reason = os.strerror(cause.errno)
    elif type(cause) is OSError:
        # What a proxy answers has no number.
        reason = str(cause)
    else:
        reason = broken.said
    # What is no HTTP came from somewhere.
    question = "is this machine online?" if isinstance(cause, OSError) else "does a proxy lie between?"
    error = TransientError(
        errno.EHOSTUNREACH, f"the connection to {host}{broken.by} failed ({reason}); {question}", path
    )
    error.at_once = broken.was_idle
    return error


def follow(path: str, url: str, location: str) -> str:
    """Give where an answer of this URL leads; ConversionError, which does not show it, where that is no address."""
    host = urlsplit(url).netloc
    try:
        parts = urlsplit(urljoin(url, location))
        is_sound = parts.scheme in {"http", "https"} and bool(parts.hostname) and parts.port != 0
    except ValueError:
        is_sound = False
    if not is_sound or not location.isascii() or not location.isprintable() or " " in location:
        raise ConversionError(f"{path}: {host} leads to what is no address")
    if urlsplit(url).scheme == "https" and parts.scheme == "http":
        raise ConversionError(f"{path}: {host} leads to http://{parts.hostname}, without TLS")
    return parts._replace(fragment="").geturl()


def refuse(remote: Remote, host: str, status: int) -> Exception:
    """Give the error that an answer stands for that gives nothing of a file that was found."""
    if status in {412, 416}:
        return InputError(describe_change(remote.path))
    if status in ENDED:
        return ConversionError(
            f"{remote.path}: {host} refuses it ({status}), though it was there before; run the same command again"
        )
    return OSError(errno.EIO, f"{host} answers {status}", remote.path)
