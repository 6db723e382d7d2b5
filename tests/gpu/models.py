"""Checkpoints of real layer shapes, written by a process for each shard: ``python -m tests.gpu.models FOLDER NAME SHARD``."""

import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import torch

from tests.checkpoints import Spec, cut, shapes, write_params, write_sentencepiece, write_tiktoken
from tests.gpu.running import Results

NOISE_ELEMENTS = (1 << 20) + 1
"""Odd, so that neighbouring rows differ."""

LLAMA_2_70B = Spec("llama-2", 8192, 4, 64, 8, multiple_of=4096, ffn_dim_multiplier=1.3, vocab=32000, shards=8)
LLAMA_3_8B = Spec("llama-3.1", 4096, 8, 32, 8, multiple_of=1024, ffn_dim_multiplier=1.3, vocab=128000)
"""Eight of its layers; 256 rows of the embedding are missing, so that a small tokenizer will do."""
LLAMA_2_13B = Spec("llama-2", 5120, 40, 40, multiple_of=256, vocab=32000, shards=2)
SMALL = {"dim": 256, "heads": 8, "layers": 2, "vocab": 1024}
"""What takes no time."""
SPECS = {
    "70b": LLAMA_2_70B,
    "70b-float32": replace(LLAMA_2_70B, dtype=torch.float32, layers=2),
    "8b": LLAMA_3_8B,
    "13b": LLAMA_2_13B,
    "warm": replace(LLAMA_2_70B, **SMALL, kv_heads=8),
}


def spec_of(name: str) -> Spec:
    """Give a model by its name, which ends in ``-small`` for a small one of the same cuts."""
    spec = SPECS[name.removesuffix("-small")]
    return replace(spec, **SMALL, kv_heads=spec.kv_heads and 8) if name.endswith("-small") else spec


def count_bytes(name: str) -> int:
    """Give the size of a model's tensors, those that all shards repeat counted as often."""
    spec = spec_of(name)
    sizes = (torch.Size(cut(shape, axis, spec.shards)).numel() for _name, shape, axis in shapes(spec))
    return sum(sizes) * spec.shards * spec.dtype.itemsize


def make_model(results: Results, name: str) -> Path:
    """Write a model to the RAM disk, all shards at once; LeftOut where there is no room for it twice."""
    spec, folder = spec_of(name), results.place / name
    if folder.exists():
        return folder
    results.need_room(2 * count_bytes(name))
    folder.mkdir()
    with ThreadPoolExecutor(spec.shards) as pool:
        written = [
            pool.submit(results.python, "tests.gpu.models", folder, name, str(shard), OMP_NUM_THREADS="1")
            for shard in range(spec.shards)
        ]
    for one in written:
        one.result()
    write_params(folder, spec)
    write = write_sentencepiece if spec.by_columns else write_tiktoken
    write(folder / "tokenizer.model")
    return folder


def write_shard(folder: Path, name: str, shard: int) -> None:
    """Write a shard of values as weights have them, which differ from shard to shard."""
    spec = spec_of(name)
    generator = torch.Generator().manual_seed(shard)
    noise = (0.02 * torch.randn(NOISE_ELEMENTS, generator=generator)).to(spec.dtype)
    state = {}
    for tensor_name, shape, axis in shapes(spec):
        flat = torch.empty(torch.Size(cut(shape, axis, spec.shards)).numel(), dtype=spec.dtype)
        for start in range(0, len(flat), len(noise)):
            piece = flat[start : start + len(noise)]
            piece.copy_(noise[: len(piece)])
        state[tensor_name] = flat.view(cut(shape, axis, spec.shards))
    torch.save(state, folder / spec.naming.format(shard))


if __name__ == "__main__":
    write_shard(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]))
