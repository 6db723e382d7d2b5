"""How fast checkpoints are moved on the RAM disk: by ``cp``, by lanes on the CPU, and through the GPU."""

import json
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.gpu.models import make_model
from tests.gpu.running import Results

COPIES = (1, 2, 4, 8, 16)


@dataclass(frozen=True, slots=True)
class Case:
    """A model that is written as a type, by how many lanes of the CPU, and of the GPU."""

    name: str
    dtype: str
    cpu: tuple[int, ...]
    gpu: tuple[int, ...]


GROUPS = (
    (
        Case("70b", "auto", (1, 2, 4, 8, 16), (1, 2, 4, 8)),
        Case("70b", "float16", (1, 4, 8, 16), (1, 2, 4, 8)),
        Case("8b", "auto", (4, 16), (4,)),
    ),
    (Case("70b-float32", "bfloat16", (1, 4, 16), (1, 4)),),
)
"""Those that there is room for at once."""


def measure(results: Results, device: str, *, small: bool) -> None:
    """Add all cases to the results, behind the copies of the same bytes."""
    warm = make_model(results, "warm")
    for group in GROUPS:
        names = list(dict.fromkeys(case.name for case in group))
        with results.trying(", ".join(names)):
            sources = {name: make_model(results, f"{name}-small" if small else name) for name in names}
            for case in group:
                if case.dtype == "auto":
                    copy(results, case.name, sources[case.name])
            for kind in ("cpu", "cuda" if device == "cuda" else "stand-in"):
                with results.trying(f"{', '.join(names)}: {kind} lanes"):
                    run_lanes(results, group, sources, warm, kind)


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


def run_lanes(
    results: Results, cases: Sequence[Case], sources: Mapping[str, Path], warm: Path, kind: str
) -> None:
    """Convert with each number of lanes, in one process; what it had done when its time was over counts."""
    target = results.place / "out"
    shutil.rmtree(target, ignore_errors=True)
    asked = {
        "cases": [
            {
                "what": f"{case.name}, {'as stored' if case.dtype == 'auto' else f'to {case.dtype}'}",
                "source": str(sources[case.name]),
                "dtype": case.dtype,
                "lanes": case.cpu if kind == "cpu" else case.gpu,
            }
            for case in cases
        ],
        "warm": str(warm),
        "target": str(target),
        "device": kind,
    }
    ran = results.run_any([sys.executable, "-m", "tests.gpu.pace_child", json.dumps(asked)])
    for line in ran.output.splitlines():
        if line.startswith('{"what"'):
            found = json.loads(line)
            size = size_of(Path(found.pop("source")))
            results.add(
                f"{found.pop('what')}, {kind}, {found['lanes']} lanes", gb=size / 1e9,
                gb_per_second=size / 1e9 / found["seconds"],
                core_seconds_per_gb=found["core_seconds"] / size * 1e9, note=name_stages(found["stages"]), **found,
            )  # fmt: skip
    ran.check()


def name_stages(stages: dict[str, dict[str, float]]) -> str:
    """Say how many seconds all lanes together were in each stage."""
    return ", ".join(f"{name} {stage['seconds']:.1f}" for name, stage in stages.items())
