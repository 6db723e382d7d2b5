"""A Transformers folder's tensors are those that Transformers itself saved, wherever they lie."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file, save_model

from distconv.errors import InputError
from distconv.formats import headers
from distconv.formats.safetensors import index as indexes
from distconv.formats.safetensors.names import find_transformers_names
from tests.formats.folders import (
    Tensors,
    assert_holds,
    make_model,
    read_catalog,
    split,
    write_bin_shards,
    write_config,
    write_index,
)

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"


@pytest.fixture(scope="module")
def state() -> Tensors:
    """Give the tensors of a small model."""
    return {name: tensor.clone() for name, tensor in make_model().state_dict().items()}


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give a folder of several files that Transformers saved."""
    folder = tmp_path_factory.mktemp("saved")
    make_model().save_pretrained(folder, max_shard_size="10KB")
    assert len(list(folder.glob("*.safetensors"))) > 2
    return folder


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    """Give a copy of that folder, to be changed."""
    return Path(shutil.copytree(saved, tmp_path / "model"))


def test_several_files_with_their_index_are_one_model(saved: Path, state: Tensors) -> None:
    found = read_catalog(saved)
    assert_holds(found, state)
    assert found.size_bytes == sum(path.stat().st_size for path in saved.glob("*.safetensors"))
    assert not found.notes
    assert not found.stored
    assert found.stored_name("lm_head.weight") == "lm_head.weight"


def test_several_files_are_one_model_without_their_index_too(folder: Path, state: Tensors) -> None:
    (folder / INDEX).unlink()
    assert_holds(read_catalog(folder), state)


def test_any_file_of_several_stands_for_all(saved: Path, state: Tensors) -> None:
    for path in [*saved.glob("*.safetensors"), saved / INDEX]:
        assert_holds(read_catalog(path), state)


def test_a_single_file_is_a_whole_model(tmp_path: Path, state: Tensors) -> None:
    make_model().save_pretrained(tmp_path)
    assert_holds(read_catalog(tmp_path), state)
    assert_holds(read_catalog(tmp_path / SINGLE), state)


def test_the_output_of_a_tied_model_is_not_there(tmp_path: Path) -> None:
    model = make_model(tied=True)
    model.save_pretrained(tmp_path)
    expected = {name: tensor for name, tensor in model.state_dict().items() if name != "lm_head.weight"}
    assert_holds(read_catalog(tmp_path), expected)


def test_a_file_of_any_name_is_read_where_it_is_given(tmp_path: Path, state: Tensors) -> None:
    save_file(dict(state), write_config(tmp_path) / "step_500.safetensors")
    assert_holds(read_catalog(tmp_path / "step_500.safetensors"), state)


@pytest.mark.parametrize("legacy", [False, True])
def test_torchs_files_are_read_by_the_same_names(tmp_path: Path, state: Tensors, *, legacy: bool) -> None:
    write_bin_shards(write_config(tmp_path), split(state, 3), legacy=legacy)
    assert_holds(read_catalog(tmp_path), state)
    (tmp_path / "pytorch_model.bin.index.json").unlink()
    assert_holds(read_catalog(tmp_path), state)


def test_files_are_told_by_what_they_hold(tmp_path: Path, state: Tensors) -> None:
    save_file(dict(state), write_config(tmp_path) / "pytorch_model.bin")
    assert_holds(read_catalog(tmp_path), state)
    (tmp_path / "pytorch_model.bin").unlink()
    torch.save(dict(state), tmp_path / SINGLE)
    assert_holds(read_catalog(tmp_path), state)


def test_a_view_of_a_larger_storage_keeps_its_strides(tmp_path: Path, state: Tensors) -> None:
    expected = dict(state)
    whole = torch.cat([state["model.layers.0.self_attn.k_proj.weight"], state["model.embed_tokens.weight"]])
    expected["model.embed_tokens.weight"] = whole[16:]
    expected["model.norm.weight"] = whole.T[3, :32]
    torch.save(expected, write_config(tmp_path) / "pytorch_model.bin")
    assert_holds(read_catalog(tmp_path), expected)


def test_a_model_saved_without_its_head_is_given_the_names_of_the_whole(
    tmp_path: Path, state: Tensors
) -> None:
    make_model().model.save_pretrained(tmp_path, max_shard_size="10KB")
    assert not any(
        name.startswith("model.") for file in tmp_path.glob("*.safetensors") for name in load_file(file)
    )
    found = read_catalog(tmp_path)
    expected = {name: tensor for name, tensor in state.items() if name != "lm_head.weight"}
    assert_holds(found, expected)
    (note,) = found.notes
    assert f"'model.' put before the names of {len(expected)} tensors" in note
    assert found.stored_name("model.norm.weight") == "norm.weight"


@pytest.mark.parametrize(
    "prefixes",
    [("_orig_mod",), ("module",), ("module", "_orig_mod"), ("model",), ("_forward_module", "model")],
)
def test_what_wrappers_put_before_names_is_taken_off_and_said(
    tmp_path: Path, state: Tensors, prefixes: tuple[str, ...]
) -> None:
    prefix = ".".join(prefixes)
    save_file({f"{prefix}.{name}": tensor for name, tensor in state.items()}, write_config(tmp_path) / SINGLE)
    found = read_catalog(tmp_path)
    assert_holds(found, state)
    (note,) = found.notes
    assert all(f"'{part}.'" in note for part in prefixes)
    assert note.endswith(f"taken off the names of {len(state)} tensors")
    assert found.stored_name("lm_head.weight") == f"{prefix}.lm_head.weight"


def test_wrappers_of_single_layers_are_taken_off(tmp_path: Path, state: Tensors) -> None:
    wrapped = {
        name.replace(".mlp.", "._checkpoint_wrapped_module.mlp."): tensor for name, tensor in state.items()
    }
    save_file(wrapped, write_config(tmp_path) / SINGLE)
    assert_holds(read_catalog(tmp_path), state)


def test_rotary_buffers_are_left_aside_and_that_is_said(tmp_path: Path, state: Tensors) -> None:
    buffers = {f"model.layers.{layer}.self_attn.rotary_emb.inv_freq": torch.ones(4) for layer in range(3)}
    buffers |= {"model.rotary_emb.inv_freq": torch.ones(4), "model.rotary_emb.cos_cached": torch.ones(4)}
    write_bin_shards(write_config(tmp_path), [*split(state, 2), buffers])
    found = read_catalog(tmp_path)
    assert_holds(found, state)
    (note,) = found.notes
    assert "rotary_emb.inv_freq (4 tensors)" in note
    assert "rotary_emb.cos_cached (1 tensor)" in note


def test_an_optimizer_beside_the_model_is_left_aside(tmp_path: Path, state: Tensors) -> None:
    torch.save(
        {"model": dict(state), "optimizer": {"exp_avg": torch.ones(3)}},
        write_config(tmp_path) / "pytorch_model.bin",
    )
    found = read_catalog(tmp_path)
    assert_holds(found, state)
    assert "left aside beside the model: optimizer (1 tensor)" in found.notes[1]


def test_tensors_of_no_llama_keep_their_names(tmp_path: Path, state: Tensors) -> None:
    others = {
        name: torch.ones(2) for name in ("score.weight", "v_head.summary.bias", "model.vision.patch.weight")
    }
    save_file({**state, **others}, write_config(tmp_path) / SINGLE)
    found = read_catalog(tmp_path)
    assert set(found.tensors) - set(state) == {"score.weight", "v_head.summary.bias", "vision.patch.weight"}
    assert found.stored_name("vision.patch.weight") == "model.vision.patch.weight"


def test_a_second_name_of_a_tensor_need_not_be_in_the_index(tmp_path: Path) -> None:
    model = make_model(tied=True)
    save_model(model, str(write_config(tmp_path) / "model-00001-of-00001.safetensors"))
    (stored,) = tmp_path.glob("*.safetensors")
    kept = load_file(stored)
    assert len(kept) < len(model.state_dict())
    write_index(tmp_path / INDEX, dict.fromkeys(kept, stored.name))
    assert_holds(read_catalog(tmp_path), model.state_dict())


@pytest.mark.parametrize(
    ("name", "words"),
    [
        (
            "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight",
            "a LoRA adapter that is not merged",
        ),
        (
            "model.layers.0.self_attn.q_proj.lora_magnitude_vector.default",
            "a LoRA adapter that is not merged",
        ),
        (
            "base_model.model.model.layers.0.mlp.up_proj.base_layer.weight",
            "a LoRA adapter that is not merged",
        ),
        ("model.layers.0.mlp.up_proj.qweight", "a quantised model"),
        ("model.layers.0.mlp.up_proj.scales", "a quantised model"),
        ("model.layers.0.mlp.up_proj.g_idx", "a quantised model"),
        ("model.layers.0.mlp.up_proj.SCB", "a quantised model"),
        ("model.layers.0.mlp.up_proj.weight_scale", "a quantised model"),
        ("model.layers.0.mlp.up_proj.weight_scale_inv", "a quantised model"),
        ("model.layers.0.mlp.up_proj.weight_packed", "a quantised model"),
        ("model.layers.0.self_attn.k_scale", "a quantised model"),
        ("model.layers.0.mlp.up_proj.weight.absmax", "a quantised model"),
        ("model.layers.0.mlp.up_proj.weight.quant_state.bitsandbytes__nf4", "a quantised model"),
    ],
)
def test_adapters_and_quantised_weights_are_refused_by_name(
    tmp_path: Path, state: Tensors, name: str, words: str
) -> None:
    save_file({**state, name: torch.ones(2)}, write_config(tmp_path) / SINGLE)
    with pytest.raises(InputError) as caught:
        read_catalog(tmp_path)
    assert str(caught.value).startswith(f"{tmp_path / SINGLE}: {words}")
    assert str(caught.value).endswith(f" (it has {name})")


def change_index(folder: Path, change: Callable[[dict[str, str]], object]) -> None:
    """Change the index of a folder."""
    weight_map = json.loads((folder / INDEX).read_text())["weight_map"]
    change(weight_map)
    write_index(folder / INDEX, weight_map)


def test_an_index_that_disagrees_with_the_headers_is_refused_with_every_finding(folder: Path) -> None:
    where = json.loads((folder / INDEX).read_text())["weight_map"]
    moved, lost = "model.norm.weight", "model.embed_tokens.weight"
    other = next(name for name in where.values() if name != where[moved])

    def change(weight_map: dict[str, str]) -> None:
        weight_map[moved] = other
        weight_map["model.extra.weight"] = other
        del weight_map[lost]

    change_index(folder, change)
    with pytest.raises(InputError) as caught:
        read_catalog(folder)
    message = str(caught.value)
    assert f"names {other} for {moved}, found in {where[moved]}" in message
    assert f"names {other} for model.extra.weight, found in none of the files" in message
    assert f"does not name {lost}, found in {where[lost]}" in message


def test_tensors_in_two_files_are_refused_with_every_pair(folder: Path, state: Tensors) -> None:
    twins = ["model.norm.weight", "model.layers.0.mlp.up_proj.weight"]
    last = max(folder.glob("*.safetensors"))
    held = load_file(last)
    save_file({**held, **{name: state[name] for name in twins}}, last)
    (folder / INDEX).unlink()
    with pytest.raises(InputError) as caught:
        read_catalog(folder)
    message = str(caught.value)
    added = [name for name in twins if name not in held]
    assert added
    assert all(f"{name} also in" in message or "more also in" in message for name in added)


@pytest.mark.parametrize(("count", "more"), [(1, ""), (2, " and 1 more"), (3, " and 2 more")])
def test_of_tensors_in_two_files_one_is_named(tmp_path: Path, count: int, more: str) -> None:
    twins = [f"{letter}.weight" for letter in "abc"]
    first, second = (write_config(tmp_path) / f"model-{number}-of-2.safetensors" for number in (1, 2))
    save_file({name: torch.ones(1) for name in twins}, first)
    save_file({name: torch.ones(1) for name in [*twins[:count], "d.weight"]}, second)
    with pytest.raises(InputError) as caught:
        read_catalog(tmp_path)
    assert str(caught.value) == (
        f"{second}: a.weight{more} also in {first}; keep the files of one model only"
    )


@pytest.mark.parametrize(("count", "more"), [(4, ""), (5, " and 1 more")])
def test_of_what_an_index_does_not_have_right_a_few_names_are_shown(
    tmp_path: Path, count: int, more: str
) -> None:
    known, others = "a.weight", [f"{number}.weight" for number in range(count)]
    save_file({known: torch.ones(1)}, write_config(tmp_path) / SINGLE)
    write_index(tmp_path / INDEX, dict.fromkeys([known, *others], SINGLE))
    few = ", ".join(others[:4])
    advice = "index and files are not of one model: download both again"
    with pytest.raises(InputError) as caught:
        read_catalog(tmp_path)
    assert str(caught.value) == (
        f"{tmp_path / INDEX}: names {SINGLE} for {few}{more}, found in none of the files; {advice}"
    )
    save_file(
        {name: torch.full((1,), place) for place, name in enumerate([known, *others])}, tmp_path / SINGLE
    )
    write_index(tmp_path / INDEX, {known: SINGLE})
    with pytest.raises(InputError) as caught:
        read_catalog(tmp_path)
    assert str(caught.value) == f"{tmp_path / INDEX}: does not name {few}{more}, found in {SINGLE}; {advice}"


def test_two_models_in_one_file_are_refused(tmp_path: Path, state: Tensors) -> None:
    ours = "model.norm.weight"
    save_file({**state, "_orig_mod.model.norm.weight": torch.zeros(32)}, write_config(tmp_path) / SINGLE)
    with pytest.raises(InputError, match=f"both {ours} of the model: two models are in it"):
        read_catalog(tmp_path)


def test_every_damaged_file_is_named_at_once(folder: Path) -> None:
    first, *_others, last = sorted(folder.glob("*.safetensors"))
    first.write_bytes(first.read_bytes()[:-1])
    last.write_text("version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(InputError) as caught:
        read_catalog(folder)
    lines = str(caught.value).splitlines()
    assert [line.partition(":")[0] for line in lines] == [str(first), str(last)]
    assert "run `git lfs pull`" in lines[1]


def test_files_without_a_model_are_refused(tmp_path: Path) -> None:
    save_file({"model.rotary_emb.inv_freq": torch.ones(4)}, write_config(tmp_path) / SINGLE)
    with pytest.raises(InputError, match="no model in it, expected the tensors of LlamaForCausalLM"):
        read_catalog(tmp_path)


def test_more_tensors_than_any_model_has_are_refused_before_all_are_read(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = []
    real = headers.opened
    monkeypatch.setattr(headers, "opened", lambda *where: (opened.append(where), real(*where))[1])
    monkeypatch.setattr(headers, "_OPENERS", 1)
    monkeypatch.setattr(headers, "LIMIT_TENSORS_OF_ALL", 5)
    with pytest.raises(InputError, match=r"and \d+ more: more than 5 tensors; refused as unsafe"):
        read_catalog(folder)
    assert 0 < len(opened) < len(list(folder.glob("*.safetensors")))


def test_names_longer_than_any_have_are_refused(tmp_path: Path) -> None:
    save_file({"." * 2000: torch.ones(1)}, write_config(tmp_path) / SINGLE)
    with pytest.raises(InputError, match="a tensor whose name has 2,000 characters; refused as unsafe"):
        read_catalog(tmp_path)


def test_a_name_may_be_as_long_as_a_storages() -> None:
    assert find_transformers_names("file", ["a" * 1024]).kept == {"a" * 1024: "a" * 1024}
    with pytest.raises(
        InputError, match=r"^file: a tensor whose name has 1,025 characters; refused as unsafe$"
    ):
        find_transformers_names("file", ["a" * 1025])


def test_an_index_of_more_tensors_than_any_model_has_is_refused(
    folder: Path, state: Tensors, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(indexes, "LIMIT_TENSORS", len(state))
    assert_holds(read_catalog(folder), state)
    monkeypatch.setattr(indexes, "LIMIT_TENSORS", 5)
    with pytest.raises(InputError, match=r"index\.json: more than 5 tensors; refused as unsafe"):
        read_catalog(folder)


def test_messages_stay_short_however_many_tensors_are_wrong(folder: Path) -> None:
    change_index(
        folder,
        lambda found: found.update({f"model.{'x' * 500}.{n}": min(found.values()) for n in range(999)}),
    )
    with pytest.raises(InputError, match="and 995 more") as caught:
        read_catalog(folder)
    assert len(str(caught.value)) < 2000


NAMES = st.sampled_from(
    ["a.weight", "b.weight", "model.norm.weight", "lm_head.weight", "layers.0.mlp.up_proj.weight"]
)
FILES = [f"model-{number:05d}-of-00003.safetensors" for number in (1, 2, 3)]


@given(
    held=st.lists(st.sets(NAMES, min_size=1, max_size=2), min_size=3, max_size=3),
    dropped=st.sets(NAMES, max_size=1),
    moved=st.dictionaries(NAMES, st.sampled_from(FILES), max_size=1),
)
def test_an_index_is_taken_exactly_where_it_says_what_the_headers_say(
    tmp_path_factory: pytest.TempPathFactory, held: list[set[str]], dropped: set[str], moved: dict[str, str]
) -> None:
    folder = write_config(tmp_path_factory.mktemp("index"))
    pairs = sorted((name, file) for file, members in zip(FILES, held, strict=True) for name in members)
    for file, members in zip(FILES, held, strict=True):
        save_file({name: torch.ones(1) for name in members}, folder / file)
    listed = {name: file for name, file in pairs if name not in dropped} | moved
    write_index(folder / INDEX, listed)
    if sorted(listed.items()) == pairs:
        assert len(read_catalog(folder).tensors) == len(listed)
    else:
        with pytest.raises(InputError):
            read_catalog(folder)


def test_headers_are_read_once_each_and_by_several_readers(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[str] = []
    real = headers.opened
    monkeypatch.setattr(
        headers, "opened", lambda storage, path: (opened.append(path), real(storage, path))[1]
    )
    read_catalog(folder)
    assert sorted(opened) == sorted(map(str, folder.glob("*.safetensors")))
