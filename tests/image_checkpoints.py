"""Small synthetic checkpoints of Llama 3.2 Vision and Llama 4, cut over shards as Meta's published files are.

Names and cuts are written down here once more, and nothing comes from distconv: parallel modules of Meta's code hold
rows of some tensors and columns of others, and a few names are stored together.
"""

import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

Tensors = dict[str, torch.Tensor]
Row = tuple[str, tuple[int, ...], int | None]
"""A name, the whole shape, and the axis that is cut, None for what every rank holds."""
RATIOS = [(1, 1), (1, 2), (1, 3), (1, 4), (2, 1), (2, 2), (3, 1), (4, 1)]


@dataclass(frozen=True, slots=True)
class VisionSpec:
    """One Llama 3.2 Vision; sizes in elements, the encoder's constants of Meta's code made small."""

    dim: int = 64
    layers: int = 6
    cross: int = 2
    heads: int = 8
    kv_heads: int = 4
    multiple_of: int = 16
    vocab: int = 320 + 256
    width: int = 64
    encoder_layers: int = 8
    global_layers: int = 2
    patch: int = 14
    side: int = 4
    """Patches of a tile along each side."""
    features: int = 2
    """Inner layers whose outputs go to the projection beside the last one's."""
    shards: int = 1
    dtype: torch.dtype = torch.bfloat16
    seed: int = 0
    multiplier: float = 1.0

    @property
    def head_dim(self) -> int:
        """Size of a text head."""
        return self.dim // self.heads

    @property
    def ffn_dim(self) -> int:
        """Rows of w1 by Meta's formula."""
        hidden = int(self.multiplier * int(2 * 4 * self.dim / 3))
        return -(-hidden // self.multiple_of) * self.multiple_of

    @property
    def positions(self) -> int:
        """Patches and class token."""
        return self.side**2 + 1

    def params(self) -> dict[str, object]:
        """Give params.json."""
        return {
            "dim": self.dim, "n_layers": self.layers, "n_heads": self.heads, "n_kv_heads": self.kv_heads,
            "vocab_size": self.vocab, "ffn_dim_multiplier": self.multiplier, "multiple_of": self.multiple_of, "norm_eps": 1e-05,
            "rope_theta": 500000.0, "use_scaled_rope": True, "vision_chunk_size": self.side * self.patch,
            "vision_max_num_chunks": 4, "vision_num_cross_attention_layers": self.cross,
        }  # fmt: skip

    def rows(self) -> Iterator[Row]:
        """List all tensors."""
        text, encoder, width = "text_model.", "vision_model.vision_encoder.", self.width
        yield f"{text}tok_embeddings.weight", (self.vocab, self.dim), 0
        yield f"{text}learnable_embedding.weight", (8, self.dim), 0
        for kind, count in (("layers", self.layers), ("cross_attention_layers", self.cross)):
            for layer in range(count):
                block = f"{text}{kind}.{layer}."
                yield from self._list_block(block)
                if kind != "layers":
                    for name in ("q_norm", "k_norm"):
                        yield f"{block}attention.{name}.weight", (self.head_dim,), None
                    for name in ("gate_attn", "gate_ffwd"):
                        yield f"{block}{name}", (1,), None
        yield f"{text}norm.weight", (self.dim,), None
        yield f"{text}output.weight", (self.vocab, self.dim), 0
        yield f"{encoder}conv1._linear.weight", (width, 3 * self.patch**2), 0
        for name in ("class_embedding", "ln_pre.weight", "ln_pre.bias", "ln_post.weight", "ln_post.bias"):
            yield f"{encoder}{name}", (width,), None
        yield f"{encoder}positional_embedding", (self.positions, width), None
        yield f"{encoder}gated_positional_embedding", (4, 4, self.positions, width), None
        yield f"{encoder}gated_positional_embedding_gate", (1,), None
        for name in ("pre", "post"):
            yield f"{encoder}{name}_tile_pos_embed.embedding", (4, 4, 1, width), None
            yield f"{encoder}{name}_tile_pos_embed.gate", (1,), None
        for kind, count in (("transformer", self.encoder_layers), ("global_transformer", self.global_layers)):
            for layer in range(count):
                block = f"{encoder}{kind}.resblocks.{layer}."
                yield from list_encoder_block(block, width, 4 * width, bias=False)
                if kind != "transformer":
                    yield f"{block}gate_attn", (1,), None
                    yield f"{block}gate_ffn", (1,), None
        wide = (self.features + 1) * width
        yield "vision_model.vision_projection.weight", (self.dim, wide), 0
        yield "vision_model.vision_projection.bias", (self.dim,), 0

    def _list_block(self, block: str) -> Iterator[Row]:
        keys = self.kv_heads * self.head_dim
        yield f"{block}attention.wq.weight", (self.dim, self.dim), 0
        yield f"{block}attention.wk.weight", (keys, self.dim), 0
        yield f"{block}attention.wv.weight", (keys, self.dim), 0
        yield f"{block}attention.wo.weight", (self.dim, self.dim), 1
        yield f"{block}feed_forward.w1.weight", (self.ffn_dim, self.dim), 0
        yield f"{block}feed_forward.w2.weight", (self.dim, self.ffn_dim), 1
        yield f"{block}feed_forward.w3.weight", (self.ffn_dim, self.dim), 0
        yield f"{block}attention_norm.weight", (self.dim,), None
        yield f"{block}ffn_norm.weight", (self.dim,), None


@dataclass(frozen=True, slots=True)
class Llama4Spec:
    """One Llama 4; sizes in elements."""

    dim: int = 64
    layers: int = 4
    heads: int = 8
    kv_heads: int = 4
    multiple_of: int = 16
    vocab: int = 320 + 2048
    experts: int = 4
    """0 for Llama Guard 4."""
    step: int = 1
    qk_norm: bool = True
    scaled: bool = True
    chunk: int | None = 8192
    nope: int | None = 4
    width: int = 32
    encoder_layers: int = 2
    encoder_heads: int = 4
    side: int = 4
    output: int = 128
    shards: int = 1
    split: bool = False
    """Named as Meta's modules name them, not as the published files do."""
    statistics: bool = False
    extra_state: bool = True
    dtype: torch.dtype = torch.bfloat16
    seed: int = 0
    multiplier: float = 1.0

    @property
    def head_dim(self) -> int:
        """Size of a text head."""
        return self.dim // self.heads

    @property
    def moe_layers(self) -> list[int]:
        """Layers that have experts."""
        return [layer for layer in range(self.layers) if self.experts and (layer + 1) % self.step == 0]

    @property
    def expert_ffn(self) -> int:
        """Size of each expert by Meta's formula."""
        hidden = int(self.multiplier * int(2 * int(4.0 * self.dim) / 3))
        return -(-int(hidden / 2) // self.multiple_of) * self.multiple_of

    @property
    def ffn(self) -> int:
        """Size of a dense layer by Meta's formula."""
        hidden = int(self.multiplier * int(2 * int(4 * self.dim) / 3))
        return -(-hidden // self.multiple_of) * self.multiple_of

    def params(self) -> dict[str, object]:
        """Give params.json."""
        return {
            "dim": self.dim, "n_layers": self.layers, "n_heads": self.heads, "n_kv_heads": self.kv_heads,
            "vocab_size": self.vocab, "multiple_of": self.multiple_of, "ffn_dim_multiplier": self.multiplier, "ffn_exp": 4.0,
            "norm_eps": 1e-05, "attention_chunk_size": self.chunk, "rope_theta": 500000.0,
            "use_scaled_rope": self.scaled, "nope_layer_interval": self.nope, "use_qk_norm": self.qk_norm,
            "vision_args": {
                "image_size": {"height": self.side * 14, "width": self.side * 14},
                "patch_size": {"height": 14, "width": 14}, "dim": self.width, "n_layers": self.encoder_layers,
                "n_heads": self.encoder_heads, "mlp_ratio": 4.0, "output_dim": self.output, "pixel_shuffle_ratio": 0.5,
            },
            "moe_args": {
                "num_experts": self.experts, "capacity_factor": 1.0, "auto_scale_F": True, "top_k": 1,
                "interleave_moe_layer_step": self.step,
            } if self.experts else None,
        }  # fmt: skip

    def rows(self) -> Iterator[Row]:
        """List all tensors, by the names that Meta's modules have."""
        keys, dim = self.kv_heads * self.head_dim, self.dim
        yield "tok_embeddings.weight", (self.vocab, dim), 0
        for layer in range(self.layers):
            block = f"layers.{layer}."
            yield f"{block}attention.wq.weight", (dim, dim), 0
            yield f"{block}attention.wk.weight", (keys, dim), 0
            yield f"{block}attention.wv.weight", (keys, dim), 0
            yield f"{block}attention.wo.weight", (dim, dim), 1
            yield f"{block}attention_norm.weight", (dim,), None
            yield f"{block}ffn_norm.weight", (dim,), None
            ours = f"{block}feed_forward."
            if layer not in self.moe_layers:
                yield f"{ours}w1.weight", (self.ffn, dim), 0
                yield f"{ours}w3.weight", (self.ffn, dim), 0
                yield f"{ours}w2.weight", (dim, self.ffn), 1
                continue
            count, ffn = self.experts, self.expert_ffn
            yield f"{ours}router_DE", (dim, count), None
            yield f"{ours}w_in_shared_FD.weight", (ffn, dim), 0
            yield f"{ours}w_swiglu_FD.weight", (ffn, dim), 0
            yield f"{ours}w_out_shared_DF.weight", (dim, ffn), 1
            yield f"{ours}experts.moe_w_in_eD_F", (count, dim, ffn), 2
            yield f"{ours}experts.moe_w_swiglu_eD_F", (count, dim, ffn), 2
            yield f"{ours}experts.moe_w_out_eF_D", (count, ffn, dim), 1
        yield "norm.weight", (dim,), None
        yield "output.weight", (self.vocab, dim), 0
        encoder, width = "vision_embeddings.vision_encoder.", self.width
        yield f"{encoder}conv1._linear.weight", (width, 3 * 14 * 14), 0
        for name in ("class_embedding", "ln_pre.weight", "ln_pre.bias", "ln_post.weight", "ln_post.bias"):
            yield f"{encoder}{name}", (width,), None
        yield f"{encoder}positional_embedding_vlm", (self.side**2 + 1, width), None
        for layer in range(self.encoder_layers):
            yield from list_encoder_block(
                f"{encoder}transformer.resblocks.{layer}.", width, 4 * width, bias=True
            )
        adapter = "vision_embeddings.vision_adapter.mlp."
        yield f"{adapter}c_fc.weight", (self.output, 4 * width), 0
        yield f"{adapter}c_proj.weight", (self.output, self.output), 1
        yield "vision_projection.weight", (dim, self.output), 0


def list_encoder_block(block: str, width: int, hidden: int, *, bias: bool) -> Iterator[Row]:
    """List the tensors of an image encoder's layer."""
    for name in "qkv":
        yield f"{block}attn.w{name}.weight", (width, width), 0
        if bias:
            yield f"{block}attn.w{name}.bias", (width,), 0
    yield f"{block}attn.wo.weight", (width, width), 1
    if bias:
        yield f"{block}attn.wo.bias", (width,), None
    yield f"{block}mlp.c_fc.weight", (hidden, width), 0
    yield f"{block}mlp.c_fc.bias", (hidden,), 0
    yield f"{block}mlp.c_proj.weight", (width, hidden), 1
    yield f"{block}mlp.c_proj.bias", (width,), None
    for name in ("ln_1", "ln_2"):
        yield f"{block}{name}.weight", (width,), None
        yield f"{block}{name}.bias", (width,), None


def make_model(spec: VisionSpec | Llama4Spec) -> Tensors:
    """Make whole tensors of random numbers, small enough for a forward pass to stay finite."""
    generator = torch.Generator().manual_seed(spec.seed)
    found = {}
    for name, shape, _axis in spec.rows():
        drawn = torch.randn(shape, generator=generator)
        is_norm = "norm" in name or (".ln_" in name and name.endswith("weight"))
        scale = shape[-2] if "eD_F" in name or "eF_D" in name or "_DE" in name else shape[-1]
        found[name] = (1 + 0.1 * drawn if is_norm else drawn / max(1, scale) ** 0.5).to(spec.dtype)
    return found


def cut_model(spec: VisionSpec | Llama4Spec, model: Tensors) -> list[Tensors]:
    """Give each rank's tensors as its file has them."""
    ranks: list[Tensors] = [{} for _ in range(spec.shards)]
    for name, _shape, axis in spec.rows():
        whole = model[name]
        parts = [whole] * spec.shards if axis is None else whole.chunk(spec.shards, axis)
        for rank, part in zip(ranks, parts, strict=True):
            # Experts' matrices are stored one below the other.
            flat = part.reshape(-1, part.shape[-1]) if part.ndim == 3 and "experts" in name else part
            rank[name] = flat.clone(memory_format=torch.contiguous_format)
    if isinstance(spec, VisionSpec) or spec.split:
        return ranks
    return [publish(spec, rank) for rank in ranks]


def publish(spec: Llama4Spec, rank: Tensors) -> Tensors:
    """Store together what Llama 4's files store together, under the names of its training code."""
    found = dict(rank)
    for layer in range(spec.layers):
        block, ours = f"layers.{layer}.", f"layers.{layer}.feed_forward."
        parts = [found.pop(f"{block}attention.w{name}.weight") for name in "qkv"]
        found[f"{block}attention.wqkv.weight"] = torch.cat(parts)
        found[f"{block}attention.wqkv.layer_norm_weight"] = found.pop(f"{block}attention_norm.weight")
        norm = found.pop(f"{block}ffn_norm.weight")
        if layer in spec.moe_layers:
            found[f"{ours}norm.weight"] = norm
            if spec.statistics:
                found[f"{ours}expert_activation_DE"] = torch.ones(spec.dim, spec.experts)
                found[f"{ours}running_gate_stats_3E"] = torch.ones(3, spec.experts)
            continue
        found[f"{ours}mlp.layer_norm_weight"] = norm
        halves = [found.pop(f"{ours}w{name}.weight") for name in (1, 3)]
        found[f"{ours}mlp.fc1_weight"] = torch.cat(halves)
        found[f"{ours}mlp.fc2_weight"] = found.pop(f"{ours}w2.weight")
    return found


def write_image_checkpoint(
    folder: Path, spec: VisionSpec | Llama4Spec, tokenizer: Path | None = None
) -> Tensors:
    """Write a checkpoint, and give its whole tensors by the names that Meta's modules have."""
    folder.mkdir(parents=True, exist_ok=True)
    model = make_model(spec)
    for number, rank in enumerate(cut_model(spec, model)):
        state: dict[str, object] = dict(rank)
        if isinstance(spec, Llama4Spec) and spec.extra_state:
            for layer in range(spec.layers):
                for name in ("attention.wo", "attention.wqkv"):
                    state[f"layers.{layer}.{name}._extra_state"] = io.BytesIO(b"\x00\xff\x80" * 40)
        torch.save(state, folder / f"consolidated.{number:02d}.pth")
    (folder / "params.json").write_text(json.dumps(spec.params()), encoding="utf-8")
    if tokenizer is not None:
        (folder / "tokenizer.model").write_bytes(tokenizer.read_bytes())
    return model


def write_sparse_images(folder: Path, spec: VisionSpec | Llama4Spec) -> Path:
    """Write shards of any size whose data is a hole, by the names of Meta's modules."""
    folder.mkdir(parents=True, exist_ok=True)
    state = {}
    for name, shape, axis in spec.rows():
        part = [size // spec.shards if place == axis else size for place, size in enumerate(shape)]
        flat = [part[0] * part[1], part[2]] if len(part) == 3 and "experts" in name else part
        state[name] = torch.empty(flat, dtype=spec.dtype)
    for number in range(spec.shards):
        with torch.serialization.skip_data():
            torch.save(state, folder / f"consolidated.{number:02d}.pth")
    (folder / "params.json").write_text(json.dumps(spec.params()), encoding="utf-8")
    return folder
