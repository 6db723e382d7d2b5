"""What a conversion must give, computed the plain way: ``cat``, ``permute``, and Meta's forward.

Nothing here comes from distconv: shards are loaded whole with torch, and the forward is that
of Meta's model (interleaved rotary pairs) in float64.
"""

import math
from pathlib import Path

import torch
from safetensors.torch import load_file

from tests.checkpoints import Spec, Tensors

_FACTORS = {"llama-3.1": 8, "llama-3.3": 8, "llama-guard-3": 8, "llama-3.2": 32, "llama-guard-3-1b": 32}
_NAMES = {
    "attention.wq": "self_attn.q_proj",
    "attention.wk": "self_attn.k_proj",
    "attention.wv": "self_attn.v_proj",
    "attention.wo": "self_attn.o_proj",
    "feed_forward.w1": "mlp.gate_proj",
    "feed_forward.w2": "mlp.down_proj",
    "feed_forward.w3": "mlp.up_proj",
    "attention_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
}
_TOP = {
    "tok_embeddings.weight": "model.embed_tokens.weight",
    "norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}


def read_whole(folder: Path, spec: Spec) -> Tensors:
    """Load all shards and concatenate them: whole tensors under Meta's names."""
    shards = [
        torch.load(folder / spec.naming.format(number), weights_only=True) for number in range(spec.shards)
    ]
    shards = [shard["model"] if spec.nested_state else shard for shard in shards]
    whole = {}
    for name in shards[0]:
        parts = [shard[name] for shard in shards]
        if name == "rope.freqs":
            continue
        if "norm" in name:
            whole[name] = parts[0]
        elif name.endswith(("wo.weight", "w2.weight")) or (name.startswith("tok_") and spec.by_columns):
            whole[name] = torch.cat(parts, dim=1)
        else:
            whole[name] = torch.cat(parts, dim=0)
    return whole


def read_tensors(folder: Path) -> Tensors:
    """Load all chunks of a Transformers folder."""
    return {
        name: tensor
        for path in sorted(folder.glob("*.safetensors"))
        for name, tensor in load_file(path).items()
    }


def kv_heads(spec: Spec) -> int:
    """Key heads of the converted model."""
    return spec.stored_kv_heads // 2 if spec.doubled_kv else spec.stored_kv_heads


def convert(folder: Path, spec: Spec, dtype: torch.dtype | None = None) -> Tensors:
    """Give the whole tensors under Transformers' names, permuted as its rotary embedding wants them."""
    found = {}
    for name, tensor in read_whole(folder, spec).items():
        if spec.doubled_kv and name.endswith(("wk.weight", "wv.weight")):
            tensor = tensor.view(spec.stored_kv_heads, spec.head_dim, spec.dim)[0::2].reshape(-1, spec.dim)  # noqa: PLW2901
        if name.endswith("wq.weight"):
            tensor = permute(tensor, spec.heads)  # noqa: PLW2901
        if name.endswith("wk.weight"):
            tensor = permute(tensor, kv_heads(spec))  # noqa: PLW2901
        found[rename(name)] = (tensor if dtype is None else tensor.contiguous().to(dtype)).contiguous()
    if spec.tied or spec.copied:
        del found["lm_head.weight"]
    return found


def rename(name: str) -> str:
    """Give Transformers' name of a tensor of Meta's."""
    if name in _TOP:
        return _TOP[name]
    _layers, number, rest = name.split(".", 2)
    return f"model.layers.{number}.{_NAMES[rest.removesuffix('.weight')]}.weight"


def permute(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """Turn interleaved rotary pairs into split halves, head by head."""
    rows, columns = weight.shape
    pairs = weight.view(heads, rows // heads // 2, 2, columns)
    return pairs.transpose(1, 2).reshape(rows, columns)


def frequencies(spec: Spec) -> torch.Tensor:
    """Rotary frequencies as Meta's ``precompute_freqs_cis`` and ``apply_scaling`` give them."""
    exponents = torch.arange(0, spec.head_dim, 2, dtype=torch.float64) / spec.head_dim
    plain = 1.0 / spec.theta**exponents
    factor = _FACTORS.get(spec.family)
    if factor is None:
        return plain
    scaled = []
    for frequency in plain.tolist():
        wavelength = 2 * math.pi / frequency
        if wavelength < 8192 / 4:
            scaled.append(frequency)
        elif wavelength > 8192 / 1:
            scaled.append(frequency / factor)
        else:
            smooth = (8192 / wavelength - 1) / (4 - 1)
            scaled.append((1 - smooth) * frequency / factor + smooth * frequency)
    return torch.tensor(scaled, dtype=torch.float64)


def forward(folder: Path, spec: Spec, tokens: torch.Tensor) -> torch.Tensor:
    """Run Meta's model in float64 on one sequence of token ids; logits (length, vocab)."""
    weights = {name: tensor.double() for name, tensor in read_whole(folder, spec).items()}
    length = len(tokens)
    angles = torch.outer(torch.arange(length, dtype=torch.float64), frequencies(spec))
    rotation = torch.polar(torch.ones_like(angles), angles)[:, None, :]  # (length, 1, half)
    mask = torch.full((length, length), -math.inf, dtype=torch.float64).triu(1)
    hidden = weights["tok_embeddings.weight"][tokens]
    for layer in range(spec.layers):
        here = f"layers.{layer}."
        normed = _norm(hidden, weights[here + "attention_norm.weight"], spec.norm_eps)
        query = _rotate(
            (normed @ weights[here + "attention.wq.weight"].T).view(length, spec.heads, -1), rotation
        )
        stored = spec.stored_kv_heads
        key = _rotate((normed @ weights[here + "attention.wk.weight"].T).view(length, stored, -1), rotation)
        value = (normed @ weights[here + "attention.wv.weight"].T).view(length, stored, -1)
        key, value = (part.repeat_interleave(spec.heads // stored, dim=1) for part in (key, value))
        scores = torch.einsum("qhd,khd->hqk", query, key) / math.sqrt(spec.head_dim) + mask
        mixed = torch.einsum("hqk,khd->qhd", scores.softmax(-1), value).reshape(length, -1)
        hidden = hidden + mixed @ weights[here + "attention.wo.weight"].T
        normed = _norm(hidden, weights[here + "ffn_norm.weight"], spec.norm_eps)
        gate = torch.nn.functional.silu(normed @ weights[here + "feed_forward.w1.weight"].T)
        up = normed @ weights[here + "feed_forward.w3.weight"].T
        hidden = hidden + (gate * up) @ weights[here + "feed_forward.w2.weight"].T
    return _norm(hidden, weights["norm.weight"], spec.norm_eps) @ weights["output.weight"].T


def _norm(hidden: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    return hidden * torch.rsqrt(hidden.pow(2).mean(-1, keepdim=True) + eps) * weight


def _rotate(heads: torch.Tensor, rotation: torch.Tensor) -> torch.Tensor:
    """Rotate neighbouring pairs; heads (length, heads, head size)."""
    pairs = torch.view_as_complex(heads.reshape(*heads.shape[:-1], -1, 2))
    return torch.view_as_real(pairs * rotation).flatten(-2)
