"""What is in a folder: keys that begin alike, up to the next slash."""

from collections.abc import Iterator
from xml.etree import ElementTree as ET

from distconv.storage.base import Entry
from distconv.storage.s3.client import Call, Client
from distconv.storage.s3.documents import keys, text
from distconv.storage.s3.objects import MISSING, head
from distconv.storage.s3.removal import NOTE_BYTES, name_note
from distconv.storage.s3.uploads import list_uploads


def list_objects(client: Client, bucket: str, folder: str) -> Iterator[Entry]:
    """Give the files and folders of which ``folder`` is the prefix; a bucket that is not there has none."""
    token = ""
    while True:
        query = {"list-type": "2", "prefix": folder, "delimiter": "/", "encoding-type": "url"}
        if token:
            query["continuation-token"] = token
        root = client.ask_xml(
            Call("ListObjectsV2", "GET", bucket, "", query), "ListBucketResult", accept=MISSING
        )
        if root is None:
            return
        for key, element in keys(root, "Contents"):
            name = key.removeprefix(folder)
            # An empty object of the folder's own name is how consoles make one.
            if name and "/" not in name:
                etag, size = text(element, "ETag"), int(text(element, "Size") or 0)
                yield _look_closer(client, bucket, key, Entry(name, False, size, etag, f"{size} {etag}"))
        for key, _element in keys(root, "CommonPrefixes"):
            name = key.removeprefix(folder).rstrip("/")
            # A folder without a name is no path's.
            if name:
                yield Entry(name, True, 0, "")
        token = text(root, "NextContinuationToken")
        if text(root, "IsTruncated") != "true" or not token:
            return


def list_attempts(client: Client, bucket: str, folder: str) -> Iterator[Entry]:
    """Give what is being written in a folder; how much of each is stored is not told."""
    for name in list_uploads(client, bucket, folder):
        yield Entry(name, False, 0, name)


def has_bucket(client: Client, bucket: str, folder: str) -> bool:
    """Whether the bucket is there; asked by ``folder``, outside of which one may not be allowed to look."""
    return _list_one(client, bucket, folder) is not None


def has_keys(client: Client, bucket: str, folder: str) -> bool:
    """Whether there is a folder: whether anything lies in it, or it is a bucket."""
    root = _list_one(client, bucket, folder)
    return root is not None and (not folder or root.find("Contents") is not None)


def _list_one(client: Client, bucket: str, folder: str) -> ET.Element | None:
    query = {"list-type": "2", "prefix": folder, "max-keys": "1"}
    return client.ask_xml(Call("ListObjectsV2", "GET", bucket, "", query), "ListBucketResult", accept=MISSING)


def _look_closer(client: Client, bucket: str, key: str, entry: Entry) -> Entry:
    """Give a note in a file's place as the unfinished removal that it is."""
    if entry.size_bytes != NOTE_BYTES:
        return entry
    found = head(client, bucket, key)
    if found is None or not found.is_removed:
        return entry
    return Entry(name_note(entry.name, found.etag), False, 0, found.etag)
