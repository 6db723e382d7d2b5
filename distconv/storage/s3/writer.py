"""A file on its way into a store: a multipart upload, small files too, for only an upload can be dropped.

Who goes on with somebody's upload (``take``) has it under the same name and id. It cannot be dropped for its
maker alone: a maker who still lives can write parts, and complete it. That does no harm, as both are of the same
conversion, and so write the same bytes; whoever completes it first makes the other find its file there.
"""

import errno
import hashlib
import os
import uuid
from collections.abc import Iterable
from concurrent.futures import Future

from distconv.errors import ConversionError
from distconv.storage.base import Buffer
from distconv.storage.parallel import make_done, submit
from distconv.storage.s3.client import connect
from distconv.storage.s3.completion import Completion
from distconv.storage.s3.documents import StoredPart
from distconv.storage.s3.objects import ATTEMPT, head
from distconv.storage.s3.place import Place, split_path
from distconv.storage.s3.stream import PartStream, number_part, part_size
from distconv.storage.s3.uploads import begin_upload, drop_upload, list_parts, name_attempt


def make_version(parts: Iterable[StoredPart]) -> str:
    """Tell parts from those that are sent in their place, by the numbers and ETags that they have in a store."""
    told = "".join(f"{part.number} {part.size_bytes} {part.etag.strip(chr(34))}\n" for part in parts)
    return hashlib.sha256(told.encode()).hexdigest()


class S3PartWriter:
    """A run of a file that somebody else began; written in order of offset from wherever the first write is."""

    def __init__(
        self, place: Place, path: str, upload: Future[str], size_bytes: int, *, alone: bool = False
    ) -> None:
        """Take the id of an upload; ``alone``: see ``PartStream``."""
        self._place, self._path, self._began = place, path, upload
        self._bucket, self._key = split_path(path)
        self._size_bytes = size_bytes
        self._stream = PartStream(place, path, upload, size_bytes, alone=alone)

    @classmethod
    def open(cls, place: Place, path: str, upload: str, size_bytes: int) -> "S3PartWriter":
        """Take an upload that is there."""
        return cls(place, path, make_done(upload), size_bytes)

    @property
    def _upload(self) -> str:
        return self._began.result()

    def write_at(self, offset_bytes: int, buffer: Buffer) -> None:
        """Write the whole buffer; FileNotFoundError, sooner or later, where the upload was dropped."""
        self._stream.write(offset_bytes, buffer)

    def finish(self) -> str | None:
        """Wait until what was written is stored; gives its version."""
        self._stream.finish()
        return make_version(self._stream.parts)

    def holds(self, first_byte: int, end_byte: int, version: str) -> bool:
        """Whether the parts of a run that ``end_byte`` does not end the file with are those of this version."""
        first, end = (number_part(at, at, self._size_bytes) for at in (first_byte, end_byte))
        client = connect(self._place)
        found = list_parts(client, self._bucket, self._key, self._upload, first, end) or []
        return (
            sum(part.size_bytes for part in found) == end_byte - first_byte and make_version(found) == version
        )

    def close(self) -> None:
        """Drop what is not sent; nothing is stored after this."""
        self._stream.close()


class S3Writer(S3PartWriter):
    """A file that is being written, by this and by those who open its attempt; visible once it is committed."""

    def __init__(
        self, place: Place, path: str, upload: Future[str], size_bytes: int, token: str | None
    ) -> None:
        """Take an upload; ``token`` is None where somebody else began it."""
        super().__init__(place, path, upload, size_bytes, alone=token is not None)
        self._token = token
        self._is_committed = False
        self._etag: str | None = None

    @property
    def attempt(self) -> str:
        """By which others open it."""
        return name_attempt(self._path, self._upload)

    @classmethod
    def begin(cls, place: Place, path: str, size_bytes: int) -> "S3Writer":
        """Begin an upload.

        Of a file of several parts it is waited for when the first one is sent, and so before it is asked who owns the
        folder: who takes that over must find all uploads that may still be completed.
        """
        bucket, key = split_path(path)
        token = uuid.uuid4().hex
        upload = submit(begin_upload, connect(place), bucket, key, {ATTEMPT: token})
        if size_bytes <= part_size(size_bytes):
            upload.result()
        return cls(place, path, upload, size_bytes, token)

    @classmethod
    def take(cls, place: Place, path: str, upload: str, size_bytes: int) -> "S3Writer | None":
        """Go on with an upload; None where it is not there, or more is stored than goes into the file."""
        bucket, key = split_path(path)
        parts = list_parts(connect(place), bucket, key, upload)
        if parts is None or sum(part.size_bytes for part in parts) > size_bytes:
            return None
        return cls(place, path, make_done(upload), size_bytes, None)

    def commit(self, *, replace: bool = False) -> bool:
        """Make an object of all parts, those of others too; False where the name is taken.

        ConversionError where they are not the whole file; FileNotFoundError where the upload was dropped.
        """
        if self._is_committed:
            return True
        if self._size_bytes == 0 and not self._stream.parts:
            self._stream.finish_empty()
        self.finish()
        completion = Completion(
            connect(self._place), self._bucket, self._key, self._upload, self._token, self._gather()
        )
        self._is_committed = completion.replace() if replace else completion.create()
        self._etag = completion.etag
        return self._is_committed

    def find_version(self) -> str | None:
        """Give the ETag of the object that was made of the upload; None where it was not told, and another stands there by now."""
        if self._etag is not None:
            return self._etag
        found = head(connect(self._place), self._bucket, self._key)
        is_ours = found is not None and self._token is not None and found.metadata.get(ATTEMPT) == self._token
        return found.etag if found is not None and is_ours else None

    def abort(self) -> None:
        """Drop the upload."""
        self.close()
        if not self._is_committed and self._began.exception() is None:
            drop_upload(connect(self._place), self._bucket, self._key, self._upload)

    def _gather(self) -> list[StoredPart]:
        parts = self._stream.parts
        if self._stream.first != 0 or self._stream.end != self._size_bytes:
            # The store does not tell the sums of all parts, but of our own we know them.
            listed = list_parts(connect(self._place), self._bucket, self._key, self._upload)
            if listed is None:
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), self._path)
            own = {part.number: part for part in parts}
            parts = [own.get(part.number, part) for part in listed]
        offset = 0
        for part in parts:
            wanted = number_part(offset, offset + part.size_bytes, self._size_bytes)
            if part.number != wanted:
                raise ConversionError(
                    f"{self._path}: part {part.number} begins at byte {offset:,}, where part "
                    f"{wanted} belongs; parts are missing or of another cut"
                )
            offset += part.size_bytes
        if offset != self._size_bytes:
            raise ConversionError(f"{self._path}: {offset} bytes written, expected {self._size_bytes}")
        return parts
