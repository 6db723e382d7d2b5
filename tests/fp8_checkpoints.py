"""FP8 checkpoints as Meta's scripts make them of others: each shard quantized by itself, its scales in a file beside it.

Nothing comes from distconv. The names and orders are those of ``llama3/quantization/loader.py`` and
``llama4/scripts/quantize.py`` of llama-models 0.3.0; for its CUDA kernel stands plain torch.
"""

import re
from collections.abc import Sequence
from pathlib import Path

import torch

Tensors = dict[str, torch.Tensor]
Row = tuple[str, tuple[int, ...], int | None]
FLOAT8 = torch.float8_e4m3fn
LARGEST = 448.0
_DENSE = re.compile(r"layers\.(\d+)\.feed_forward\.(w[123])\.weight")
_EXPERTS = re.compile(
    r"layers\.(\d+)\.feed_forward\.experts\.(moe_w_in_eD_F|moe_w_out_eF_D|moe_w_swiglu_eD_F)"
)
_KEYS = {"moe_w_in_eD_F": "w1", "moe_w_out_eF_D": "w2", "moe_w_swiglu_eD_F": "w3"}


def quantize_rows(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Quantize the last axis: float8 values, and float32 scales to multiply them by."""
    scale = weight.float().abs().amax(-1).clamp(min=1e-12) / LARGEST
    return (weight.float() / scale[..., None]).to(FLOAT8), scale


def quantize_shard(shard: Tensors, rank: int, layers: int, experts: int = 0) -> tuple[Tensors, Tensors]:
    """Quantize what Meta quantizes of a shard: neither the first layer nor the last one."""
    found, scales = dict(shard), dict[str, torch.Tensor]()
    for name, weight in shard.items():
        dense, expert = _DENSE.fullmatch(name), _EXPERTS.fullmatch(name)
        match = expert if experts else dense
        if match is None or int(match[1]) in {0, layers - 1}:
            continue
        if match is dense:
            found[name], scales[f"{match[1]}_feed_forward.{match[2]}_{rank}"] = quantize_rows(weight)
            continue
        turned = weight.reshape(experts, -1, weight.shape[-1]).transpose(1, 2).contiguous()
        values, scale = quantize_rows(turned)
        found[name] = values.transpose(1, 2).reshape(-1, weight.shape[-1]).contiguous()
        scales[f"layers.{match[1]}.feed_forward.experts.{_KEYS[match[2]]}"] = scale
    return found, scales


def quantize_checkpoint(folder: Path, layers: int, experts: int = 0) -> Path:
    """Make a checkpoint's shards FP8 ones, with their scales; gives the folder."""
    for rank, path in enumerate(sorted(folder.glob("consolidated.*.pth"))):
        shard = torch.load(path, weights_only=False)
        values, scales = quantize_shard(shard, rank, layers, experts)
        torch.save(values, path)
        torch.save(scales, folder / f"fp8_scales_{rank}.pt")
    return folder


def write_sparse_fp8(folder: Path, rows: Sequence[Row], shards: int, layers: int, experts: int = 0) -> Path:
    """Write FP8 shards of any size whose data is a hole; ``rows`` are names, whole shapes, and the axis that is cut."""
    folder.mkdir()
    for rank in range(shards):
        state, scales = dict[str, torch.Tensor](), dict[str, torch.Tensor]()
        for name, shape, axis in rows:
            part = [size // shards if place == axis else size for place, size in enumerate(shape)]
            flat = [part[0] * part[1], part[2]] if len(part) == 3 and "experts" in name else part
            match = (_EXPERTS if experts else _DENSE).fullmatch(name)
            is_scaled = match is not None and int(match[1]) not in {0, layers - 1}
            state[name] = torch.empty(flat, dtype=FLOAT8 if is_scaled else torch.bfloat16)
            if match is not None and is_scaled and experts:
                scales[f"layers.{match[1]}.feed_forward.experts.{_KEYS[match[2]]}"] = torch.empty(
                    experts, flat[1]
                )
            elif match is not None and is_scaled:
                scales[f"{match[1]}_feed_forward.{match[2]}_{rank}"] = torch.empty(flat[0])
        with torch.serialization.skip_data():
            torch.save(state, folder / f"consolidated.{rank:02d}.pth")
            torch.save(scales, folder / f"fp8_scales_{rank}.pt")
    return folder


def dequantize_shard(shard: Tensors, scales: Tensors, rank: int, dtype: torch.dtype) -> Tensors:
    """Give a shard's tensors in another type by torch's own arithmetic: value to float32, times scale, to the type."""
    found = {}
    for name, weight in shard.items():
        if weight.dtype != FLOAT8:
            found[name] = weight.to(dtype)
            continue
        if dense := _DENSE.fullmatch(name):
            scale = scales[f"{dense[1]}_feed_forward.{dense[2]}_{rank}"]
            found[name] = (weight.to(torch.float32) * scale[:, None]).to(dtype)
            continue
        expert = _EXPERTS.fullmatch(name)
        assert expert is not None
        scale = scales[f"layers.{expert[1]}.feed_forward.experts.{_KEYS[expert[2]]}"]
        wide = weight.to(torch.float32).reshape(len(scale), -1, weight.shape[-1])
        found[name] = (wide * scale[:, None, :]).to(dtype).reshape(weight.shape)
    return found


def dequantize_checkpoint(folder: Path, target: Path, dtype: torch.dtype) -> Path:
    """Write a checkpoint's shards as plain torch dequantizes them, with all that lies beside them but the scales."""
    target.mkdir()
    for path in folder.iterdir():
        if path.name.startswith("consolidated."):
            rank = int(path.name.split(".")[1])
            shard = torch.load(path, weights_only=False)
            scales = torch.load(folder / f"fp8_scales_{rank}.pt", weights_only=True)
            tensors = {name: tensor for name, tensor in shard.items() if isinstance(tensor, torch.Tensor)}
            torch.save(dequantize_shard(tensors, scales, rank, dtype), target / path.name)
        elif not path.name.startswith(("fp8_scales", "checklist")):
            (target / path.name).write_bytes(path.read_bytes())
    return target
