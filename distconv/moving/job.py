"""What a worker is told, and what it tells of a unit that is done."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from distconv.errors import InputError, describe_os_error
from distconv.moving.digests import ChunkDigests, PartDigests
from distconv.moving.spans import Work
from distconv.moving.values import Tally
from distconv.storage.base import Storage, Writer
from distconv.storage.looks import find_each


class Owner(Protocol):
    """Who may write into OUTPUT, as ``output.ownership`` tells it."""

    @property
    def path(self) -> str:
        """The file that says so."""

    def holds(self, storage: Storage) -> bool:
        """Whether OUTPUT is still this owner's, as seen from here."""

    def check(self, storage: Storage) -> None:
        """Raise OutputError where it is another's by now."""

    def commit(self, storage: Storage, writer: Writer, *, replace: bool = False) -> bool:
        """Commit a file; OutputError where OUTPUT is another's by now."""


@dataclass(frozen=True, slots=True)
class Preconditions:
    """How to tell, on another host, that INPUT and OUTPUT are the ones that are meant."""

    sources: Mapping[str, int] = field(default_factory=dict)
    """Sizes in bytes of INPUT's files."""
    owner: Owner | None = None
    """Whose OUTPUT is: a folder of the same name on a local disk is nobody's, or another's."""

    def find_missing_source(self, storage: Storage) -> str | None:
        """Tell which of INPUT's files is not to be seen here, if any."""
        try:
            for path, entry in find_each(storage, self.sources).items():
                size_bytes = self.sources[path]
                if entry is None:
                    return f"{path} is not there"
                if entry.size_bytes != size_bytes:
                    return f"{path} has {entry.size_bytes:,} bytes, expected {size_bytes:,}"
        except OSError as error:
            return describe_os_error(error)
        return None

    def find_other_output(self, storage: Storage) -> str | None:
        """Tell why OUTPUT is not the folder that is meant, if so."""
        if self.owner is None:
            return None
        try:
            if self.owner.holds(storage):
                return None
        except OSError as error:
            return describe_os_error(error)
        return f"{self.owner.path} is not there, or another conversion's"


@dataclass(frozen=True, slots=True)
class Job:
    """All that a worker must know besides its unit of work."""

    storage: Storage
    output: str
    device: str
    block_bytes: int | None = None
    """What is read and gathered at once; None leaves it to the device."""
    recorded: Mapping[str, ChunkDigests] = field(default_factory=dict)
    """Digests of files that an earlier run finished."""
    parts: Mapping[str, PartDigests] = field(default_factory=dict)
    """Digests of parts that an earlier run wrote, by their names."""
    vouched: Collection[str] = frozenset()
    """Of these the ones for which a version vouches: they need not be read again."""
    attempts: Mapping[str, str] = field(default_factory=dict)
    """Files that are written in parts, and what they are open as: see ``Storage.open_attempt``."""
    traced: bool = False
    """Whether receipts tell of each read, gather and write."""
    preconditions: Preconditions = field(default_factory=Preconditions)
    """What a worker must see before it may begin."""

    def commit(self, writer: Writer, *, replace: bool = False) -> bool:
        """Commit a file of OUTPUT; OutputError where that is another conversion's by now."""
        if self.preconditions.owner is None:
            return writer.commit(replace=replace)
        return self.preconditions.owner.commit(self.storage, writer, replace=replace)


@dataclass(frozen=True, slots=True)
class Found:
    """What an examination found, tensor by tensor in its order, and of all runs together; digests in hex."""

    tensors: tuple[str, ...] = ()
    """Digests, where they were asked for."""
    tallies: tuple[Tally, ...] = ()
    checksums: tuple[int, ...] = ()
    """CRC32s, where they were asked for."""
    whole: str | None = None
    md5: str | None = None
    problem: str | None = None
    """Why nothing was found out, where a file is not what its header says any more."""

    def check(self) -> None:
        """Raise InputError where nothing was found out."""
        if self.problem is not None:
            raise InputError(self.problem)


@dataclass(frozen=True, slots=True)
class PartReceipt:
    """A part that is durable in its file, with all that the file's seal is made of."""

    part: str
    digests: PartDigests
    kept: bool = False


@dataclass(frozen=True, slots=True)
class Receipt:
    """What was done for one unit; ``kept`` says that it had been finished before."""

    chunk: str
    digests: ChunkDigests
    bytes_read: int
    bytes_written: int
    became_infinite: int = 0
    version: str | None = None
    """Of the file's entry, where no other content ever has it."""
    kept: bool = False
    parts: tuple[PartReceipt, ...] = ()
    """Of a stripe; it was kept where all of them were."""
    md5: str | None = None
    """In hex, of the whole file, where that was the unit."""
    equal: bool | None = None
    """What is answered, where a question was the unit."""
    found: Found | None = None
    """What was found, where an examination was the unit."""
    attempts: int = field(default=1, compare=False)
    """How often the unit was begun; the executor counts."""
    work: Work = field(default_factory=Work, compare=False)
