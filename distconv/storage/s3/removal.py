"""Files that are removed such that whoever was held up while he did it removes nothing of a successor's.

A deletion cannot be dropped by others as an upload can, and a condition on the ETag is no fence: a successor may
have made the same bytes again, which have the same ETag. So a removal is an upload as well, of a note that nobody
else writes. Its completion puts the note in the file's place, unless it was dropped before; then the note is
deleted, on condition that it is still that very note. A note that stays because its maker died is treated as if
nothing were there: a list of the folder's names has it as an unfinished attempt, and to drop that deletes it.
"""

import posixpath
import uuid

from distconv.storage.s3.client import connect
from distconv.storage.s3.completion import Completion
from distconv.storage.s3.objects import ATTEMPT, REMOVED, delete, head
from distconv.storage.s3.place import Place, split_path
from distconv.storage.s3.uploads import begin_upload, drop_upload, make_name, send_part

_NOTE = b"This file was removed. What stands here goes with the next run of distconv.\n"
NOTE_BYTES = len(_NOTE) + 33
"""Of this size all notes are: only such objects are looked at closer where a folder is listed."""
_NOTE_ID = "removed "


class S3Removal:
    """A file that is going to be removed."""

    def __init__(self, place: Place, path: str) -> None:
        """Prepare the note, if there is a file."""
        self._place, self._path = place, path
        self._bucket, self._key = split_path(path)
        self._upload = ""
        client = connect(place)
        found = head(client, self._bucket, self._key)
        if found is None or found.is_removed:
            return
        self._token = uuid.uuid4().hex
        marks = {ATTEMPT: self._token, REMOVED: self._token}
        self._upload = begin_upload(client, self._bucket, self._key, marks)
        try:
            self._part = send_part(client, self._bucket, self._key, self._upload, 1, (self._content,))
        except BaseException:
            self.abort()
            raise

    def commit(self) -> None:
        """Remove the file; one that was not there is no error. FileNotFoundError where this was dropped."""
        if not self._upload:
            return
        client = connect(self._place)
        Completion(client, self._bucket, self._key, self._upload, self._token, (self._part,)).overwrite()
        self._upload = ""
        found = head(client, self._bucket, self._key)
        if found is not None and found.metadata.get(ATTEMPT) == self._token:
            delete(client, self._bucket, self._key, found.etag)

    def abort(self) -> None:
        """Leave nothing behind; after a commit as well."""
        if self._upload:
            drop_upload(connect(self._place), self._bucket, self._key, self._upload)
            self._upload = ""

    @property
    def _content(self) -> bytes:
        return _NOTE + f"{self._token}\n".encode()


def name_note(name: str, etag: str) -> str:
    """Name the attempt that a note in a file's place is."""
    return make_name(name, _NOTE_ID + etag)


def drop_attempt(place: Place, folder: str, name: str, upload: str) -> None:
    """Drop what ``uploads.parse_name`` tells of: an upload, or a note."""
    client = connect(place)
    bucket, key = split_path(posixpath.join(folder, name))
    if upload.startswith(_NOTE_ID):
        delete(client, bucket, key, upload.removeprefix(_NOTE_ID))
    else:
        drop_upload(client, bucket, key, upload)
