"""An upload becomes an object, at one stroke and only where that may be.

A completion whose answer is lost is never sent again blindly: what stands under the name tells whose it is.
"""

import errno
import os
from collections.abc import Callable, Mapping, Sequence

from distconv.storage.http.retry import TransientError, persist
from distconv.storage.http.wire import Answer
from distconv.storage.s3.client import Call, Client
from distconv.storage.s3.documents import StoredPart, make_completion, parse, text
from distconv.storage.s3.objects import ABSENT, ATTEMPT, REFUSED, Head, delete, head
from distconv.storage.s3.refusals import read_answer, refuse
from distconv.storage.s3.sums import combine_sums
from distconv.storage.s3.uploads import is_there

Condition = Callable[[], Mapping[str, str]]
"""Gives the condition of the next try."""


class Completion:
    """The end of one upload."""

    def __init__(
        self,
        client: Client,
        bucket: str,
        key: str,
        upload: str,
        token: str | None,
        parts: Sequence[StoredPart],
    ) -> None:
        """Take the parts in order; ``token`` is the upload's own, unless somebody else began it."""
        self._client, self._bucket, self._key, self._upload = client, bucket, key, upload
        self._token, self._parts = token, parts
        self.etag: str | None = None
        """Of the object, where the store told it."""
        self._is_unsure = False
        self._sum: str | None = None
        if parts and all(part.crc64nvme for part in parts):
            self._sum = combine_sums((part.crc64nvme or "", part.size_bytes) for part in parts)

    def create(self) -> bool:
        """Give the object its name unless that is taken; False where it is.

        FileNotFoundError where the upload was dropped.
        """
        return self._persist(lambda: ABSENT, self._answer_taken)

    def replace(self) -> bool:
        """Give the object its name, in place of what has it now; FileNotFoundError where the upload was dropped."""
        return self._persist(self._see, self._answer_changed)

    def overwrite(self) -> bool:
        """Give the object its name, whatever has it; FileNotFoundError where the upload was dropped."""
        return self._persist(dict, self._answer_changed)

    def _persist(self, condition: Condition, answer_refused: Callable[[Head | None], bool]) -> bool:
        return persist(lambda: self._try(condition, answer_refused), self._client.patience_seconds)

    def _try(self, condition: Condition, answer_refused: Callable[[Head | None], bool]) -> bool:
        try:
            answer = self._send(condition())
        except TransientError:
            self._is_unsure = True
            if self._is_ours(self._head()):
                return True
            raise
        if answer.status < 300:
            self.etag = _read_etag(answer)
            return True
        found = self._head()
        if self._is_ours(found):
            return True
        answer, code = read_answer(answer)
        if answer.status == 409:
            # S3 keeps nothing of the upload for another try.
            raise refuse(self._path, "CompleteMultipartUpload", answer, code, self._client.access.identity)
        # Some tell of what stands under the name before they look for the upload.
        if code == "NoSuchUpload" or not is_there(self._client, self._bucket, self._key, self._upload):
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), self._path)
        return answer_refused(found)

    def _answer_taken(self, found: Head | None) -> bool:
        if found is None or found.is_removed:
            if found is not None:
                # Whose removal it was did not come to its end.
                delete(self._client, self._bucket, self._key, found.etag)
            raise self._changed()
        return False

    def _answer_changed(self, _found: Head | None) -> bool:
        raise self._changed()

    def _see(self) -> Mapping[str, str]:
        found = self._head()
        return ABSENT if found is None else {"If-Match": found.etag}

    def _is_ours(self, found: Head | None) -> bool:
        """Whether what stands under the name is what this was to make of it."""
        if found is None:
            return False
        if self._token is not None:
            return found.metadata.get(ATTEMPT) == self._token
        return self._is_unsure and self._sum is not None and found.metadata.get(_SUM) == self._sum

    def _send(self, condition: Mapping[str, str]) -> Answer:
        headers = dict(condition)
        if self._sum is not None:
            headers |= {_SUM: self._sum, "x-amz-checksum-type": "FULL_OBJECT"}
        call = Call(
            "CompleteMultipartUpload", "POST", self._bucket, self._key, {"uploadId": self._upload}, headers,
            (make_completion(self._parts),),
        )  # fmt: skip
        return self._client.ask_once(call, accept=REFUSED)

    def _head(self) -> Head | None:
        return head(self._client, self._bucket, self._key, with_sum=self._token is None)

    def _changed(self) -> TransientError:
        error = TransientError(
            errno.EAGAIN, "what stands there changes whenever it is to be replaced", self._path
        )
        error.at_once = True
        return error

    @property
    def _path(self) -> str:
        return Call("", "", self._bucket, self._key).path


def _read_etag(answer: Answer) -> str | None:
    """Read an ETag as lists have it; None where the answer has none, or writes it otherwise."""
    root = parse(answer.body)
    etag = "" if root is None else text(root, "ETag")
    return etag if etag.startswith('"') and etag.endswith('"') else None


_SUM = "x-amz-checksum-crc64nvme"
