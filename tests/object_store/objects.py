"""The verbs on objects."""

import email.utils

from tests.object_store import request as requests
from tests.object_store.connection import Answer
from tests.object_store.errors import StoreError
from tests.object_store.request import Received, Request
from tests.object_store.state import State, Stored, random_name

KEPT_HEADERS = (
    "content-type",
    "content-encoding",
    "cache-control",
    "content-disposition",
    "content-language",
)


def kept(request: Request) -> dict[str, str]:
    """Give the headers that an object keeps."""
    headers = request.head.headers
    return {name: headers[name] for name in headers if name in KEPT_HEADERS or name.startswith("x-amz-meta-")}


def make_etag(state: State, md5: str, suffix: str = "") -> str:
    """Give an object's ETag: the digest, or a name that no other write has."""
    return f'"{random_name() if state.settings.random_etags else md5}{suffix}"'


def same(etag: str, asked: str) -> bool:
    """Say whether a condition names an ETag."""
    return asked == "*" or etag.strip('"') in {part.strip().strip('"') for part in asked.split(",")}


def allow(state: State, request: Request, kind: str, present: Stored | None) -> None:
    """Refuse a change whose condition does not hold: call it while the key is locked."""
    expected, absent = request.header("if-match"), request.header("if-none-match")
    if kind in state.settings.ignored_conditions:
        return
    if absent and absent != "*":
        raise StoreError("NotImplemented", f"If-None-Match of a change is {absent}, expected *")
    if absent and present is not None:
        raise StoreError("PreconditionFailed", "If-None-Match: the object exists")
    if expected and present is None:
        raise StoreError("NoSuchKey", "If-Match: there is no such object")
    if expected and present is not None and not same(present.etag, expected):
        raise StoreError("PreconditionFailed", f"If-Match is {expected}, the object's ETag {present.etag}")


def told(stored: Stored, *, whole: bool) -> dict[str, str]:
    """Give the headers that tell of an object; of a checksum only with all of it."""
    headers = {"ETag": stored.etag, "Last-Modified": email.utils.formatdate(stored.modified, usegmt=True)}
    headers |= {"Accept-Ranges": "bytes", "Content-Type": "binary/octet-stream"}
    headers |= {
        name.title() if name in KEPT_HEADERS else name: value for name, value in stored.headers.items()
    }
    if whole and stored.checksum is not None:
        headers[f"x-amz-checksum-{stored.checksum.algorithm.lower()}"] = stored.checksum.value
        headers["x-amz-checksum-type"] = stored.checksum.kind
    return headers


def span(asked: str, size_bytes: int) -> tuple[int, int] | None:
    """Read a Range header: (first byte, size), or nothing if it is none that S3 heeds (RFC 9110, 14.2)."""
    unit, _equals, text = asked.partition("=")
    first, dash, last = text.partition("-")
    if unit != "bytes" or not dash or not (first + last).isdecimal():
        return None
    start = int(first) if first else max(0, size_bytes - int(last))
    end = min(size_bytes, int(last) + 1) if first and last else size_bytes
    if first and last and int(last) < start:
        return None
    if start >= size_bytes or (not first and last == "0"):
        raise StoreError("InvalidRange", f"{asked} of {size_bytes} bytes")
    return start, end - start


def get_object(state: State, request: Request, received: Received) -> Answer:
    """GET and HEAD, with Range, If-Match and If-None-Match."""
    stored = state.objects(request.bucket).get(request.key)
    if stored is None:
        raise StoreError("NoSuchKey", f"there is no {request.key}")
    expected, other = request.header("if-match"), request.header("if-none-match")
    if expected and not same(stored.etag, expected):
        raise StoreError("PreconditionFailed", f"If-Match is {expected}, the object's ETag {stored.etag}")
    if other and same(stored.etag, other):
        raise StoreError("NotModified")
    part = span(request.header("range"), stored.size_bytes)
    start, size = part or (0, stored.size_bytes)
    wants = request.header("x-amz-checksum-mode").upper() == "ENABLED"
    headers = told(stored, whole=wants and part is None)
    if part:
        headers["Content-Range"] = f"bytes {start}-{start + size - 1}/{stored.size_bytes}"
    return Answer(206 if part else 200, headers, body=stored.body, offset_bytes=start, size_bytes=size)


def put_object(state: State, request: Request, received: Received) -> Answer:
    """PUT, with If-Match and If-None-Match: * exact."""
    requests.check(request, received)
    named = next(
        (name for name in requests.told_checksums(request) if name not in {"MD5", "PAYLOAD"}), "CRC64NVME"
    )
    checksum = received.checksum(named, "FULL_OBJECT")
    with state.locked(request.bucket, request.key) as objects:
        allow(state, request, "put", objects.get(request.key))
        etag = make_etag(state, received.md5)
        stored = Stored(received.body, etag, state.now(), kept(request), checksum)
        state.put(objects, request.key, stored)
    headers = told(stored, whole=True)
    return Answer(
        200, {name: headers[name] for name in headers if name == "ETag" or name.startswith("x-amz-ch")}
    )


def delete_object(state: State, request: Request, received: Received) -> Answer:
    """DELETE, with If-Match exact; of what is not there 204, too."""
    with state.locked(request.bucket, request.key) as objects:
        allow(state, request, "delete", objects.get(request.key))
        state.put(objects, request.key, None)
    return Answer(204)


def create_bucket(state: State, request: Request, received: Received) -> Answer:
    """Make a bucket; one's own may be made again."""
    state.buckets.setdefault(request.bucket, {})
    return Answer(200, {"Location": f"/{request.bucket}"})


def head_bucket(state: State, request: Request, received: Received) -> Answer:
    """Say whether there is a bucket."""
    state.objects(request.bucket)
    return Answer(200)
