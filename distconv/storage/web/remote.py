"""Files that servers give by ranges: what is known of one, and how it is read."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from distconv.storage.base import Access, Told, ignore
from distconv.storage.http.ranges import ACCESS


@dataclass(frozen=True, slots=True)
class Remote:
    """A file as it was first seen."""

    path: str
    """As messages name it; no secret."""
    size_bytes: int
    version: str
    """Another one wherever the content is another."""
    service: str = ""
    """Whom the path is told to, where it does not say so itself."""

    @property
    def stamp(self) -> str:
        """Changes whenever the file does."""
        return f"{self.size_bytes} {self.version}"


class Finder(Protocol):
    """Knows where a place's files are asked for."""

    def find_url(self, remote: Remote) -> str:
        """Give the URL that a file is asked for at now, which may be a secret; InputError where it is another file."""

    def find_tag(self, remote: Remote) -> str | None:
        """Give the ETag that every answer must have; None where all that matters is that it stays the same."""

    def make_headers(self, url: str, remote: Remote) -> Mapping[str, str]:
        """Give what a request to this URL needs, which is a secret."""


class Read(Protocol):
    """Fills memory from an offset of a file."""

    def __call__(
        self, finder: Finder, remote: Remote, offset_bytes: int, buffers: Sequence[memoryview], told: Told
    ) -> None:
        """Do so, by one request, one behind the other."""


class RemoteReader:
    """A file as it was when it was opened; safe to use from several threads."""

    access: Access = ACCESS

    def __init__(self, finder: Finder, remote: Remote, read: Read) -> None:
        """Take what is known of it; nothing is asked."""
        self.path, self.size_bytes = remote.path, remote.size_bytes
        self._finder, self._remote, self._read = finder, remote, read

    def read_into(self, offset_bytes: int, buffer: memoryview) -> None:
        """Fill the whole buffer from this offset, by one request."""
        self.read_vector(offset_bytes, (buffer,))

    def read_vector(self, offset_bytes: int, buffers: Sequence[memoryview], told: Told = ignore) -> None:
        """Fill buffers one behind the other from this offset, by one request."""
        self._read(self._finder, self._remote, offset_bytes, buffers, told)

    def close(self) -> None:
        """Let go of it; nothing is held."""
