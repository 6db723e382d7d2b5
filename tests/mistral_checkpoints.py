"""Small checkpoints as Mistral writes them, what they become, and what its code computes: all by plain torch.

Names, shapes and keys of params.json follow mistral-inference (``transformer_layers.py``, ``moe.py``, ``args.py``), those
of Mixtral's first files Transformers' converter. Nothing here comes from distconv.
"""

import base64
import json
import math
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path
from typing import Literal

import torch
from safetensors.torch import save_file

from tests.checkpoints import SENTENCEPIECE_SIZE, Tensors
from tests.reference import permute, rename

TEKKEN_SPECIAL = 40


@dataclass(frozen=True, slots=True)
class MistralSpec:
    """One synthetic checkpoint; sizes in elements."""

    dim: int = 64
    layers: int = 2
    heads: int = 4
    kv_heads: int = 2
    head_dim: int = 16
    ffn: int = 96
    vocab: int = SENTENCEPIECE_SIZE
    theta: float | None = 1e6
    window: int | str | list[int | None] | None = None
    window_key: str = "sliding_window"
    experts: int = 0
    stacked: bool = False
    """Experts of a layer in one tensor, files of whole layers, params.json with Transformers' keys."""
    files: Literal["pth", "safetensors", "parts"] = "pth"
    tied: bool = False
    dtype: torch.dtype = torch.bfloat16
    context: int | None = None

    @property
    def windows(self) -> list[int | None]:
        """How many tokens each layer attends to."""
        pattern = self.window if isinstance(self.window, list) else [self.window and int(self.window)]
        return list(islice(cycle(pattern), self.layers))

    @property
    def rope_theta(self) -> float:
        """What Mistral's code took at the time."""
        return self.theta or (1e4 if any(self.windows) else 1e6)


def make_params(spec: MistralSpec) -> dict[str, object]:
    """Give the fields of params.json."""
    if spec.stacked:
        return {
            "hidden_size": spec.dim, "num_hidden_layers": spec.layers, "num_attention_heads": spec.heads,
            "num_key_value_heads": spec.kv_heads, "intermediate_size": spec.ffn, "rms_norm_eps": 1e-5,
            "vocab_size": spec.vocab, "num_local_experts": spec.experts,
        }  # fmt: skip
    fields: dict[str, object] = {
        "dim": spec.dim, "n_layers": spec.layers, "head_dim": spec.head_dim, "hidden_dim": spec.ffn,
        "n_heads": spec.heads, "n_kv_heads": spec.kv_heads, "norm_eps": 1e-5, "vocab_size": spec.vocab,
    }  # fmt: skip
    if spec.theta is not None:
        fields["rope_theta"] = spec.theta
    if spec.window is not None:
        fields[spec.window_key] = spec.window
    if spec.experts:
        fields["moe"] = {"num_experts_per_tok": 2, "num_experts": spec.experts}
    if spec.context is not None:
        fields["max_seq_len"] = spec.context
    if spec.tied:
        fields["tied_embeddings"] = True
    return fields


def make_model(spec: MistralSpec) -> Tensors:
    """Make whole tensors by the names of mistral-inference."""
    generator = torch.Generator().manual_seed(0)

    def make(*shape: int, scale: float = 0.2) -> torch.Tensor:
        return (torch.randn(shape, generator=generator) * scale).to(spec.dtype)

    def make_norm() -> torch.Tensor:
        return (1 + 0.1 * torch.randn(spec.dim, generator=generator)).to(spec.dtype)

    queries, keys = spec.heads * spec.head_dim, spec.kv_heads * spec.head_dim
    model = {"tok_embeddings.weight": make(spec.vocab, spec.dim, scale=1.0)}
    for layer in range(spec.layers):
        here = f"layers.{layer}."
        for name, shape in (
            ("q", (queries, spec.dim)), ("k", (keys, spec.dim)), ("v", (keys, spec.dim)), ("o", (spec.dim, queries)),
        ):  # fmt: skip
            model[f"{here}attention.w{name}.weight"] = make(*shape)
        prefixes = [f"experts.{number}." for number in range(spec.experts)] or [""]
        for prefix in prefixes:
            for name in ("w1", "w2", "w3"):
                shape = (spec.dim, spec.ffn) if name == "w2" else (spec.ffn, spec.dim)
                model[f"{here}feed_forward.{prefix}{name}.weight"] = make(*shape)
        if spec.experts:
            model[f"{here}feed_forward.gate.weight"] = make(spec.experts, spec.dim)
        for name in ("attention_norm", "ffn_norm"):
            model[f"{here}{name}.weight"] = make_norm()
    model["norm.weight"] = make_norm()
    model["output.weight"] = make(spec.vocab, spec.dim)
    if spec.tied:
        del model["output.weight"]
    return model


def stack(spec: MistralSpec, model: Tensors) -> Tensors:
    """Give the tensors of Mixtral's first files: experts as rows of one tensor, each second one transposed."""
    stacked = {name: tensor for name, tensor in model.items() if ".feed_forward." not in name}
    for layer in range(spec.layers):
        ours, theirs = f"layers.{layer}.feed_forward.", f"layers.{layer}.block_sparse_moe."
        stacked[f"{theirs}gate.weight"] = model[f"{ours}gate.weight"]
        for name in ("w1", "w2", "w3"):
            parts = [model[f"{ours}experts.{number}.{name}.weight"] for number in range(spec.experts)]
            stacked[theirs + name] = torch.cat([part.T if name == "w2" else part for part in parts])
    return stacked


def write_mistral(folder: Path, spec: MistralSpec, tokenizer: Path | None = None) -> Path:
    """Write a checkpoint and give its folder back; ``tokenizer`` is put beside it under its own name."""
    folder.mkdir(parents=True, exist_ok=True)
    model = make_model(spec)
    if spec.stacked:
        stacked = stack(spec, model)
        for number in range(8):
            names = [name for place, name in enumerate(stacked) if place % 8 == number]
            part = {name: stacked[name].contiguous() for name in names}
            torch.save(part, folder / f"consolidated.{number:02d}.pt")
    elif spec.files == "pth":
        torch.save(model, folder / "consolidated.00.pth")
    elif spec.files == "safetensors":
        save_file(model, folder / "consolidated.safetensors")
    else:
        for number in range(2):
            part = {name: tensor for place, (name, tensor) in enumerate(model.items()) if place % 2 == number}
            save_file(part, folder / f"consolidated-{number + 1:05d}-of-00002.safetensors")
    (folder / "params.json").write_text(json.dumps(make_params(spec), indent=4), encoding="utf-8")
    if tokenizer is not None:
        (folder / tokenizer.name).write_bytes(tokenizer.read_bytes())
    return folder


def write_tekken(path: Path, *, named: bool = True, padding: int = 8) -> Path:
    """Write a small tekken.json, whose last ranks are beyond its vocabulary; ``named`` as since version 7."""
    letters = b"etaoinshrdlu"
    tokens = [bytes([value]) for value in range(256)]
    tokens += [bytes([first, second]) for first in b" " + letters for second in letters]
    pattern = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    content: dict[str, object] = {
        "config": {
            "pattern": pattern, "num_vocab_tokens": len(tokens), "version": "v7" if named else "v3",
            "default_vocab_size": len(tokens) - padding + TEKKEN_SPECIAL,
            "default_num_special_tokens": TEKKEN_SPECIAL,
        },
        "vocab": [
            {"rank": rank, "token_bytes": base64.b64encode(token).decode(), "token_str": None}
            for rank, token in enumerate(tokens)
        ],
    }  # fmt: skip
    if named:
        # mistral-common asks for all of these; their order is not that of older files.
        texts = [
            "<unk>", "<s>", "</s>", "<pad>", "[INST]", "[/INST]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]",
            "[TOOL_RESULTS]", "[/TOOL_RESULTS]", "[TOOL_CALLS]", "[TOOL_CONTENT]", "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]",
            "[PREFIX]", "[MIDDLE]", "[SUFFIX]", "[IMG]", "[IMG_BREAK]", "[IMG_END]",
        ]  # fmt: skip
        content["special_tokens"] = [
            {"rank": rank, "token_str": text, "is_control": True} for rank, text in enumerate(texts)
        ]
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def convert_plainly(spec: MistralSpec, model: Tensors) -> Tensors:
    """Give Transformers' tensors: heads of their own size permuted, experts one by one."""
    found = {}
    for name, tensor in model.items():
        _layers, _number, rest = (*name.split(".", 2), "")[:3]
        if rest.startswith(("feed_forward.experts", "feed_forward.gate")):
            found["model." + name.replace("feed_forward", "block_sparse_moe")] = tensor
            continue
        heads = {"wq": spec.heads, "wk": spec.kv_heads}.get(rest.split(".")[1] if "." in rest else "")
        found[rename(name)] = permute(tensor, heads).contiguous() if heads else tensor
    return found


def forward(spec: MistralSpec, model: Tensors, tokens: torch.Tensor) -> torch.Tensor:
    """Run Mistral's model in float64 on one sequence of token ids; logits (length, vocab)."""
    weights = {name: tensor.double() for name, tensor in model.items()}
    length, positions = len(tokens), torch.arange(len(tokens))
    exponents = torch.arange(0, spec.head_dim, 2, dtype=torch.float64) / spec.head_dim
    angles = torch.outer(positions.double(), 1.0 / spec.rope_theta**exponents)
    rotation = torch.polar(torch.ones_like(angles), angles)[:, None, :]  # (length, 1, half)
    back = positions[:, None] - positions[None, :]
    hidden = weights["tok_embeddings.weight"][tokens]
    for layer, window in enumerate(spec.windows):
        here = f"layers.{layer}."
        seen = (back >= 0) & (back < (window or length))
        mask = torch.zeros(length, length, dtype=torch.float64).masked_fill(~seen, -math.inf)
        normed = _norm(hidden, weights[f"{here}attention_norm.weight"])
        query, key, value = (
            (normed @ weights[f"{here}attention.w{name}.weight"].T).view(length, -1, spec.head_dim)
            for name in "qkv"
        )
        query, key = (
            torch.view_as_real(
                torch.view_as_complex(part.reshape(*part.shape[:2], -1, 2)) * rotation
            ).flatten(-2)
            for part in (query, key)
        )
        key, value = (part.repeat_interleave(spec.heads // spec.kv_heads, dim=1) for part in (key, value))
        scores = torch.einsum("qhd,khd->hqk", query, key) / math.sqrt(spec.head_dim) + mask
        mixed = torch.einsum("hqk,khd->qhd", scores.softmax(-1), value).reshape(length, -1)
        hidden = hidden + mixed @ weights[f"{here}attention.wo.weight"].T
        normed = _norm(hidden, weights[f"{here}ffn_norm.weight"])
        hidden = hidden + _feed_forward(spec, weights, f"{here}feed_forward.", normed)
    output = weights["tok_embeddings.weight" if spec.tied else "output.weight"]
    return _norm(hidden, weights["norm.weight"]) @ output.T


def _feed_forward(spec: MistralSpec, weights: Tensors, here: str, normed: torch.Tensor) -> torch.Tensor:
    def run(prefix: str, part: torch.Tensor) -> torch.Tensor:
        gate = torch.nn.functional.silu(part @ weights[f"{prefix}w1.weight"].T)
        return (gate * (part @ weights[f"{prefix}w3.weight"].T)) @ weights[f"{prefix}w2.weight"].T

    if not spec.experts:
        return run(here, normed)
    chosen, numbers = torch.topk(normed @ weights[f"{here}gate.weight"].T, 2)
    shares = chosen.softmax(-1)
    found = torch.zeros_like(normed)
    for number in range(spec.experts):
        rows, places = torch.where(numbers == number)
        found[rows] += shares[rows, places, None] * run(f"{here}experts.{number}.", normed[rows])
    return found


def _norm(hidden: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return hidden * torch.rsqrt(hidden.pow(2).mean(-1, keepdim=True) + 1e-5) * weight
