"""Whatever is wrong with a Transformers folder of anybody's is found by verify, and named."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

import distconv
from distconv.errors import DistconvError
from tests.extent import share
from tests.foreign_folders import (
    INDEX,
    Tensors,
    file_name,
    read_index,
    save_dense,
    save_experts,
    write_folder,
    write_index,
)
from tests.reference import read_tensors

FILES = 48
Damage = Callable[[Path], object]
FIRST, LAST = file_name(1, FILES), file_name(FILES, FILES)
QUERY = "model.layers.2.self_attn.q_proj.weight"
NORM = "model.norm.weight"


@pytest.fixture(scope="module")
def dense(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give a dense model in 48 files."""
    saved = save_dense(tmp_path_factory.mktemp("dense") / "saved")
    return write_folder(saved.with_name("model"), saved / "config.json", read_tensors(saved), FILES)


@pytest.fixture(scope="module")
def experts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give a mixture of experts as Transformers saves it."""
    return save_experts(tmp_path_factory.mktemp("experts") / "model")


@pytest.fixture
def folder(dense: Path, tmp_path: Path) -> Path:
    """Give a copy of the dense model, to be damaged."""
    return shutil.copytree(dense, tmp_path / "model")


def find(folder: Path, **options: Path) -> str:
    """Give all that verify says is wrong, or why it cannot look."""
    try:
        report = distconv.verify(folder, **options)
    except DistconvError as error:
        return str(error)
    return "\n".join(report.differences)


def tensors(change: Callable[[Tensors], object], files: int = FILES) -> Damage:
    """Write all files and their index again with other tensors: nothing is inconsistent."""

    def damage(folder: Path) -> None:
        found = read_tensors(folder)
        change(found)
        write_folder(folder, folder / "config.json", found, files)

    return damage


def without(*names: str) -> Damage:
    """Leave out the tensors in whose names one of these is."""
    return tensors(
        lambda found: [found.pop(key) for key in list(found) if any(name in key for name in names)]
    )


def replaced(name: str, change: Callable[[torch.Tensor], torch.Tensor]) -> Damage:
    """Change every tensor in whose name this is."""
    return tensors(
        lambda found: found.update({key: change(value) for key, value in found.items() if name in key})
    )


def renamed(change: Callable[[str], str]) -> Damage:
    """Give all tensors other names."""

    def change_all(found: Tensors) -> None:
        changed = {change(name): tensor for name, tensor in found.items()}
        found.clear()
        found.update(changed)

    return tensors(change_all)


def filled(value: float, count: int = 1) -> Callable[[torch.Tensor], torch.Tensor]:
    """Give what sets some elements of a tensor."""

    def fill(tensor: torch.Tensor) -> torch.Tensor:
        changed = tensor.clone().flatten()
        changed[:count] = value
        return changed.view(tensor.shape)

    return fill


def indexed(change: Callable[[dict[str, str]], object]) -> Damage:
    """Change the index alone."""

    def damage(folder: Path) -> None:
        found = read_index(folder)
        change(found)
        write_index(folder, found)

    return damage


def configured(**changes: object) -> Damage:
    """Change the config alone."""

    def damage(folder: Path) -> None:
        path = folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return damage


def header(change: Callable[[dict[str, dict[str, object]]], object]) -> Damage:
    """Change the header of the first file, whose data stays."""

    def damage(folder: Path) -> None:
        content = (folder / FIRST).read_bytes()
        size = int.from_bytes(content[:8], "little")
        entries = json.loads(content[8 : 8 + size])
        change(entries)
        text = json.dumps(entries).encode()
        (folder / FIRST).write_bytes(len(text).to_bytes(8, "little") + text + content[8 + size :])

    return damage


def shifted(first: int, last: int) -> Damage:
    """Shift where the first file's first tensor begins and ends."""

    def shift(entries: dict[str, dict[str, object]]) -> None:
        entry = next(entry for name, entry in entries.items() if name != "__metadata__")
        begin, end = entry["data_offsets"]  # type: ignore[misc]
        entry["data_offsets"] = [begin + first, end + last]

    return header(shift)


def content(name: str, change: Callable[[bytes], bytes]) -> Damage:
    """Change a file's bytes."""
    return lambda folder: (folder / name).write_bytes(change((folder / name).read_bytes()))


def removed(*names: str) -> Damage:
    """Remove files."""
    return lambda folder: [(folder / name).unlink() for name in names]


def cut_off(folder: Path) -> None:
    """Leave 45 files of 48 and an index that names no others, as an export does that ended early."""
    for number in (46, 47, 48):
        (folder / file_name(number, FILES)).unlink()
    left = {name: home for name, home in read_index(folder).items() if (folder / home).exists()}
    write_index(folder, left)


def twice_in_two_files(folder: Path) -> None:
    """Let the last file have a tensor of the first one too."""
    held = load_file(folder / LAST) | load_file(folder / FIRST)
    save_file(held, folder / LAST, {"format": "pt"})


def put(name: str, found: bytes = b"{}") -> Damage:
    """Put a file into the folder."""
    return lambda folder: (folder / name).write_bytes(found)


def put_whole(folder: Path) -> None:
    """Put a whole other model beside the index."""
    save_file(
        {name: tensor * 2 for name, tensor in read_tensors(folder).items()}, folder / "model.safetensors"
    )


def unnamed(folder: Path) -> None:
    """Take a file, which stays, out of the index."""
    write_index(folder, {name: home for name, home in read_index(folder).items() if home != LAST})


def two_sets(folder: Path) -> None:
    """Let a file have a name of another total, also in the index."""
    other = file_name(FILES, FILES + 1)
    (folder / LAST).rename(folder / other)
    write_index(folder, {name: other if home == LAST else home for name, home in read_index(folder).items()})


def swap(one: str, other: str) -> Damage:
    """Swap two tensors' data."""
    return tensors(lambda found: found.update({one: found[other], other: found[one]}))


GONE = "missing, the model of .*config.json needs it"
BROKEN: dict[str, tuple[Damage, str]] = {
    "45 of 48 files and a consistent index": (cut_off, "45 files .* of 48; 3 are missing, number 46 first"),
    "45 of 48 files called 45 of 45": (without("layers.4.mlp"), f"layers.4.mlp.up_proj.weight: {GONE}"),
    "three files missing": (removed(*(file_name(n, FILES) for n in (46, 47, 48))), f"{LAST}: missing"),
    "the first file missing": (removed(FIRST), f"{FIRST}: missing"),
    "a ghost in the index": (indexed(lambda names: names.update(ghost=FIRST)), "for ghost, found in none"),
    "a ghost layer in the index": (
        indexed(lambda names: names.update({QUERY.replace("2", "9"): LAST})), "layers.9.*found in none of the files"),
    "a ghost file in the index": (indexed(lambda names: names.update(ghost="gone.safetensors")), "gone.safetensors: missing"),
    "a tensor in another file than the index says": (
        indexed(lambda names: names.update({QUERY: LAST if names[QUERY] != LAST else FIRST})), "for model.layers.2.self_attn.q_proj"),
    "a tensor that the index forgot": (indexed(lambda names: names.pop(next(iter(names)))), f"does not name .*, found in {FIRST}"),
    "a file that the index forgot": (unnamed, f"{LAST}: not of this model"),
    "a lost lm_head": (without("lm_head"), f"lm_head.weight: {GONE}"),
    "a lost embedding": (without("embed_tokens"), f"embed_tokens.weight: {GONE}"),
    "a lost norm": (without(NORM), f"{NORM}: {GONE}"),
    "a lost layer": (without("layers.3."), f"layers.3.self_attn.k_norm.weight: {GONE}"),
    "lost biases of a head": (without("k_norm"), f"k_norm.weight: {GONE}"),
    "a truncated file": (content(LAST, lambda found: found[:-10]), f"{LAST}: .*truncated"),
    "a file cut in its header": (content(LAST, lambda found: found[:40]), f"{LAST}: .*truncated"),
    "an empty file": (content(LAST, lambda _: b""), LAST),
    "bytes behind the last tensor": (content(LAST, lambda found: found + bytes(64)), f"{LAST}: .*the file at"),
    "a file of zeros": (content(LAST, lambda found: bytes(len(found))), LAST),
    "a git-LFS pointer": (content(LAST, lambda _: b"version https://git-lfs.github.com/spec/v1\n"), LAST),
    "an error page": (content(LAST, lambda _: b"<!doctype html><title>403</title>"), LAST),
    "a tensor in two files": (twice_in_two_files, f"both in {FIRST} and in {LAST}"),
    "a tensor under two names": (
        tensors(lambda found: found.update({"norm.weight": found[NORM].clone()})),
        f"norm.weight: the same tensor as {NORM}"),
    "a doubled key in a header": (
        content(FIRST, lambda found: found[:8] + found[8:].replace(b'"dtype":"BF16"', b'"dtype":"F16","dtype":"BF16"', 1)), FIRST),
    "overlapping offsets": (shifted(-2, -2), FIRST),
    "a hole between tensors": (shifted(2, 2), FIRST),
    "an offset behind the end": (shifted(0, 1 << 40), FIRST),
    "a shape that its bytes do not have": (
        header(lambda found: [entry.update(shape=[7, 7]) for name, entry in found.items() if name[0] != "_"]), FIRST),
    "a type that nobody knows": (
        header(lambda found: [entry.update(dtype="F4") for name, entry in found.items() if name[0] != "_"]), "stored as 'F4'"),
    "a header that is no JSON": (content(FIRST, lambda found: found[:9] + b"!" + found[10:]), f"{FIRST}: .*not JSON"),
    "a header of a terabyte": (content(FIRST, lambda found: (1 << 40).to_bytes(8, "little") + found[8:]), FIRST),
    "a tensor of float16 among bfloat16": (replaced(QUERY, torch.Tensor.half), f"{QUERY}: stored as float16, in other layers"),
    "a tensor of float32 among bfloat16": (replaced(QUERY, torch.Tensor.float), f"{QUERY}: stored as float32, in other layers"),
    "norms of float16 in all layers": (replaced("input_layernorm", torch.Tensor.half), "input_layernorm.*stored as float16"),
    "a tensor of whole numbers": (replaced(QUERY, lambda found: found.to(torch.int8)), f"{QUERY}: stored as int8"),
    "all float32, and a config that says bfloat16": (replaced("", torch.Tensor.float), "most of them are float32"),
    "a zeroed layer": (replaced("layers.1.", torch.zeros_like), "model.layers.1: all its 11 tensors are zero"),
    "a zeroed matrix": (replaced(QUERY, torch.zeros_like), f"{QUERY} in .*every value is zero"),
    "a matrix of negative zeros": (replaced(QUERY, lambda found: -torch.zeros_like(found)), f"{QUERY} in .*zero"),
    "one NaN": (replaced(QUERY, filled(float("nan"))), f"{QUERY} in .*: 1 NaN of 1,024 values"),
    "one infinity": (replaced(NORM, filled(float("-inf"))), f"{NORM} in .*: 1 infinite of 32 values"),
    "a tensor of NaN": (replaced(QUERY, filled(float("nan"), 1024)), f"{QUERY} in .*: 1,024 NaN of 1,024"),
    "a transposed matrix": (replaced("2.self_attn.k_proj", lambda found: found.T), r"k_proj.weight: shape \(32, 16\), .*takes \(16, 32\)"),
    "a vocabulary short of a row": (replaced("embed_tokens", lambda found: found[:-1]), r"shape \(63, 32\)"),
    "fused queries, keys and values": (
        tensors(lambda found: found.update({QUERY.replace("q_proj", "qkv_proj"): found.pop(QUERY)})), "qkv_proj.weight: the model of .* does not take it"),
    "a config of more layers": (configured(num_hidden_layers=6, layer_types=None), f"layers.5.mlp.up_proj.weight: {GONE}"),
    "a config of fewer layers": (configured(num_hidden_layers=4, layer_types=None), "layers.4.mlp.up_proj.weight: the model of .* does not take it"),
    "a config of other heads": (configured(num_key_value_heads=4), r"k_proj.weight: shape \(16, 32\)"),
    "a config of another vocabulary": (configured(vocab_size=65), "embed_tokens.weight: shape"),
    "a config of another architecture": (configured(model_type="llama", architectures=["LlamaForCausalLM"]), "q_norm.weight: the model of .* does not take it"),
    "a config of a type and an architecture that differ": (configured(architectures=["LlamaForCausalLM"]), "is none of model_type 'qwen3'"),
    "a config of code beside it": (configured(model_type="mine", auto_map={"AutoModel": "m.M"}), "model_type 'mine' is unknown"),
    "a config without a type": (lambda folder: (folder / "config.json").write_text("{}"), "model_type None is unknown"),
    "a config that is quantised": (configured(quantization_config={"quant_method": "fp8"}), "has quantization_config"),
    "a config that is no JSON": (content("config.json", lambda found: found[:-9]), "config.json: .*not JSON"),
    "no config": (removed("config.json"), "config.json: missing"),
    "names of a wrapper": (renamed(lambda name: f"module.{name}"), "module.lm_head.weight: the model of .* does not take it"),
    "names of a compiled model": (renamed(lambda name: f"_orig_mod.{name}"), f"embed_tokens.weight: {GONE}"),
    "an adapter that was not merged": (
        tensors(lambda found: found.update({QUERY.replace("weight", "lora_A.weight"): torch.ones(4, 32)})), "lora_A.weight: the model of .* does not take it"),
    "an adapter beside it": (put("adapter_config.json"), "adapter_config.json: not of this model"),
    "a whole other model beside the index": (put_whole, "model.safetensors: not of this model"),
    "a file of another total": (two_sets, "names files of 2 sets"),
    "no index": (removed(INDEX), f"neither {INDEX} nor model.safetensors"),
    "an index that is no JSON": (content(INDEX, lambda found: found[:-1]), f"{INDEX}: not JSON"),
    "an index without a map": (put(INDEX), f"{INDEX}: no weight_map"),
    "an index without metadata": (content(INDEX, lambda found: found.replace(b"metadata", b"meta")), f"{INDEX}: no metadata"),
    "an index that leads elsewhere": (indexed(lambda names: names.update({QUERY: "../x.safetensors"})), "expected a file in this folder"),
}  # fmt: skip


@pytest.mark.parametrize(("damage", "words"), BROKEN.values(), ids=BROKEN)
def test_a_broken_folder_is_found_and_named(folder: Path, damage: Damage, words: str) -> None:
    damage(folder)
    assert re.search(words, find(folder)), find(folder)


BROKEN_EXPERTS: dict[str, tuple[Damage, str]] = {
    "a lost matrix of an expert": (without("0.block_sparse_moe.experts.3.w2"), f"layers.0.block_sparse_moe.experts.3.w2.weight: {GONE}"),
    "a lost expert": (without("1.block_sparse_moe.experts.0."), f"experts.0.w1.weight: {GONE}"),
    "an expert called otherwise": (renamed(lambda name: name.replace("experts.3.", "experts.4.")), f"experts.3.w1.weight: {GONE}"),
    "a lost router": (without("1.block_sparse_moe.gate"), f"layers.1.block_sparse_moe.gate.weight: {GONE}"),
    "a config of more experts": (configured(num_local_experts=5), f"experts.4.w3.weight: {GONE}"),
    "a zeroed expert": (replaced("0.block_sparse_moe.experts.2.w1", torch.zeros_like), "experts.2.w1.weight in .*every value is zero"),
}  # fmt: skip


@pytest.mark.parametrize(("damage", "words"), BROKEN_EXPERTS.values(), ids=BROKEN_EXPERTS)
def test_a_broken_mixture_of_experts_is_found_and_named(
    experts: Path, tmp_path: Path, damage: Damage, words: str
) -> None:
    folder = shutil.copytree(experts, tmp_path / "model")
    damage(folder)
    assert re.search(words, find(folder)), find(folder)


def test_a_head_that_differs_from_the_embedding_to_which_it_is_tied_is_named(folder: Path) -> None:
    configured(tie_word_embeddings=True)(folder)
    words = "lm_head.weight: differs from model.embed_tokens.weight, and .*config.json says that they are one"
    assert re.search(words, find(folder)), find(folder)
    tensors(lambda found: found.update({"lm_head.weight": found["model.embed_tokens.weight"].clone()}))(
        folder
    )
    assert find(folder) == ""
    tensors(lambda found: found.update({"lm_head.weight": found["model.embed_tokens.weight"].float()}))(
        folder
    )
    assert find(folder) == ""
    configured(tie_word_embeddings=False)(folder)
    assert find(folder) == ""


@pytest.mark.parametrize("dtype", ["torch.bfloat16", "auto", ["bfloat16"]])
def test_a_type_that_torch_does_not_know_by_that_name_is_named(folder: Path, dtype: object) -> None:
    configured(dtype=dtype)(folder)
    with pytest.raises((AttributeError, IndexError)):
        AutoModelForCausalLM.from_pretrained(folder)
    assert "says that its weights are" in find(folder)


ONLY_COMPARED: dict[str, Damage] = {
    "a file of another step": replaced("layers.3.", lambda found: found * 2),
    "two layers in each other's place": swap(QUERY, QUERY.replace("2", "3")),
    "one flipped bit": content(LAST, lambda found: found[:-1] + bytes([found[-1] ^ 1])),
    "a transposed square": replaced("2.self_attn.q_proj", lambda found: found.T),
}


@pytest.mark.parametrize("damage", ONLY_COMPARED.values(), ids=ONLY_COMPARED)
def test_what_only_a_comparison_tells_is_found_against_a_folder_and_against_a_manifest(
    dense: Path, folder: Path, tmp_path: Path, damage: Damage
) -> None:
    distconv.manifest(dense, tmp_path / "model.json")
    damage(folder)
    assert find(folder) == ""
    assert "differs from" in find(folder, against=tmp_path / "model.json")
    assert "element (" in find(folder, against=dense)


@settings(max_examples=share(40), database=None)
@given(data=st.data())
def test_a_tensor_that_is_lost_renamed_or_elsewhere_is_always_named(
    dense: Path, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("lost") / "model"
    found = read_tensors(dense)
    name = data.draw(st.sampled_from(sorted(found)))
    kind = data.draw(st.sampled_from(["lost", "renamed", "index"]))
    if kind != "index":
        tensor = found.pop(name)
        found |= {f"{name}s": tensor} if kind == "renamed" else {}
    write_folder(folder, dense / "config.json", found, data.draw(st.integers(2, 9)))
    if kind == "index":
        index = read_index(folder)
        others = sorted(set(index.values()) - {index[name]})
        write_index(folder, index | {name: data.draw(st.sampled_from(others))})
    assert name in find(folder)


@settings(max_examples=share(60), database=None)
@given(data=st.data())
def test_no_byte_of_a_header_changes_what_is_read_unseen(
    dense: Path, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("header") / "model"
    shutil.copytree(dense, folder)
    found = bytearray((folder / FIRST).read_bytes())
    place = data.draw(st.integers(0, 7 + int.from_bytes(found[:8], "little")))
    found[place] ^= data.draw(st.integers(1, 255))
    (folder / FIRST).write_bytes(found)
    before, words = read_tensors(dense), find(folder)
    if not words:
        after = read_tensors(folder)
        assert before.keys() == after.keys()
        assert all(torch.equal(before[name], after[name]) for name in before)
