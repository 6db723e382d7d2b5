"""Checkpoints of real layer shapes, of noise that no file system can compress away."""

import json
from collections.abc import Iterable
from pathlib import Path

import torch

from tests.checkpoints import Spec, cut, shapes, write_params, write_tiktoken
from tests.dcp_ranks import save_item, write_ranks
from tests.image_checkpoints import Llama4Spec

NOISE_ELEMENTS = 1 << 20
ONE = 0x3F80
"""In bfloat16: numbers from 0 to 1 are those that are smaller as integers too."""


def llama_70b(layers: int) -> Spec:
    """Give Llama 2 70B's shapes with fewer layers: 0.52 GB and 1.71 GB a layer, in 8 shards."""
    return Spec(
        "llama-2", 8192, layers, 64, 8, multiple_of=4096, ffn_dim_multiplier=1.3, vocab=32000, shards=8
    )


WIDE = Spec("llama-3.1", 16384, 1, 128, 8, multiple_of=256, ffn_dim_multiplier=0.01, vocab=128256, shards=8)
"""The embedding of the 405B, beside one thin layer."""

EXPERTS = Llama4Spec(5120, 1, 40, 8, 2048, experts=30, split=True, shards=8, multiplier=1.2)
"""One layer of Maverick with 30 of its 128 experts: 8.0 GB, of which a tensor of 5.03 GB is written in parts."""


def write_noise(folder: Path, spec: Spec, tokenizer: Path) -> Path:
    """Write a checkpoint shard by shard."""
    folder.mkdir(parents=True)
    rows = [(name, cut(shape, axis, spec.shards)) for name, shape, axis in shapes(spec)]
    _write_shards(folder, rows, spec.shards)
    write_params(folder, spec)
    (folder / "tokenizer.model").write_bytes(tokenizer.read_bytes())
    return folder


def write_noisy_experts(folder: Path, spec: Llama4Spec) -> Path:
    """Write a Llama 4, its experts' matrices below each other, with a small tokenizer."""
    folder.mkdir(parents=True)
    rows = []
    for name, shape, axis in spec.rows():
        part = cut(shape, axis, spec.shards)
        rows.append((name, (part[0] * part[1], *part[2:]) if "experts" in name else part))
    _write_shards(folder, rows, spec.shards)
    (folder / "params.json").write_text(json.dumps(spec.params()), encoding="utf-8")
    write_tiktoken(folder / "tokenizer.model")
    return folder


def write_noisy_ranks(folder: Path, spec: Spec, ranks: int) -> Path:
    """Write what so many ranks save of a model that FSDP2 cut by rows, under torchtitan's names: one file each."""
    noise = _make_noise()
    return write_ranks(
        folder, spec, ranks, torch.bfloat16, lambda file, sizes: save_item(file, _repeat(noise, sizes))
    )


def _make_noise() -> torch.Tensor:
    """Give patterns of bfloat16 between -1 and 1, all as likely: weights are no NaN."""
    sizes = torch.randint(0, ONE, (NOISE_ELEMENTS,), dtype=torch.int16)
    return sizes - (torch.randint(0, 2, (NOISE_ELEMENTS,), dtype=torch.int16) << 15)


def _repeat(noise: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
    flat = torch.empty(torch.Size(shape).numel(), dtype=torch.int16)
    for piece in flat.split(NOISE_ELEMENTS):
        piece.copy_(noise[: piece.numel()])
    return flat.view(torch.bfloat16).view(shape)


def _write_shards(folder: Path, rows: Iterable[tuple[str, tuple[int, ...]]], shards: int) -> None:
    rows = tuple(rows)
    for number in range(shards):
        noise = _make_noise()  # shards that hold the same would be taken as one's key heads, stored again
        state = {name: _repeat(noise, part) for name, part in rows}
        torch.save(state, folder / f"consolidated.{number:02d}.pth")
