"""Types, proofs, and what stood in OUTPUT before, on the way to Meta's layout."""

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import distconv
from distconv.errors import ConversionError, OutputError
from distconv.families.cuts import Cut
from distconv.layout.tensors import Tensor
from tests.faults import digest_folder, digest_shards
from tests.test_to_meta_from_transformers import assert_shards, expect_shards
from tests.transformers_models import ModelSpec, name_of, write_model

Write = Callable[[ModelSpec], Path]
Tokenizers = Callable[[ModelSpec], Path]
SPEC = ModelSpec("llama-3.1")
OTHER = dataclasses.replace(SPEC, seed=1)
SINGLES = [
    ModelSpec("llama-2", dtype=torch.float32, tied=True),
    ModelSpec("llama-3.2", dtype=torch.float32, norm_dtype=torch.bfloat16, tied=True, padding=3),
    ModelSpec("llama-3", dtype=torch.bfloat16, files="bin"),
]
PART_BYTES = 8_000


def convert(source: Path, output: Path, **options: object) -> distconv.ConversionReport:
    """Convert to two shards, each in several parts."""
    return distconv.convert(source, output, to="meta", shards=2, max_shard_size=PART_BYTES, **options)  # type: ignore[arg-type]


@pytest.mark.product
@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
@pytest.mark.parametrize("spec", SINGLES, ids=name_of)
def test_another_type_is_the_one_that_torch_makes(
    spec: ModelSpec, dtype: str, tokenizer_of: Tokenizers, tmp_path: Path
) -> None:
    tensors = write_model(tmp_path / "model", spec, tokenizer_of(spec))
    cast = {name: tensor.to(getattr(torch, dtype)) for name, tensor in tensors.items()}
    report = convert(tmp_path / "model", tmp_path / "out", dtype=dtype, verify=True)
    assert report.verified
    assert report.became_infinite == sum(int(tensor.isinf().sum()) for tensor in cast.values())
    assert_shards(tmp_path / "out", expect_shards(cast, spec, 2), tmp_path / "saved")
    convert(tmp_path / "model", tmp_path / "kept")
    convert(tmp_path / "kept", tmp_path / "again", dtype=dtype)
    assert digest_shards(tmp_path / "again") == digest_shards(tmp_path / "out")


def test_values_that_a_type_does_not_reach_are_counted_and_nans_become_quiet(
    tokenizer_of: Tokenizers, tmp_path: Path
) -> None:
    spec = ModelSpec("llama-3", dtype=torch.float32, files="bin")
    tensors = write_model(tmp_path / "model", spec, tokenizer_of(spec))
    weight = tensors["model.layers.0.self_attn.q_proj.weight"]
    weight.view(-1)[::97] = 1e5
    weight.view(torch.int32).view(-1)[1::97] = 0x7F800001  # a signalling NaN
    torch.save(tensors, tmp_path / "model/pytorch_model.bin")
    report = convert(tmp_path / "model", tmp_path / "out", dtype="float16", verify=True)
    assert report.became_infinite == len(weight.view(-1)[::97])
    cast = {name: tensor.to(torch.float16) for name, tensor in tensors.items()}
    for tensor in cast.values():
        tensor.view(torch.int16)[tensor.isnan()] = 0x7E00
    assert_shards(tmp_path / "out", expect_shards(cast, spec, 2), tmp_path / "saved")


def test_parts_of_a_wrong_rank_do_not_pass_the_proof(
    transformers_model: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    part = Cut.part

    def turned(cut: Cut, tensor: Tensor, rank: int, ranks: int, head_dim: int) -> Tensor:
        found = part(cut, tensor, rank, ranks, head_dim)
        other = part(cut, tensor, ranks - 1 - rank, ranks, head_dim)
        return other if tensor.name == "layers.1.attention.wk.weight" else found

    with monkeypatch.context() as patch:
        patch.setattr(Cut, "part", turned)
        with pytest.raises(ConversionError, match=r"layers\.1\.attention\.wk\.weight"):
            convert(transformers_model(SPEC), tmp_path / "out", verify=True)
    assert not (tmp_path / "out/params.json").exists()
    report = convert(transformers_model(SPEC), tmp_path / "out", verify=True)
    assert report.verified
    convert(transformers_model(SPEC), tmp_path / "plain")
    assert digest_folder(tmp_path / "out") == digest_folder(tmp_path / "plain")


def test_a_damaged_shard_is_found_by_the_proof_and_made_again(
    transformers_model: Write, tmp_path: Path
) -> None:
    convert(transformers_model(SPEC), tmp_path / "out")
    whole = digest_folder(tmp_path / "out")
    path = tmp_path / "out/consolidated.01.pth"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    assert convert(transformers_model(SPEC), tmp_path / "out").already_done
    assert not convert(transformers_model(SPEC), tmp_path / "out", verify=True).already_done
    assert digest_folder(tmp_path / "out") == whole


def test_a_folder_of_links_as_the_hub_s_cache_has_it_is_read(
    transformers_model: Write, tmp_path: Path
) -> None:
    blobs, snapshot = tmp_path / "cache/blobs", tmp_path / "cache/snapshots/0123"
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    for number, file in enumerate(transformers_model(SPEC).iterdir()):
        shutil.copy(file, blobs / str(number))
        (snapshot / file.name).symlink_to(f"../../blobs/{number}")
    convert(snapshot, tmp_path / "out", verify=True)
    convert(transformers_model(SPEC), tmp_path / "plain")
    assert without_receipt(tmp_path / "out") == without_receipt(tmp_path / "plain")
    with pytest.raises(OutputError, match="inside INPUT's folder"):
        convert(snapshot, blobs / "out")


def without_receipt(folder: Path) -> dict[str, str]:
    """Give the digests of all files but of the one that names INPUT."""
    return {name: digest for name, digest in digest_folder(folder).items() if name != "distconv.json"}


def test_a_model_for_transformers_makes_room_for_shards_only_where_it_may_be_replaced(
    transformers_model: Write, tmp_path: Path
) -> None:
    distconv.convert(transformers_model(OTHER), tmp_path / "between", to="meta")
    distconv.convert(tmp_path / "between", tmp_path / "out", max_shard_size=50_000)
    (tmp_path / "out/notes.txt").write_text("mine")
    before = digest_folder(tmp_path / "out")
    with pytest.raises(OutputError):
        convert(transformers_model(SPEC), tmp_path / "out")
    assert digest_folder(tmp_path / "out") == before
    convert(transformers_model(SPEC), tmp_path / "out", overwrite=True)
    convert(transformers_model(SPEC), tmp_path / "plain")
    kept = without_receipt(tmp_path / "out")
    assert kept.pop("notes.txt") == before["notes.txt"]
    assert kept == without_receipt(tmp_path / "plain")


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_model_that_another_tool_saved_is_no_place_for_shards(
    transformers_model: Write, tmp_path: Path, overwrite: bool
) -> None:
    output = shutil.copytree(transformers_model(OTHER), tmp_path / "out")
    before = digest_folder(output)
    with pytest.raises(OutputError, match=r"out/model\.safetensors: .*; move it away"):
        convert(transformers_model(SPEC), output, overwrite=overwrite)
    assert digest_folder(output) == before


def leave_foreign_model(folder: Path, saved: Path) -> None:
    """Leave what another tool saved."""
    shutil.copytree(saved, folder)


def leave_foreign_shard(folder: Path, saved: Path) -> None:
    """Leave what somebody trained with Meta's code."""
    folder.mkdir()
    torch.save({"w": torch.ones(1)}, folder / "consolidated.00.pth")


def leave_converted_model(folder: Path, saved: Path) -> None:
    """Leave what was converted to the other format."""
    distconv.convert(saved, folder.parent / "between", to="meta")
    distconv.convert(folder.parent / "between", folder)


def leave_other_files(folder: Path, saved: Path) -> None:
    """Leave what no model consists of."""
    folder.mkdir()
    shutil.copy(saved / "config.json", folder / "notes.txt")


def leave_other_weights(folder: Path, saved: Path) -> None:
    """Leave weights that a loader may prefer, and no model of either format."""
    leave_other_files(folder, saved)
    (folder / "model.gguf").write_bytes(b"GGUF")


LEFT = [
    leave_foreign_model,
    leave_foreign_shard,
    leave_converted_model,
    leave_other_files,
    leave_other_weights,
]


@pytest.mark.parametrize("leave", LEFT)
def test_overwrite_is_offered_where_it_would_do_and_only_there(
    transformers_model: Write, tmp_path: Path, leave: Callable[[Path, Path], None]
) -> None:
    leave(tmp_path / "out", transformers_model(OTHER))
    with pytest.raises(OutputError) as raised:
        convert(transformers_model(SPEC), tmp_path / "out")
    words, before = str(raised.value), digest_folder(tmp_path / "out")
    if words.endswith("give an empty folder, or `overwrite=True` to replace the model in it"):
        convert(transformers_model(SPEC), tmp_path / "out", overwrite=True)
        return
    with pytest.raises(OutputError) as raised:
        convert(transformers_model(SPEC), tmp_path / "out", overwrite=True)
    assert words.endswith(
        f"; give an empty folder, or move away what `overwrite=True` does not replace\n{raised.value}"
    )
    assert digest_folder(tmp_path / "out") == before


def test_shards_make_room_for_a_model_for_transformers_only_where_they_may_be_replaced(
    transformers_model: Write, tmp_path: Path
) -> None:
    convert(transformers_model(SPEC), tmp_path / "meta")
    convert(transformers_model(OTHER), tmp_path / "out")
    (tmp_path / "out/notes.txt").write_text("mine")
    before = digest_folder(tmp_path / "out")
    with pytest.raises(OutputError):
        distconv.convert(tmp_path / "meta", tmp_path / "out")
    assert digest_folder(tmp_path / "out") == before
    distconv.convert(tmp_path / "meta", tmp_path / "out", overwrite=True)
    distconv.convert(tmp_path / "meta", tmp_path / "plain")
    kept = without_receipt(tmp_path / "out")
    assert kept.pop("notes.txt") == before["notes.txt"]
    assert kept == without_receipt(tmp_path / "plain")


def test_an_output_that_is_stored_though_config_ties_it_is_written_and_noted(
    tokenizer_of: Tokenizers, tmp_path: Path
) -> None:
    source, spec = tmp_path / "source", ModelSpec("llama-3.1")
    write_model(source, spec, tokenizer_of(spec))
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": True}))
    report = distconv.convert(source, tmp_path / "out", to="meta", verify=True)
    assert any("lm_head.weight is stored, which counts" in note for note in report.notes)
    found = torch.load(tmp_path / "out/consolidated.00.pth", weights_only=True)
    assert not torch.equal(found["output.weight"], found["tok_embeddings.weight"])
