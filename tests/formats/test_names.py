"""A trainer's file holds the same model as Meta's, whatever is wrapped around and saved beside it."""

import hashlib
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from distconv.errors import InputError
from distconv.formats.meta.archive import locate_data
from distconv.formats.meta.names import read_names
from distconv.storage.base import opened, read_range
from distconv.storage.local import LocalStorage
from distconv.verbs.plan import plan
from tests.checkpoints import Spec, Tensors, write_params
from tests.extent import share

Write = Callable[[Spec], Path]
SPEC = Spec(heads=4, kv_heads=2, dim=32, multiple_of=16)
WRAPPERS = ["module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_fpw_module"]
HOLDERS = ["model", "state_dict", "model_state_dict", "network", "app", "state"]
BUFFERS: Tensors = {
    "freqs_cis": torch.ones(8, 4, dtype=torch.complex64),
    "layers.0.attention.freqs_cis": torch.ones(8, 4, dtype=torch.complex128),
    "layers.1.attention.rotary_emb.inv_freq": torch.ones(4),
    "layers.0.attention.cache_k": torch.ones(1, 8, 2, 8, dtype=torch.bfloat16),
    "layers.1.attention.kv_cache.v_cache": torch.ones(1, 8),
    "layers.0.attention.mask": torch.ones(8, 8, dtype=torch.bool),
    "rope.freqs": torch.ones(4),
    "rope.cache": torch.ones(8, 8),
    "mask": torch.ones(1, 1, 8, 8, dtype=torch.uint16),
}
BESIDE: dict[str, object] = {
    "optimizer": {"state": {0: {"exp_avg": torch.ones(9), "step": torch.tensor(3.0)}}, "param_groups": [{"lr": 0.1, "params": [0]}]},
    "optimizer_states": [{"state": {"tok_embeddings.weight": {"exp_avg": torch.ones(3)}}}],
    "lr_scheduler": {"last_epoch": 3, "base": torch.ones(1)},
    "ema": {"tok_embeddings.weight": torch.ones(2, 2), "norm.weight": torch.ones(2)},
    "rng_state": torch.ones(16, dtype=torch.uint8),
    "cuda_rng_state": [torch.ones(16, dtype=torch.uint8)],
    "epoch": 3,
    "iteration": torch.tensor(7),
    "grad_norm": torch.tensor(0.7),
    "args": {"lr": 0.1, "betas": (0.9, 0.95), "name": None},
}  # fmt: skip


def load(checkpoint: Write) -> Tensors:
    """Give the plain state dict."""
    return torch.load(checkpoint(SPEC) / "consolidated.00.pth", weights_only=True)


def save(folder: Path, state: object, *, legacy: bool = False) -> Path:
    """Write a state beside the plain checkpoint's params.json."""
    folder.mkdir(exist_ok=True)
    torch.save(state, folder / "consolidated.00.pth", _use_new_zipfile_serialization=not legacy)
    write_params(folder, SPEC)
    return folder


def describe(folder: Path) -> list[object]:
    """Give a plan without the places in files, but with the data that is there."""
    storage = LocalStorage()
    found: list[object] = []
    for tensor in plan(folder).plan.tensors:
        for copy in tensor.copies:
            with opened(storage, copy.region.path) as reader:
                content = read_range(reader, locate_data(reader, copy.region), copy.region.size_bytes)
            digest = hashlib.sha256(content).hexdigest()
            boxes = (copy.start, copy.loops)
            found.append((tensor.name, tensor.shape, tensor.dtype, boxes, copy.source_offset, digest))
    return found


@settings(max_examples=share(40), deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_wrappers_prefixes_and_what_lies_beside_change_nothing(
    checkpoint: Write, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    plain = load(checkpoint)
    prefix = data.draw(st.lists(st.sampled_from(WRAPPERS + HOLDERS), max_size=4), label="prefix")
    inside = data.draw(st.lists(st.sampled_from(WRAPPERS), max_size=2), label="inside")
    at = data.draw(st.integers(1, 3), label="at")
    buffers = data.draw(st.lists(st.sampled_from(sorted(BUFFERS)), unique=True), label="buffers")
    state: dict[str, object] = {}
    for name, tensor in (plain | {name: BUFFERS[name] for name in buffers}).items():
        parts = name.split(".")
        parts[at:at] = inside if len(parts) > 2 else []
        state[".".join([*prefix, *parts])] = tensor
    for key in data.draw(st.lists(st.sampled_from(HOLDERS + WRAPPERS), max_size=3), label="keys"):
        beside = data.draw(st.lists(st.sampled_from(sorted(BESIDE)), unique=True), label="beside")
        after = data.draw(st.booleans(), label="after")
        others = {name: BESIDE[name] for name in beside}
        state = {key: state, **others} if after else {**others, key: state}
    folder = save(tmp_path_factory.mktemp("trained"), state, legacy=data.draw(st.booleans(), label="legacy"))
    assert describe(folder) == describe(checkpoint(SPEC))


@pytest.mark.parametrize("prefix", ["model.", "module.", "_orig_mod.module.", ""])
def test_a_safetensors_file_is_read_in_the_same_way(checkpoint: Write, tmp_path: Path, prefix: str) -> None:
    write_params(tmp_path, SPEC)
    state = {f"{prefix}{name}": tensor for name, tensor in load(checkpoint).items()}
    save_file(state | {f"{prefix}freqs_cis": BUFFERS["freqs_cis"]}, tmp_path / "consolidated.safetensors")
    assert describe(tmp_path) == describe(checkpoint(SPEC))


def test_a_safetensors_file_of_transformers_needs_no_conversion(tmp_path: Path) -> None:
    write_params(tmp_path, SPEC)
    save_file({"model.layers.0.mlp.up_proj.weight": torch.ones(2)}, tmp_path / "model.safetensors")
    with pytest.raises(InputError, match="a checkpoint with Transformers' names, which needs no conversion"):
        plan(tmp_path)


def test_what_was_taken_off_and_left_aside_is_said(checkpoint: Write, tmp_path: Path) -> None:
    named = {f"module._orig_mod.{name}": tensor for name, tensor in (load(checkpoint) | BUFFERS).items()}
    folder = save(tmp_path / "in", {"model": named, **BESIDE})
    notes = "\n".join(plan(folder).notes)
    assert (
        f"{folder}/consolidated.00.pth: 'model.' and 'module.' and '_orig_mod.' taken off the names of"
        in notes
    )
    for words in ("optimizer (2 tensors)", "ema (2 tensors)", "rng_state (1 tensor)", "iteration (1 tensor)"):
        assert words in notes
    assert "8 buffers that follow from the configuration are left out (freqs_cis, " in notes
    assert not any("taken off" in note or "left" in note for note in plan(checkpoint(SPEC)).notes)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda state: {"model": state, "state_dict": {name: t.clone() for name, t in state.items()}}, "model.tok_embeddings.weight and state_dict.tok_embeddings.weight are both tok_embeddings.weight"),
        (lambda state: state | {"module.norm.weight": torch.ones(32)}, "norm.weight and module.norm.weight are both norm.weight"),
        (lambda state: {"model": state, "value_head": {"weight": torch.ones(3)}}, "value_head.weight is no tensor of a 2-layer model"),
        (lambda state: {"model": state, "teacher": state}, "begin with 'teacher' are no tensor of a 2-layer model"),
        (lambda state: state | {"lora_scale": torch.ones(1)}, "lora_scale is no tensor of a 2-layer model"),
        (lambda state: {f"llm.{name}": t for name, t in state.items()}, "the prefix 'llm.' is not known"),
        (lambda state: {f"model.{name}": t for name, t in state.items()} | {"model.scale": torch.ones(1)}, "model.scale is no tensor of a 2-layer model"),
        (lambda state: {"optimizer": state}, "no model in it; it holds optimizer"),
        (lambda _state: {"epoch": 3, "model": {}}, "no tensors in it; its keys are epoch, model"),
        (lambda _state: [torch.ones(2)], "it holds a list, expected a dict of tensors"),
        (lambda state: {"a": {"b.c": state["norm.weight"]}, "a.b": {"c": torch.ones(1)}}, "two tensors are called a.b.c"),
        (lambda _state: {"_fsdp_wrapped_module._flat_param": torch.ones(9)}, "flat parameters of FSDP"),
        (lambda _state: {"layers.0.attn.q_proj.weight": torch.ones(2, 2)}, "torchtune"),
        (lambda _state: {"layers.0.attention.qkv_linear.wq.weight": torch.ones(2, 2)}, "torchtitan"),
        (lambda _state: {"module.model.layers.0.self_attn.q_proj.weight": torch.ones(2, 2)}, "Transformers' names, which needs no conversion; a Llama for Meta's code is made of its folder by `to='meta'` (it has module.model.layers.0"),
        (lambda _state: {"model": {"model.embed_tokens.weight": torch.ones(2, 2)}}, "Transformers' names"),
    ],
)  # fmt: skip
def test_what_is_not_known_is_named(
    checkpoint: Write, tmp_path: Path, change: Callable[[Tensors], object], words: str
) -> None:
    folder = save(tmp_path / "in", change(load(checkpoint)))
    with pytest.raises(InputError) as raised:
        plan(folder)
    assert words in str(raised.value)
    if " both " in words:
        assert str(raised.value) == (
            f"{folder}/consolidated.00.pth: {words} of the model: two models are in it, or one is there twice; "
            "save the state dict of the one to convert alone"
        )
    assert len(str(raised.value).splitlines()) == 1


def test_a_count_of_steps_among_the_tensors_is_left_aside(checkpoint: Write, tmp_path: Path) -> None:
    folder = save(
        tmp_path / "in", load(checkpoint) | {"global_step": torch.tensor(9), "val_loss": torch.ones(1)}
    )
    assert describe(folder) == describe(checkpoint(SPEC))
    assert "left aside beside the model: global_step (1 tensor), val_loss (1 tensor)" in "\n".join(
        plan(folder).notes
    )


def test_one_tensor_under_two_names_is_one(checkpoint: Write, tmp_path: Path) -> None:
    state = load(checkpoint)
    assert describe(save(tmp_path / "in", {"model": state, "network": state})) == describe(checkpoint(SPEC))


def test_containers_that_hold_themselves_or_are_doubled_cost_little(tmp_path: Path) -> None:
    loop: dict[str, object] = {"norm.weight": torch.ones(2)}
    loop["model"] = loop
    doubled: object = {"norm.weight": torch.ones(2)}
    for _ in range(60):
        doubled = {"model": doubled, "module": doubled}
    for state in (loop, doubled):
        with pytest.raises(InputError, match="refused as unsafe"):
            plan(save(tmp_path / "in", state))


@settings(deadline=None)
@given(names=st.lists(st.text(alphabet="ab._", max_size=12), unique=True))
def test_names_of_any_form_are_each_kept_or_left_aside(names: list[str]) -> None:
    found = read_names(names)
    assert len(found.kept) + sum(found.aside.values()) == len(names)
    assert all(found.kept.values()) or "" in names
