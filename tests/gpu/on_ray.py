"""Workers of a local Ray: on quarters of a GPU, and on CPU slots; the same bytes, and their pace."""

import json
import shutil
from importlib.util import find_spec
from pathlib import Path

from tests.gpu.models import make_model
from tests.gpu.running import LeftOut, Results, find_json


def measure(results: Results, device: str, *, small: bool) -> None:
    """Add Ray's runs to the results, after one without Ray that says which bytes are right."""
    if find_spec("ray") is None:
        raise LeftOut("Ray is not on this machine (make gpu-wheels)")
    source = make_model(results, "8b-small" if small else "8b")
    workers = "2" if small else "8"
    expected = convert(results, source, "8b, this process, CPU")
    ways = {f"8b, Ray, {workers} CPU workers": ["--workers", workers]}
    if device == "cuda":
        quarters = ["--device", "cuda", "--workers", "4", "--gpus-per-worker", "0.25"]
        ways["8b, Ray, 4 workers on quarters of a GPU"] = [*quarters, "--dtype", "auto"]
    for what, options in ways.items():
        with results.trying(what):
            if convert(results, source, what, *options) != expected:
                raise RuntimeError("other bytes than those of this process")
    shutil.rmtree(results.place / "out")
    if device != "cuda":
        results.add("8b, Ray, 4 workers on quarters of a GPU", "left out", "no GPU")


def convert(results: Results, source: Path, what: str, *options: str) -> object:
    """Convert as a user does, to ``out``, and give the digests; pace is that of the moving, core-seconds those of all."""
    target = results.place / "out"
    shutil.rmtree(target, ignore_errors=True)
    ran = results.python("distconv", "convert", source, target, "--json", "--quiet", *options)
    moving = find_json(ran.output)["seconds"]["moving"]  # type: ignore[index]
    digests = json.loads((target / "distconv.json").read_text())["chunks"]
    size = sum(path.stat().st_size for path in target.glob("*.safetensors"))
    results.add(
        what, note=f"moving {moving:.1f} s", gb=size / 1e9, seconds=ran.seconds, gb_per_second=size / 1e9 / moving,
        core_seconds_per_gb=ran.core_seconds / size * 1e9,
    )  # fmt: skip
    return digests
