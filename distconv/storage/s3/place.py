"""Where objects lie: an endpoint, and paths ``s3://BUCKET/KEY`` in it."""

import posixpath
import re
from dataclasses import dataclass
from typing import Literal

from distconv.errors import UsageError
from distconv.storage.http.address import split_address

SCHEME = "s3://"
_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{1,254}")

Addressing = Literal["auto", "path", "virtual"]


@dataclass(frozen=True, slots=True)
class Place:
    """What says which server is asked, and as whom; None leaves it to AWS's environment and profiles."""

    endpoint_url: str | None = None
    region: str | None = None
    profile: str | None = None
    addressing: Addressing = "auto"
    """Whether the bucket stands in the path or in the host's name; ``auto``: in the path of a given endpoint."""
    patience_seconds: float = 120.0
    """How long what may pass is tried again without any progress."""

    def __post_init__(self) -> None:
        """Refuse an endpoint that is none, or that has a password in it, with UsageError."""
        if self.endpoint_url is not None:
            check_endpoint(self.endpoint_url, "`endpoint_url=`")


def check_endpoint(url: str, given_by: str) -> None:
    """Raise UsageError, which shows by what it was given and not the URL, where it is no endpoint."""
    parts = split_address(url)
    if parts is None or "@" in parts.netloc or parts.query or parts.fragment:
        raise UsageError(f"{given_by}: expected http(s)://HOST[:PORT] without a user, a password or a query")


def split_path(path: str) -> tuple[str, str]:
    """Give bucket and key, which is empty for the bucket itself; UsageError where it is no such path."""
    bucket, _, key = path.removeprefix(SCHEME).partition("/")
    if not path.startswith(SCHEME) or not _BUCKET.fullmatch(bucket):
        raise UsageError(
            f"{path}: expected s3://BUCKET/KEY, a bucket's name being of 2 letters, digits, dots, hyphens and underscores or more"
        )
    return bucket, key.rstrip("/")


def split_folder(path: str) -> tuple[str, str]:
    """Give bucket and the beginning of all keys in a folder."""
    bucket, key = split_path(path)
    return bucket, f"{key}/" if key else ""


def make_path(bucket: str, key: str) -> str:
    """Give the path of an object."""
    return f"{SCHEME}{bucket}/{key}"


def normalise(path: str) -> str:
    """Give one spelling to all paths that mean the same place."""
    bucket, key = split_path(path)
    key = posixpath.normpath(f"/{key}").lstrip("/")
    return make_path(bucket, key) if key else f"{SCHEME}{bucket}"
