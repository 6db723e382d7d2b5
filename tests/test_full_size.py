"""Plans of full-size models, from sparse files whose headers are real and whose data is not there."""

import json
import resource
import subprocess
import sys
from pathlib import Path

from tests.checkpoints import LLAMA_2_70B, LLAMA_31_405B_MP16, write_sparse


def plan(folder: Path) -> dict[str, object]:
    """Plan by the command line, within the ten seconds that a person may wait, of the processor's time."""
    command = [sys.executable, "-m", "distconv", "plan", str(folder), "--json"]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    ended = subprocess.run(command, capture_output=True, text=True, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 10
    found = json.loads(ended.stdout)
    assert isinstance(found, dict)
    return found


def test_70b_in_8_shards_is_planned_to_the_byte(tmp_path: Path) -> None:
    found = plan(write_sparse(tmp_path / "70b", LLAMA_2_70B))
    assert found["family"] == "llama-2"
    assert found["read_bytes"] == 68_976_648_192 * 2  # the published number of parameters, in bf16
    assert found["kv_replication"] == 1


def test_405b_in_16_shards_is_planned_with_8_key_heads(tmp_path: Path) -> None:
    found = plan(write_sparse(tmp_path / "405b", LLAMA_31_405B_MP16))
    assert found["family"] == "llama-3.1"
    assert found["kv_replication"] == 2
    assert found["read_bytes"] == 405_853_388_800 * 2  # the published number of parameters, in bf16
