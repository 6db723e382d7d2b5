"""Transformers folders as others write them: any architecture, cut into any number of files by safetensors alone."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import (
    MixtralConfig,
    MixtralForCausalLM,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen3Config,
    Qwen3ForCausalLM,
)

Tensors = dict[str, torch.Tensor]
INDEX = "model.safetensors.index.json"
SIZES = {
    "hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8,
    "vocab_size": 64, "max_position_embeddings": 128, "bos_token_id": 1, "eos_token_id": 2, "dtype": "bfloat16",
}  # fmt: skip


def save_model(
    folder: Path, kind: type[PreTrainedModel], config: PreTrainedConfig, limit: str = "20KB"
) -> Path:
    """Let Transformers save a model with random weights."""
    torch.manual_seed(0)
    model = kind(config).to(torch.bfloat16)  # type: ignore[arg-type]
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0.5, 0.1)
    model.save_pretrained(folder, max_shard_size=limit)
    return folder


def save_dense(folder: Path) -> Path:
    """Save a Qwen3 of five layers."""
    return save_model(folder, Qwen3ForCausalLM, Qwen3Config(**SIZES, num_hidden_layers=5))  # type: ignore[arg-type]


def save_experts(folder: Path) -> Path:
    """Save a Mixtral of two layers and four experts, whose names in memory are others than on disk."""
    config = MixtralConfig(**SIZES, num_hidden_layers=2, num_local_experts=4)  # type: ignore[arg-type]
    return save_model(folder, MixtralForCausalLM, config)


def file_name(number: int, total: int) -> str:
    """Name a file, counted from 1."""
    return f"model-{number:05d}-of-{total:05d}.safetensors"


def write_folder(folder: Path, config: Path, tensors: Mapping[str, torch.Tensor], files: int) -> Path:
    """Write tensors, in turn, into so many files, their index, and a copy of a config."""
    folder.mkdir(parents=True, exist_ok=True)
    for path in folder.glob("*.safetensors*"):
        path.unlink()
    weight_map = {name: file_name(number % files + 1, files) for number, name in enumerate(tensors)}
    for file in dict.fromkeys(weight_map.values()):
        held = {name: tensors[name].contiguous() for name, home in weight_map.items() if home == file}
        save_file(held, folder / file, {"format": "pt"})
    write_index(folder, weight_map)
    if config != folder / "config.json":
        shutil.copy(config, folder / "config.json")
    return folder


def write_index(folder: Path, weight_map: Mapping[str, str]) -> None:
    """Write an index."""
    content = {"metadata": {"total_size": 0}, "weight_map": dict(weight_map)}
    (folder / INDEX).write_text(json.dumps(content))


def read_index(folder: Path) -> dict[str, str]:
    """Read which file each tensor is in."""
    found: dict[str, str] = json.loads((folder / INDEX).read_text())["weight_map"]
    return found
