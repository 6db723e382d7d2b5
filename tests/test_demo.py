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
SMALL_MODELS = DEMO.with_name("small_models.py")
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
    # What is called next cannot be typed: it is of a folder that is gone.
    last = done.stdout.splitlines()[-1]
    assert last.endswith(" is removed again: `next:` above is for models of your own.")
    assert not Path(last.split(" is ")[0]).exists()
    assert "\nllama-2-hf: Llama 2, " in done.stdout


@pytest.mark.slow
def test_a_folder_without_the_trained_model_is_refused(tmp_path: Path) -> None:
    (tmp_path / "tok512.bin").touch()
    done = run_demo(tmp_path)
    assert done.returncode == 1
    assert done.stderr == f"{tmp_path}: holds no stories260K.bin\n"


@pytest.mark.slow
def test_a_checkpoint_to_type_the_readme_with_is_written_under_any_name_once(tmp_path: Path) -> None:
    made = tmp_path / "Llama-2-7b"
    done = run_demo(made, program=SMALL_MODELS)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"{made}: a small random Llama 2; next: distconv inspect {made}\n"
    report = distconv.convert(tmp_path / "Llama-2-7b", tmp_path / "llama-2-7b-hf")
    assert (report.family, report.chunks) == ("Llama 2", 1)
    again = run_demo(made, program=SMALL_MODELS)
    assert (again.returncode, again.stderr) == (
        1,
        f"{tmp_path / 'Llama-2-7b'}: is there already; give a new folder\n",
    )


@pytest.mark.slow
@pytest.mark.parametrize("program", [DEMO, SMALL_MODELS])
def test_help_is_given_and_nothing_is_written(program: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    done = run_demo("--help", program=program)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"usage: {program.name} ")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("program", [DEMO, SMALL_MODELS])
def test_what_is_not_installed_is_told_in_one_line(program: Path, tmp_path: Path) -> None:
    # Without site there is the standard library alone.
    command = [sys.executable, "-S", program, tmp_path / "model"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=HANG_SECONDS)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("no numpy here; install distconv as README.md says under Start")
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "model").exists()


@pytest.mark.slow
def test_a_larger_model_is_converted_in_several_chunks_and_is_whole(tmp_path: Path) -> None:
    made = tmp_path / "Llama-2-70b"
    done = run_demo(made, "--gigabytes", "1", program=SMALL_MODELS)
    assert done.stdout == f"{made}: a random Llama 2 of 1 GB in 8 shards; next: distconv inspect {made}\n"
    assert 1e9 <= sum(path.stat().st_size for path in made.glob("*.pth")) < 1.02e9
    assert distconv.check(made).ok
    assert distconv.convert(made, tmp_path / "hf").chunks > 2
    assert distconv.verify(tmp_path / "hf", against=made).ok


@pytest.mark.slow
def test_a_size_below_zero_is_refused(tmp_path: Path) -> None:
    done = run_demo(tmp_path / "model", "--gigabytes", "-1", program=SMALL_MODELS)
    assert done.returncode == 2
    assert done.stderr.endswith("error: --gigabytes -1: expected 1 or more\n")
    assert not (tmp_path / "model").exists()


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
    # Nothing more is saved than that.
    first = shard["output.weight"]
    assert first.untyped_storage().nbytes() == 2 * first.numel()
    assert len({tuple(tensor.flatten()[:8].tolist()) for tensor in shard.values() if tensor.dim() > 1}) == 30
