"""Transformers folders, made by Transformers and torch themselves, and read here."""

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from distconv.formats.meta.archive import locate_data
from distconv.formats.safetensors.catalog import TransformersCatalog, read_transformers_catalog
from distconv.formats.safetensors.folder import find_transformers_files
from distconv.formats.views import TensorView
from distconv.storage.base import opened, read_range
from distconv.storage.local import LocalStorage

Tensors = Mapping[str, torch.Tensor]


def make_model(*, tied: bool = False) -> LlamaForCausalLM:
    """Make a small model with random weights."""
    config = LlamaConfig(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=64,
        tie_word_embeddings=tied,
        dtype="bfloat16",
    )
    torch.manual_seed(0)
    return LlamaForCausalLM(config).to(torch.bfloat16)


def write_config(folder: Path) -> Path:
    """Write a config.json; what it says is not this room's business."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text("{}")
    return folder


def write_bin_shards(folder: Path, shards: list[Tensors], *, legacy: bool = False) -> None:
    """Write several pytorch_model files and their index, as Transformers 4 did."""
    weight_map = {}
    for number, tensors in enumerate(shards, 1):
        name = f"pytorch_model-{number:05d}-of-{len(shards):05d}.bin"
        torch.save(dict(tensors), folder / name, _use_new_zipfile_serialization=not legacy)
        weight_map |= dict.fromkeys(tensors, name)
    write_index(folder / "pytorch_model.bin.index.json", weight_map)


def write_index(path: Path, weight_map: object) -> None:
    """Write an index."""
    path.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": weight_map}))


def split(tensors: Tensors, count: int) -> list[Tensors]:
    """Deal a model's tensors out to so many files."""
    return [dict(list(tensors.items())[start::count]) for start in range(count)]


def read_catalog(path: Path) -> TransformersCatalog:
    """Read the catalog of a folder, or of a file in it."""
    return read_transformers_catalog(LocalStorage(), find_transformers_files(LocalStorage(), str(path)))


def read_tensor(view: TensorView) -> torch.Tensor:
    """Read a tensor's data where its view says that it lies."""
    with opened(LocalStorage(), view.region.path) as reader:
        data = read_range(reader, locate_data(reader, view.region), view.region.size_bytes)
    flat = torch.frombuffer(data, dtype=getattr(torch, view.dtype.name)) if data else torch.empty(0)
    return flat.as_strided(view.shape, view.strides, view.offset)


def assert_holds(catalog: TransformersCatalog, expected: Tensors) -> None:
    """A catalog has exactly these tensors, and their data lies where it says."""
    assert set(catalog.tensors) == set(expected)
    for name, tensor in expected.items():
        found = read_tensor(catalog.tensors[name])
        assert catalog.tensors[name].name == name
        assert found.dtype == tensor.dtype
        assert torch.equal(found, tensor), name
