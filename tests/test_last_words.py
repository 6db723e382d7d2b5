"""A suite that is killed says where."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TESTS = """
import os, signal

def test_that_passes():
    pass

def test_that_ends():
    {end}
"""


@pytest.mark.first(1)
@pytest.mark.parametrize(
    ("end", "said"),
    [
        ("os.kill(os.getpid(), signal.SIGKILL)", "The suite was killed in test_some.py::test_that_ends.\n"),
        ("os.killpg(0, signal.SIGTERM)", "The suite was killed in test_some.py::test_that_ends.\n"),
        ("os._exit(1)", "The suite was killed in test_some.py::test_that_ends.\n"),
        ("assert False", ""),
        ("pass", ""),
    ],
)
def test_a_suite_that_is_killed_says_in_which_test_and_one_that_ends_does_not(
    tmp_path: Path, end: str, said: str
) -> None:
    (tmp_path / "test_some.py").write_text(TESTS.format(end=end))
    (tmp_path / "conftest.py").write_text(
        "from tests.last_words import LastWords\n\n"
        "def pytest_configure(config):\n    config.pluginmanager.register(LastWords())\n"
    )
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "."],
        cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)}, start_new_session=True,
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.stderr.strip() == said.strip()
    assert ("1 passed" in done.stdout or "2 passed" in done.stdout) == (said == "")


@pytest.mark.slow
def test_of_files_that_are_run_beside_each_other_the_test_in_which_one_was_killed_is_named_at_the_end(
    tmp_path: Path,
) -> None:
    pytest.importorskip("xdist")
    beside = next(
        line for line in (ROOT / "Makefile").read_text().splitlines() if line.startswith("BESIDE := -")
    )
    for name, end in (("killed", "os.kill(os.getpid(), signal.SIGKILL)"), ("good", "pass")):
        (tmp_path / f"test_{name}.py").write_text(TESTS.format(end=end))
    options = beside.removeprefix("BESIDE := ").replace("-n auto", "-n 2").split()
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *options, "."],
        cwd=tmp_path, start_new_session=True, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert "crashed while running 'test_killed.py::test_that_ends'" in done.stdout
    assert "\nFAILED test_killed.py::test_that_ends" in done.stdout
    assert done.stdout.rstrip().splitlines()[-1].startswith("1 failed, 3 passed")
