"""Do the tests notice when the code is wrong? mutmut changes one thing at a time in a room, and runs its tests.

``python -m tests.mutants layout`` works in ``.mutants/layout``, and goes on there: what is known of a
function holds until the function or the room's settings change; ``--again`` asks again, as new tests call for.
Functions under a decorator and statements outside functions are not changed (mutmut 3 does not). What runs as a
module is imported is changed, but nobody can notice: a mutant begins after that.
"""

import argparse
import gc
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import fmean

import pytest
from mutmut.mutation.diff_apply import get_diff_for_mutant
from mutmut.state import state
from mutmut.stats import status_by_exit_code

ROOT = Path(__file__).parents[1]
PLACE = ROOT / ".mutants"
SETTINGS = tomllib.loads((ROOT / "tests" / "mutants.toml").read_text(encoding="utf-8"))
MARKS = "not slow and not peer and not gpu and not netns"
GIB = 1 << 30


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run first the modules whose tests go through little of the room, and their quick tests first.

    Those are about little, and notice what is wrong with it; a mutant that one notices needs nothing else.
    """
    functions = Counter(test for tests in state().tests_by_mangled_function_name.values() for test in tests)
    of_module: defaultdict[Path, list[int]] = defaultdict(list)
    for item in items:
        of_module[item.path].append(functions[item.nodeid])
    seconds = state().duration_by_test
    items.sort(key=lambda item: (fmean(of_module[item.path]), item.path, seconds.get(item.nodeid, 0.0)))


def pytest_collection_finish() -> None:
    """Let no mutant look for garbage in what was imported: that took three quarters of the time."""
    gc.freeze()


def prepare(folder: Path, room: Mapping[str, Sequence[str]]) -> None:
    """Make the folder in which mutmut runs: the project, and settings for a room's files and tests."""
    shutil.rmtree(folder / "mutants" / "tests", ignore_errors=True)  # tests that are no more
    # An interpreter that starts where its path names no folder yet finds nothing there later either.
    (folder / "mutants").mkdir(parents=True, exist_ok=True)
    for name in ("distconv", "tests", "examples", "cluster", "README.md"):
        if not (folder / name).is_symlink():
            (folder / name).symlink_to(ROOT / name)
    settings = SETTINGS["mutmut"] | {
        "source_paths": ["distconv"],
        "only_mutate": [
            f"distconv/{name}" if name.endswith(".py") else f"distconv/{name}/*" for name in room["files"]
        ],
        "do_not_mutate": [f"distconv/{name}" for name in room.get("without", ())],
        "also_copy": ["examples", "cluster", "README.md"],
        "pytest_add_cli_args_test_selection": [
            "-m",
            MARKS,
            *(f"tests/{name}" for name in room["tests"]),
            *(f"--deselect=tests/{name}" for name in room.get("without_tests", ())),
        ],
    }
    lines = [f"{name} = {json.dumps(value)}" for name, value in settings.items()]
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    (folder / "pyproject.toml").write_text(
        "\n".join([project, "[tool.mutmut]", *lines, ""]), encoding="utf-8"
    )


def run(folder: Path, names: Sequence[str], processes: int, memory_bytes: int) -> int:
    """Run mutmut there, with all that tests start importing the changed package; no process takes more memory.

    Its temporary files have a folder of their own: each mutant's pytest would tidy up after all others.
    """
    resource.setrlimit(resource.RLIMIT_DATA, (memory_bytes, memory_bytes))
    script = ROOT / "tests" / "mutant_runs.py"
    command = [sys.executable, "-P", script, "--max-children", str(processes), *names]
    with tempfile.TemporaryDirectory(prefix="distconv-mutants-", ignore_cleanup_errors=True) as temporary:
        own = {"PYTHONPATH": str(folder / "mutants"), "OMP_NUM_THREADS": "1", "TMPDIR": temporary}
        own["DISTCONV_TESTS_FOLDERS"] = temporary  # what takes long to make is the same for all mutants
        return subprocess.run(command, cwd=folder, env=os.environ | own, check=False).returncode


def results(folder: Path) -> Iterator[tuple[str, str, str]]:
    """Give each mutant's file, name and what became of it."""
    for path in sorted((folder / "mutants" / "distconv").rglob("*.py.meta")):
        found = json.loads(path.read_text(encoding="utf-8"))["exit_code_by_key"]
        name = str(path.relative_to(folder / "mutants").with_suffix(""))
        yield from ((name, mutant, status_by_exit_code[code]) for mutant, code in found.items())


def tell(folder: Path, room: str) -> None:
    """Write what survived, with its change, and print that and the room's sums."""
    found = list(results(folder))
    lines = []
    for file, mutant, status in found:
        if status not in ("killed", "timeout"):
            lines += [f"{file}: {mutant.rpartition('.')[2]}: {status}", *_change(mutant, file)]
    (folder / "survivors.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    print(*lines, sep="\n")
    for file in sorted({file for file, _mutant, _status in found}):
        print(f"{file}: {_sum(status for name, _mutant, status in found if name == file)}")
    print(f"{room}: {_sum(status for _file, _mutant, status in found)}; survivors in {folder}/survivors.txt")


def _change(mutant: str, file: str) -> Iterator[str]:
    for line in get_diff_for_mutant(mutant, path=file).splitlines():
        if line.startswith(("+", "-")) and not line.startswith(("+++", "---")):
            yield f"    {line}"


def _sum(statuses: Iterator[str]) -> str:
    counted = Counter(statuses)
    total = sum(counted.values())
    noticed = counted["killed"] + counted["timeout"]
    parts = ", ".join(f"{count} {status}" for status, count in sorted(counted.items()))
    return f"{noticed / max(1, total):.1%} of {total} noticed ({parts})"


def main() -> int:
    """Run the room that is named, or some of its mutants."""
    parser = argparse.ArgumentParser(prog="python -m tests.mutants")
    parser.add_argument("room", choices=SETTINGS["rooms"])
    parser.add_argument("names", nargs="*", help="mutants to try again, as fnmatch understands them")
    parser.add_argument("--again", action="store_true", help="try again what survived")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    asked = parser.parse_intermixed_args()
    folder = PLACE / asked.room
    room = SETTINGS["rooms"][asked.room]
    prepare(folder, room)
    names = list(asked.names)
    if asked.again:
        # Tests that were changed may run other functions than they did.
        (folder / "mutants" / "mutmut-stats.json").unlink(missing_ok=True)
        names += [mutant for _file, mutant, status in results(folder) if status not in ("killed", "timeout")]
    code = run(folder, names, asked.processes, room.get("memory_gib", 6) * GIB)
    if not code:
        os.chdir(folder)  # where mutmut looks for the mutants
        tell(folder, asked.room)
    return code


if __name__ == "__main__":
    raise SystemExit(main())
