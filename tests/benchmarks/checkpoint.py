"""Checkpoints of real layer shapes, of noise that no file system can compress away."""

from pathlib import Path

import torch

from tests.checkpoints import Spec, cut, shapes, write_params

NOISE_ELEMENTS = 1 << 20


def llama_70b(layers: int) -> Spec:
    """Give Llama 2 70B's shapes with fewer layers: 0.52 GB and 1.71 GB a layer, in 8 shards."""
    return Spec(
        "llama-2", 8192, layers, 64, 8, multiple_of=4096, ffn_dim_multiplier=1.3, vocab=32000, shards=8
    )


WIDE = Spec("llama-3.1", 16384, 1, 128, 8, multiple_of=256, ffn_dim_multiplier=0.01, vocab=128256, shards=8)
"""The embedding of the 405B, beside one thin layer."""


def write_noise(folder: Path, spec: Spec, tokenizer: Path) -> Path:
    """Write a checkpoint shard by shard."""
    folder.mkdir(parents=True)
    noise = torch.randint(-(2**15), 2**15, (NOISE_ELEMENTS,), dtype=torch.int16)
    for number in range(spec.shards):
        state = {}
        for name, shape, axis in shapes(spec):
            part = cut(shape, axis, spec.shards)
            tensor = torch.empty(part, dtype=torch.int16)
            flat = tensor.view(-1)
            for start in range(0, flat.numel(), NOISE_ELEMENTS):
                piece = flat[start : start + NOISE_ELEMENTS]
                piece.copy_(noise[: piece.numel()])
            state[name] = tensor.view(torch.bfloat16)
        torch.save(state, folder / spec.naming.format(number))
    write_params(folder, spec)
    (folder / "tokenizer.model").write_bytes(tokenizer.read_bytes())
    return folder
