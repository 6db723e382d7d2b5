"""The real converter of transformers 4.47.1 gives the same tensors, wherever it is right."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import distconv
from tests.checkpoints import Spec
from tests.reference import read_tensors

Write = Callable[[Spec], Path]

# It loads everything as bfloat16, knows no doubled key heads, and wants files named consolidated.NN.pth.
CASES = [
    (Spec("llama-1", heads=4, dtype=torch.float16), "1"),
    (Spec("llama-1", heads=8, shards=4, dtype=torch.float16), "1"),
    (Spec("llama-2", heads=4), "2"),
    (Spec("llama-2", heads=8, shards=2), "2"),
    (Spec("llama-2", heads=8, shards=2, kv_heads=2, dim=128, layout="packed"), "2"),
    (Spec("llama-2", heads=16, shards=8, kv_heads=8, dim=128), "2"),
    (Spec("llama-2", heads=16, shards=16, dim=128, nested_params=True), "2"),
    (Spec("code-llama", heads=8, shards=4, kv_heads=4), "2"),
    (Spec("llama-3", heads=8, kv_heads=1), "3"),
    (Spec("llama-3", heads=8, shards=8, kv_heads=8, dim=128), "3"),
    (Spec("llama-3.1", heads=16, shards=8, kv_heads=8, dim=128), "3.1"),
    (Spec("llama-3.1", heads=8, kv_heads=2, dtype=torch.float32), "3.1"),
    (Spec("llama-3.2", heads=8, kv_heads=2, tied=True), "3.2"),
]


@pytest.mark.slow
@pytest.mark.peer
def test_the_last_published_converter_gives_the_same_tensors(
    checkpoint: Write, tmp_path: Path, run_peer: Callable[..., str]
) -> None:
    lines = []
    for number, (spec, version) in enumerate(CASES):
        options = ["--num_shards", str(spec.shards), "--llama_version", version]
        folders = ["--input_dir", str(checkpoint(spec)), "--output_dir", str(tmp_path / f"theirs{number}")]
        lines.append(json.dumps(folders + options) + "\n")
    script = Path(__file__).with_name("peer_converter.py")
    run_peer("transformers-4.47.1", script, lines="".join(lines))
    for number, (spec, _version) in enumerate(CASES):
        ours = tmp_path / f"ours{number}"
        distconv.convert(checkpoint(spec), ours, family=spec.family, dtype="bfloat16")
        theirs = read_tensors(tmp_path / f"theirs{number}")
        found = read_tensors(ours)
        assert found.keys() == theirs.keys(), spec
        for name, tensor in theirs.items():
            assert torch.equal(found[name].view(torch.int16), tensor.view(torch.int16)), (spec, name)
