"""Run a command and watch it: wall time, and the anonymous memory of all its processes."""

import mmap
import subprocess
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

SAMPLE_SECONDS = 0.02
SPARED_BYTES = 3 << 30
"""What a starting Ray and the rest of the machine may need while free memory is taken."""


@dataclass(frozen=True, slots=True)
class Run:
    """One run of a command."""

    seconds: float
    peak_anonymous_bytes: int
    """Of the process and all its descendants together; page cache is not counted."""
    output: str


def run(command: Sequence[str | Path], *, shell_after: str | None = None) -> Run:
    """Run a command to its end; ``shell_after`` (``sync``) counts as part of it."""
    started = time.monotonic()
    process = subprocess.Popen([str(part) for part in command], stdout=subprocess.PIPE, text=True)
    peak = 0
    ended = threading.Event()

    def watch() -> None:
        nonlocal peak
        while not ended.wait(SAMPLE_SECONDS):
            peak = max(peak, sum(map(anonymous_bytes, tree(process.pid))))

    watcher = threading.Thread(target=watch)
    watcher.start()
    output, _ = process.communicate()
    if shell_after:
        subprocess.run(["/bin/sh", "-c", shell_after], check=True)
    seconds = time.monotonic() - started
    ended.set()
    watcher.join()
    if process.returncode:
        message = f"{command[0]} ended with {process.returncode}"
        raise RuntimeError(message)
    return Run(seconds, peak, output)


def tree(pid: int) -> list[int]:
    """Give a process and its descendants."""
    found = [pid]
    for parent in found:
        for task in Path(f"/proc/{parent}/task").glob("*/children"):
            try:
                found += map(int, task.read_text().split())
            except OSError:  # it has ended
                continue
    return found


def anonymous_bytes(pid: int | str) -> int:
    """Give a process's resident anonymous memory; 0 for one that has ended."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon:"))


def take_free_memory() -> mmap.mmap:
    """Touch nearly all memory that nothing uses; it is free for others once this is closed.

    A virtual machine gives free memory back to its host after some seconds, and gets it again page
    by page: writing to such pages took four times as long, by ``cp`` as by us. Who started first after
    the last target was removed would win.
    """
    lines = Path("/proc/meminfo").read_text().splitlines()
    free_bytes = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemFree:"))
    pages = max(1, (free_bytes - SPARED_BYTES) // mmap.PAGESIZE)
    memory = mmap.mmap(-1, pages * mmap.PAGESIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    memory[:: mmap.PAGESIZE] = bytes(pages)
    return memory


def io_bytes() -> dict[str, int]:
    """Give what this process has read and written so far, by system calls."""
    pairs = (line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
    found = {name: int(value) for name, value in pairs}
    return {"read": found["rchar"], "written": found["wchar"]}
