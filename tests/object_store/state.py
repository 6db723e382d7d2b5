"""What a store holds, what it is told to be like, and the locks that make its verbs exact."""

import secrets
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from tests.object_store.bodies import Body
from tests.object_store.errors import StoreError

ACCESS_KEY, SECRET_KEY = "test-access", "test-secret"
SECOND_ACCESS_KEY, SECOND_SECRET_KEY = "second-access", "second-secret"
SECRETS = {ACCESS_KEY: SECRET_KEY, SECOND_ACCESS_KEY: SECOND_SECRET_KEY}


@dataclass(frozen=True, slots=True)
class Settings:
    """What a store is like; all of it can be changed while it runs."""

    latency_s: float = 0.0  # from a whole request to its effect and the first byte of its answer
    rate: float = 0.0  # bytes a second and connection, either way; nought: no limit
    discard: bool = False  # large bodies are thrown away, and read as made-up bytes of their size
    random_etags: bool = False  # rather than MD5 (and MD5 of MD5s): another one at every write
    verify_signatures: bool = True
    ignored_conditions: tuple[str, ...] = ()  # "put", "complete", "delete": such stores exist
    forget_completed: bool = False  # a second completion: 404, where S3 says 200 again
    equal_parts: bool = False  # all parts but the last must have one size, as R2 wants
    minimum_part_bytes: int = 5 << 20  # of all parts but the last
    denied: tuple[tuple[str, str, str], ...] = ()  # (access key, operation or "*", "bucket/prefix")
    clock_ahead_s: float = 0.0  # what Date, LastModified and the check of signatures' times say


@dataclass(frozen=True, slots=True)
class Checksum:
    """A checksum of an object or part: its algorithm, base64, FULL_OBJECT or COMPOSITE."""

    algorithm: str
    value: str
    kind: str


@dataclass(frozen=True, slots=True)
class Stored:
    """An object or a part."""

    body: Body
    etag: str
    modified: float
    headers: dict[str, str]  # what is told to who reads it: content-type, x-amz-meta-*
    checksum: Checksum | None

    @property
    def size_bytes(self) -> int:
        return self.body.size_bytes


@dataclass(frozen=True, slots=True)
class Upload:
    """A multipart upload that is neither completed nor aborted."""

    name: str
    bucket: str
    key: str
    begun: float
    headers: dict[str, str]
    algorithm: str
    kind: str
    asked: bool  # whether the client named the algorithm
    parts: dict[int, Stored] = field(default_factory=dict)


class State:
    """All that a store holds. Objects and parts are immutable; the tables change under the key's lock only."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.buckets: dict[str, dict[str, Stored]] = {}
        self.uploads: dict[str, Upload] = {}
        self.completed: dict[str, Stored] = {}
        self._locks: dict[tuple[str, str], threading.Lock] = {}
        self._guard = threading.Lock()

    def now(self) -> float:
        """Give the store's time."""
        return time.time() + self.settings.clock_ahead_s

    def objects(self, bucket: str) -> dict[str, Stored]:
        """Give a bucket's objects by key."""
        with self._guard:
            if bucket not in self.buckets:
                raise StoreError("NoSuchBucket", f"there is no bucket {bucket}")
            return self.buckets[bucket]

    def listed(self, bucket: str) -> list[tuple[str, Stored]]:
        """Give a bucket's objects as they are at one moment, by key."""
        objects = self.objects(bucket)
        with self._guard:
            return sorted(objects.items(), key=lambda item: item[0].encode())

    def listed_uploads(self, bucket: str) -> list[Upload]:
        """Give a bucket's uploads as they are at one moment, by key and age."""
        with self._guard:
            found = [upload for upload in self.uploads.values() if upload.bucket == bucket]
        return sorted(found, key=lambda upload: (upload.key.encode(), upload.begun, upload.name))

    @contextmanager
    def locked(self, bucket: str, key: str) -> Iterator[dict[str, Stored]]:
        """Give a bucket's objects while nobody else looks at or changes one of them."""
        objects = self.objects(bucket)
        with self._guard:
            lock = self._locks.setdefault((bucket, key), threading.Lock())
        with lock:
            yield objects

    def put(self, objects: dict[str, Stored], key: str, stored: Stored | None) -> None:
        """Change an object, or let it go."""
        with self._guard:
            if stored is None:
                objects.pop(key, None)
            else:
                objects[key] = stored

    def begin_upload(self, upload: Upload) -> None:
        """Add an upload."""
        with self._guard:
            self.uploads[upload.name] = upload

    def end_upload(self, upload: Upload, stored: Stored | None) -> None:
        """Take an upload away, completed as an object or aborted."""
        with self._guard:
            del self.uploads[upload.name]
            if stored is not None:
                self.completed[upload.name] = stored

    def upload(self, bucket: str, key: str, name: str) -> Upload:
        """Find an upload."""
        upload = self.uploads.get(name)
        if upload is None or (upload.bucket, upload.key) != (bucket, key):
            raise StoreError(
                "NoSuchUpload", f"no upload {name} of {bucket}/{key}: completed, aborted or never begun"
            )
        return upload


def random_name() -> str:
    """Give a name that nobody has."""
    return secrets.token_hex(16)
