"""One run of a file, cut into parts that are sent while the next bytes are written.

Several writers may each write a run of one file, without knowing of each other. A part is numbered by where it
begins: 1 + offset // part size. All parts of a run have that size but the last, which takes what is left over and
has from one to two of it. So a run of at least one part size ends before the number with which the next run
begins, and numbers go up with offsets. What is known to be the end of the file is a part of its own, as some stores
want all parts but a smaller last one alike; its number comes after all such numbers, so that a run that ends the
file may be short. Any other run that is shorter than a part must be the first or the only one.
"""

from collections import deque
from concurrent.futures import Future

from distconv.errors import ConversionError
from distconv.storage.base import Buffer
from distconv.storage.memory import give_back, take_buffer
from distconv.storage.parallel import submit
from distconv.storage.s3.client import connect
from distconv.storage.s3.documents import StoredPart
from distconv.storage.s3.place import Place, split_path
from distconv.storage.s3.uploads import send_part

_SMALLEST_PART = 5 << 20
"""The least that S3 takes: of as much memory more is on its way than with larger ones."""
_MOST_PARTS = 9000
"""S3 takes 10,000; what runs leave over must fit in as well."""
BUFFERS = 7
"""So many parts' memory a writer has at most: those that are sent, one being filled, and of a run one that waits for its size."""
_MIB = 1 << 20


def part_size(size_bytes: int) -> int:
    """Give the size of the parts of a file of this size."""
    exact = -(-size_bytes // _MOST_PARTS)
    return max(_SMALLEST_PART, -(-exact // _MIB) * _MIB)


def number_part(first: int, end: int, size_bytes: int) -> int:
    """Number the part of these bytes, in a file of this size."""
    step = part_size(size_bytes)
    is_end = 0 < first < end == size_bytes
    return 2 + end // step if is_end else 1 + first // step


class PartStream:
    """A run of a file; what is written is copied at once, and sent by threads."""

    def __init__(
        self, place: Place, path: str, upload: Future[str], size_bytes: int, *, alone: bool = False
    ) -> None:
        """Begin wherever the first write is; ``alone``: who writes a file's first byte writes all of it.

        The upload's id may still be on its way.
        """
        self.parts: list[StoredPart] = []
        """What is stored, in order."""
        self.first = self.end = -1
        self._place, self._path, self._upload, self._alone = place, path, upload, alone
        self._bucket, self._key = split_path(path)
        self._size_bytes, self._part_bytes = size_bytes, part_size(size_bytes)
        self._held: list[memoryview] = []
        self._filled = 0
        """How much of the last of those that are held is written."""
        self._part_start = 0
        self._free: list[memoryview] = []
        self._made = 0
        self._sent: deque[tuple[Future[StoredPart], list[memoryview]]] = deque()
        self._failure: Exception | None = None

    def write(self, offset_bytes: int, buffer: Buffer) -> None:
        """Write the whole buffer behind what was written before; ConversionError where it goes elsewhere."""
        view = memoryview(buffer).cast("B")
        if self.first < 0:
            self.first = self.end = self._part_start = offset_bytes
        elif offset_bytes != self.end:
            raise ConversionError(
                f"{self._path}: written at byte {offset_bytes:,} after byte {self.end:,}; "
                "what goes to an object store is written in order of offset"
            )
        while view:
            if not self._held or self._filled == len(self._held[-1]):
                self._turn()
            last = self._held[-1]
            count = min(len(view), len(last) - self._filled)
            last[self._filled : self._filled + count] = view[:count]
            self._filled += count
            self.end += count
            view = view[count:]
            if self._is_whole and (self._filled == self._part_bytes or self.end == self._size_bytes):
                self._send([last[: self._filled]])
                self._held = []

    @property
    def _is_whole(self) -> bool:
        """Whether the parts' sizes are known beforehand, as the run is the file."""
        return self._alone and self.first == 0

    def finish(self) -> None:
        """Wait until all is stored; what of it failed is raised, however often this is called."""
        if self._failure is not None:
            raise self._failure
        if self._held:
            self._held[-1] = self._held[-1][: self._filled]
            if self.end == self._size_bytes:
                self._send(self._held[:1])
                del self._held[0]
            if self._held:
                self._send(self._held)
            self._held = []
        while self._sent:
            self._wait()

    def finish_empty(self) -> None:
        """Store the one part of a file of no bytes."""
        self.first = self.end = 0
        client, upload = connect(self._place), self._upload.result()
        self.parts.append(send_part(client, self._bucket, self._key, upload, 1, ()))

    def close(self) -> None:
        """Drop what is not sent, and wait for what is: nothing is stored after this."""
        self._held = []
        while self._sent:
            future, blocks = self._sent.popleft()
            if not future.cancel():
                future.exception()
            self._free += (block for block in blocks if len(block) == self._part_bytes)
        while self._free:
            give_back(self._free.pop())

    def _turn(self) -> None:
        """Make room: the part before last has its size now, the last waits whether it will be the end."""
        if len(self._held) > 1:
            self._send(self._held[:1])
            del self._held[0]
        self._held.append(self._take())
        self._filled = 0

    def _take(self) -> memoryview:
        while not self._free and self._made == BUFFERS:
            self._wait()
        if self._free:
            return self._free.pop()
        self._made += 1
        # A small file needs no more than its size.
        left = self._size_bytes - self.end
        return take_buffer(min(self._part_bytes, max(left, 1)))

    def _send(self, blocks: list[memoryview]) -> None:
        end = self._part_start + sum(len(block) for block in blocks)
        number = number_part(self._part_start, end, self._size_bytes)
        self._part_start = end
        client, upload = connect(self._place), self._upload.result()
        future = submit(send_part, client, self._bucket, self._key, upload, number, blocks)
        self._sent.append((future, blocks))

    def _wait(self) -> None:
        future, blocks = self._sent.popleft()
        try:
            self.parts.append(future.result())
        except Exception as error:
            self._failure = error
            raise
        self._free += (block for block in blocks if len(block) == self._part_bytes)
