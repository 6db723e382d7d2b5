"""Commands with a time limit, what they took, and the table that is written as it grows."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from tests.benchmarks.measure import children_core_seconds

ROOT = Path(__file__).parents[2]
SHOWN = ("gb", "seconds", "gb_per_second", "core_seconds_per_gb", "gpu_mib", "pinned_mib")
"""Numbers with a column of their own."""


class LeftOut(Exception):
    """Something is not measured, and why."""


@dataclass(frozen=True, slots=True)
class Ran:
    """A command that has ended; core-seconds are those of all processes that were waited for."""

    code: int
    output: str
    seconds: float
    core_seconds: float

    def check(self) -> None:
        """Raise RuntimeError, with the last that was said, where it failed."""
        if self.code:
            last = (self.output.strip().splitlines() or ["nothing was said"])[-1]
            raise RuntimeError(f"ended with {self.code}: {last}")


@dataclass(slots=True)
class Results:
    """Rows of the table, which are on the disk as soon as they are known: who runs this may be stopped."""

    out: Path
    machine: dict[str, object]
    place: Path
    """A folder on the RAM disk."""
    paths: Sequence[str] = ()
    """What else Python looks for modules in."""
    rows: list[dict[str, object]] = field(default_factory=list)
    section: str = "*"
    deadline: float = 0.0
    memory_bytes: int | None = None
    """What the machine has, where the system sees it only as it is used."""

    def left(self) -> float:
        """Give the seconds that the section still has; LeftOut where that is nothing."""
        left = self.deadline - time.monotonic()
        if left < 1:
            raise LeftOut("no time left")
        return left

    def need_room(self, size_bytes: int) -> None:
        """Raise LeftOut where the RAM disk has no room for so much, or the machine no memory."""
        memory = psutil.virtual_memory()
        available = memory.available if self.memory_bytes is None else self.memory_bytes - memory.used
        there = min(shutil.disk_usage(self.place).free, available)
        if there < size_bytes:
            raise LeftOut(f"needs {size_bytes / 1e9:.1f} GB, {there / 1e9:.1f} are free")

    def add(self, what: str, status: str = "ok", note: str = "", **numbers: object) -> None:
        """Add a row and write all of them."""
        self.rows.append({"section": self.section, "what": what, "status": status, "note": note, **numbers})
        sys.stderr.write(format_row(self.rows[-1]) + "\n")
        found = {"machine": self.machine, "rows": self.rows}
        (self.out / "gpu.json").write_text(json.dumps(found, indent=1) + "\n")
        (self.out / "gpu.txt").write_text("\n".join(self.lines()) + "\n")

    @contextlib.contextmanager
    def trying(self, what: str) -> Iterator[None]:
        """Go on after what fails in the block, with a row that says so."""
        try:
            yield
        except LeftOut as error:
            self.add(what, "left out", str(error))
        except Exception as error:  # noqa: BLE001  the rest is worth as much
            lines = f"{type(error).__name__}: {error}".splitlines()
            self.add(what, "FAILED", lines[0][:160])
            self.log(f"{what}: {error!r}")

    def log(self, text: str) -> None:
        """Keep what is too long for the table."""
        with (self.out / "gpu.log").open("a") as file:
            file.write(f"--- {self.section} {text}\n")

    def run(self, command: Sequence[str | Path], **environment: str) -> Ran:
        """Run a command until the section's time is over; RuntimeError with its last line where it fails."""
        ran = self.run_any(command, **environment)
        ran.check()
        return ran

    def run_any(self, command: Sequence[str | Path], **environment: str) -> Ran:
        """Run a command, whatever it ends with; when the time is over all of it is ended, and the code is 124."""
        words, limit = [str(word) for word in command], self.left()
        began, before = time.monotonic(), children_core_seconds()
        process = subprocess.Popen(
            words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=ROOT, start_new_session=True,
            env=self.environment(**environment),
        )  # fmt: skip
        try:
            output, _ = process.communicate(timeout=limit)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            output, _ = process.communicate()
            output += f"\nits {limit:.0f} s were over"
        code = 124 if process.returncode == -signal.SIGKILL else process.returncode
        self.log(f"{' '.join(words)}: {code}\n{output}")
        return Ran(code, output, time.monotonic() - began, children_core_seconds() - before)

    def python(self, *words: str | Path, **environment: str) -> Ran:
        """Run one of our modules."""
        return self.run([sys.executable, "-m", *words], **environment)

    def environment(self, **more: str) -> dict[str, str]:
        """Give the environment in which modules of the repository, and of carried wheels, are found."""
        paths = os.pathsep.join([str(ROOT), *self.paths, os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)
        return os.environ | {"PYTHONPATH": paths, "PYTHONUNBUFFERED": "1", **more}

    def lines(self) -> list[str]:
        """Give the table."""
        machine = ", ".join(f"{name} {value}" for name, value in self.machine.items())
        head = f"{'':<46}{'GB':>7}{'s':>7}{'GB/s':>7}{'core-s/GB':>10}{'GPU MiB':>8}{'pinned':>7}"
        return [machine, head, *map(format_row, self.rows)]


def find_json(output: str) -> dict[str, object]:
    """Give the object that a command printed, whatever it said before and behind it."""
    found: dict[str, object] = json.loads(output[output.index("{") : output.rindex("}") + 1])
    return found


def format_row(row: dict[str, object]) -> str:
    """Give a row of the table."""
    widths = (7, 7, 7, 10, 8, 7)
    cells = (
        f"{row[name]:>{width}.2f}" if isinstance(row.get(name), float) else f"{row.get(name, ''):>{width}}"
        for name, width in zip(SHOWN, widths, strict=True)
    )
    note = "" if row["status"] == "ok" else f"  {row['status']}"
    return f"{row['section']} {row['what']:<44}{''.join(cells)}{note} {row['note']}".rstrip()
