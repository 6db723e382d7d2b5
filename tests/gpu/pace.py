"""How fast checkpoints are moved on the RAM disk: by ``cp``, by lanes on the CPU, and through the GPU."""

import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from tests.gpu.models import make_model, spec_of
from tests.gpu.running import Results

LANES = {"cpu": (1, 2, 4, 8, 16), "cuda": (1, 2, 4), "stand-in": (1, 2, 4)}
CAST_LANES = {"cpu": (1, 4, 16), "cuda": (1, 4), "stand-in": (1, 4)}
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
    """Copy the shards with one ``cp`` at a time and, where there are several, with several at once."""
    size = size_of(source)
    for count in (1, 2, 4, 8):
        if count > spec_of(source.name).shards:
            break
        target = results.place / "copy"
        target.mkdir()
        shards = " ".join(str(path) for path in sorted(source.glob("*.pth")))
        command = f"printf '%s\\n' {shards} | xargs -P {count} -I @ cp @ {target}/"
        ran = results.run(["/bin/sh", "-c", command])
        shutil.rmtree(target)
        results.add(
            f"{name}, {count} cp", gb=size / 1e9, seconds=ran.seconds, gb_per_second=size / 1e9 / ran.seconds,
            core_seconds_per_gb=ran.core_seconds / size * 1e9,
        )  # fmt: skip


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
                core_seconds_per_gb=found["core_seconds"] / size * 1e9, **found,
            )  # fmt: skip
    ran.check()
