"""The real converter of Llama 3.2 Vision in transformers 4.47.1 writes the same tensors, to the bit."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import distconv
from tests.image_checkpoints import VisionSpec, write_image_checkpoint
from tests.reference import read_tensors

SPEC = VisionSpec(dim=128, heads=16, kv_heads=8)
"""The script knows no other number of key heads."""


@pytest.mark.peer
def test_the_last_published_converter_gives_the_same_tensors(
    tmp_path: Path, tiktoken_file: Path, run_peer: Callable[..., str]
) -> None:
    constants = {
        "vision_num_layers = 32": f"vision_num_layers = {SPEC.encoder_layers}",
        "vision_num_layers_global = 8": f"vision_num_layers_global = {SPEC.global_layers}",
        "vision_dim = 1280": f"vision_dim = {SPEC.width}",
        "vision_intermediate_layers_indices = [3, 7, 15, 23, 30]": "vision_intermediate_layers_indices = [3, 7]",
        "hidden_size=vision_dim,": f"hidden_size=vision_dim, vision_output_dim={3 * SPEC.width},",
        "ffn_dim_multiplier=1.3": "ffn_dim_multiplier=1.0",
        "pad_token_id = 128004": "pad_token_id = 0",
    }
    lines = []
    for shards in (1, 2, 4):
        source = tmp_path / f"meta-{shards}"
        write_image_checkpoint(source, replace(SPEC, shards=shards), tiktoken_file)
        if shards == 1:  # as the hub has it
            (source / "consolidated.00.pth").rename(source / "consolidated.pth")
        output = str(tmp_path / f"theirs-{shards}")
        asked = {"input": str(source), "output": output, "shards": shards, "constants": constants}
        lines.append(json.dumps(asked) + "\n")
    script = Path(__file__).with_name("peer_image_converter.py")
    run_peer("transformers-4.47.1", script, lines="".join(lines))
    for shards in (1, 2, 4):
        ours, theirs = tmp_path / f"ours-{shards}", read_tensors(tmp_path / f"theirs-{shards}")
        distconv.convert(tmp_path / f"meta-{shards}", ours)
        found = read_tensors(ours)
        assert found.keys() == theirs.keys()
        for name, tensor in theirs.items():
            assert found[name].shape == tensor.shape, name
            assert torch.equal(found[name].view(torch.int16), tensor.view(torch.int16)), name
