"""Checkpoints of torch.distributed.checkpoint, made by torch in one to four ranks, become what Transformers saves."""

import hashlib
import json
import os
import pickle
import shutil
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from safetensors.torch import load_file
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save
from transformers import AutoModelForCausalLM

import distconv
from distconv.errors import InputError, UsageError
from distconv.formats.boxes import BoxedTensor
from distconv.formats.dcp.folder import read_dcp_folder
from distconv.storage.local import LocalStorage
from distconv.storage.local_files import LocalReader
from tests.dcp_folders import find_loss, make_model

LLAMAS = (
    "torchtitan", "torchtitan-0.3", "torchtitan-fused", "torchtune", "transformers", "wrapped", "transposed", "views",
    "fsdp1", "rows", "grid", "hybrid", "rows-fused", "strided",
)  # fmt: skip
"""Whose tensors are those of ``llama-hf``."""
TRAINED = ("fsdp2", "per-item", "threads")
"""Whose tensors two ranks have trained."""
FILES = ("ranks", "safetensors")
"""The same, saved by each rank for itself."""

Make = Callable[[str], Path]


def read_by_torch(folder: Path, tmp_path: Path) -> dict[str, torch.Tensor]:
    """Give all tensors as torch's own converter gives them, by dotted names."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dcp_to_torch_save(folder, tmp_path / "whole.pt")
        state = torch.load(tmp_path / "whole.pt", weights_only=False)
    found: dict[str, torch.Tensor] = {}

    def walk(prefix: str, value: object) -> None:
        if isinstance(value, torch.Tensor):
            found[prefix] = value
        elif isinstance(value, dict):
            for key, inner in value.items():
                walk(f"{prefix}.{key}" if prefix else str(key), inner)

    walk("", state)
    return found


def put_together(tensor: BoxedTensor) -> torch.Tensor:
    """Put a tensor together of its boxes' bytes by torch's own views."""
    dtype = getattr(torch, tensor.dtype.name)
    whole = torch.zeros(tensor.shape, dtype=dtype)
    for box in tensor.boxes:
        view = box.view
        content = Path(view.region.path).read_bytes()[view.region.offset_bytes :][: view.region.size_bytes]
        part = torch.frombuffer(bytearray(content), dtype=dtype).as_strided(
            view.shape, view.strides, view.offset
        )
        whole[tuple(slice(at, at + size) for at, size in zip(box.first, view.shape, strict=True))] = part
    return whole


@pytest.mark.parametrize("name", [*LLAMAS, *TRAINED, "qwen3_moe"])
def test_every_tensor_is_where_torch_finds_it(folders: Path, tmp_path: Path, name: str) -> None:
    expected = read_by_torch(folders / name, tmp_path)
    files = read_dcp_folder(LocalStorage(), str(folders / name))
    found = files.read(LocalStorage(), list(files.tensors))
    assert found.keys() == expected.keys()
    for own, tensor in found.items():
        assert torch.equal(put_together(tensor), expected[own]), own


class FarReader(LocalReader):
    """A file on a server, which answers after a while."""

    opened: ClassVar[list["FarReader"]] = []
    most_opened = 0

    def __init__(self, path: str) -> None:
        super().__init__(path)
        self.opened.append(self)
        FarReader.most_opened = max(FarReader.most_opened, len(self.opened))

    def read_into(self, offset_bytes: int, buffer: memoryview) -> None:
        """Wait as for a disk elsewhere, and read."""
        time.sleep(0.002)
        super().read_into(offset_bytes, buffer)

    def close(self) -> None:
        """Count no more."""
        self.opened.remove(self)
        super().close()


class FarStorage(LocalStorage):
    """Files on such a server."""

    def open(self, path: str) -> FarReader:
        """Open a file."""
        return FarReader(path)


def test_files_that_answer_late_are_read_beside_each_other(folders: Path) -> None:
    files = read_dcp_folder(LocalStorage(), str(folders / "per-item"))
    files.read(FarStorage(), list(files.tensors))
    assert not FarReader.opened
    assert FarReader.most_opened > 2


@pytest.mark.first(9)
@pytest.mark.parametrize("name", [*LLAMAS, "ranks-rows", "ranks-hybrid", "ranks-strided", "ranks-pieces"])
def test_whatever_names_and_cuts_a_trainer_has_the_model_is_the_same(
    folders: Path, tmp_path: Path, name: str
) -> None:
    report = distconv.convert(folders / name, tmp_path / "out", like=folders / "llama-hf", verify=True)
    expected = load_file(folders / "llama-hf/model.safetensors")
    found = load_file(tmp_path / "out/model.safetensors")
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[own], expected[own]) for own in expected)
    assert report.verified
    assert distconv.verify(tmp_path / "out", against=folders / name).ok


def test_a_model_has_the_loss_that_it_had_where_it_was_trained(folders: Path, tmp_path: Path) -> None:
    distconv.convert(folders / "fsdp2", tmp_path / "out", like=folders / "llama-hf")
    trained = find_loss(AutoModelForCausalLM.from_pretrained(tmp_path / "out", local_files_only=True))
    assert trained == pytest.approx(float((folders / "fsdp2-loss").read_text()), abs=1e-6)
    assert trained != pytest.approx(find_loss(make_model("llama")), abs=1e-2)


@pytest.mark.parametrize("name", [*TRAINED[1:], *FILES])
def test_files_per_item_per_thread_and_per_rank_are_one_checkpoint(
    folders: Path, tmp_path: Path, name: str
) -> None:
    for source, out in ((TRAINED[0], "one"), (name, "other")):
        distconv.convert(folders / source, tmp_path / out, like=folders / "llama-hf")
    one, other = (
        hashlib.sha256((tmp_path / out / "model.safetensors").read_bytes()).digest()
        for out in ("one", "other")
    )
    assert one == other


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("qwen3", "qwen3"),
        ("qwen3_moe", "qwen3_moe"),
        ("qwen3_moe-saved", "qwen3_moe"),
        ("apertus", "apertus"),
    ],
)
def test_a_model_of_another_architecture_is_saved_as_transformers_saves_it(
    folders: Path, tmp_path: Path, name: str, kind: str
) -> None:
    like = folders / f"{kind}-hf"
    distconv.convert(folders / name, tmp_path / "out", like=like, verify=True)
    assert (tmp_path / "out/model.safetensors").read_bytes() == (like / "model.safetensors").read_bytes()
    tokens = torch.arange(24).reshape(2, 12) % 101
    with torch.no_grad():
        loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out", local_files_only=True)
        assert torch.equal(loaded(tokens).logits, make_model(kind)(tokens).logits)
    assert distconv.verify(tmp_path / "out", against=folders / name).ok


def test_a_chunk_that_cannot_be_read_is_one_finding(folders: Path, tmp_path: Path) -> None:
    source, output = folders / TRAINED[0], tmp_path / "out"
    distconv.convert(source, output, like=folders / "llama-hf", max_shard_size=50_000)
    lost, *_others = sorted(output.glob("model-*.safetensors"))
    os.truncate(lost, 100)
    (words,) = distconv.verify(output, against=source).differences
    assert words.startswith(f"{lost}: ")


def test_what_is_beside_the_model_is_left_out_and_said(folders: Path) -> None:
    notes = distconv.plan(folders / "torchtitan", like=folders / "llama-hf").notes
    assert any("optimizer (1 tensor), train_state (1 tensor)" in note for note in notes)
    assert any("buffers" in note and "freqs_cis" in note for note in notes)
    notes = distconv.plan(folders / "wrapped", like=folders / "llama-hf").notes
    assert any("'_orig_mod.'" in note and "'_checkpoint_wrapped_module.'" in note for note in notes)


def test_a_checkpoint_becomes_a_model_of_another_type_in_many_chunks(folders: Path, tmp_path: Path) -> None:
    distconv.convert(
        folders / "grid",
        tmp_path / "out",
        like=folders / "llama-hf",
        dtype="bfloat16",
        max_shard_size=20_000,
        verify=True,
    )
    chunks = sorted(tmp_path.glob("out/model-*.safetensors"))
    found = {name: one for chunk in chunks for name, one in load_file(chunk).items()}
    expected = load_file(folders / "llama-hf/model.safetensors")
    assert len(chunks) > 2
    assert all(torch.equal(found[name], one.bfloat16()) for name, one in expected.items())
    assert json.loads((tmp_path / "out/config.json").read_text())["dtype"] == "bfloat16"


def test_without_the_model_that_it_is_like_only_its_files_are_described(
    folders: Path, tmp_path: Path
) -> None:
    found = distconv.inspect(folders / "torchtune").to_json()
    assert (found["dialect"], found["tensors"]) == ("torchtune", 21)
    with pytest.raises(UsageError, match="give the folder of the model that was trained"):
        distconv.convert(folders / "torchtune", tmp_path / "out")


def test_the_config_beside_a_checkpoint_is_taken(folders: Path, tmp_path: Path) -> None:
    source = shutil.copytree(folders / "transformers", tmp_path / "step/pytorch_model_fsdp_0").parent
    shutil.copy(folders / "llama-hf/config.json", source)
    distconv.convert(source, tmp_path / "out")
    assert (
        load_file(tmp_path / "out/model.safetensors").keys()
        == load_file(folders / "llama-hf/model.safetensors").keys()
    )


def test_a_missing_tensor_is_taken_from_the_model_that_it_is_like_only_where_that_is_asked_for(
    folders: Path, tmp_path: Path
) -> None:
    source = leave_out(folders / "transformers", tmp_path / "in", "model.lm_head.weight")
    with pytest.raises(InputError, match=r"lm_head\.weight is missing"):
        distconv.plan(source, like=folders / "llama-hf")
    report = distconv.convert(
        source, tmp_path / "out", like=folders / "llama-hf", fill_from_like=True, check=True, verify=True
    )
    assert any("lm_head.weight is not in INPUT and is taken from" in note for note in report.notes)
    expected = load_file(folders / "llama-hf/model.safetensors")
    found = load_file(tmp_path / "out/model.safetensors")
    assert all(torch.equal(found[own], expected[own]) for own in expected)


def change(source: Path, target: Path, work: Callable[..., None]) -> Path:
    """Copy a checkpoint, and let its metadata be changed."""
    shutil.copytree(source, target)
    metadata = pickle.loads((target / ".metadata").read_bytes())
    work(metadata)
    (target / ".metadata").write_bytes(pickle.dumps(metadata, protocol=4))
    return target


def leave_out(source: Path, target: Path, name: str) -> Path:
    """Copy a checkpoint without a tensor."""

    def work(metadata: object) -> None:
        del metadata.state_dict_metadata[name]  # type: ignore[attr-defined]

    return change(source, target, work)
