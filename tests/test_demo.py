"""The demonstration goes the whole way, and its trained model is the published one."""

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import sentencepiece
import torch

import distconv
from tests.documents import ROOT
from tests.patience import HANG_SECONDS
from tests.test_to_meta_stories import DATA, WRITER

DEMO = ROOT / "examples" / "demo.py"
with_stories = pytest.mark.skipif(
    not (DATA.is_dir() and WRITER.exists()), reason="the trained model does not lie beside the checkout"
)


@pytest.fixture
def small_models(monkeypatch: pytest.MonkeyPatch) -> Iterator[object]:
    """Give the examples' module that writes models."""
    monkeypatch.syspath_prepend(ROOT / "examples")
    import small_models

    yield small_models
    del sys.modules["small_models"]


def run_demo(*arguments: object, program: Path = DEMO) -> "subprocess.CompletedProcess[str]":
    """Run it as a person does."""
    command = [sys.executable, str(program), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=HANG_SECONDS)


@pytest.mark.slow
@pytest.mark.parametrize("stories", [pytest.param(True, marks=with_stories), False])
def test_the_demonstration_goes_the_whole_way(stories: bool, tmp_path: Path) -> None:
    # Where the trained model may lie is told by where the program does.
    copied = shutil.copytree(ROOT / "examples", tmp_path / "a" / "examples")
    shutil.copy(ROOT / "LICENSE", copied.parent)
    if stories:
        shutil.copytree(DATA, tmp_path / "shared" / "data" / "stories260K")
    done = run_demo(program=copied / "demo.py")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "are whole and equal to llama-2" in done.stdout
    told = ", there was a little girl named Lily. She loved to play outside in the park." in done.stdout
    assert told or not stories


@pytest.mark.slow
def test_a_folder_without_the_trained_model_is_refused(tmp_path: Path) -> None:
    (tmp_path / "tok512.bin").touch()
    done = run_demo(tmp_path)
    assert done.returncode == 1
    assert done.stderr == f"{tmp_path}: holds no stories260K.bin\n"


@pytest.mark.slow
def test_a_checkpoint_to_type_the_readme_with_is_written_under_any_name_once(tmp_path: Path) -> None:
    program = ROOT / "examples" / "small_models.py"
    done = run_demo(tmp_path / "Llama-2-7b", program=program)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    report = distconv.convert(tmp_path / "Llama-2-7b", tmp_path / "llama-2-7b-hf")
    assert (report.family, report.chunks) == ("Llama 2", 1)
    again = run_demo(tmp_path / "Llama-2-7b", program=program)
    assert (again.returncode, again.stderr) == (
        1,
        f"{tmp_path / 'Llama-2-7b'}: is there already; give a new folder\n",
    )


@with_stories
def test_the_trained_model_is_written_as_another_program_writes_it(small_models, tmp_path: Path) -> None:
    small_models.write_story_model(tmp_path / "own", DATA, shards=2)
    files = [str(DATA / "stories260K.bin"), str(DATA / "tok512.bin")]
    subprocess.run([sys.executable, str(WRITER), *files, str(tmp_path / "other"), "2"], check=True)
    for name in ("consolidated.00.pth", "consolidated.01.pth"):
        own, other = (torch.load(tmp_path / folder / name) for folder in ("own", "other"))
        assert own.keys() == other.keys()
        assert all(torch.equal(own[key], other[key]) for key in other)
    own, other = (
        sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / folder / "tokenizer.model"))
        for folder in ("own", "other")
    )
    text = "Once upon a time, Lily's mom said: \u00fc 42!"
    assert own.encode(text) == other.encode(text)
    assert [own.id_to_piece(number) for number in range(512)] == [
        other.id_to_piece(number) for number in range(512)
    ]


def test_the_random_model_is_cut_as_another_writer_cuts(small_models, tmp_path: Path) -> None:
    small_models.write_random_model(tmp_path / "model", shards=4)
    shard = torch.load(tmp_path / "model" / "consolidated.03.pth")
    assert shard["tok_embeddings.weight"].shape == (800, 128)
    assert shard["output.weight"].shape == (200, 512)
    assert shard["layers.0.attention.wk.weight"].shape == (64, 512)
    assert shard["layers.0.attention.wo.weight"].shape == (512, 128)
    assert shard["layers.0.feed_forward.w2.weight"].shape == (512, 384)
    assert shard["layers.0.ffn_norm.weight"].shape == (512,)
