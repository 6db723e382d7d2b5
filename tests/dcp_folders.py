"""Distributed checkpoints of small models, made by torch itself, as ranks of a trainer make them.

Run as a program, which forks one, two and four ranks that talk by gloo. Nothing here comes from distconv: the
names and orders of other trainers are made of Transformers' by reshape and transpose.
"""

import os
import re
import sys
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint import FileSystemWriter, HuggingFaceStorageWriter
from torch.distributed.checkpoint.state_dict import get_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import (
    FullyShardedDataParallel,
    ShardedStateDictConfig,
    StateDictType,
    fully_shard,
)
from torch.distributed.tensor import Replicate, Shard, distribute_tensor
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from torch.distributed.tensor.placement_types import _StridedShard
from transformers import (
    ApertusConfig,
    ApertusForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)

Tensors = dict[str, torch.Tensor]

HEADS, KV_HEADS, HEAD_DIM = 6, 3, 10
_SIZES = {
    "hidden_size": 60, "intermediate_size": 44, "num_hidden_layers": 2, "num_attention_heads": HEADS,
    "num_key_value_heads": KV_HEADS, "head_dim": HEAD_DIM, "vocab_size": 101,
}  # fmt: skip
"""Four ranks cut these through heads and through pairs of rotated rows, and unevenly."""
_META_NAMES = (
    (r"model\.embed_tokens", "tok_embeddings"),
    (r"lm_head", "output"),
    (r"model\.norm", "norm"),
    (r"model\.layers\.", "layers."),
    (r"self_attn\.([qkvo])_proj", r"attention.w\1"),
    (r"mlp\.gate_proj", "feed_forward.w1"),
    (r"mlp\.down_proj", "feed_forward.w2"),
    (r"mlp\.up_proj", "feed_forward.w3"),
    (r"input_layernorm", "attention_norm"),
    (r"post_attention_layernorm", "ffn_norm"),
)
_TORCHTUNE_NAMES = (
    (r"attention\.w([qkv])", r"attn.\1_proj"),
    (r"attention\.wo", "attn.output_proj"),
    (r"feed_forward", "mlp"),
    (r"attention_norm\.weight", "sa_norm.scale"),
    (r"ffn_norm\.weight", "mlp_norm.scale"),
    (r"^norm\.weight", "norm.scale"),
)


def make_model(kind: str) -> PreTrainedModel:
    """Make a model of random weights, of one kind of those that are made."""
    torch.manual_seed(7)
    if kind == "llama":
        return LlamaForCausalLM(LlamaConfig(**_SIZES))
    if kind == "qwen3":
        return Qwen3ForCausalLM(Qwen3Config(**_SIZES, tie_word_embeddings=True))
    if kind == "apertus":
        # Its activation has parameters without axes.
        return ApertusForCausalLM(ApertusConfig(**_SIZES))
    experts = {"moe_intermediate_size": 12, "num_experts": 4, "num_experts_per_tok": 2}
    return Qwen3MoeForCausalLM(Qwen3MoeConfig(**_SIZES, **experts))


def to_meta_order(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """Bring the members of each pair of rotated rows beside each other."""
    rows, columns = weight.shape
    return weight.view(heads, 2, rows // heads // 2, columns).transpose(1, 2).reshape(rows, columns)


def rename(tensors: Tensors, rules: tuple[tuple[str, str], ...]) -> Tensors:
    """Change names by patterns, each after the ones before."""
    found = {}
    for name, tensor in tensors.items():
        changed = name
        for pattern, by in rules:
            changed = re.sub(pattern, by, changed)
        found[changed] = tensor
    return found


def make_meta(tensors: Tensors) -> Tensors:
    """Give a Llama's tensors by Meta's names and in Meta's order."""
    found = rename(tensors, _META_NAMES)
    for name in found:
        if name.endswith(("attention.wq.weight", "attention.wk.weight")):
            found[name] = to_meta_order(found[name], HEADS if "wq" in name else KV_HEADS)
    return {name: tensor.clone() for name, tensor in found.items()}


def make_fused(tensors: Tensors) -> Tensors:
    """Put the projections of each key head's group behind each other, as torchtitan has them where they are one."""
    found = make_meta(tensors)
    found["lm_head.weight"] = found.pop("output.weight")
    for name in [name for name in found if name.endswith("wq.weight")]:
        parts = [found.pop(name.replace("wq", letter)) for letter in ("wq", "wk", "wv")]
        grouped = [part.view(KV_HEADS, -1, HEAD_DIM, part.shape[1]) for part in parts]
        whole = torch.cat(grouped, dim=1).reshape(-1, parts[0].shape[1])
        found[name.replace("attention.wq", "attention.qkv_linear.wqkv")] = whole
    return found


def make_torchtitan_03(tensors: Tensors) -> Tensors:
    """Give the names of torchtitan 0.3."""
    return rename(
        make_meta(tensors), ((r"attention\.w([qkv])", r"attention.qkv_linear.w\1"), (r"^output", "lm_head"))
    )


def make_torchtune(tensors: Tensors) -> Tensors:
    """Give torchtune's names."""
    return rename(make_meta(tensors), _TORCHTUNE_NAMES)


def _save(folder: Path, state: dict[str, object], **options: object) -> None:
    dcp.save(state, storage_writer=FileSystemWriter(str(folder), **options))


def _by_one(out: Path) -> None:
    """What one process saves: names of all kinds, and tensors that lie otherwise."""
    tensors = {name: tensor.detach() for name, tensor in make_model("llama").state_dict().items()}
    beside = {
        "optimizer": {"state": {"a": {"exp_avg": torch.ones(3)}}},
        "train_state": {"step": torch.tensor(5)},
    }
    _save(
        out / "torchtitan",
        {**make_meta(tensors), "freqs_cis": torch.ones(4, 5, dtype=torch.complex64), **beside},
    )
    _save(out / "torchtitan-0.3", {**make_torchtitan_03(tensors), "lr_scheduler": {"last_epoch": 3}})
    _save(out / "torchtitan-fused", make_fused(tensors))
    _save(out / "torchtune", make_torchtune(tensors))
    _save(out / "transformers", {"model": tensors, **beside})
    compiled = {
        f"_orig_mod.{name}".replace(".mlp", "._checkpoint_wrapped_module.mlp"): one
        for name, one in tensors.items()
    }
    _save(out / "wrapped", {"app": compiled})
    transposed = {name: one.t().contiguous().t() if one.dim() == 2 else one for name, one in tensors.items()}
    _save(out / "transposed", transposed)
    _save(out / "views", {name: torch.stack([one, -one], -1)[..., 0] for name, one in tensors.items()})
    for kind in ("qwen3", "qwen3_moe", "apertus"):
        model = make_model(kind)
        model.save_pretrained(out / f"{kind}-hf")
        _save(out / kind, {"model": {name: one.detach() for name, one in model.state_dict().items()}})
    per_expert = _split_experts(make_model("qwen3_moe").state_dict())
    _save(out / "qwen3_moe-saved", per_expert)


def _split_experts(tensors: Tensors) -> Tensors:
    """Give the experts one by one, as versions of Transformers before 5 have them in memory."""
    found = {}
    for name, tensor in tensors.items():
        if not name.endswith(("gate_up_proj", "down_proj")) or tensor.dim() != 3:
            found[name] = tensor.detach()
            continue
        stem, kind = name.rsplit(".", 1)
        for number, expert in enumerate(tensor.detach()):
            parts = expert.chunk(2) if kind == "gate_up_proj" else (expert,)
            kinds = ("gate_proj", "up_proj") if kind == "gate_up_proj" else (kind,)
            found |= {
                f"{stem}.{number}.{part}.weight": one.clone() for part, one in zip(kinds, parts, strict=True)
            }
    return found


def train(model: torch.nn.Module, optimizer: torch.optim.Optimizer, steps: int) -> None:
    """Train a few steps on tokens of no meaning."""
    tokens = torch.arange(24).reshape(2, 12) * 7 % 101
    for _step in range(steps):
        optimizer.zero_grad()
        model(input_ids=tokens, labels=tokens).loss.backward()
        optimizer.step()


def find_loss(model: torch.nn.Module) -> float:
    """Give the loss on tokens that were not trained on."""
    tokens = torch.arange(24).reshape(2, 12) * 5 % 101
    with torch.no_grad():
        return float(model(input_ids=tokens, labels=tokens).loss)


def _by_two(out: Path) -> None:
    """What two ranks save of models that they train."""
    model = make_model("llama")
    for layer in model.model.layers:
        fully_shard(layer)
    fully_shard(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    train(model, optimizer, 3)
    loss = find_loss(model)
    if dist.get_rank() == 0:
        (out / "fsdp2-loss").write_text(repr(loss))
    states = get_state_dict(model, optimizer)
    _save(out / "fsdp2", {"app": {"model": states[0], "optim": states[1]}})
    _save(out / "per-item", {"model": states[0]}, single_file_per_rank=False)
    _save(out / "threads", {"model": states[0]}, thread_count=3)
    hugging = HuggingFaceStorageWriter(
        str(out / "safetensors"), fqn_to_index_mapping=_two_files(states[0]), save_distributed=True
    )
    dcp.save(states[0], storage_writer=hugging)
    _save_each(out / "ranks", states[0])
    older = FullyShardedDataParallel(make_model("llama"), device_id=torch.device("cpu"), use_orig_params=True)
    with FullyShardedDataParallel.state_dict_type(
        older, StateDictType.SHARDED_STATE_DICT, ShardedStateDictConfig(_use_dtensor=False)
    ):
        _save(out / "fsdp1", {"model": older.state_dict()})


def _two_files(names: Iterable[str]) -> dict[str, int]:
    return {name: 1 + place % 2 for place, name in enumerate(names)}


def _save_each(folder: Path, state: dict[str, object]) -> None:
    """Let each rank save what it has, as verl does."""
    folder.mkdir(exist_ok=True)
    torch.save(state, folder / f"model_world_size_{dist.get_world_size()}_rank_{dist.get_rank()}.pt")


def _by_four(out: Path) -> None:
    """What four ranks save, on meshes of one and of two axes."""
    tensors = make_meta({name: one.detach() for name, one in make_model("llama").state_dict().items()})
    line, grid = init_device_mesh("cpu", (4,)), init_device_mesh("cpu", (2, 2))

    def spread(one: torch.Tensor) -> torch.Tensor:
        placements = [Shard(0), Shard(1)] if one.dim() == 2 else [Replicate(), Shard(0)]
        return distribute_tensor(one, grid, placements)

    _save(out / "rows", {name: distribute_tensor(one, line, [Shard(0)]) for name, one in tensors.items()})
    _save(out / "grid", {name: spread(one) for name, one in tensors.items()})
    hybrid = {name: distribute_tensor(one, grid, [Replicate(), Shard(0)]) for name, one in tensors.items()}
    _save(out / "hybrid", hybrid)
    fused = make_fused({name: one.detach() for name, one in make_model("llama").state_dict().items()})
    _save_each(out / "ranks-hybrid", hybrid)
    _save_each(
        out / "ranks-rows", {name: distribute_tensor(one, line, [Shard(0)]) for name, one in tensors.items()}
    )
    _by_rows_and_columns(out)
    _save(out / "rows-fused", {name: distribute_tensor(one, line, [Shard(0)]) for name, one in fused.items()})


def _by_rows_and_columns(out: Path) -> None:
    """What four ranks save of a model whose layers are cut for tensor parallelism first, and then by FSDP2."""
    grid = init_device_mesh("cpu", (2, 2), mesh_dim_names=("data", "tensor"))
    model = make_model("llama")
    by_rows = ("self_attn.q_proj", "mlp.gate_proj", "mlp.up_proj")
    plan = {f"model.layers.*.{name}": ColwiseParallel() for name in by_rows}
    plan |= {f"model.layers.*.{name}": RowwiseParallel() for name in ("self_attn.o_proj", "mlp.down_proj")}
    parallelize_module(model, grid["tensor"], plan)
    for layer in model.model.layers:
        fully_shard(layer, mesh=grid["data"])
    fully_shard(model, mesh=grid["data"])
    state = model.state_dict()
    assert any(isinstance(one.placements[0], _StridedShard) for one in state.values())
    _save(out / "strided", {"model": state})
    _save_each(out / "ranks-strided", state)
    whole = make_model("llama").state_dict()
    assert all(torch.equal(one.full_tensor(), whole[name]) for name, one in state.items())
    # What FSDP2 refuses to cut unevenly, and what one rank has several pieces of.
    cuts = [_StridedShard(0, split_factor=3), Replicate()]
    uneven = {
        name: distribute_tensor(one.detach(), grid, cuts, src_data_rank=None) for name, one in whole.items()
    }
    assert all(torch.equal(one.full_tensor(), whole[name]) for name, one in uneven.items())
    _save_each(out / "ranks-pieces", uneven)


def _run_rank(rank: int, ranks: int, out: Path, work: Callable[[Path], None]) -> None:
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    # By the loopback, whatever the machine's name leads to.
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(ranks), "GLOO_SOCKET_IFNAME": "lo"}
    dist.init_process_group("gloo", init_method=f"file://{out}/meeting-{ranks}", rank=rank, world_size=ranks)
    work(out)
    dist.destroy_process_group()


def main(out: Path) -> None:
    """Make all folders, and the model that they are like."""
    out.mkdir(parents=True)
    make_model("llama").save_pretrained(out / "llama-hf")
    for ranks, work in ((1, _by_one), (2, _by_two), (4, _by_four)):
        torch.multiprocessing.start_processes(
            _run_rank, (ranks, out, work), nprocs=ranks, start_method="fork"
        )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
