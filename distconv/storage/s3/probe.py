"""Whether a store keeps the conditions on which everything rests: some take them and do as if they were not there."""

import contextlib
import uuid
from collections.abc import Iterator

from distconv.errors import OutputError
from distconv.storage.http.retry import persist
from distconv.storage.s3.client import Call, Client, connect
from distconv.storage.s3.documents import make_completion
from distconv.storage.s3.objects import ABSENT, REFUSED, delete, put
from distconv.storage.s3.place import Place, split_folder
from distconv.storage.s3.uploads import begin_upload, drop_upload, is_there, list_uploads, send_part

_REFUSED = REFUSED | {501}


def probe(place: Place, folder: str) -> None:
    """Try each condition on an object of its own in the folder, which is removed again.

    OutputError, which names them, where some are ignored; PermissionError where something is not allowed that a
    conversion does.
    """
    client = connect(place)
    ignored = persist(lambda: _try_all(client, *split_folder(folder)), client.patience_seconds)
    if ignored:
        raise OutputError(
            f"{folder}: this store ignores {', '.join(ignored)}; without them two conversions could destroy "
            "each other's files: give a folder in a store that keeps them, or a local one"
        )


def _try_all(client: Client, bucket: str, prefix: str) -> list[str]:
    token = uuid.uuid4().hex
    # Of a name that the next owner of the folder drops, should this be killed: as an object, and as an upload.
    key = f"{prefix}.distconv.json.probe.{token}-1-{token[:8]}.partial"
    for _name in list_uploads(client, bucket, prefix):
        break
    try:
        ignored = [*_try_puts(client, bucket, key), *_try_upload(client, bucket, key)]
        ignored += _try_delete(client, bucket, key)
    finally:
        delete(client, bucket, key)
    return ignored


def _try_puts(client: Client, bucket: str, key: str) -> Iterator[str]:
    first = put(client, bucket, key, b"first", ABSENT).headers.get("etag", "")
    if put(client, bucket, key, b"second", ABSENT).status < 300:
        yield "If-None-Match of PutObject"
    put(client, bucket, key, b"third", {})
    if put(client, bucket, key, b"fourth", {"If-Match": first}).status < 300:
        yield "If-Match of PutObject"


def _try_upload(client: Client, bucket: str, key: str) -> Iterator[str]:
    upload = begin_upload(client, bucket, key, {})
    body = (make_completion((send_part(client, bucket, key, upload, 1, (b"fifth",)),)),)
    call = Call("CompleteMultipartUpload", "POST", bucket, key, {"uploadId": upload}, ABSENT, body)
    with contextlib.suppress(FileNotFoundError):
        if client.ask_once(call, accept=_REFUSED).status < 300:
            yield "If-None-Match of CompleteMultipartUpload"
    drop_upload(client, bucket, key, upload)
    if is_there(client, bucket, key, upload):
        yield "AbortMultipartUpload"


def _try_delete(client: Client, bucket: str, key: str) -> Iterator[str]:
    call = Call(
        "DeleteObject", "DELETE", bucket, key, headers={"If-Match": '"00000000000000000000000000000000"'}
    )
    if client.ask(call, accept=_REFUSED).status < 300:
        yield "If-Match of DeleteObject"
