"""One conversion at a time into one folder, whichever host it runs on.

Who owns a folder has a file in it, ``.distconv.owner.<generation>``, which exactly one can
create, and beats in it. A holder on this machine is asked for by its process id; what one
elsewhere writes is read again and again, as hosts' clocks differ and their file systems
remember what files looked like. Who finds all holders dead creates the next generation,
sees that nobody else has come meanwhile, and removes theirs, so that each finds its own
missing before it does anything more. What a holder had prepared by then is dropped, so
that nothing of it lands after its successor has looked at what the folder holds.
"""

import contextlib
import errno
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from distconv.errors import ConversionError, InputError, OutputError
from distconv.output.holders import Holder
from distconv.storage.base import ConflictError, Storage, Writer, join
from distconv.storage.fencing import is_attempt

OWNER_PREFIX = ".distconv.owner."
_LIMIT_BYTES = 1 << 12
_MOST_CONFLICTS = 4
_OWNER = re.compile(rf"{re.escape(OWNER_PREFIX)}\d{{8,}}")
_FIRST = ".distconv.lock"
"""What holders wrote of themselves before there were generations; it counts as that of the first."""

IsOurs = Callable[[str], bool]
"""Whether a name is that of something that a conversion was writing or removing."""


def is_owner_attempt(name: str) -> bool:
    """Whether a name is that of an owner's file that was being removed."""
    return name.startswith(f".{OWNER_PREFIX}") and is_attempt(name)


def is_owner_file(name: str) -> bool:
    """Whether a name is that of a file which says who has the folder."""
    return name == _FIRST or _OWNER.fullmatch(name) is not None


def is_owned(names: Iterable[str]) -> bool:
    """Whether somebody has the folder in which these are, or had it and did not give it back."""
    return any(map(is_owner_file, names))


@dataclass(frozen=True, slots=True)
class Ownership:
    """That a folder is a conversion's; workers elsewhere get it too, and ask it before each change."""

    folder: str
    path: str
    """Of the owner's file."""
    token: str
    """What the file contains in this folder, for this conversion, and nowhere else."""

    def holds(self, storage: Storage) -> bool:
        """Whether the folder is still this conversion's."""
        content = read_owner(storage, self.path)
        return content is not None and self.token.encode() in content

    def check(self, storage: Storage) -> None:
        """Raise OutputError where it is not."""
        if not self.holds(storage):
            raise OutputError(self._loss(storage))

    def commit(self, storage: Storage, writer: Writer, *, replace: bool = False) -> bool:
        """Commit a file of the folder; OutputError, and nothing written, where it is not this conversion's."""
        with self.explaining(storage):
            # It was prepared before this check: whoever takes the folder over after it drops it.
            self.check(storage)
            return writer.commit(replace=replace)

    def write(self, storage: Storage, name: str, content: bytes) -> None:
        """Write a whole small file, in place of an older one if there is one."""

        def write() -> None:
            writer = storage.begin(join(self.folder, name), len(content))
            try:
                writer.write_at(0, content)
                self.commit(storage, writer, replace=True)
            finally:
                writer.abort()

        with self.explaining(storage):
            _do_again(write)

    def remove(self, storage: Storage, name: str) -> None:
        """Remove a file of the folder; one that is not there is no error."""

        def remove() -> None:
            removal = storage.begin_removal(join(self.folder, name))
            try:
                self.check(storage)
                removal.commit()
            finally:
                removal.abort()

        with self.explaining(storage):
            _do_again(remove)

    def sweep(self, storage: Storage, is_ours: IsOurs) -> None:
        """Drop what others were writing or removing; from now on none of it can land."""
        # What is listed before it is asked whose the folder is cannot be a successor's.
        found = [name for name in storage.list_names(self.folder) if is_ours(name)]
        self.check(storage)
        for name in found:
            storage.drop_attempt(join(self.folder, name))

    @contextlib.contextmanager
    def explaining(self, storage: Storage) -> Iterator[None]:
        """Let what fails because the folder is somebody else's by now say so."""
        try:
            yield
        except (OSError, ConversionError, OutputError):
            self.check(storage)
            raise

    def _loss(self, storage: Storage) -> str:
        holders = map(Holder.parse, read_owners(storage, self.folder).values())
        other = next((holder for holder in holders if holder is not None), None)
        who = f"another conversion ({other}) took it over"
        if other is None:
            who = f"another conversion took it over and has ended, or {self.path} was removed,"
        return f"{self.folder}: {who} while this one was held up; what stands there now was not touched"


def _do_again(work: Callable[[], None]) -> None:
    """Do it again where a store says that another request came in between: it keeps nothing of such an upload."""
    for _ in range(_MOST_CONFLICTS):
        try:
            work()
        except ConflictError:
            continue
        return
    work()


def read_owner(storage: Storage, path: str) -> bytes | None:
    """Read an owner's file; None where there is none, nothing where it is no file."""
    try:
        return storage.read_now(path, _LIMIT_BYTES)
    except FileNotFoundError:
        return None
    except InputError:
        return b""
    except OSError as error:
        # Removed on another host; or a link or a socket.
        if error.errno == errno.ESTALE:
            return None
        if error.errno in {errno.ELOOP, errno.ENXIO}:
            return b""
        raise


def read_owners(storage: Storage, folder: str) -> dict[str, bytes]:
    """Read all owners' files of a folder, by path."""
    paths = (join(folder, name) for name in storage.list_names(folder) if is_owner_file(name))
    return {path: content for path in paths if (content := read_owner(storage, path)) is not None}
