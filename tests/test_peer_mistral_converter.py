"""The real converters of Mistral and Mixtral in transformers 4.47.1 write the same tensors and values, where they are right."""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import distconv
from tests.mistral_checkpoints import MistralSpec, write_mistral
from tests.test_end_to_end import read_tensors

# They take heads for as wide as dim says, which Nemo's are not, and 1e4 for a theta that is not said; of Mistral's .pth files
# (--modules_are_split) they change a dict that they go through, and end.
CASES = {
    "v0.1": MistralSpec(window="4096", theta=None, files="safetensors"),
    "v0.3": MistralSpec(files="safetensors"),
    "parts": MistralSpec(files="parts", kv_heads=1),
    "mixtral": MistralSpec(experts=4, stacked=True, dtype=torch.float16),
}
KEYS = (
    "architectures", "bos_token_id", "eos_token_id", "head_dim", "hidden_act", "hidden_size", "intermediate_size",
    "max_position_embeddings", "model_type", "num_attention_heads", "num_hidden_layers", "num_key_value_heads",
    "num_experts_per_tok", "num_local_experts", "rms_norm_eps", "rope_theta", "sliding_window", "tie_word_embeddings",
    "torch_dtype", "vocab_size",
)  # fmt: skip


@pytest.mark.slow
@pytest.mark.peer
def test_the_last_published_converters_give_the_same_tensors_and_values(
    tmp_path: Path, sentencepiece_file: Path, peer_python: Callable[[str], Path]
) -> None:
    lines = []
    for name, spec in CASES.items():
        source = write_mistral(tmp_path / f"mistral-{name}", spec, sentencepiece_file)
        kind = "mixtral" if spec.experts else "mistral"
        lines.append(json.dumps([kind, str(source), str(tmp_path / f"theirs-{name}")]) + "\n")
    script = Path(__file__).with_name("peer_mistral_converter.py")
    command = [str(peer_python("transformers-4.47.1")), str(script)]
    ended = subprocess.run(command, input="".join(lines), capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    for name in CASES:
        ours, theirs = tmp_path / f"ours-{name}", tmp_path / f"theirs-{name}"
        distconv.convert(tmp_path / f"mistral-{name}", ours)
        found, expected = read_tensors(ours), read_tensors(theirs)
        assert found.keys() == expected.keys()
        for tensor, value in expected.items():
            assert torch.equal(found[tensor].view(torch.int16), value.view(torch.int16)), (name, tensor)
        said, known = (json.loads((folder / "config.json").read_text()) for folder in (ours, theirs))
        if name == "mixtral":
            assert (known.pop("rope_theta"), said.pop("rope_theta")) == (1e4, 1e6)
        assert {key: said[key] for key in KEYS if key in known} == {
            key: known[key] for key in KEYS if key in known
        }
