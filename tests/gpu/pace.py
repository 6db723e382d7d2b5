"""How fast checkpoints are moved on the RAM disk: by ``cp``, by lanes on the CPU, and through the GPU."""

import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from tests.gpu.models import make_model
from tests.gpu.running import Results

LANES = {"cpu": (1, 2, 4, 8, 16), "cuda": (1, 2, 4), "stand-in": (1, 2, 4)}
CAST_LANES = {"cpu": (1, 4, 8, 16), "cuda": (1, 2, 4), "stand-in": (1, 4)}
COPIES = (1, 2, 4, 8, 16)
GROUPS = (
    (("70b", "auto"), ("70b", "float16"), ("8b", "auto"), ("8b", "float16")),
    (("70b-float32", "bfloat16"),),
)
"""Models that there is room for at once, and the types that are written."""


def measure(results: Results, device: str, *, small: bool) -> None:
    """Add all cases to the results, behind the copies of the same bytes."""
    warm = make_model(results, "warm")
    for group in GROUPS:
        names = list(dict.fromkeys(name for name, _dtype in group))
        with results.trying(", ".join(names)):
            sources = {name: make_model(results, f"{name}-small" if small else name) for name in names}
            for name, dtype in group:
                if dtype == "auto":
                    copy(results, name, sources[name])
            for kind in ("cpu", "cuda" if device == "cuda" else "stand-in"):
                cases = [
                    {
                        "what": f"{name}, {'as stored' if dtype == 'auto' else f'to {dtype}'}",
                        "source": str(sources[name]),
                        "dtype": dtype,
                        "lanes": LANES[kind] if dtype == "auto" else CAST_LANES[kind],
                    }
                    for name, dtype in group
                ]
                with results.trying(f"{', '.join(names)}: {kind} lanes"):
                    run_lanes(results, cases, warm, kind)


def size_of(source: Path) -> int:
    """Add up the sizes of the shards."""
    return sum(path.stat().st_size for path in source.glob("*.pth"))


def copy(results: Results, name: str, source: Path) -> None:
    """Copy the bytes of the shards, cut into as many files as are ever copied at once."""
    size, cut, target = size_of(source), results.place / "cut", results.place / "copy"
    cut.mkdir()
    share = -(-size // COPIES[-1])
    words = f"cd {source}; ls *.pth | xargs -P {COPIES[-1]} -I @ split -b {share} @ {cut}/@-"
    results.run(["/bin/sh", "-c", words])
    for count in COPIES:
        target.mkdir()
        ran = results.run(["/bin/sh", "-c", f"ls {cut}/* | xargs -P {count} -I @ cp @ {target}/"])
        shutil.rmtree(target)
        results.add(
            f"{name}, {count} cp", gb=size / 1e9, seconds=ran.seconds, gb_per_second=size / 1e9 / ran.seconds,
            core_seconds_per_gb=ran.core_seconds / size * 1e9,
        )  # fmt: skip
    shutil.rmtree(cut)


def run_lanes(results: Results, cases: Sequence[dict[str, object]], warm: Path, device: str) -> None:
    """Convert with each number of lanes, in one process; what it had done when its time was over counts."""
    target = results.place / "out"
    shutil.rmtree(target, ignore_errors=True)
    asked = {"cases": cases, "warm": str(warm), "target": str(target), "device": device}
    ran = results.run_any([sys.executable, "-m", "tests.gpu.pace_child", json.dumps(asked)])
    for line in ran.output.splitlines():
        if line.startswith('{"what"'):
            found = json.loads(line)
            size = size_of(Path(found.pop("source")))
            results.add(
                f"{found.pop('what')}, {device}, {found['lanes']} lanes", gb=size / 1e9,
                gb_per_second=size / 1e9 / found["seconds"],
                core_seconds_per_gb=found["core_seconds"] / size * 1e9, note=name_stages(found["stages"]), **found,
            )  # fmt: skip
    ran.check()


def name_stages(stages: dict[str, dict[str, float]]) -> str:
    """Say how many seconds all lanes together were in each stage."""
    return ", ".join(f"{name} {stage['seconds']:.1f}" for name, stage in stages.items())
