"""What inspect and check tell of a Transformers folder of a family that is none of ours: what is true of any."""

import json
import shutil
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch

import distconv
from distconv.cli import main
from distconv.errors import InputError
from distconv.formats.safetensors.folder import find_transformers_files
from distconv.storage.local import LocalStorage
from distconv.storage.local_files import LocalReader
from distconv.verbs.transformers_model import read_any_model, read_model
from tests.dcp_folders import make_model
from tests.foreign_folders import INDEX, read_index, write_folder
from tests.reference import read_tensors


@pytest.fixture(scope="module")
def qwen(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give a Qwen3 as Transformers saves it, in several files."""
    saved = tmp_path_factory.mktemp("qwen") / "saved"
    make_model("qwen3").save_pretrained(saved)
    return write_folder(saved.with_name("model"), saved / "config.json", read_tensors(saved), 3)


@pytest.fixture
def folder(qwen: Path, tmp_path: Path) -> Path:
    """Give a copy of it, to be damaged."""
    return shutil.copytree(qwen, tmp_path / "model")


def test_a_folder_of_another_family_is_described_as_far_as_is_true_of_any(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tensors = read_tensors(folder)
    found = distconv.inspect(folder).to_json()
    files = sorted(folder.glob("*.safetensors"))
    assert (found["format"], found["model_type"], found["architectures"]) == (
        "transformers",
        "qwen3",
        ["Qwen3ForCausalLM"],
    )
    assert (found["tensors"], found["elements"]) == (len(tensors), sum(map(torch.numel, tensors.values())))
    assert found["size_bytes"] == sum(path.stat().st_size for path in files)
    assert found["files"] == list(map(str, files))
    assert set(found["dtypes"]) == {str(tensor.dtype).removeprefix("torch.") for tensor in tensors.values()}
    main(["inspect", str(folder)])
    shown = capsys.readouterr()
    assert "Qwen3ForCausalLM" in shown.out
    assert (
        f"--to meta is refused of this model; `distconv verify {folder}` proves whether it is whole"
        in shown.err
    )
    assert shown.err.endswith(f"next: distconv verify {folder}\n")


def test_check_compares_headers_and_index_of_any_folder(folder: Path) -> None:
    report = distconv.check(folder)
    assert report.ok, report.findings
    assert report.by_headers == 3
    assert any("so that only headers and index were compared" in note for note in report.notes)
    assert any(f"`distconv verify {folder}` does" in note for note in report.notes)


def exchange(folder: Path) -> None:
    weight_map = read_index(folder)
    name, home = next(iter(weight_map.items()))
    weight_map[name] = next(other for other in weight_map.values() if other != home)
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def cut(folder: Path) -> None:
    path = max(folder.glob("*.safetensors"), key=lambda path: path.stat().st_size)
    path.write_bytes(path.read_bytes()[:-100])


@pytest.mark.parametrize(("damage", "words"), [(exchange, INDEX), (cut, ".safetensors")])
def test_what_is_wrong_with_any_folder_is_found_in_one_of_another_family(
    folder: Path, damage: Callable[[Path], None], words: str
) -> None:
    damage(folder)
    report = distconv.check(folder)
    assert not report.ok
    assert all(words in finding and "model_type" not in finding for finding in report.findings)
    with pytest.raises(distconv.DistconvError, match=words):
        distconv.inspect(folder)


def test_what_torch_saved_of_another_family_is_compared_by_its_own_checksums(folder: Path) -> None:
    tensors = read_tensors(folder)
    for path in (*folder.glob("*.safetensors"), folder / INDEX):
        path.unlink()
    torch.save(tensors, folder / "pytorch_model.bin")
    report = distconv.check(folder)
    assert (report.ok, report.by_crc32, report.by_headers) == (True, 1, 0)
    content = bytearray((folder / "pytorch_model.bin").read_bytes())
    largest = max(tensors.values(), key=torch.numel).contiguous().view(torch.uint8).numpy().tobytes()
    content[content.index(largest) + 9] ^= 1
    (folder / "pytorch_model.bin").write_bytes(content)
    assert "CRC32" in "".join(distconv.check(folder).findings)


@pytest.mark.parametrize(
    ("tokenizer", "words"),
    [
        ({}, "neither tokenizer.model nor tokenizer.json"),
        (
            {"tokenizer.json": '{"model": {"type": "BPE", "byte_fallback": true, "vocab": {}}}'},
            "the BPE of a sentencepiece",
        ),
    ],
)
def test_of_a_llama_whose_tokenizer_metas_code_cannot_have_that_is_noted(
    tmp_path: Path, tokenizer: Mapping[str, str], words: str
) -> None:
    folder = tmp_path / "model"
    make_model("llama").save_pretrained(folder)
    for name, text in tokenizer.items():
        (folder / name).write_text(text)
    found = distconv.inspect(folder).to_json()
    assert found["architectures"] == ["LlamaForCausalLM"]
    report = distconv.check(folder)
    assert report.ok
    for notes in (found["notes"], report.notes):
        assert any(words in note for note in notes)
    with pytest.raises(distconv.DistconvError, match=words):
        distconv.convert(folder, tmp_path / "out", to="meta", shards=1)


def test_a_llama_whose_tokenizer_cannot_be_read_is_not_as_it_should_be(tmp_path: Path) -> None:
    make_model("llama").save_pretrained(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{")
    assert any("tokenizer.json" in finding for finding in distconv.check(tmp_path).findings)


def test_the_config_of_a_llama_is_read_once_and_of_another_family_before_its_headers(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, storage = Counter[str](), LocalStorage()

    def count(_self: LocalStorage, path: str) -> LocalReader:
        read[Path(path).name] += 1
        return LocalReader(path)

    make_model("llama").save_pretrained(tmp_path / "llama")
    monkeypatch.setattr(LocalStorage, "open", count)
    assert isinstance(read_any_model(storage, find_transformers_files(storage, f"{tmp_path}/llama")), str)
    assert read["config.json"] == 1
    # What Meta's layout has no place for is told before what is damaged in it, but where that layout is asked for.
    for path in folder.glob("*.safetensors"):
        path.write_bytes(b"damaged")
    files = find_transformers_files(storage, str(folder))
    assert "model_type is 'qwen3'" in str(read_any_model(storage, files))
    with pytest.raises(InputError, match="safetensors: it is text, expected"):
        read_model(storage, files)
