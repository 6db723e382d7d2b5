"""What a request asks for, and the body that comes with it."""

import base64
import hashlib
import urllib.parse
from dataclasses import dataclass

from tests.object_store import checksums
from tests.object_store.bodies import Body, made_up, of_memory
from tests.object_store.connection import Connection, Head
from tests.object_store.errors import StoreError
from tests.object_store.state import Checksum, State

# (verb, whether a key is named, a parameter that tells, the operation's name in S3); the first that fits
OPERATIONS = (
    ("GET", True, "uploadId", "ListParts"),
    ("GET", True, "", "GetObject"),
    ("HEAD", True, "", "HeadObject"),
    ("PUT", True, "partNumber", "UploadPart"),
    ("PUT", True, "", "PutObject"),
    ("DELETE", True, "uploadId", "AbortMultipartUpload"),
    ("DELETE", True, "", "DeleteObject"),
    ("POST", True, "uploads", "CreateMultipartUpload"),
    ("POST", True, "uploadId", "CompleteMultipartUpload"),
    ("GET", False, "uploads", "ListMultipartUploads"),
    ("GET", False, "list-type", "ListObjectsV2"),
    ("HEAD", False, "", "HeadBucket"),
    ("PUT", False, "", "CreateBucket"),
)
CONTENTS = {"PutObject", "UploadPart"}
DISCARDED_FROM_BYTES = 1 << 20  # what says who owns a folder, and what is in it, is kept


@dataclass(frozen=True, slots=True)
class Request:
    """A request without its body. ``operation`` is S3's name, empty for what this store does not do."""

    head: Head
    operation: str
    bucket: str
    key: str
    parameters: dict[str, str]

    def header(self, name: str) -> str:
        """Give a header, or nothing."""
        return self.head.headers.get(name, "")

    def number(self, name: str, default: int) -> int:
        """Give a parameter that is a number."""
        value = self.parameters.get(name) or str(default)
        if not value.isdecimal():
            raise StoreError("InvalidArgument", f"{name} is {value}, expected a number")
        return int(value)


def understand(head: Head) -> Request:
    """Read the target: path style, ``/bucket/key?parameters``."""
    path, _mark, query = head.target.partition("?")
    bucket, _slash, key = path.removeprefix("/").partition("/")
    bucket, key = urllib.parse.unquote(bucket), urllib.parse.unquote(key)
    parameters = dict(urllib.parse.parse_qsl(query, keep_blank_values=True))
    fits = (
        operation
        for verb, keyed, parameter, operation in OPERATIONS
        if verb == head.verb and keyed == bool(key) and (not parameter or parameter in parameters)
    )
    return Request(head, next(fits, "") if bucket else "", bucket, key, parameters)


@dataclass(frozen=True, slots=True)
class Received:
    """A request's body: small ones as text, contents as a body with their checksums (base64 by algorithm)."""

    text: bytes
    body: Body
    md5: str
    checksums: dict[str, str]

    def checksum(self, algorithm: str, kind: str) -> Checksum | None:
        """Give one of the checksums, if it was computed."""
        value = self.checksums.get(algorithm)
        return None if value is None else Checksum(algorithm, value, kind)


def told_checksums(request: Request) -> dict[str, str]:
    """Give the checksums that the client sent, by algorithm."""
    told = {name: request.header(f"x-amz-checksum-{name.lower()}") for name in checksums.ALGORITHMS}
    told["MD5"] = request.header("content-md5")
    sent = request.header("x-amz-content-sha256").lower()
    if len(sent) == 64:
        told["PAYLOAD"] = base64.b64encode(bytes.fromhex(sent)).decode()
    return {name: value for name, value in told.items() if value}


def receive(
    connection: Connection, request: Request, state: State, limit_bytes: int | None, algorithm: str
) -> Received:
    """Read a request's body; ``algorithm`` is computed of contents in any case, unless it is empty.

    What the client told of the body is compared later (``check``): a refusal must not leave half a body unread.
    """
    if request.operation not in CONTENTS:
        text = bytearray()
        connection.read_body(request.head, limit_bytes=limit_bytes, block=text.extend)
        return Received(bytes(text), Body(()), "", sums_of(memoryview(text), told_checksums(request)))
    names = {*told_checksums(request), *([algorithm] if algorithm else [])}
    if not state.settings.random_etags:
        names.add("MD5")
    digests = {name: begin(name) for name in names}
    discarded = state.settings.discard and request.head.body_bytes >= DISCARDED_FROM_BYTES
    memory = None if discarded else memoryview(bytearray(request.head.body_bytes))

    def take(block: memoryview) -> None:
        for digest in digests.values():
            digest.update(block)

    connection.read_body(request.head, limit_bytes=limit_bytes, into=memory, block=take if digests else None)
    body = made_up(request.head.body_bytes) if memory is None else of_memory(memory)
    values = {name: digest.digest() for name, digest in digests.items()}
    known = {name: base64.b64encode(value).decode() for name, value in values.items()}
    return Received(b"", body, values["MD5"].hex() if "MD5" in values else "", known)


def begin(name: str) -> checksums.Digest:
    """Begin one of S3's checksums, or what stands in the headers ``content-md5``, ``x-amz-content-sha256``."""
    if name == "MD5":
        return hashlib.md5(usedforsecurity=False)
    return hashlib.sha256() if name == "PAYLOAD" else checksums.begin(name)


def sums_of(content: memoryview, told: dict[str, str]) -> dict[str, str]:
    """Give a small body's checksums. Of a completion ``x-amz-checksum-*`` tells the object's, not the body's."""
    found = {}
    for name in told.keys() & {"MD5", "PAYLOAD"}:
        digest = begin(name)
        digest.update(content)
        found[name] = base64.b64encode(digest.digest()).decode()
    return found


def check(request: Request, received: Received) -> None:
    """Refuse a body that is not what its headers say."""
    for name, value in told_checksums(request).items():
        if name in received.checksums and received.checksums[name] != value:
            code = "XAmzContentSHA256Mismatch" if name == "PAYLOAD" else "BadDigest"
            raise StoreError(
                code, f"{name} of the body is {received.checksums[name]}, the header says {value}"
            )
