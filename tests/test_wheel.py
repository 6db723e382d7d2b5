"""The built wheel converts in an environment that never saw the source tree."""

import shutil
import subprocess
import sys
import sysconfig
import venv
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.checkpoints import Spec

ROOT = Path(__file__).parents[1]


@pytest.mark.slow
def test_the_wheel_installed_elsewhere_converts(
    checkpoint: Callable[[Spec], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # It would lead to a source tree.
    monkeypatch.delenv("PYTHONPATH", raising=False)
    tree = tmp_path / "tree"
    shutil.copytree(ROOT / "distconv", tree / "distconv", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tree)
    build = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--quiet",
        "--no-deps",
        "--wheel-dir",
        str(tmp_path),
        str(tree),
    ]
    subprocess.run(build, check=True, capture_output=True, text=True)
    (wheel,) = tmp_path.glob("distconv-*.whl")
    venv.create(tmp_path / "venv", with_pip=True)
    python = tmp_path / "venv/bin/python"
    subprocess.run([python, "-m", "pip", "install", "--quiet", "--no-deps", wheel], check=True, cwd=tmp_path)
    # Its dependencies are those of this environment; a path file brings them without the source tree.
    packages = Path(
        subprocess.check_output(
            [python, "-c", "import site; print(site.getsitepackages()[0])"], text=True
        ).strip()
    )
    (packages / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    found = subprocess.check_output(
        [python, "-c", "import distconv; print(distconv.__file__)"], text=True, cwd=tmp_path
    )
    assert Path(found.strip()).is_relative_to(tmp_path)
    source = checkpoint(Spec("llama-2", heads=8, kv_heads=4, shards=2))
    command = tmp_path / "venv/bin/distconv"
    for workers in ((), ("--workers", "2")):
        output = tmp_path / f"out{len(workers)}"
        subprocess.run([command, "convert", source, output, "--verify", *workers], check=True, cwd=tmp_path)
        assert (output / "model.safetensors").exists()
