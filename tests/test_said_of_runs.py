"""What commands say of a run is what they did: nothing is called equal that was cast, and no more is said to be looked at than was."""

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import distconv
from tests.called import call
from tests.checkpoints import Spec

Write = Callable[[Spec], Path]
SPEC = Spec(shards=2)
HALF = Spec("llama-3", norm_dtype=torch.float32)
"""Stored in two types."""


def compare(source: Path, output: Path) -> tuple[object, str]:
    """Give the types to which --against says that INPUT was cast, and what is said of it to people."""
    report = distconv.verify(output, against=source)
    assert report.ok
    return report.to_json()["cast_to"], str(report).split(f"equal to {source}")[1].split(" (")[0]


@pytest.mark.parametrize("to", ["transformers", "meta"])
def test_what_was_cast_is_called_equal_to_what_its_source_is_cast_to(
    checkpoint: Write, tmp_path: Path, to: str
) -> None:
    source = checkpoint(SPEC)
    distconv.convert(source, tmp_path / "half", to=to, dtype="float16")
    distconv.convert(source, tmp_path / "own", to=to)
    assert compare(source, tmp_path / "half") == (["float16"], " cast to float16")
    assert compare(source, tmp_path / "own") == ([], "")


def test_another_folder_is_called_equal_in_the_types_that_it_was_cast_to(
    checkpoint: Write, tmp_path: Path
) -> None:
    source, wide, own = checkpoint(HALF), tmp_path / "wide", tmp_path / "own"
    distconv.convert(source, wide, dtype="float32")
    distconv.convert(source, own)
    assert compare(wide, own) == (["bfloat16"], " cast to bfloat16")
    # Its norms are float32 in both.
    assert compare(own, wide) == (["float32"], " cast to float32")
    assert compare(own, own) == ([], "")


def test_output_is_called_as_it_was_given_on_ray_too(
    checkpoint: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    source = checkpoint(SPEC)
    assert distconv.convert(source, "out").output == "out"
    # It is done already, so that no Ray is started.
    again = distconv.convert(source, "out", workers=2)
    assert (again.output, again.already_done) == ("out", True)


def test_a_trained_model_is_called_equal_in_the_type_that_it_was_cast_to(
    folders: Path, tmp_path: Path
) -> None:
    distconv.convert(folders / "grid", tmp_path / "out", like=folders / "llama-hf", dtype="bfloat16")
    assert compare(folders / "grid", tmp_path / "out") == (["bfloat16"], " cast to bfloat16")


def test_a_card_says_what_its_source_was_cast_to(checkpoint: Write, tmp_path: Path) -> None:
    source = checkpoint(SPEC)
    distconv.convert(source, tmp_path / "half", dtype="float16")
    for name in ("card.md", "card.json"):
        distconv.verify(tmp_path / "half", against=source, card=tmp_path / name)
    assert ", cast to float16 |\n" in (tmp_path / "card.md").read_text()
    assert json.loads((tmp_path / "card.json").read_text())["cast_to"] == ["float16"]


def test_trained_weights_that_are_kept_in_another_type_than_their_model_has_are_told_of(
    folders: Path, tmp_path: Path
) -> None:
    like = shutil.copytree(folders / "llama-hf", tmp_path / "like")
    config = json.loads((like / "config.json").read_text())
    (like / "config.json").write_text(json.dumps(config | {"dtype": "bfloat16"}))
    words = f"note: stored as float32, and kept so; {like}/config.json says bfloat16, to which --dtype bfloat16 casts\n"
    source = folders / "grid"
    assert words in call(["plan", source, "--like", like]).stderr
    assert words in call(["convert", source, tmp_path / "out", "--like", like]).stderr
    # Nothing is said where it is what the model has, or what was asked for.
    for arguments in (["--like", folders / "llama-hf"], ["--like", like, "--dtype", "float32"]):
        assert "stored as" not in call(["plan", source, *arguments]).stderr


def test_a_model_that_is_no_transformers_folder_is_called_what_it_is(
    folders: Path, checkpoint: Write, tmp_path: Path
) -> None:
    meta, empty = checkpoint(SPEC), tmp_path / "empty"
    empty.mkdir()
    (tmp_path / "file").touch()
    for like, words in (
        (
            meta,
            f"in Meta's layout, and --like takes a Transformers folder; make one by `distconv convert {meta} LIKE`",
        ),
        (tmp_path / "nowhere", "no such folder"),
        (
            "meta-llama/Llama-3.1-8B",
            "no such folder; a repository of the hub is given as hf://meta-llama/Llama-3.1-8B",
        ),
        (tmp_path / "file", "a file, expected a folder"),
        (empty, "no config.json; give by --like the folder of the model that was trained"),
    ):
        done = call(["plan", folders / "grid", "--like", like])
        assert (done.returncode, f"error: {like}: {words}" in done.stderr) == (2, True), done.stderr


def test_convert_says_of_a_check_what_check_says(checkpoint: Write, tmp_path: Path) -> None:
    source = checkpoint(SPEC)
    (checked,) = call(("check", source)).stdout.splitlines()
    assert checked.endswith("all as they should be")
    assert checked in call(("convert", source, tmp_path / "out", "--check")).stderr.splitlines()
    assert checked not in call(("convert", source, tmp_path / "quiet", "--check", "--quiet")).stderr


def test_verify_says_where_its_card_is_and_what_each_of_its_bars_is_about(
    checkpoint: Write, tmp_path: Path
) -> None:
    source, output, card = checkpoint(SPEC), tmp_path / "out", tmp_path / "card.md"
    distconv.convert(source, output)
    found = call(("verify", output, "--against", source, "--card", card))
    assert found.stdout.splitlines()[-1] == f"{card}: a card of what was found"
    reading, comparing = (
        found.stderr.index(words)
        for words in (f"reading all data of {output}\n", f"comparing every tensor with {source}\n")
    )
    assert reading < found.stderr.index("100.0%") < comparing < found.stderr.rindex("100.0%")
    (output / "config.json").unlink()
    assert call(("verify", output, "--card", card)).stdout.splitlines()[-1].startswith(f"{card}: a card")
    assert "card" not in call(("verify", output)).stdout


def test_check_says_which_files_it_compared_with_nothing(checkpoint: Write, tmp_path: Path) -> None:
    source = shutil.copytree(checkpoint(SPEC), tmp_path / "in")
    assert distconv.check(source).notes == ()
    (source / "checklist.chk").unlink()
    (note,) = distconv.check(source).notes
    assert note.startswith(
        f"{source}/params.json and {source}/tokenizer.model: compared with nothing, as no checklist names them; "
    )
    (source / "tokenizer_checklist.chk").write_text(
        f"{hashlib.md5((source / 'tokenizer.model').read_bytes()).hexdigest()}  tokenizer.model\n"
    )
    (note,) = distconv.check(source).notes
    assert note.startswith(f"{source}/params.json: compared with nothing, as no checklist names it; ")
