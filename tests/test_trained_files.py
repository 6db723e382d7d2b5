"""Weights that each rank saved for itself, and Transformers folders whose index is wrong, become one whole folder."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import distconv
from distconv.errors import InputError, OutputError


@pytest.fixture
def split(folders: Path, tmp_path: Path) -> Path:
    """Give a model in three files with an index, as Transformers saves it."""
    tensors = load_file(folders / "llama-hf/model.safetensors")
    source = tmp_path / "split"
    source.mkdir()
    shutil.copy(folders / "llama-hf/config.json", source)
    names = sorted(tensors)
    where = {}
    for number in range(3):
        file = f"model-{number + 1:05d}-of-00003.safetensors"
        held = names[number::3]
        save_file({name: tensors[name] for name in held}, source / file, metadata={"format": "pt"})
        where |= dict.fromkeys(held, file)
    (source / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))
    return source


def write_wrong_index(source: Path) -> None:
    """Let the index name tensors in files that do not hold them, and one that nobody has."""
    path = source / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    index["weight_map"] = dict.fromkeys(index["weight_map"], "model-00001-of-00003.safetensors") | {
        "ghost.weight": "model-00002-of-00003.safetensors"
    }
    path.write_text(json.dumps(index))


@pytest.mark.parametrize(
    "damage",
    [
        lambda source: (source / "model.safetensors.index.json").unlink(),
        write_wrong_index,
        lambda source: (source / "model-00002-of-00003.safetensors").rename(source / "weights.safetensors"),
    ],
    ids=["no index", "wrong index", "odd name"],
)
def test_files_are_put_together_whatever_the_index_says(
    folders: Path, tmp_path: Path, split: Path, damage: Callable[[Path], object]
) -> None:
    damage(split)
    distconv.convert(split, tmp_path / "out", like=folders / "llama-hf", max_shard_size=30_000, verify=True)
    found = {
        name: one for chunk in tmp_path.glob("out/*.safetensors") for name, one in load_file(chunk).items()
    }
    expected = load_file(folders / "llama-hf/model.safetensors")
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert distconv.verify(tmp_path / "out", against=split, like=folders / "llama-hf").ok


def test_a_file_too_few_and_a_tensor_twice_are_named(folders: Path, tmp_path: Path, split: Path) -> None:
    lost = "model-00002-of-00003.safetensors"
    (split / lost).rename(tmp_path / "away")
    with pytest.raises(
        InputError, match=rf"is missing, LlamaForCausalLM(.|\n)*2 files of 3 by their names, no {lost}"
    ):
        distconv.plan(split, like=folders / "llama-hf")
    (tmp_path / "away").rename(split / "model-00002-of-00003.safetensors")
    shutil.copy(split / "model-00001-of-00003.safetensors", split / "model-copy.safetensors")
    with pytest.raises(InputError, match=r"also in .*; keep the files of one model only"):
        distconv.plan(split, like=folders / "llama-hf")


def copy(source: Path, target: Path) -> Path:
    """Copy a folder."""
    return shutil.copytree(source, target)


def test_a_lost_rank_of_safetensors_is_a_hole(folders: Path, tmp_path: Path) -> None:
    source = copy(folders / "safetensors", tmp_path / "in")
    for path in source.glob("shard-00001-*"):
        path.unlink()
    with pytest.raises(InputError, match="do not fill"):
        distconv.plan(source, like=folders / "llama-hf")
    shutil.copy(folders / "safetensors/shard-00001-model-00001-of-00002.safetensors", source)
    for path in source.glob("shard-*-model-00002-*"):
        path.unlink()
    with pytest.raises(InputError, match=r"no shard-\*-model-00002-of-00002\.safetensors"):
        distconv.plan(source, like=folders / "llama-hf")


def test_a_lost_rank_of_dtensors_is_named(folders: Path, tmp_path: Path) -> None:
    source = copy(folders / "ranks", tmp_path / "in")
    (source / "model_world_size_2_rank_0.pt").unlink()
    with pytest.raises(InputError, match=r"no model_world_size_2_rank_0\.pt"):
        distconv.plan(source, like=folders / "llama-hf")


def test_ranks_of_two_sizes_are_not_one_checkpoint(folders: Path, tmp_path: Path) -> None:
    source = copy(folders / "ranks-rows", tmp_path / "in")
    shutil.copy(folders / "ranks/model_world_size_2_rank_0.pt", source)
    with pytest.raises(InputError, match="files of 2 and of 4 ranks"):
        distconv.plan(source, like=folders / "llama-hf")


@pytest.mark.parametrize("name", ["ranks-hybrid", "plain"])
def test_ranks_that_hold_the_same_part_and_other_data_are_named(
    folders: Path, tmp_path: Path, name: str
) -> None:
    if name == "plain":
        source = tmp_path / "in"
        source.mkdir()
        for rank in range(2):
            found = load_file(folders / "llama-hf/model.safetensors")
            torch.save(found, source / f"model_world_size_2_rank_{rank}.pt")
    else:
        source = copy(folders / name, tmp_path / "in")
    distconv.plan(source, like=folders / "llama-hf")
    path = max(source.glob("*.pt"))
    found = torch.load(path, weights_only=False)
    with torch.no_grad():
        next(
            one
            for own, one in found.items()
            if own.endswith(("1.attention.wq.weight", "1.self_attn.q_proj.weight"))
        ).mul_(2)
    torch.save(found, path)
    with pytest.raises(
        InputError,
        match=rf"{path.name}: .*1\..*(wq|q_proj)\.weight is not what .* holds, and both are the same part",
    ):
        distconv.plan(source, like=folders / "llama-hf")


def test_the_config_that_verl_leaves_beside_the_ranks_is_taken(folders: Path, tmp_path: Path) -> None:
    source = copy(folders / "ranks", tmp_path / "global_step_5/actor")
    copy(folders / "llama-hf", source / "huggingface")
    distconv.convert(tmp_path / "global_step_5", tmp_path / "out")
    assert len(load_file(tmp_path / "out/model.safetensors")) == 21


def test_a_flipped_byte_of_a_rank_is_found_by_its_checksum(folders: Path, tmp_path: Path) -> None:
    assert distconv.check(folders / "ranks").ok
    source = copy(folders / "ranks", tmp_path / "in")
    path = source / "model_world_size_2_rank_1.pt"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    assert any("CRC32" in finding for finding in distconv.check(source).findings)


def test_of_pickled_weights_it_is_said_how_they_are_proved(folders: Path, tmp_path: Path) -> None:
    """And it goes as it is said."""
    pickled = tmp_path / "pickled"
    pickled.mkdir()
    shutil.copy(folders / "llama-hf/config.json", pickled)
    torch.save(load_file(folders / "llama-hf/model.safetensors"), pickled / "pytorch_model.bin")
    with pytest.raises(
        OutputError, match=r"its weights are pickles \(pytorch_model.bin\), expected safetensors; .* --like"
    ):
        distconv.verify(pickled)
    distconv.convert(pickled, tmp_path / "out", like=pickled)
    assert distconv.verify(tmp_path / "out", against=pickled).ok
    assert (tmp_path / "out/model.safetensors").read_bytes() == (
        folders / "llama-hf/model.safetensors"
    ).read_bytes()
