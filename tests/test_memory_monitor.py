"""Ray's memory monitor kills workers of a node that runs full; page cache is not what fills it."""

import ctypes
import json
import mmap
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import psutil
import pytest

from tests.checkpoints import Spec, write_sparse
from tests.patience import HANG_SECONDS

ROOM_BYTES = 1_500_000_000
"""What the node may use more than it does now before the monitor kills."""
LARGE = Spec(dim=4096, heads=32, kv_heads=32, multiple_of=256, vocab=32000, layers=7, shards=2)
GREEDY = """
import ray
ray.init(address="local", num_cpus=1, include_dashboard=False, log_to_driver=False)

@ray.remote(max_retries=0)
def fill():
    import time
    held = bytearray(3_000_000_000)
    held[::4096] = b"x" * len(held[::4096])
    time.sleep(30)

try:
    ray.get(fill.remote())
except ray.exceptions.OutOfMemoryError:
    print("killed")
"""


def cached_bytes(path: Path) -> int:
    """Tell how much of a file the page cache holds."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as mapped:
        whole = np.frombuffer(mapped, dtype=np.uint8)
        held = np.zeros(-(-len(whole) // mmap.PAGESIZE), dtype=np.uint8)
        address, size = ctypes.c_void_p(whole.ctypes.data), ctypes.c_size_t(len(whole))
        failed = ctypes.CDLL(None).mincore(address, size, ctypes.c_void_p(held.ctypes.data))
        del whole
    assert not failed
    return int((held & 1).sum()) * mmap.PAGESIZE


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_page_cache_is_not_taken_for_a_leak(tmp_path: Path, sentencepiece_file: Path) -> None:
    memory = psutil.virtual_memory()
    if memory.available < 8_000_000_000 or psutil.disk_usage(str(tmp_path)).free < 10_000_000_000:
        pytest.skip("needs 8 GB of free memory and 10 GB of disk")
    threshold = (memory.total - memory.available + ROOM_BYTES) / memory.total
    environment = os.environ | {
        "RAY_memory_usage_threshold": f"{threshold:.4f}", "RAY_memory_monitor_refresh_ms": "100",
    }  # fmt: skip
    # The monitor is awake: who really takes that much is killed.
    greedy = subprocess.run(
        [sys.executable, "-c", GREEDY],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=HANG_SECONDS,
    )
    assert greedy.stdout.split() == ["killed"], greedy.stderr
    source = write_sparse(tmp_path / "in", LARGE)
    (source / "tokenizer.model").write_bytes(sentencepiece_file.read_bytes())
    shards = list(source.glob("*.pth"))
    for path in shards:
        with path.open("rb") as file:
            os.fsync(file.fileno())  # pages that are not yet on the disk are not dropped
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    cached_before = sum(map(cached_bytes, shards))
    command = [
        sys.executable,
        "-m",
        "distconv",
        "convert",
        source,
        tmp_path / "out",
        "--workers",
        "2",
        "--json",
        "--quiet",
    ]
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, check=False, timeout=HANG_SECONDS
    )
    assert done.returncode == 0, done.stderr
    # Source and output went through the page cache, by more than the room that there was.
    assert sum(path.stat().st_size for path in shards) > 2 * ROOM_BYTES * 0.9
    cached_after = sum(map(cached_bytes, [*shards, *(tmp_path / "out").glob("*.safetensors")]))
    assert cached_after - cached_before > ROOM_BYTES
    assert json.loads(done.stdout)["retries"] == 0
