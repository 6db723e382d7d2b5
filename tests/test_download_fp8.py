"""FP8 releases come with the scales of each shard, from the folder that bears the model's plain name."""

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import distconv
from tests.checkpoints import Spec, write_checklist
from tests.downloads import Files, serving
from tests.fp8_checkpoints import quantize_checkpoint

SPEC = Spec("llama-3.1", dim=64, layers=4, heads=8, kv_heads=8, shards=8, checklist=False)


def test_scales_come_with_the_shards_and_the_next_command_converts_them(
    checkpoint: Callable[[Spec], Path], tmp_path: Path
) -> None:
    source = tmp_path / "served" / "Llama-3.1-405B-Instruct"
    shutil.copytree(checkpoint(SPEC), source)
    quantize_checkpoint(source, SPEC.layers)
    write_checklist(source)
    name = "Llama-3.1-405B-Instruct-FP8"
    command = [sys.executable, "-m", "distconv", "download", "--models", name, "--to", str(tmp_path / "in")]
    with serving(Files(tmp_path / "served")) as files:
        done = subprocess.run(command, input=f"{files.url}\n", capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "in" / name
    assert sorted(path.name for path in folder.iterdir()) == sorted(path.name for path in source.iterdir())
    for path in source.iterdir():
        assert path.read_bytes() == (folder / path.name).read_bytes()
    (following,) = [line for line in done.stderr.splitlines() if line.startswith("next:")]
    assert following == f"next: distconv convert {folder} {folder}-hf --dtype bfloat16"
    assert distconv.convert(folder, tmp_path / "hf", dtype="bfloat16").chunks
