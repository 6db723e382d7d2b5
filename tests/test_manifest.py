"""A manifest knows tensors only: it is the same for any files, workers and formats that hold the same."""

import json
import os
import re
from collections.abc import Callable
from dataclasses import replace
from importlib import resources
from pathlib import Path

import jsonschema
import pytest
import torch
from safetensors.torch import save_file
from xxhash import xxh3_128

import distconv
from distconv.cli import main
from distconv.errors import InputError, UsageError
from distconv.moving.executor import Cluster
from distconv.verbs.options import Options
from distconv.verbs.running import name_for_workers
from tests.checkpoints import Spec
from tests.foreign_folders import save_dense, save_experts, write_folder
from tests.moving.fakes import RecordingProgress
from tests.reference import read_tensors

SPEC = Spec("llama-2", heads=8, kv_heads=4, shards=2)


def schema(name: str) -> dict[str, object]:
    """Read a schema as it is shipped."""
    found: dict[str, object] = json.loads((resources.files("distconv.output") / "schemas" / name).read_text())
    return found


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give a model as Transformers saves it."""
    return save_experts(tmp_path_factory.mktemp("manifest") / "model")


def manifest(source: Path, path: Path, **options: object) -> bytes:
    """Make a manifest and give its file."""
    distconv.manifest(source, path, **options)  # type: ignore[arg-type]
    return path.read_bytes()


def test_a_manifest_has_each_tensors_digest_and_follows_its_schema(model: Path, tmp_path: Path) -> None:
    content = json.loads(manifest(model, tmp_path / "m.json"))
    jsonschema.validate(content, schema("manifest.json"))
    tensors = read_tensors(model)
    assert content["tensors"].keys() == tensors.keys()
    for name, row in content["tensors"].items():
        assert row["shape"] == list(tensors[name].shape)
        raw = tensors[name].contiguous().view(torch.uint8).numpy().tobytes()
        assert row["xxh3_128"] == xxh3_128(raw).hexdigest()
    assert content["elements"] == sum(tensor.numel() for tensor in tensors.values())


@pytest.mark.parametrize("files", [1, 2, 7, 41])
def test_a_manifest_is_the_same_for_any_number_of_files(model: Path, tmp_path: Path, files: int) -> None:
    other = write_folder(tmp_path / "other", model / "config.json", read_tensors(model), files)
    assert manifest(other, tmp_path / "b.json") == manifest(model, tmp_path / "a.json")
    report = distconv.verify(other, against=model)
    assert report.ok, report.differences
    assert report.data_proved


def test_a_manifest_is_the_same_for_what_torch_saves(model: Path, tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/config.json").write_bytes((model / "config.json").read_bytes())
    torch.save(read_tensors(model), tmp_path / "bin/pytorch_model.bin")
    assert manifest(tmp_path / "bin", tmp_path / "b.json") == manifest(model, tmp_path / "a.json")


@pytest.mark.slow
def test_a_manifest_is_the_same_for_any_number_of_workers(model: Path, tmp_path: Path) -> None:
    alone = manifest(model, tmp_path / "a.json")
    assert manifest(model, tmp_path / "b.json", workers=2, address="local") == alone
    assert distconv.verify(model, against=tmp_path / "a.json", workers=2, address="local").ok


def test_a_checkpoint_and_what_is_made_of_it_both_ways_have_one_manifest(
    checkpoint: Callable[[Spec], Path], tmp_path: Path
) -> None:
    distconv.convert(checkpoint(SPEC), tmp_path / "hf", max_shard_size=100_000)
    distconv.convert(tmp_path / "hf", tmp_path / "meta", to="meta", shards=4)
    wanted = manifest(checkpoint(SPEC), tmp_path / "source.json")
    assert manifest(tmp_path / "hf", tmp_path / "hf.json") == wanted
    assert manifest(tmp_path / "meta", tmp_path / "meta.json") == wanted
    assert distconv.verify(tmp_path / "hf", against=tmp_path / "source.json").ok
    assert distconv.verify(tmp_path / "meta", against=tmp_path / "source.json").ok
    receipt = json.loads((tmp_path / "hf/distconv.json").read_text())
    jsonschema.validate(receipt, schema("receipt.json"))
    jsonschema.validate(json.loads((tmp_path / "meta/distconv.json").read_text()), schema("receipt.json"))
    recorded = {name: digest for chunk in receipt["chunks"] for name, digest in chunk["tensors"].items()}
    assert recorded == {name: row["xxh3_128"] for name, row in json.loads(wanted)["tensors"].items()}


def test_a_folder_is_equal_to_its_source_within_a_cast_and_not_to_that_sources_manifest(
    tmp_path: Path,
) -> None:
    dense = save_dense(tmp_path / "dense")
    wide = {name: tensor.float() * 1.001 for name, tensor in read_tensors(dense).items()}
    source = write_folder(tmp_path / "wide", dense / "config.json", wide, 3)
    narrow = {name: tensor.bfloat16() for name, tensor in wide.items()}
    output = write_folder(tmp_path / "narrow", dense / "config.json", narrow, 2)
    assert distconv.verify(output, against=source).ok
    distconv.manifest(source, tmp_path / "wide.json")
    found = distconv.verify(output, against=tmp_path / "wide.json").differences
    assert len(found) == len(wide)
    assert all("stored as bfloat16" in words and "has float32" in words for words in found)
    narrow["lm_head.weight"][3, 5] *= -1
    write_folder(output, dense / "config.json", narrow, 2)
    (words,) = distconv.verify(output, against=source).differences
    assert words == f"lm_head.weight: element (3, 5) differs from {source}"


def test_a_tied_head_that_is_stored_in_one_folder_only_is_no_difference(tmp_path: Path) -> None:
    dense = save_dense(tmp_path / "dense")
    config = json.loads((dense / "config.json").read_text()) | {"tie_word_embeddings": True}
    (dense / "config.json").write_text(json.dumps(config))
    tensors = read_tensors(dense)
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    stored = write_folder(tmp_path / "stored", dense / "config.json", tensors, 3)
    del tensors["lm_head.weight"]
    tied = write_folder(tmp_path / "tied", dense / "config.json", tensors, 2)
    for one, other in ((stored, tied), (tied, stored)):
        report = distconv.verify(one, against=other)
        assert report.ok, report.differences


def test_odd_values_stand_in_the_manifest(tmp_path: Path) -> None:
    dense = save_dense(tmp_path / "dense")
    tensors = read_tensors(dense)
    tensors["model.norm.weight"][3:5] = float("nan")
    tensors["lm_head.weight"][:] = 0
    write_folder(dense, dense / "config.json", tensors, 2)
    content = json.loads(manifest(dense, tmp_path / "m.json"))
    jsonschema.validate(content, schema("manifest.json"))
    assert content["tensors"]["model.norm.weight"]["nan"] == 2
    assert content["tensors"]["lm_head.weight"]["zero"] is True


@pytest.mark.parametrize(
    ("before", "after", "words"),
    [
        ('"version": 1', '"version": 2', "its version is 2"),
        ('"xxh3_128": "', '"xxh3_128": "0', "is no digest"),
        ('"dtype": "bfloat16"', '"dtype": "bfloat17"', "is unknown"),
        ('"dtype": "bfloat16"', '"dtype": "float16"', "its own digest differs"),
        ('"tensors"', '"tensor"', "tensors of the manifest"),
    ],
)
def test_a_manifest_that_was_changed_is_refused(
    model: Path, tmp_path: Path, before: str, after: str, words: str
) -> None:
    path = tmp_path / "m.json"
    text = manifest(model, path).decode()
    path.write_text(text.replace(before, after, 1))
    with pytest.raises(InputError, match=words):
        distconv.verify(model, against=path)


def test_commands_write_a_manifest_and_a_card(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["manifest", str(model), str(tmp_path / "m.json"), "--quiet"])
    assert "41 tensors" in capsys.readouterr().out
    for name in ("card.json", "card.md"):
        main(
            [
                "verify",
                str(model),
                "--against",
                str(tmp_path / "m.json"),
                "--card",
                str(tmp_path / name),
                "--quiet",
            ]
        )
    card = json.loads((tmp_path / "card.json").read_text())
    jsonschema.validate(card, schema("card.json"))
    made = json.loads((tmp_path / "m.json").read_text())
    assert card["ok"] is True
    assert card["manifest"] == made
    text = (tmp_path / "card.md").read_text()
    assert made["sha256"] in text
    assert f"{made['elements']:,}" in text
    assert f"distconv verify {model} --against" in text


def test_a_card_of_metas_shards_gives_what_one_of_the_same_model_for_transformers_gives(
    checkpoint: Callable[[Spec], Path], tmp_path: Path
) -> None:
    distconv.convert(checkpoint(SPEC), tmp_path / "hf")
    cards = {}
    for shards in (1, 4):
        distconv.convert(tmp_path / "hf", tmp_path / "meta", to="meta", shards=shards, overwrite=True)
        for folder in ("hf", "meta"):
            for name in ("card.json", "card.md"):
                report = distconv.verify(tmp_path / folder, card=tmp_path / name)
            assert report.manifest is not None
            cards[folder] = json.loads((tmp_path / "card.json").read_text())
            jsonschema.validate(cards[folder], schema("card.json"))
            text = (tmp_path / "card.md").read_text()
            assert f"| values | {report.manifest.elements:,} |" in text
            assert f"`{report.manifest.digest}`" in text
        assert cards["hf"]["manifest"] == cards["meta"]["manifest"] is not None
    damaged = bytearray((tmp_path / "meta/consolidated.02.pth").read_bytes())
    damaged[len(damaged) // 2] ^= 1
    (tmp_path / "meta/consolidated.02.pth").write_bytes(damaged)
    report = distconv.verify(tmp_path / "meta", card=tmp_path / "card.json")
    assert not report.ok
    assert json.loads((tmp_path / "card.json").read_text())["manifest"] is None


def test_a_card_says_what_is_wrong_and_no_name_in_it_is_markdown(tmp_path: Path) -> None:
    dense = save_dense(tmp_path / "dense")
    tensors = {"a|<b>`": torch.ones(2), **read_tensors(dense)}
    write_folder(dense, dense / "config.json", tensors, 2)
    report = distconv.verify(dense, card=tmp_path / "card.md")
    assert len(report.differences) == 1
    text = (tmp_path / "card.md").read_text()
    assert "1 finding" in text
    assert "<b>" not in text


@pytest.mark.parametrize("name", ["nowhere/file", ".", "pipe", "gs://models/file"])
def test_what_could_not_be_written_at_the_end_is_refused_before_anything_is_read(
    model: Path, tmp_path: Path, name: str
) -> None:
    os.mkfifo(tmp_path / "pipe")
    path = name if "://" in name else tmp_path / name
    progress = RecordingProgress()
    with pytest.raises(UsageError, match=re.escape(str(path))):
        distconv.manifest(model, path, progress=progress)
    with pytest.raises(UsageError, match=re.escape(str(path))):
        distconv.verify(model, card=path, progress=progress)
    assert progress.calls == []


@pytest.mark.parametrize("name", ["notes.txt", "notes.md", "pyproject.json"])
def test_a_file_that_stands_there_already_is_replaced_only_by_the_command_that_wrote_it(
    model: Path, tmp_path: Path, name: str
) -> None:
    path, progress = tmp_path / name, RecordingProgress()
    path.write_text('{"mine": "# Verification of distconv-manifest, distconv-card"}')
    for write in (
        lambda: distconv.manifest(model, path, progress=progress),
        lambda: distconv.verify(model, card=path, progress=progress),
    ):
        with pytest.raises(UsageError, match=f"{re.escape(str(path))}: there already.*remove it, or give"):
            write()
        assert path.read_text().startswith('{"mine"')
    assert progress.calls == []
    # A file that mktemp has made is nobody's.
    path.write_bytes(b"")
    distconv.manifest(model, path)
    made = path.read_bytes()
    with pytest.raises(UsageError, match="no card that distconv wrote"):
        distconv.verify(model, card=path)
    distconv.manifest(model, path)
    assert path.read_bytes() == made
    path.unlink()
    distconv.verify(model, card=path)
    with pytest.raises(UsageError, match="no manifest that distconv wrote"):
        distconv.manifest(model, path)
    card = path.read_bytes()
    distconv.verify(model, card=path)
    assert path.read_bytes() == card


def test_tensors_that_nobody_knows_are_listed_as_they_are(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    save_file({"x": torch.arange(6).view(2, 3)}, tmp_path / "model/model.safetensors", {"format": "pt"})
    (tmp_path / "model/config.json").write_text("{}")
    content = json.loads(manifest(tmp_path / "model", tmp_path / "m.json"))
    assert content["tensors"]["x"]["dtype"] == "int64"


def test_a_trained_checkpoint_and_what_is_made_of_it_have_one_manifest(folders: Path, tmp_path: Path) -> None:
    source, like = folders / "torchtitan", folders / "llama-hf"
    distconv.convert(source, tmp_path / "out", like=like)
    distconv.manifest(tmp_path / "out", tmp_path / "out.json")
    distconv.manifest(source, tmp_path / "in.json", like=like)
    assert (tmp_path / "in.json").read_bytes() == (tmp_path / "out.json").read_bytes()


def test_workers_are_told_where_places_are_whatever_folder_they_start_in() -> None:
    asked = Options(source="in", output="", like="s3://models/like", cluster=Cluster(None, 2))
    told = name_for_workers(asked)
    assert (told.source, told.output, told.like) == (os.path.abspath("in"), "", "s3://models/like")
    alone = replace(asked, cluster=Cluster())
    assert name_for_workers(alone) is alone


@pytest.mark.parametrize(
    "name", ["config.json", "model.safetensors", "tokenizer.json", "params.json", "distconv.json"]
)
def test_what_is_written_of_a_model_takes_the_place_of_none_of_its_files(tmp_path: Path, name: str) -> None:
    folder = save_dense(tmp_path / "in")
    (folder / name).write_bytes(b"mine")
    with pytest.raises(UsageError, match=f"{name}: a name of a model's files"):
        distconv.manifest(folder, folder / name)
    with pytest.raises(UsageError, match=f"{name}: a name of a model's files"):
        distconv.verify(folder, card=folder / name)
    assert (folder / name).read_bytes() == b"mine"
