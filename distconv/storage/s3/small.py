"""Small files that several may make or change at the same time."""

import errno
import os
from collections.abc import Callable, Mapping

from distconv.storage.http.retry import TransientError, persist
from distconv.storage.http.wire import Answer
from distconv.storage.s3.client import connect
from distconv.storage.s3.objects import ABSENT, delete, get, head, put
from distconv.storage.s3.place import Place, split_path
from distconv.storage.s3.refusals import refuse


def read_now(place: Place, path: str, limit_bytes: int) -> bytes:
    """Read the beginning of a file; FileNotFoundError where there is none."""
    bucket, key = split_path(path)
    found = get(connect(place), bucket, key, limit_bytes)
    if found is None or found[0].is_removed:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
    return found[1]


def create(place: Place, path: str, content: bytes) -> bool:
    """Make a file; False where there is one."""
    client = connect(place)
    bucket, key = split_path(path)

    def is_taken(answer: Answer) -> bool:
        if answer.status == 404:
            raise refuse(path, "PutObject", answer, "NoSuchBucket", client.access.identity)
        found = head(client, bucket, key)
        if found is not None and found.is_removed:
            # Whose removal it was did not come to its end.
            delete(client, bucket, key, found.etag)
        return found is not None and not found.is_removed

    return _put_surely(place, path, content, ABSENT, is_taken)


def refresh(place: Place, path: str, mark: bytes, content: bytes) -> bool:
    """Overwrite a file that contains ``mark``; False where it does not, or somebody else changed it meanwhile."""
    bucket, key = split_path(path)
    found = get(connect(place), bucket, key, len(content))
    if found is None or found[0].is_removed or mark not in found[1]:
        return False
    condition = {"If-Match": found[0].etag}
    return _put_surely(place, path, content, condition, lambda answer: answer.status != 409)


def _put_surely(
    place: Place,
    path: str,
    content: bytes,
    condition: Mapping[str, str],
    is_final: Callable[[Answer], bool],
) -> bool:
    """Write a file on a condition; False where that does not hold.

    Where an answer was lost, what stands there tells: nobody else writes the same content. ``is_final``
    tells whether a refusal stays; otherwise it is tried again.
    """
    client = connect(place)
    bucket, key = split_path(path)
    is_unsure = False

    def attempt() -> bool:
        nonlocal is_unsure
        try:
            answer = put(client, bucket, key, content, condition)
        except TransientError:
            is_unsure = True
            raise
        if answer.status < 300:
            return True
        if not is_final(answer):
            raise TransientError(errno.EAGAIN, "what stands there changes all the time", path)
        return is_unsure and _holds(place, path, content)

    return persist(attempt, client.patience_seconds)


def _holds(place: Place, path: str, content: bytes) -> bool:
    try:
        return read_now(place, path, len(content) + 1) == content
    except FileNotFoundError:
        return False
