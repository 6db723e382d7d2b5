"""One conversion at a time into one folder, whichever host it runs on.

The lock is a file that names its holder. A holder on this machine is asked for by its
process id; of one elsewhere the heartbeat tells, which is watched rather than compared with
a clock, as hosts' clocks differ.
"""

import contextlib
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from distconv.errors import InputError, OutputError
from distconv.storage import Storage, join, read_small, write_small

LOCK_NAME = ".distconv.lock"
BEAT_SECONDS = 5.0
PATIENCE_SECONDS = 20.0
"""Without a beat for so long a holder elsewhere is taken for dead: several beats, on a slow share."""
SETTLE_SECONDS = 0.5
"""Two that find the same dead holder both take its place; after a moment the last one has it."""
_WATCH_SECONDS = 0.5
_LIMIT_BYTES = 1 << 16


@dataclass(frozen=True, slots=True)
class Holder:
    """Who converts; equal only for the very same conversion."""

    host: str
    machine: str
    """Differs after a reboot and between containers, where process ids mean something else."""
    pid: int
    started: str
    """When the process started, in the system's own count; process ids are used again."""
    token: str

    @classmethod
    def here(cls) -> "Holder":
        """Name this process and a new conversion in it."""
        pid = os.getpid()
        return cls(socket.gethostname(), _machine(), pid, _state(pid)[1], uuid.uuid4().hex)

    def lives_here(self) -> bool | None:
        """Whether the process lives; None where it is another machine's."""
        if self.machine != _machine() or self.host != socket.gethostname():
            return None
        if self.pid == os.getpid():
            return self.token in _HELD
        state, started = _state(self.pid)
        return state not in {"", "Z", "X"} and started == self.started


_HELD: set[str] = set()
"""Tokens that live in this process: one whose file could not be removed does not."""


class Lock:
    """A held lock, beating in a thread of its own."""

    def __init__(self, storage: Storage, folder: str, holder: Holder) -> None:
        """Start to beat."""
        self._storage, self._folder = storage, folder
        self._path = join(folder, LOCK_NAME)
        self._holder = holder
        self._lost_to: Holder | None = None
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._beat, daemon=True)
        self._thread.start()

    @property
    def token(self) -> str:
        """What tells this holding from all others; it stands in the file."""
        return self._holder.token

    def check(self) -> None:
        """Raise OutputError where another conversion took the lock, having thought this one dead."""
        if self._lost_to is not None:
            raise _refusal(self._folder, self._lost_to)

    def release(self) -> None:
        """Stop beating and remove the lock if it is still this one's."""
        self._ended.set()
        self._thread.join()
        # Where it fails, the process id tells the next one that nobody lives here any more.
        with contextlib.suppress(OSError):
            if _read(self._storage, self._path) == self._holder:
                self._storage.remove(self._path)

    def _beat(self) -> None:
        while not self._ended.wait(BEAT_SECONDS):
            # A beat that fails is missed; the next one may do.
            with contextlib.suppress(OSError):
                found = _read(self._storage, self._path)
                if found is not None and found != self._holder:
                    self._lost_to = found
                    return
                _write(self._storage, self._path, self._holder)


@contextlib.contextmanager
def locked(storage: Storage, folder: str, tell: Callable[[str], None]) -> Iterator[Lock]:
    """Hold the folder's lock; OutputError where a conversion that lives holds it."""
    holder = Holder.here()
    _HELD.add(holder.token)
    try:
        _acquire(storage, folder, holder, tell)
        lock = Lock(storage, folder, holder)
        try:
            yield lock
        finally:
            lock.release()
    finally:
        _HELD.discard(holder.token)


def _acquire(storage: Storage, folder: str, holder: Holder, tell: Callable[[str], None]) -> None:
    path = join(folder, LOCK_NAME)
    while not _create(storage, path, holder):
        other = _read(storage, path)
        if other == holder:
            return
        alive = other.lives_here() if other is not None else None
        if alive is None:
            alive = _beats(storage, path, other, tell)
        if alive:
            raise _refusal(folder, other)
        _write(storage, path, holder)
        time.sleep(SETTLE_SECONDS)


def _beats(storage: Storage, path: str, other: Holder | None, tell: Callable[[str], None]) -> bool:
    """Watch the lock of somebody who cannot be asked."""
    before = storage.find(path)
    if before is None:
        return False
    who = f"on {other.host} " if other is not None else ""
    tell(f"{path}: a conversion {who}may still run; watching for up to {PATIENCE_SECONDS:.0f} s")
    deadline = time.monotonic() + PATIENCE_SECONDS
    while time.monotonic() < deadline:
        time.sleep(_WATCH_SECONDS)
        now = storage.find(path)
        if now is None:
            return False
        if now.version != before.version:
            return True
    return False


def _refusal(folder: str, other: Holder | None) -> OutputError:
    who = f" (process {other.pid} on {other.host})" if other is not None else ""
    return OutputError(
        f"{folder}: distconv already writes into it{who}; wait for its end or give another folder"
    )


def _create(storage: Storage, path: str, holder: Holder) -> bool:
    content = json.dumps(asdict(holder)).encode()
    writer = storage.begin(path, len(content))
    try:
        writer.write_at(0, content)
        return writer.commit()
    except BaseException:
        writer.abort()
        raise


def _write(storage: Storage, path: str, holder: Holder) -> None:
    write_small(storage, path, json.dumps(asdict(holder)).encode())


def _read(storage: Storage, path: str) -> Holder | None:
    """Read who holds the lock; None where nobody does or the file says nothing."""
    try:
        return Holder(**json.loads(read_small(storage, path, _LIMIT_BYTES)))
    except (FileNotFoundError, ValueError, TypeError, InputError):
        return None


def _machine() -> str:
    """Name this boot of this machine, as process ids are counted in it."""
    boot = Path("/proc/sys/kernel/random/boot_id")
    with contextlib.suppress(OSError):
        return f"{boot.read_text().strip()} {Path('/proc/self/ns/pid').readlink()}"
    return ""


def _state(pid: int) -> tuple[str, str]:
    """Give a process's state and when it started; an empty state where there is none."""
    if not Path("/proc/self/stat").exists():
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return "", ""
        except PermissionError:
            return "?", ""
        return "?", ""
    try:
        # The name in parentheses may hold anything; fields 3 and 22 of proc(5) follow it.
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return "", ""
    return fields[0], fields[19]
