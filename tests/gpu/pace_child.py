"""Convert again and again in one process, with one lane more or less: ``python -m tests.gpu.pace_child JSON``.

A line of JSON for each case and number of lanes: what the moving alone took, imports and the GPU's context being paid
before.
"""

import contextlib
import json
import resource
import shutil
import sys
import time
from contextlib import AbstractContextManager

import torch

import distconv.verbs.convert
from distconv.moving.progress import SilentProgress
from distconv.moving.torch_device import TorchDevice
from tests.moving.stand_ins import StandIn, pretended_gpu


class Moving(SilentProgress):
    """Notes wall time and processor time of the moving."""

    def __init__(self) -> None:
        """Begin with nothing."""
        self.seconds = self.core_seconds = 0.0

    def begin(self, total_bytes: int, units: int, kind: str = "chunks") -> None:
        """Note the beginning."""
        self._began, self._before = time.monotonic(), own_core_seconds()

    def end(self) -> None:
        """Note the end."""
        self.seconds = time.monotonic() - self._began
        self.core_seconds = own_core_seconds() - self._before


class Usual(StandIn):
    """Does small blocks as a GPU would have them done."""

    small_bytes = TorchDevice.small_bytes


def own_core_seconds() -> float:
    """Give this process's processor time."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def convert(target: str, device: str, lanes: int, *, source: str, dtype: str) -> dict[str, object]:
    """Convert once; give what it took."""
    # Whoever runs the lanes has their number.
    running = sys.modules[distconv.verbs.convert.run_units.__module__]
    running._INLINE_LANES = lanes  # type: ignore[attr-defined]
    is_gpu = torch.cuda.is_available() and device == "cuda"
    if is_gpu:
        torch.cuda.reset_peak_memory_stats()
    moving = Moving()
    report = distconv.verbs.convert.convert(source, target, device=device, dtype=dtype, progress=moving)
    shutil.rmtree(target)
    found: dict[str, object] = {
        "lanes": lanes,
        "seconds": moving.seconds,
        "core_seconds": moving.core_seconds,
        "stages": report.to_json()["stages"],
    }
    if is_gpu:
        found["gpu_mib"] = torch.cuda.max_memory_allocated() >> 20
        found["gpu_reserved_mib"] = torch.cuda.max_memory_reserved() >> 20
        with contextlib.suppress(AttributeError, KeyError):
            stats = torch.cuda.memory.host_memory_stats()
            found["pinned_mib"] = stats["allocated_bytes.peak"] >> 20
    return found


def main(asked: str) -> None:
    """Convert a small model first in each case, which pays what is paid once."""
    wanted = json.loads(asked)
    device = wanted["device"]
    pretending: AbstractContextManager[object] = contextlib.nullcontext()
    if device == "stand-in":
        device, pretending = "cuda", pretended_gpu(Usual)
    with pretending:
        for case in wanted["cases"]:
            convert(wanted["target"], device, 1, source=wanted["warm"], dtype=case["dtype"])
            for lanes in case["lanes"]:
                found = convert(wanted["target"], device, lanes, source=case["source"], dtype=case["dtype"])
                print(json.dumps(case | found), flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
