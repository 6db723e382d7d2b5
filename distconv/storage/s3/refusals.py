"""What an answer that refuses means to those who asked."""

import errno
import os
import ssl

from distconv.errors import ConversionError
from distconv.storage.base import ConflictError
from distconv.storage.http.retry import TransientError
from distconv.storage.http.wire import Answer, BrokenError
from distconv.storage.s3.documents import find_error, parse, text

SLOW = frozenset({"SlowDown", "503 Slow Down", "ThrottlingException", "RequestLimitExceeded"})
_TRANSIENT_STATUS = frozenset({408, 429, 500, 502, 503, 504})
_TRANSIENT_CODES = SLOW | {
    "InternalError", "ServiceUnavailable", "RequestTimeout", "OperationAborted",
    "BadDigest", "InvalidDigest", "XAmzContentChecksumMismatch", "IncompleteBody",
}  # fmt: skip
_CREDENTIALS = {
    "InvalidAccessKeyId": "are not known there",
    "SignatureDoesNotMatch": "have a secret that is not theirs there",
    "ExpiredToken": "have expired",
    "TokenRefreshRequired": "have expired",
    "InvalidToken": "have a session token that is not valid there",
    "RequestTimeTooSkewed": "were used by a machine whose clock is wrong",
}
_STATUS_IN_BODY = {"PreconditionFailed": 412, "NoSuchUpload": 404, "ConditionalRequestConflict": 409}
"""What an error means that comes behind a status of success, as it can where an answer takes long."""


def read_answer(answer: Answer) -> tuple[Answer, str]:
    """Give an answer with the status that its body says it has, and the code of its error."""
    if answer.status < 300 and b"<Error>" not in answer.body[:512]:
        return answer, ""
    code = find_error(answer.body) or ""
    if answer.status < 300 and code:
        status = _STATUS_IN_BODY.get(code, 500)
        answer = Answer(status, answer.headers, answer.body)
    return answer, code


def is_transient(status: int, code: str) -> bool:
    """Whether the same request may succeed the next time."""
    return status in _TRANSIENT_STATUS or code in _TRANSIENT_CODES


def find_region(answer: Answer) -> str:
    """Give the region of a bucket that was asked for in another one; nothing where that is not told."""
    root = parse(answer.body) if answer.body else None
    return answer.headers.get("x-amz-bucket-region") or ("" if root is None else text(root, "Region"))


def refuse(path: str, operation: str, answer: Answer, code: str, identity: str) -> Exception:
    """Give the error that an answer stands for; none of it is from what was sent."""
    if answer.status == 404:
        reason = {
            "NoSuchBucket": "no such bucket",
            "NoSuchUpload": "this unfinished file is not there any more",
        }
        return FileNotFoundError(errno.ENOENT, reason.get(code, os.strerror(errno.ENOENT)), path)
    if code in _CREDENTIALS:
        return ConversionError(f"{path}: {identity} {_CREDENTIALS[code]} ({code})")
    if answer.status in {401, 403}:
        return PermissionError(
            errno.EACCES, f"{operation} is not allowed to {identity} ({code or 403})", path
        )
    if 300 <= answer.status < 400 or code == "AuthorizationHeaderMalformed":
        region = find_region(answer)
        where = (
            f"the bucket is of the region {region}; set AWS_REGION to that, or give its endpoint"
            if region
            else f"{operation}: the store answers {answer.status} and leads elsewhere; is the endpoint right?"
        )
        return ConversionError(f"{path}: {where}")
    if answer.status in {409, 412}:
        kind = ConflictError if answer.status == 409 else OSError
        return kind(errno.EAGAIN, f"{operation}: somebody else changed it meanwhile ({code})", path)
    return OSError(errno.EREMOTEIO, f"{operation}: the store answers {answer.status} {code}".rstrip(), path)


def fail(path: str, operation: str, host: str, broken: BrokenError) -> Exception:
    """Give the error that a broken connection stands for; one that may pass, but where a certificate is wrong."""
    cause = broken.cause
    if isinstance(cause, ssl.SSLCertVerificationError):
        return ConversionError(
            f"{path}: the certificate of {host} is not trusted ({cause.verify_message}); "
            "AWS_CA_BUNDLE may name a file with those that are"
        )
    number, reason = errno.ECONNRESET, broken.said
    if isinstance(cause, ssl.SSLError):
        reason = cause.reason or reason
    elif isinstance(cause, TimeoutError):
        number, reason = errno.ETIMEDOUT, os.strerror(errno.ETIMEDOUT)
    elif isinstance(cause, OSError):
        # What a resolver says has numbers of its own.
        known = cause.errno is not None and cause.errno > 0
        number = cause.errno if known and cause.errno else errno.EHOSTUNREACH
        reason = os.strerror(number) if known else cause.strerror or reason
    return TransientError(number, f"{operation}: the connection to {host}{broken.by} failed ({reason})", path)
