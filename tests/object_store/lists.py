"""The verbs that list: objects, uploads, an upload's parts; page by page."""

import base64
import urllib.parse
from collections.abc import Callable

from tests.object_store import uploads, xml
from tests.object_store.connection import Answer
from tests.object_store.request import Received, Request
from tests.object_store.state import State, Stored

PAGE = 1000


def encoder(request: Request) -> Callable[[str], str]:
    """Give the function that writes keys as they are asked for."""
    if request.parameters.get("encoding-type") == "url":
        return lambda key: urllib.parse.quote(key, safe="/~-._")
    return str


def described(stored: Stored) -> list[xml.Element]:
    """Give the elements that tell of an object or a part."""
    found: list[xml.Element] = [("LastModified", xml.timestamp(stored.modified)), ("ETag", stored.etag)]
    return [*found, ("Size", stored.size_bytes)]


def list_objects(state: State, request: Request, received: Received) -> Answer:
    """ListObjectsV2; a continuation token is the last key or common prefix of the page before."""
    parameters, encode = request.parameters, encoder(request)
    prefix, delimiter = parameters.get("prefix", ""), parameters.get("delimiter", "")
    token = parameters.get("continuation-token", "")
    after = base64.b64decode(token).decode() if token else parameters.get("start-after", "")
    limit = min(PAGE, request.number("max-keys", PAGE))
    contents: list[xml.Element] = []
    folders: list[str] = []
    last, truncated = "", False
    for key, stored in state.listed(request.bucket):
        rest = key[len(prefix) :]
        folder = prefix + rest.partition(delimiter)[0] + delimiter if delimiter and delimiter in rest else ""
        passed = key.encode() <= after.encode() or (folder and folder.encode() <= after.encode())
        if not key.startswith(prefix) or passed or folder in folders[-1:]:
            continue
        if len(contents) + len(folders) == limit:
            truncated = limit > 0
            break
        last = folder or key
        if folder:
            folders.append(folder)
        else:
            contents.append(("Contents", [("Key", encode(key)), *described(stored), *checksum_of(stored)]))
    page: list[xml.Element] = [("Name", request.bucket), ("Prefix", encode(prefix)), ("MaxKeys", limit)]
    page += [(name, encode(value)) for name, value in (("Delimiter", delimiter),) if value]
    page += [("KeyCount", len(contents) + len(folders)), ("IsTruncated", truncated)]
    page += [("EncodingType", "url")] if encode is not str else []
    page += [("NextContinuationToken", base64.b64encode(last.encode()).decode())] if truncated else []
    page += [*contents, *(("CommonPrefixes", [("Prefix", encode(folder))]) for folder in folders)]
    return xml.answer("ListBucketResult", page)


def checksum_of(stored: Stored) -> list[xml.Element]:
    """Give the elements that a listing of objects has beside: the kind of a checksum, not its value."""
    kind: list[xml.Element] = [("StorageClass", "STANDARD")]
    if stored.checksum is not None:
        kind += [("ChecksumAlgorithm", stored.checksum.algorithm), ("ChecksumType", stored.checksum.kind)]
    return kind


def list_uploads(state: State, request: Request, received: Received) -> Answer:
    """ListMultipartUploads, after a key or after an upload of it."""
    parameters, encode = request.parameters, encoder(request)
    prefix, limit = parameters.get("prefix", ""), min(PAGE, request.number("max-uploads", PAGE))
    key_marker, upload_marker = parameters.get("key-marker", ""), parameters.get("upload-id-marker", "")
    state.objects(request.bucket)
    found = [upload for upload in state.listed_uploads(request.bucket) if upload.key.startswith(prefix)]
    names = [(upload.key, upload.name) for upload in found]
    if (key_marker, upload_marker) in names:
        found = found[names.index((key_marker, upload_marker)) + 1 :]
    else:
        found = [upload for upload in found if upload.key.encode() > key_marker.encode()]
    page: list[xml.Element] = [("Bucket", request.bucket), ("Prefix", encode(prefix)), ("MaxUploads", limit)]
    page += [("KeyMarker", encode(key_marker)), ("UploadIdMarker", upload_marker)]
    page += [("IsTruncated", len(found) > limit)]
    page += [("EncodingType", "url")] if encode is not str else []
    if len(found) > limit:
        page += [
            ("NextKeyMarker", encode(found[limit - 1].key)),
            ("NextUploadIdMarker", found[limit - 1].name),
        ]
    for upload in found[:limit]:
        begun = xml.timestamp(upload.begun)
        named: list[xml.Element] = [
            ("Key", encode(upload.key)),
            ("UploadId", upload.name),
            ("Initiated", begun),
        ]
        kinds = (
            [("ChecksumAlgorithm", upload.algorithm), ("ChecksumType", upload.kind)] if upload.asked else []
        )
        page.append(("Upload", [*named, ("StorageClass", "STANDARD"), *kinds]))
    return xml.answer("ListMultipartUploadsResult", page)


def list_parts(state: State, request: Request, received: Received) -> Answer:
    """ListParts, after a number."""
    upload = uploads.find(state, request)
    limit, marker = min(PAGE, request.number("max-parts", PAGE)), request.number("part-number-marker", 0)
    with state.locked(request.bucket, request.key):
        found = sorted(pair for pair in upload.parts.items() if pair[0] > marker)
    page: list[xml.Element] = [("Bucket", upload.bucket), ("Key", upload.key), ("UploadId", upload.name)]
    page += [("PartNumberMarker", marker), ("MaxParts", limit), ("IsTruncated", len(found) > limit)]
    page += [("NextPartNumberMarker", found[:limit][-1][0])] if found[:limit] else []
    page += [("ChecksumAlgorithm", upload.algorithm), ("ChecksumType", upload.kind)] if upload.asked else []
    for number, part in found[:limit]:
        value = [] if part.checksum is None else [(f"Checksum{part.checksum.algorithm}", part.checksum.value)]
        page.append(("Part", [("PartNumber", number), *described(part), *value]))
    return xml.answer("ListPartsResult", page)
