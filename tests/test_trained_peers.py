"""What torchtitan's own adapters, and accelerate's merge, make of a checkpoint is what distconv makes of it."""

import subprocess
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from accelerate.utils import merge_fsdp_weights
from safetensors.torch import load_file

import distconv
from tests.dcp_folders import HEAD_DIM, HEADS, KV_HEADS

ADAPTER = Path(__file__).parent / "torchtitan_adapter.py"


@pytest.mark.peer
@pytest.mark.parametrize(
    ("version", "name", "place"),
    [
        ("0.2.2", "torchtitan", "model.state_dict_adapter"),
        ("0.2.2", "grid", "model.state_dict_adapter"),
        ("0.3.0", "torchtitan-0.3", "state_dict_adapter"),
    ],
)
def test_torchtitans_adapter_makes_the_same_tensors(
    folders: Path, tmp_path: Path, peer_python: Callable[[str], Path], version: str, name: str, place: str
) -> None:
    python = peer_python(f"torchtitan-{version}")
    numbers = [str(number) for number in (HEADS, KV_HEADS, HEAD_DIM, 60)]
    subprocess.run([python, ADAPTER, folders / name, tmp_path / "adapted.pt", *numbers, place], check=True)
    expected = torch.load(tmp_path / "adapted.pt")
    distconv.convert(folders / name, tmp_path / "out", like=folders / "llama-hf")
    found = load_file(tmp_path / "out/model.safetensors")
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[own], one) for own, one in expected.items())


def test_accelerates_merge_makes_the_same_tensors(folders: Path, tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        merge_fsdp_weights(str(folders / "per-item"), str(tmp_path / "merged"))
    expected = load_file(tmp_path / "merged/model.safetensors")
    distconv.convert(folders / "per-item", tmp_path / "out", like=folders / "llama-hf")
    found = load_file(tmp_path / "out/model.safetensors")
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[own], one) for own, one in expected.items())
