"""Who works in a folder: a process of some host, and whether it still lives."""

import contextlib
import json
import os
import socket
import uuid
from dataclasses import asdict, dataclass
from pathlib import Path

_BEAT_DIGITS = 12


@dataclass(frozen=True, slots=True)
class Holder:
    """A process, and what it does in one folder; equal only for the very same."""

    host: str
    machine: str
    """Differs after a reboot and between containers, where process ids mean something else."""
    pid: int
    started: str
    """When the process started, in the system's own count; process ids are used again."""
    token: str

    @classmethod
    def here(cls) -> "Holder":
        """Name this process, and something new that it does."""
        pid = os.getpid()
        return cls(socket.gethostname(), _machine(), pid, _state(pid)[1], uuid.uuid4().hex)

    @classmethod
    def parse(cls, content: bytes) -> "Holder | None":
        """Read what to_bytes gave; None for anything else."""
        try:
            found = json.loads(content)
            holder = cls(*(found[name] for name in cls.__slots__))
        except (ValueError, LookupError, TypeError, RecursionError):
            return None
        texts = (holder.host, holder.machine, holder.started, holder.token)
        is_sound = all(isinstance(text, str) for text in texts) and holder.token
        return holder if is_sound and type(holder.pid) is int and 0 < holder.pid < 1 << 31 else None

    def to_bytes(self, beat: int) -> bytes:
        """Give the content of a file that names it; of one length, however often the heart has beaten."""
        return json.dumps({**asdict(self), "beat": f"{beat:0{_BEAT_DIGITS}}"}).encode()

    def lives_here(self) -> bool | None:
        """Whether the process lives; None where that cannot be told, as on another machine."""
        if self.machine != _machine() or self.host != socket.gethostname():
            return None
        if self.pid == os.getpid():
            return self.token in LIVING
        state, started = _state(self.pid)
        if state is None:
            return None
        return state not in {"", "Z", "X"} and started == self.started

    def __str__(self) -> str:
        """Show it in messages."""
        return f"process {self.pid} on {self.host}"


LIVING: set[str] = set()
"""Tokens of what this process does now: one whose file could not be removed does not live."""


def _machine() -> str:
    """Name this boot of this machine and what its process ids are counted in."""
    boot = Path("/proc/sys/kernel/random/boot_id")
    if not boot.exists():
        return ""
    # In a container that shows another's processes they tell nothing of its own.
    if os.readlink("/proc/self") != str(os.getpid()):
        return uuid.uuid4().hex
    return f"{boot.read_text().strip()} {os.readlink('/proc/self/ns/pid')}"


def _state(pid: int) -> tuple[str | None, str]:
    """Give a process's state and when it started; the state is empty where there is none, None where it is hidden."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return "", ""
    except PermissionError:
        pass
    if not Path("/proc/self/stat").exists():
        return "?", ""
    with contextlib.suppress(OSError):
        # The name in parentheses may hold anything; fields 3 and 22 of proc(5) follow it.
        fields = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
        return fields[0], fields[19]
    return None, ""
