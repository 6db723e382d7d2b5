"""Verbs on whole objects, conditional ones too, as S3 has them."""

import errno
from collections.abc import Mapping
from dataclasses import dataclass

from distconv.storage.base import Buffer
from distconv.storage.http.retry import TransientError, persist
from distconv.storage.http.wire import Answer
from distconv.storage.s3.client import Call, Client
from distconv.storage.s3.sums import describe_sum

ATTEMPT = "x-amz-meta-distconv-attempt"
"""Whose write an object is."""
REMOVED = "x-amz-meta-distconv-removed"
"""Set on what stands for a file that is being removed, see ``removal``."""

MISSING = frozenset({404})
REFUSED = frozenset({404, 409, 412})
ABSENT = {"If-None-Match": "*"}


@dataclass(frozen=True, slots=True)
class Head:
    """What an object is."""

    size_bytes: int
    etag: str
    metadata: Mapping[str, str]
    """All headers of the answer, by names in lower case."""

    @property
    def stamp(self) -> str:
        """Changes whenever the object does."""
        return f"{self.size_bytes} {self.etag}"

    @property
    def is_removed(self) -> bool:
        """Whether it only stands for a file that is being removed."""
        return REMOVED in self.metadata


def _read_head(path: str, answer: Answer) -> Head:
    """Read what the headers of an answer to HEAD or GET say; OSError where they do not tell size and version."""
    total = answer.headers.get("content-range", "").rpartition("/")[2] or answer.headers.get(
        "content-length", ""
    )
    etag = answer.headers.get("etag", "")
    if not total.isdecimal() or not etag or etag.startswith("W/"):
        lacking = "size" if not total.isdecimal() else "strong ETag, by which a change would be noticed"
        reason = f"comes without a {lacking}; is the endpoint right, or does a proxy lie between?"
        raise OSError(errno.EREMOTEIO, reason, path)
    return Head(int(total), etag, answer.headers)


def head(client: Client, bucket: str, key: str, *, with_sum: bool = False) -> Head | None:
    """Look at an object, and at the checksum that the store keeps of it; None where there is none."""
    headers = {"x-amz-checksum-mode": "ENABLED"} if with_sum else {}
    call = Call("HeadObject", "HEAD", bucket, key, headers=headers)
    answer = client.ask(call, accept=MISSING)
    return None if answer.status == 404 else _read_head(call.path, answer)


def get(client: Client, bucket: str, key: str, limit_bytes: int) -> tuple[Head, bytes] | None:
    """Read the beginning of an object; None where there is none."""
    ranged = {"Range": f"bytes=0-{limit_bytes - 1}"}
    call = Call("GetObject", "GET", bucket, key, headers=ranged)
    answer = client.ask(call, accept=frozenset({404, 416}))
    if answer.status == 404:
        return None
    if answer.status == 416:
        # An empty object has no first byte.
        found = head(client, bucket, key)
        return None if found is None else (found, b"")
    return _read_head(call.path, answer), answer.body[:limit_bytes]


def put(client: Client, bucket: str, key: str, content: Buffer, condition: Mapping[str, str]) -> Answer:
    """Write a small object once; may be refused with 404, 409 or 412. TransientError: it may be there."""
    headers = dict(condition)
    if client.access.sums:
        headers["x-amz-checksum-crc64nvme"] = describe_sum(content)
    call = Call("PutObject", "PUT", bucket, key, headers=headers, body=(content,))
    return client.ask_once(call, accept=REFUSED)


def delete(client: Client, bucket: str, key: str, etag: str | None = None) -> bool:
    """Remove an object, or only the one with this ETag; False where that is not there."""
    condition = {} if etag is None else {"If-Match": etag}
    call = Call("DeleteObject", "DELETE", bucket, key, headers=condition)

    def attempt() -> bool:
        answer = client.ask_once(call, accept=REFUSED)
        if answer.status == 409:
            raise TransientError(
                errno.EAGAIN, "DeleteObject: somebody else changes it at the same time", call.path
            )
        return answer.status < 300

    return persist(attempt, client.patience_seconds)
