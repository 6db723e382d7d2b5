"""Run a command and watch it: wall time, and the anonymous memory of all its processes."""

import mmap
import resource
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

from distconv.storage.memory import HUGE_PAGE_BYTES, make_buffer

SAMPLE_SECONDS = 0.1
"""To walk through all threads of Ray's processes takes time from what is measured."""
UNTOUCHED_BYTES = 512 << 20
"""With less than this free the kernel begins to drop page cache, the source's too."""
_MADV_COLD = 20
"""Of Linux's ``asm-generic/mman-common.h``; Python does not name it."""


@dataclass(frozen=True, slots=True)
class Run:
    """One run of a command."""

    seconds: float
    peak_anonymous_bytes: int
    """Of the process and all its descendants together; page cache is not counted."""
    core_seconds: float
    """Of the same: of those that were waited for or, where it is more, of those that were seen."""
    output: str


def run(command: Sequence[str | Path], *, shell_after: str | None = None) -> Run:
    """Run a command to its end; ``shell_after`` (``sync``) counts as part of it."""
    started, before = time.monotonic(), children_core_seconds()
    process = subprocess.Popen([str(part) for part in command], stdout=subprocess.PIPE, text=True)
    peak, seen = 0, 0.0
    ended = threading.Event()

    def watch() -> None:
        nonlocal peak, seen
        while not ended.wait(SAMPLE_SECONDS):
            processes = tree(process.pid)
            peak = max(peak, sum(map(anonymous_bytes, processes)))
            seen = max(seen, sum(map(core_seconds, processes)))

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
    return Run(seconds, peak, max(children_core_seconds() - before, seen), output)


def children_core_seconds() -> float:
    """Give the processor time of all children that were waited for, and of theirs."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def core_seconds(pid: int) -> float:
    """Give a process's own processor time; 0 for one that has ended."""
    try:
        times = psutil.Process(pid).cpu_times()
    except psutil.NoSuchProcess:
        return 0.0
    return float(times.user + times.system)


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
def kept_memory() -> Iterator[None]:
    """Keep the machine's free memory its own, for files of a RAM disk.

    A virtual machine gives free blocks of 2 MiB back to its host, from two seconds on, and gets them
    again page by page: writing to such pages took four times as long, by ``cp`` as by us. Here one page
    of each block is held, so none is given back.
    """
    with touched_memory() as memory:
        size_bytes = len(memory)
        for start in range(0, size_bytes, HUGE_PAGE_BYTES):
            # Of a part of a huge page, this splits it.
            memory.madvise(_MADV_COLD, start, mmap.PAGESIZE)
        for start in range(0, size_bytes, HUGE_PAGE_BYTES):
            memory.madvise(mmap.MADV_DONTNEED, start + mmap.PAGESIZE, HUGE_PAGE_BYTES - mmap.PAGESIZE)
        yield


def back_memory() -> None:
    """Get the machine's free memory from its host for the next seconds, for a disk's page cache.

    That wants whole blocks, where ``kept_memory`` leaves none.
    """
    with touched_memory():
        pass


@contextmanager
def touched_memory() -> Iterator[mmap.mmap]:
    """Have nearly all free memory, every page of it written."""
    size_bytes = max(1, (psutil.virtual_memory().free - UNTOUCHED_BYTES) // HUGE_PAGE_BYTES) * HUGE_PAGE_BYTES
    with make_buffer(size_bytes) as view:
        # Not zeros: the kernel drops pages of those when it splits a huge page.
        view[:: mmap.PAGESIZE] = b"1" * (size_bytes // mmap.PAGESIZE)
        memory: mmap.mmap = view.obj
    with memory:
        yield memory


def io_bytes() -> dict[str, int]:
    """Give what this process has read and written so far, by system calls."""
    pairs = (line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
    found = {name: int(value) for name, value in pairs}
    return {"read": found["rchar"], "written": found["wchar"]}
