"""One model of a real size, whole: Llama 2 13B's shapes, from the RAM disk to the RAM disk, and every tensor compared."""

import shutil

from tests.gpu import pace
from tests.gpu.models import make_model
from tests.gpu.on_ray import convert
from tests.gpu.running import Results

LANES = pace.Case("13b", "auto", (8, 16), ())
"""There are enough chunks for each lane to have several."""


def measure(results: Results, device: str, *, small: bool) -> None:
    """Add the model's conversions to the results."""
    for name in ("70b", "8b", "70b-float32"):
        # Both sides of this model take 52 GB.
        shutil.rmtree(results.place / name, ignore_errors=True)
    source = make_model(results, "13b-small" if small else "13b")
    with results.trying("13b, lanes"):
        pace.run_lanes(results, [LANES], {"13b": source}, make_model(results, "warm"), "cpu")
    digests = []
    for name in ("cpu", *(["cuda"] if device == "cuda" else [])):
        with results.trying(f"13b, --device {name}"):
            digests.append(convert(results, source, f"13b, --device {name}", "--device", name))
    if any(found != digests[0] for found in digests):
        raise RuntimeError("CPU and GPU gave other bytes")
    target = results.place / "out"
    size = sum(path.stat().st_size for path in target.glob("*.safetensors"))
    ran = results.python("distconv", "verify", target, "--against", source)
    results.add(
        "13b, verify --against", gb=size / 1e9, seconds=ran.seconds, gb_per_second=size / 1e9 / ran.seconds,
        core_seconds_per_gb=ran.core_seconds / size * 1e9, note=find_line(ran.output, "tensors"),
    )  # fmt: skip


def find_line(output: str, word: str) -> str:
    """Give the first line in which a word stands."""
    return next((line.strip() for line in output.splitlines() if word in line), "")
