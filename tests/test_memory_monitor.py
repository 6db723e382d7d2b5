"""Ray's memory monitor kills workers of a node that runs full; page cache is not what fills it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from tests.checkpoints import Spec, write_sparse

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
        timeout=120,
    )
    assert greedy.stdout.split() == ["killed"], greedy.stderr
    source = write_sparse(tmp_path / "in", LARGE)
    (source / "tokenizer.model").write_bytes(sentencepiece_file.read_bytes())
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
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=400)
    assert done.returncode == 0, done.stderr
    # With the page cache, whoever filled it, the node is fuller than the monitor allows.
    memory = psutil.virtual_memory()
    assert memory.total - memory.free > threshold * memory.total
    assert json.loads(done.stdout)["retries"] == 0
