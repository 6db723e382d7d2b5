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
import posixpath
import random
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from distconv.errors import InputError, OutputError
from distconv.output.holders import LIVING, Holder
from distconv.storage.base import Storage, Writer, join
from distconv.storage.fencing import is_attempt

OWNER_PREFIX = ".distconv.owner."
BEAT_SECONDS = 5.0
PATIENCE_SECONDS = 30.0
"""Without a beat for so long a holder elsewhere is taken for dead: several beats, on a slow share."""
_WATCH_SECONDS = 0.5
_BEATS = 2
"""So many are seen of who lives: one may be an old one that this host had not seen yet."""
_PAUSE_SECONDS = 0.2
_LIMIT_BYTES = 1 << 12
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


def is_owned(storage: Storage, folder: str) -> bool:
    """Whether somebody has the folder, or had it and did not give it back."""
    return any(is_owner_file(name) for name in storage.list_names(folder))


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
        content = _read(storage, self.path)
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
        with self.explaining(storage):
            writer = storage.begin(join(self.folder, name), len(content))
            try:
                writer.write_at(0, content)
                self.commit(storage, writer, replace=True)
            finally:
                writer.abort()

    def remove(self, storage: Storage, name: str) -> None:
        """Remove a file of the folder; one that is not there is no error."""
        with self.explaining(storage):
            removal = storage.begin_removal(join(self.folder, name))
            try:
                self.check(storage)
                removal.commit()
            finally:
                removal.abort()

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
        except OSError:
            self.check(storage)
            raise

    def _loss(self, storage: Storage) -> str:
        holders = map(Holder.parse, _read_all(storage, self.folder).values())
        other = next((holder for holder in holders if holder is not None), None)
        who = f"another conversion ({other}) took it over"
        if other is None:
            who = f"another conversion took it over and has ended, or {self.path} was removed,"
        return f"{self.folder}: {who} while this one was held up; what stands there now was not touched"


@contextlib.contextmanager
def owned(
    storage: Storage, folder: str, tell: Callable[[str], None], is_ours: IsOurs = is_owner_attempt
) -> Iterator[Ownership]:
    """Own the folder for the block; OutputError where a conversion that lives has it.

    Nothing of ours that an earlier owner had begun to write or to remove is there any more.
    """
    me = Holder.here()
    LIVING.add(me.token)
    try:
        ownership = _acquire(storage, folder, me, tell, is_ours)
        ended = threading.Event()
        # A daemon, and nobody waits for it: it beats in no other file than its own.
        threading.Thread(target=_beat, args=(storage, ownership, me, ended), daemon=True).start()
        try:
            yield ownership
        finally:
            ended.set()
            _release(storage, ownership)
    finally:
        LIVING.discard(me.token)


def _beat(storage: Storage, ownership: Ownership, me: Holder, ended: threading.Event) -> None:
    beat = 0
    while not ended.wait(BEAT_SECONDS):
        beat += 1
        # A beat that fails is missed; the next one may do.
        with contextlib.suppress(OSError):
            if not storage.refresh(ownership.path, me.token.encode(), me.to_bytes(beat)):
                return


def _acquire(
    storage: Storage, folder: str, me: Holder, tell: Callable[[str], None], is_ours: IsOurs
) -> Ownership:
    while True:
        dead = _find_dead(storage, folder, tell)
        ownership = None if dead is None else _claim(storage, folder, me, dead, is_ours)
        if ownership is not None:
            return ownership
        # Others try as well; not all in step.
        time.sleep(random.uniform(0, _PAUSE_SECONDS))  # noqa: S311  no secret


def _claim(
    storage: Storage, folder: str, me: Holder, dead: Mapping[str, bytes], is_ours: IsOurs
) -> Ownership | None:
    """Take the place of the dead; None where somebody else came in between."""
    generation = 1 + max(map(_generation, dead), default=0)
    claim = Ownership(folder, join(folder, f"{OWNER_PREFIX}{generation:08}"), me.token)
    if not storage.create(claim.path, me.to_bytes(0)) and not claim.holds(storage):
        return None
    try:
        others = _read_all(storage, folder)
        others.pop(claim.path, None)
        # Who was judged may have gone long ago, and another have come and gone, or come and stayed.
        if others == dead:
            for path in dead:
                claim.remove(storage, posixpath.basename(path))
            claim.sweep(storage, is_ours)
            return claim
    except BaseException:
        _release(storage, claim)
        raise
    _release(storage, claim)
    return None


def _release(storage: Storage, ownership: Ownership) -> None:
    """Remove the owner's file if it is still this one's."""
    while True:
        # Where it fails, the process id tells the next one that nobody lives here any more.
        with contextlib.suppress(OSError, OutputError):
            try:
                ownership.remove(storage, posixpath.basename(ownership.path))
            except FileNotFoundError:
                # Of two who claim, the one that gets the folder sweeps; the file is still this one's.
                continue
        return


def _find_dead(storage: Storage, folder: str, tell: Callable[[str], None]) -> dict[str, bytes] | None:
    """Give the files of all who had the folder and are dead; None where that has changed meanwhile.

    OutputError where one lives.
    """
    found = _read_all(storage, folder)
    silent: dict[str, bytes] = {}
    for path, content in found.items():
        holder = Holder.parse(content)
        lives = None if holder is None else holder.lives_here()
        if lives:
            raise _refusal(folder, content)
        if lives is None:
            silent[path] = content
    if silent:
        who = next((f"on {holder.host} " for holder in map(Holder.parse, silent.values()) if holder), "")
        tell(
            f"{next(iter(silent))}: a conversion {who}may still run; "
            f"watching until it has been silent for {PATIENCE_SECONDS:.0f} s"
        )
        if not _stay_silent(storage, folder, silent):
            return None
    return found | silent


def _stay_silent(storage: Storage, folder: str, silent: dict[str, bytes]) -> bool:
    """Watch those who cannot be asked, noting what they write; False where one has gone or another come.

    OutputError where one beats.
    """
    beats = dict.fromkeys(silent, 0)
    since = time.monotonic()
    while True:
        time.sleep(_WATCH_SECONDS)
        # Before it is looked, and since after it: who is stopped in between has seen nothing meanwhile.
        now = time.monotonic()
        for path, before in silent.items():
            content = _read(storage, path)
            if content == before:
                continue
            if content is None or not _is_same(content, before):
                return False
            silent[path], since = content, time.monotonic()
            beats[path] += 1
            if beats[path] == _BEATS:
                raise _refusal(folder, content)
        if now - since >= PATIENCE_SECONDS:
            return True


def _is_same(content: bytes, before: bytes) -> bool:
    holder = Holder.parse(content)
    return holder is not None and holder == Holder.parse(before)


def _refusal(folder: str, content: bytes) -> OutputError:
    return OutputError(
        f"{folder}: distconv already writes into it ({Holder.parse(content)}); "
        "wait for its end or give another folder"
    )


def _generation(path: str) -> int:
    number = path.rpartition(".")[2]
    return int(number) if number.isdecimal() else 0


def _read_all(storage: Storage, folder: str) -> dict[str, bytes]:
    """Read all owners' files of a folder, by path."""
    paths = (join(folder, name) for name in storage.list_names(folder) if is_owner_file(name))
    return {path: content for path in paths if (content := _read(storage, path)) is not None}


def _read(storage: Storage, path: str) -> bytes | None:
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
