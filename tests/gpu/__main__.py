"""Measure everything that a machine with a GPU can show: ``make gpu``, or ``python -m tests.gpu``.

Needs PyTorch, NumPy, click, pytest, hypothesis and sentencepiece, and fetches nothing.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import click

from tests.gpu import ceilings, correct, on_ray, pace, whole
from tests.gpu.running import ROOT, Results
from tests.gpu.wheels import unpack

Section = Callable[..., None]
SECTIONS: dict[str, tuple[str, Section, int]] = {
    "a": ("correct", correct.measure, 80),
    "b": ("ceilings", ceilings.measure, 35),
    "c": ("pace", pace.measure, 130),
    "d": ("Ray", on_ray.measure, 45),
    "e": ("whole", whole.measure, 110),
}
"""Their seconds, of 400; what one leaves, the next ones have."""

DESCRIBE = """
import json, os, platform, torch
found = {"torch": torch.__version__, "python": platform.python_version()}
if torch.cuda.is_available():
    found |= {"GPU": torch.cuda.get_device_name(), "CUDA": torch.version.cuda}
print(json.dumps(found))
"""


def describe_machine() -> dict[str, object]:
    """Say what was measured on."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    told = subprocess.run([sys.executable, "-c", DESCRIBE], capture_output=True, text=True, check=True)
    found: dict[str, object] = {
        "date": datetime.now(UTC).date().isoformat(),
        "cores": os.cpu_count(),
        "GiB": round(memory / 2**30),
        "Linux": os.uname().release,
    }
    return found | json.loads(told.stdout)


def run_section(results: Results, letter: str, device: str, *, small: bool) -> None:
    """Run one section, and go on whatever it ends with."""
    name, measure, _seconds = SECTIONS[letter]
    results.section = letter
    began = time.monotonic()
    with results.trying(name):
        measure(results, device, small=small)
    results.add(f"all of {name}", seconds=time.monotonic() - began)


@click.command()
@click.option("--device", type=click.Choice(["cuda", "cpu"]), default="cuda", show_default=True)
@click.option("--only", default="abcde", show_default=True, help="Sections, by their letters.")
@click.option("--minutes", type=float, default=6.7, show_default=True, help="For all sections together.")
@click.option("--small", is_flag=True, help="Models and files that take no time, to rehearse.")
@click.option("--ram", type=click.Path(path_type=Path), default="/dev/shm", show_default=True)
@click.option("--memory-gib", type=int, help="Of a virtual machine that shows its memory only as it is used.")
@click.option(
    "--wheels", type=click.Path(path_type=Path), default=ROOT / ".wheels", help="Packages that were carried along."
)  # fmt: skip
@click.option(
    "--out", type=click.Path(path_type=Path), envvar="OUT", default="gpu-results", show_default=True,
    help="Folder for the results.",
)  # fmt: skip
def main(
    *,
    device: str,
    only: str,
    minutes: float,
    small: bool,
    ram: Path,
    memory_gib: int | None,
    wheels: Path,
    out: Path,
) -> None:
    """Run the sections one after the other, print one table, and end with 1 where something failed."""
    began = time.monotonic()
    out.mkdir(parents=True, exist_ok=True)
    Path(out, "gpu.log").unlink(missing_ok=True)
    machine = describe_machine()
    if device == "cuda" and "GPU" not in machine:
        raise click.UsageError("torch sees no GPU here; rehearse with --device cpu --small")
    with tempfile.TemporaryDirectory(prefix="distconv-gpu-", dir=ram) as place:
        results = Results(out.resolve(), machine, Path(place))
        results.memory_bytes = memory_gib and memory_gib << 30
        with results.trying("wheels"):
            results.paths = unpack(wheels, Path(place, "site"))
            sys.path[:0] = results.paths
        chosen = [letter for letter in SECTIONS if letter in only]
        share = minutes * 60 / sum(SECTIONS[letter][2] for letter in chosen)
        results.deadline = began
        for letter in chosen:
            results.deadline += SECTIONS[letter][2] * share
            run_section(results, letter, device, small=small)
    results.section = "*"
    results.add("all", seconds=time.monotonic() - began)
    click.echo("\n".join(results.lines()))
    sys.exit(any(row["status"] == "FAILED" for row in results.rows))


if __name__ == "__main__":
    main()
