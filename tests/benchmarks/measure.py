"""Run a command and watch it: wall time, and the anonymous memory of all its processes."""

import mmap
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

from distconv.memory import make_buffer

SAMPLE_SECONDS = 0.02
UNTOUCHED_BYTES = 512 << 20
"""With less than this free the kernel begins to drop page cache, the source's too."""
LEFT_FREE_BYTES = 5 << 30
"""With less, pages come from the low 4 GiB before more is let go of, and rounds took twice as long; Ray's
memory monitor takes less than 5 % for the end of memory."""
STEP_BYTES = 128 << 20
LOOK_SECONDS = 0.005


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


@contextmanager
def backed_memory() -> Iterator[None]:
    """Take nearly all free memory, and let go of it as others need it.

    A virtual machine gives free memory back to its host after two seconds, and gets it again page
    by page: writing to such pages took four times as long, by ``cp`` as by us. What is let go of just
    before it is used is like the memory of a machine that has its own.
    """
    size_bytes = (free_bytes() - UNTOUCHED_BYTES) // STEP_BYTES * STEP_BYTES
    if size_bytes <= 0:
        yield
        return
    with make_buffer(size_bytes) as memory:
        memory[:: mmap.PAGESIZE] = bytes(size_bytes // mmap.PAGESIZE)
        ended = threading.Event()

        def let_go() -> None:
            for start in range(0, size_bytes, STEP_BYTES):
                while free_bytes() >= LEFT_FREE_BYTES:
                    if ended.wait(LOOK_SECONDS):
                        return
                memory.obj.madvise(mmap.MADV_DONTNEED, start, STEP_BYTES)

        feeder = threading.Thread(target=let_go)
        feeder.start()
        try:
            yield
        finally:
            ended.set()
            feeder.join()


def free_bytes() -> int:
    """Give the memory that nothing uses, not even the page cache."""
    return psutil.virtual_memory().free


def io_bytes() -> dict[str, int]:
    """Give what this process has read and written so far, by system calls."""
    pairs = (line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
    found = {name: int(value) for name, value in pairs}
    return {"read": found["rchar"], "written": found["wchar"]}
