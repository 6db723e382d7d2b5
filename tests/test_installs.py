"""distconv is installed by its constraints on each Python that it is for, and converts without torch."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from packaging.specifiers import SpecifierSet

from tests.checkpoints import Spec
from tests.faults import digest_folder

ROOT = Path(__file__).parents[1]
SPEC = Spec("llama-2", heads=8, kv_heads=4, shards=2)
NEEDS_TORCH = frozenset({"torch", "accelerate"})
"""For a GPU, casts and models that speak; the build for CUDA, which PyPI has, is of several GB."""


def read_dependencies() -> dict[str, str]:
    """Give distconv's requirements by their names."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return {re.match(r"[\w-]+", line)[0].lower(): line for line in project["dependencies"]}


def read_constraints() -> dict[str, str]:
    """Give the versions that are asked for."""
    lines = (ROOT / "constraints.txt").read_text().split()
    return dict(line.lower().split("==") for line in lines)


def test_constraints_name_a_version_of_every_dependency_that_does() -> None:
    constraints = read_constraints()
    for name, line in read_dependencies().items():
        wanted = line.partition("[")[0] + line.partition("]")[2] if "[" in line else line
        assert constraints[name] in SpecifierSet(wanted.lower().removeprefix(name)), name


def test_constraints_keep_a_build_of_torch_for_the_cpu_and_name_nothing_of_cuda() -> None:
    constraints = read_constraints()
    assert "2.13.0+cpu" in SpecifierSet(f"=={constraints['torch']}")
    assert not [name for name in constraints if name.startswith(("nvidia", "cuda", "triton"))]


def find_pythons(version: str) -> Iterator[Path]:
    """Find an interpreter by its name, or among those of pyenv; each may be a stand-in that runs nothing."""
    if (found := shutil.which(f"python{version}")) is not None:
        yield Path(found)
    root = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"))
    yield from sorted(root.glob(f"versions/{version}.*/bin/python"))


def find_python(version: str) -> Path | None:
    """Give one that runs, and is of this version."""
    ask = "import sys, venv; print('.'.join(map(str, sys.version_info[:2])))"
    for python in find_pythons(version):
        ended = subprocess.run([python, "-c", ask], capture_output=True, text=True, check=False)
        if ended.stdout.strip() == version:
            return python
    return None


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("version", ["3.11", "3.12", "3.13"])
def test_what_is_installed_converts_without_torch(
    version: str, checkpoint: Callable[[Spec], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if (python := find_python(version)) is None:
        pytest.skip(f"no Python {version} here")
    if sys.version_info[:2] == tuple(map(int, version.split("."))):
        pytest.skip(f"Python {version} is what these tests run on")
    monkeypatch.delenv("PYTHONPATH", raising=False)
    tree = tmp_path / "tree"
    shutil.copytree(ROOT / "distconv", tree / "distconv", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tree)
    subprocess.run([python, "-m", "venv", tmp_path / "venv"], check=True)
    install = [tmp_path / "venv/bin/python", "-m", "pip", "install", "--quiet"]
    constrained = [*install, "--constraint", ROOT / "constraints.txt"]
    dependencies = read_dependencies()
    light = [line for name, line in dependencies.items() if name not in NEEDS_TORCH]
    subprocess.run([*constrained, *light], check=True, cwd=tmp_path)
    subprocess.run([*install, "--no-deps", tree], check=True, cwd=tmp_path)
    # Of the rest, only that there is a release for this Python.
    subprocess.run([*constrained, "--dry-run", "--no-deps", *NEEDS_TORCH], check=True, cwd=tmp_path)

    command = tmp_path / "venv/bin/distconv"
    subprocess.run([command, "--version"], check=True, cwd=tmp_path)
    source, output = checkpoint(SPEC), tmp_path / "out"
    subprocess.run([command, "convert", source, output, "--verify"], check=True, cwd=tmp_path)
    ours = [sys.executable, "-m", "distconv", "convert", source, tmp_path / "ours"]
    subprocess.run(ours, check=True, cwd=ROOT)
    assert digest_folder(output) == digest_folder(tmp_path / "ours")
    on_ray = ["convert", output, tmp_path / "meta", "--to", "meta", "--workers", "1"]
    subprocess.run([command, *on_ray], check=True, cwd=tmp_path)
    subprocess.run([command, "verify", tmp_path / "meta", "--against", output], check=True, cwd=tmp_path)
