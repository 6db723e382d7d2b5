"""Whether a GPU's bytes are the host's: the device's tests, and a look at each access to its memory."""

import json
import os
import re
import shutil
import sys
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec

from tests.gpu.models import make_model
from tests.gpu.running import Ran, Results

GROUPS = (
    ("tests/moving/test_torch_device.py", "tests/test_fp8.py"),
    ("tests/moving/test_devices.py", "tests/planning/test_coverage.py"),
    ("tests/moving/test_strided.py",),
)
NEEDING_RAY = ("tests/test_same_bytes.py",)
"""Its inline tests too: the module imports Ray."""


def measure(results: Results, device: str, *, small: bool) -> None:
    """Add the tests' outcome to the results; ``small`` leaves out all but the quickest."""
    groups = GROUPS[:1] if small else (*GROUPS, *([NEEDING_RAY] if find_spec("ray") else []))
    side_by_side = ("-n", str(max(1, (os.cpu_count() or 1) // 4))) if find_spec("xdist") else ()

    def run_tests(number: int) -> Ran:
        # The first group has the stand-in's way as well, which takes as long and shows nothing of the GPU.
        marks = ("gpu" if number == 0 else "not slow") if device == "cuda" else "not slow and not gpu"
        command = [
            sys.executable, "-m", "pytest", "-q", "-m", marks, "-W", "default", "-p", "no:cacheprovider", *side_by_side,
            f"--basetemp={results.place / f'tests-{number}'}", "-k", "not ray", *groups[number],
        ]  # fmt: skip
        return results.run_any(command, OMP_NUM_THREADS="4")

    with ThreadPoolExecutor() as pool:
        looking = pool.submit(sanitize, results) if device == "cuda" else None
        for group, ran in zip(groups, pool.map(run_tests, range(len(groups))), strict=True):
            with results.trying(group[0]):
                add_tests(results, group, ran)
    for number in range(len(groups)):
        shutil.rmtree(results.place / f"tests-{number}", ignore_errors=True)
    if looking is not None:
        with results.trying("compute-sanitizer"):
            looking.result()


def add_tests(results: Results, group: tuple[str, ...], ran: Ran) -> None:
    """Add a group of tests; RuntimeError where one failed."""
    ran.check()
    counted = re.findall(r"\d+ (?:passed|skipped|deselected)", ran.output.splitlines()[-1])
    names = ", ".join(name.rpartition("/")[2] for name in group)
    results.add(names, note=", ".join(counted), seconds=ran.seconds)


def sanitize(results: Results) -> None:
    """Convert a small model under NVIDIA's memory checker."""
    if shutil.which("compute-sanitizer") is None:
        results.add("compute-sanitizer", "left out", "not on this machine")
        return
    warm = str(make_model(results, "warm"))
    asked = {
        "cases": [{"source": warm, "dtype": dtype, "lanes": [2]} for dtype in ("auto", "float16")], "warm": warm,
        "target": str(results.place / "out"), "device": "cuda",
    }  # fmt: skip
    command = ["compute-sanitizer", "--tool", "memcheck", "--error-exitcode", "9", sys.executable]
    ran = results.run([*command, "-m", "tests.gpu.pace_child", json.dumps(asked)])
    summary = [line for line in ran.output.splitlines() if "ERROR SUMMARY" in line]
    results.add(
        "compute-sanitizer memcheck", note=summary[-1].strip("= ") if summary else "", seconds=ran.seconds
    )
