"""The presigned URL of Meta's e-mail: a secret, and so never part of a message.

A ``*`` in it stands for the file's name. CloudFront's query says when it ends, as ``Expires``
(seconds since 1970) or inside ``Policy``: JSON in base64 whose ``+ = /`` became ``- _ ~``.
"""

import base64
import json
import re
from dataclasses import dataclass, field
from datetime import UTC, datetime
from urllib.parse import parse_qs, quote, urlsplit

from distconv.errors import UsageError

REQUEST_PAGE = "https://www.llama.com/llama-downloads/"
ANEW = "ask Meta for a new URL and try again"
_TO_BASE64 = str.maketrans("-_~", "+=/")


@dataclass(frozen=True, slots=True)
class Link:
    """Where files are; its text is shown nowhere."""

    host: str
    expires: datetime | None
    text: str = field(repr=False)

    def url(self, name: str) -> str:
        """Give the URL of a file; keep it out of messages."""
        return self.text.replace("*", quote(name), 1)

    @property
    def secret(self) -> str:
        """The part that must not be seen anywhere."""
        return urlsplit(self.text).query or self.text

    def has_expired(self) -> bool:
        """Whether the link says itself that it has ended."""
        return self.expires is not None and self.expires <= datetime.now(UTC)


def read_link(text: str) -> Link:
    """Read a pasted URL; UsageError, which does not repeat it, says what is wrong with it."""
    cleaned = text.strip().strip("<>\"'").replace("&amp;", "&").replace("\\", "")
    if not cleaned:
        raise UsageError("no URL was given; paste the one in Meta's e-mail")
    if re.search(r"\s", cleaned):
        raise UsageError(
            "the URL has spaces or line breaks in it; copy the link itself, not the lines that show it"
        )
    try:
        parts = urlsplit(cleaned)
        host = parts.hostname or ""
        _port = parts.port
    except ValueError:
        raise UsageError(_NO_URL) from None
    if parts.scheme not in {"http", "https"} or not host:
        raise UsageError(_NO_URL)
    if "safelinks" in host or "urldefense" in host:
        raise UsageError(
            f"the URL leads to {host}, which your mail program put before Meta's; open it and copy the link it leads to"
        )
    if "*" not in parts.path:
        raise UsageError(
            "the URL has no * in its path, which stands for the file's name; copy the whole link of Meta's e-mail"
        )
    return Link(host, _read_expiry(parts.query), cleaned)


_NO_URL = "what was given is no URL; paste the one in Meta's e-mail, which begins with https://"


def _read_expiry(query: str) -> datetime | None:
    """Read when the link ends; None where it does not say so in a way that is known."""
    fields = parse_qs(query)
    try:
        if "Expires" in fields:
            return datetime.fromtimestamp(int(fields["Expires"][0]), UTC)
        policy = json.loads(base64.b64decode(fields["Policy"][0].translate(_TO_BASE64)))
        seconds = policy["Statement"][0]["Condition"]["DateLessThan"]["AWS:EpochTime"]
        return datetime.fromtimestamp(int(seconds), UTC)
    except (LookupError, TypeError, ValueError, OverflowError, OSError):
        return None
