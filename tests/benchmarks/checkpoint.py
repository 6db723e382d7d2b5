"""Checkpoints of real layer shapes, of noise that no file system can compress away."""

import json
from collections.abc import Iterable
from pathlib import Path

import torch

from tests.checkpoints import Spec, cut, shapes, write_params, write_tiktoken
from tests.image_checkpoints import Llama4Spec

NOISE_ELEMENTS = 1 << 20


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


def _write_shards(folder: Path, rows: Iterable[tuple[str, tuple[int, ...]]], shards: int) -> None:
    noise = torch.randint(-(2**15), 2**15, (NOISE_ELEMENTS,), dtype=torch.int16)
    rows = tuple(rows)
    for number in range(shards):
        state = {}
        for name, part in rows:
            tensor = torch.empty(part, dtype=torch.int16)
            flat = tensor.view(-1)
            for start in range(0, flat.numel(), NOISE_ELEMENTS):
                piece = flat[start : start + NOISE_ELEMENTS]
                piece.copy_(noise[: piece.numel()])
            state[name] = tensor.view(torch.bfloat16)
        torch.save(state, folder / f"consolidated.{number:02d}.pth")
