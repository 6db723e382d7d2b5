"""Unfinished multipart uploads: begun, listed, fed with parts, dropped; and what their attempts are called.

An upload is the attempt of a file. Its name is made of the file's and of the upload's id alone, so
that whoever lists a folder's uploads gives the names that their makers have. Who drops it makes
every part and every completion that is sent after that fail: that is the fence.
"""

import errno
import posixpath
import re
import zlib
from collections.abc import Iterator, Mapping, Sequence
from urllib.parse import quote, unquote

from distconv.storage.base import Buffer
from distconv.storage.fencing import PARTIAL_SUFFIX
from distconv.storage.s3.client import Call, Client
from distconv.storage.s3.documents import StoredPart, keys, parse, parse_parts, read_key, text
from distconv.storage.s3.objects import MISSING
from distconv.storage.s3.place import make_path
from distconv.storage.s3.sums import describe_sum

_ATTEMPT = re.compile(
    rf"\.(?P<name>.+)\.(?P<id>[^/.]+)-0-(?P<check>[0-9a-f]{{8}}){re.escape(PARTIAL_SUFFIX)}", re.DOTALL
)


def make_name(name: str, upload: str) -> str:
    """Name the attempt at a file that an upload is; ``fencing.is_attempt`` knows it."""
    quoted = quote(upload, safe="").replace(".", "%2E")
    return f".{name}.{quoted}-0-{zlib.crc32(upload.encode()):08x}{PARTIAL_SUFFIX}"


def parse_name(name: str) -> tuple[str, str] | None:
    """Give the file's name and the upload's id; None where it is no such name."""
    match = _ATTEMPT.fullmatch(name)
    if match is None:
        return None
    upload = unquote(match["id"])
    return (match["name"], upload) if make_name(match["name"], upload) == name else None


def begin_upload(client: Client, bucket: str, key: str, metadata: Mapping[str, str]) -> str:
    """Begin an upload, and give its id."""
    headers = dict(metadata)
    if client.access.sums:
        headers |= {"x-amz-checksum-algorithm": "CRC64NVME", "x-amz-checksum-type": "FULL_OBJECT"}
    answer = client.ask(Call("CreateMultipartUpload", "POST", bucket, key, {"uploads": ""}, headers))
    root = parse(answer.body)
    if root is None or not text(root, "UploadId"):
        reason = "CreateMultipartUpload: the store began an upload without telling its id"
        raise OSError(errno.EIO, reason, make_path(bucket, key))
    return text(root, "UploadId")


def send_part(
    client: Client, bucket: str, key: str, upload: str, number: int, blocks: Sequence[Buffer]
) -> StoredPart:
    """Store a part; FileNotFoundError where the upload was dropped or completed."""
    checksum = describe_sum(*blocks) if client.access.sums else None
    headers = {"x-amz-checksum-crc64nvme": checksum} if checksum else {}
    query = {"partNumber": str(number), "uploadId": upload}
    answer = client.ask(Call("UploadPart", "PUT", bucket, key, query, headers, blocks))
    size = sum(len(block) for block in blocks)
    return StoredPart(number, answer.headers.get("etag", ""), size, checksum)


def list_parts(
    client: Client, bucket: str, key: str, upload: str, first: int = 1, end: int = 1 << 14
) -> list[StoredPart] | None:
    """List the parts that are stored, by number, from ``first`` to before ``end``; None where the upload is not there."""
    found: list[StoredPart] = []
    marker = str(first - 1) if first > 1 else ""
    while True:
        query = {"uploadId": upload} | ({"part-number-marker": marker} if marker else {})
        root = client.ask_xml(Call("ListParts", "GET", bucket, key, query), "ListPartsResult", accept=MISSING)
        if root is None:
            return None
        found += (part for part in parse_parts(root) if first <= part.number < end)
        marker = text(root, "NextPartNumberMarker")
        if text(root, "IsTruncated") != "true" or not marker or int(marker) >= end - 1:
            return found


def is_there(client: Client, bucket: str, key: str, upload: str) -> bool:
    """Whether an upload is neither dropped nor completed."""
    call = Call("ListParts", "GET", bucket, key, {"uploadId": upload, "max-parts": "1"})
    return client.ask(call, accept=MISSING).status != 404


def list_uploads(client: Client, bucket: str, folder: str) -> Iterator[str]:
    """Give the names of the attempts at files in a folder, of which ``folder`` is the prefix."""
    markers: dict[str, str] = {}
    while True:
        query = {"uploads": "", "prefix": folder, "delimiter": "/", "encoding-type": "url"}
        call = Call("ListMultipartUploads", "GET", bucket, "", query | markers)
        root = client.ask_xml(call, "ListMultipartUploadsResult")
        assert root is not None  # noqa: S101  no refusal is accepted
        for key, element in keys(root, "Upload"):
            name = key.removeprefix(folder)
            # Not all servers know a delimiter here.
            if key.startswith(folder) and name and "/" not in name:
                yield make_name(name, text(element, "UploadId"))
        markers = {
            "key-marker": read_key(root, "NextKeyMarker"),
            "upload-id-marker": text(root, "NextUploadIdMarker"),
        }
        if text(root, "IsTruncated") != "true" or not markers["key-marker"]:
            return


def drop_upload(client: Client, bucket: str, key: str, upload: str) -> None:
    """Drop an upload with all its parts; one that is not there is no error."""
    call = Call("AbortMultipartUpload", "DELETE", bucket, key, {"uploadId": upload})
    client.ask(call, accept=MISSING)


def name_attempt(path: str, upload: str) -> str:
    """Give the path of an attempt at the file of this path."""
    folder, name = posixpath.split(path)
    return posixpath.join(folder, make_name(name, upload))
