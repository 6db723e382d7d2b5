"""Plans of full-size models, from sparse files whose headers are real and whose data is not there."""

import json
import math
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from transformers import LlamaConfig

from tests.checkpoints import LLAMA_2_70B, LLAMA_31_405B_MP16, shapes, write_sparse
from tests.dcp_ranks import write_sparse_ranks
from tests.image_checkpoints import Llama4Spec, VisionSpec, write_sparse_images
from tests.sidecars.conftest import packaged_file

WATCHED = """
import re, sys
from pathlib import Path
from distconv.cli import main

try:
    main(sys.argv[1:])
finally:
    # What getrusage gives is at least what the process had from which this one was forked.
    most_kib = re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]
    Path(sys.argv[2]).with_name("most").write_text(most_kib)
"""


def plan(folder: Path, *options: object) -> dict[str, Any]:
    """Plan by the command line: ten seconds of the processor's time, which a person may wait, and a GB."""
    command = [sys.executable, "-c", WATCHED, "plan", str(folder), "--json", *map(str, options)]
    with (folder.parent / "plan.json").open("w+b") as out:
        process = subprocess.Popen(command, stdout=out)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        assert process.returncode == 0
        out.seek(0)
        found = json.load(out)
    assert usage.ru_utime + usage.ru_stime < 10
    assert int((folder.parent / "most").read_text()) < 1 << 20
    assert isinstance(found, dict)
    return found


def test_70b_in_8_shards_is_planned_to_the_byte(tmp_path: Path, sentencepiece_file: Path) -> None:
    found = plan(write_sparse(tmp_path / "70b", LLAMA_2_70B), "--tokenizer", sentencepiece_file)
    assert found["family"] == "llama-2"
    assert found["read_bytes"] == 68_976_648_192 * 2  # the published number of parameters, in bf16
    assert found["kv_replication"] == 1


@pytest.mark.slow
def test_405b_in_16_shards_is_planned_with_8_key_heads(tmp_path: Path) -> None:
    found = plan(
        write_sparse(tmp_path / "405b", LLAMA_31_405B_MP16),
        "--tokenizer",
        packaged_file("llama_models", "llama3/tokenizer.model"),
    )
    assert found["family"] == "llama-3.1"
    assert found["kv_replication"] == 2
    assert found["read_bytes"] == 405_853_388_800 * 2  # the published number of parameters, in bf16


@pytest.mark.slow
def test_what_512_ranks_saved_of_a_405b_is_planned(tmp_path: Path) -> None:
    # A tenth of its layers: 58,000 items, of which the whole model's 512 ranks save 582,000.
    spec = replace(LLAMA_31_405B_MP16, kv_heads=8, layers=12)
    source = write_sparse_ranks(tmp_path / "in", spec, 512)
    (tmp_path / "like").mkdir()
    config = LlamaConfig(
        hidden_size=spec.dim, num_hidden_layers=spec.layers, num_attention_heads=spec.heads, num_key_value_heads=8,
        intermediate_size=spec.ffn_dim, vocab_size=spec.vocab_size, architectures=["LlamaForCausalLM"],
    )  # fmt: skip
    config.save_pretrained(tmp_path / "like")
    found = plan(source, "--like", tmp_path / "like", "--dtype", "bfloat16")
    parameters = sum(math.prod(shape) for _name, shape, _axis in shapes(spec))
    assert found["read_bytes"] == 4 * parameters
    assert sum(file["tensors"] for file in found["files"]) == 9 * spec.layers + 3
    assert 2 * parameters < found["write_bytes"] < 2 * parameters + (1 << 20)


SIZES = {
    # Tensors and parameters, as Transformers' own models of these sizes have them.
    "scout": (1_133, 108_641_793_536),
    "maverick": (1_061, 401_583_781_376),
    "guard 4": (989, 12_001_097_216),
    "90b": (1_494, 88_593_355_323),
    "11b": (906, 10_670_220_835),
    "11b base": (906, 10_642_941_475),
}
LARGE_VISION = VisionSpec(
    8192, 80, 20, 64, 8, 4096, 128_256, width=1280, encoder_layers=32, global_layers=8, side=40, features=5,
    shards=8, multiplier=1.3,
)  # fmt: skip
VISION = replace(LARGE_VISION, dim=4096, layers=32, cross=8, heads=32, multiple_of=1024, shards=1)
LLAMA_4 = Llama4Spec(
    5120, 48, 40, 8, 2048, 202_048, experts=16, width=1408, encoder_layers=34, encoder_heads=16, side=24, output=4096,
    shards=8, split=True, multiplier=1.2,
)  # fmt: skip
GUARD = replace(LLAMA_4, experts=0, nope=None, chunk=None, multiplier=0.6, shards=1)
IMAGE_SPECS = {
    "scout": LLAMA_4,
    "maverick": replace(LLAMA_4, experts=128, step=2),
    "guard 4": GUARD,
    "90b": LARGE_VISION,
    "11b": VISION,
    "11b base": replace(VISION, side=32),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", SIZES)
def test_models_that_see_are_planned_with_all_their_tensors(tmp_path: Path, name: str) -> None:
    spec = IMAGE_SPECS[name]
    generation = "llama3" if isinstance(spec, VisionSpec) else "llama4"
    tokenizer = packaged_file("llama_models", f"{generation}/tokenizer.model")
    found = plan(write_sparse_images(tmp_path / "in", spec), "--tokenizer", tokenizer)
    tensors, parameters = SIZES[name]
    assert sum(file["tensors"] for file in found["files"]) == tensors
    # Experts of Maverick are tensors of 21 GB.
    assert found["largest_unit_bytes"] < 5.1e9
    assert found["digest_bytes"] == sum(
        file["size_bytes"] for file in found["files"] if len(file["parts"]) > 1
    )
    assert 2 * parameters < found["write_bytes"] < 2 * parameters + 512 * tensors
