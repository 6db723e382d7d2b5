"""Who asks, and whether the signature is theirs: AWS Signature Version 4, in headers or in the URL.

https://docs.aws.amazon.com/AmazonS3/latest/API/sig-v4-header-based-auth.html
"""

import hashlib
import hmac
import urllib.parse
from dataclasses import dataclass
from datetime import UTC, datetime

from tests.object_store.connection import Head
from tests.object_store.errors import StoreError
from tests.object_store.request import Request
from tests.object_store.state import SECRETS, Settings

ALGORITHM = "AWS4-HMAC-SHA256"
SKEW_S = 900


@dataclass(frozen=True, slots=True)
class Signature:
    """What a request says of itself."""

    access_key: str
    scope: str  # date/region/s3/aws4_request
    signed_headers: str
    signature: str
    time: str
    payload: str
    expires_s: int | None


def read(head: Head) -> Signature | None:
    """Find a request's signature."""
    query = dict(urllib.parse.parse_qsl(head.target.partition("?")[2], keep_blank_values=True))
    if query.get("X-Amz-Algorithm") == ALGORITHM:
        access_key, _slash, scope = query["X-Amz-Credential"].partition("/")
        names, value = query["X-Amz-SignedHeaders"], query["X-Amz-Signature"]
        time, expires_s = query["X-Amz-Date"], int(query["X-Amz-Expires"])
        return Signature(access_key, scope, names, value, time, "UNSIGNED-PAYLOAD", expires_s)
    algorithm, _space, text = head.headers.get("authorization", "").partition(" ")
    fields = dict(part.strip().partition("=")[::2] for part in text.split(","))
    if algorithm != ALGORITHM or not fields.keys() >= {"Credential", "SignedHeaders", "Signature"}:
        return None
    access_key, _slash, scope = fields["Credential"].partition("/")
    time, payload = head.headers.get("x-amz-date", ""), head.headers.get("x-amz-content-sha256", "")
    return Signature(access_key, scope, fields["SignedHeaders"], fields["Signature"], time, payload, None)


def canonical_query(target: str) -> str:
    """Write the parameters in order, encoded in the one way, without the signature."""
    pairs = urllib.parse.parse_qsl(target.partition("?")[2], keep_blank_values=True)
    encoded = [
        tuple(urllib.parse.quote(text, safe="-_.~") for text in pair)
        for pair in pairs
        if pair[0] != "X-Amz-Signature"
    ]
    return "&".join("=".join(pair) for pair in sorted(encoded))


def compute(head: Head, found: Signature, secret_key: str) -> str:
    """Compute the signature that the owner of a secret key gives a request."""
    names = found.signed_headers.split(";")
    lines = [f"{name}:{' '.join(head.headers.get(name, '').split())}" for name in names]
    path, query = head.target.partition("?")[0], canonical_query(head.target)
    asked = "\n".join([head.verb, path, query, *lines, "", found.signed_headers, found.payload])
    digest = hashlib.sha256(asked.encode()).hexdigest()
    key = f"AWS4{secret_key}".encode()
    for step in found.scope.split("/"):
        key = hmac.digest(key, step.encode(), "sha256")
    text = f"{ALGORITHM}\n{found.time}\n{found.scope}\n{digest}"
    return hmac.digest(key, text.encode(), "sha256").hex()


def identify(request: Request, settings: Settings, now: float) -> str:
    """Give the access key of who asks; refuse strangers, other signatures, and what is not allowed to them."""
    found = read(request.head)
    if found is None:
        raise StoreError("AccessDenied", "the request is not signed (AWS4-HMAC-SHA256)")
    if found.access_key not in SECRETS:
        raise StoreError("InvalidAccessKeyId", f"there is no access key {found.access_key}")
    if settings.verify_signatures:
        signed_at = datetime.strptime(found.time, "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC).timestamp()
        if found.expires_s is None and abs(now - signed_at) > SKEW_S:
            raise StoreError("RequestTimeTooSkewed", f"signed at {found.time}")
        if found.expires_s is not None and now > signed_at + found.expires_s:
            raise StoreError("AccessDenied", "Request has expired")
        if not hmac.compare_digest(compute(request.head, found, SECRETS[found.access_key]), found.signature):
            raise StoreError("SignatureDoesNotMatch", "the signature is not that of the access key")
    name = f"{request.bucket}/{request.key or request.parameters.get('prefix', '')}"
    for access_key, operation, prefix in settings.denied:
        if (
            access_key == found.access_key
            and operation in {"*", request.operation}
            and name.startswith(prefix)
        ):
            raise StoreError("AccessDenied", f"{access_key} may not {request.operation} {name}")
    return found.access_key
