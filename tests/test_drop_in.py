"""The example that takes the flags of Transformers' old script does what the flags say."""

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import distconv
from tests.called import call
from tests.checkpoints import Spec
from tests.faults import digest_folder

Write = Callable[[Spec], Path]
SCRIPT = Path(__file__).parents[1] / "examples" / "convert_llama_weights_to_hf.py"
SPEC = Spec("llama-2", heads=8, kv_heads=4, shards=2)


def run(*arguments: object) -> "subprocess.CompletedProcess[str]":
    """Run the example."""
    return call(arguments, SCRIPT)


def expected(source: Path, output: Path, *, instruct: bool = False) -> dict[str, str]:
    """Give what distconv itself makes."""
    distconv.convert(source, output, instruct=instruct)
    return digest_folder(output)


def test_nothing_but_folders_need_be_given(checkpoint: Write, tmp_path: Path) -> None:
    source, output = checkpoint(SPEC), tmp_path / "out"
    command = [sys.executable, SCRIPT, "--input_dir", source, "--output_dir", output]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert digest_folder(output) == expected(source, tmp_path / "expected")


@pytest.mark.parametrize(
    ("folder", "size", "instruct"),
    [
        ("7B", "7B", False),
        ("7Bf", "7Bf", True),
        ("llama-2-7b", "7B", False),
        ("llama-2-7b-chat", "7Bf", True),
    ],
)
def test_a_model_one_level_down_is_found_by_its_size(
    checkpoint: Write, tmp_path: Path, folder: str, size: str, instruct: bool
) -> None:
    source, output = checkpoint(SPEC), tmp_path / "out"
    shutil.copytree(source, tmp_path / "in" / folder)
    shutil.move(tmp_path / "in" / folder / "tokenizer.model", tmp_path / "in" / "tokenizer.model")
    (tmp_path / "in" / folder / "checklist.chk").unlink()
    done = run(
        "--input_dir", tmp_path / "in", "--output_dir", output, "--model_size", size,
        "--llama_version", "2", "--num_shards", "2", "--safe_serialization",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = digest_folder(output)
    wanted = expected(tmp_path / "in" / folder, tmp_path / "expected", instruct=instruct)
    assert found == wanted


def test_the_tokenizer_alone(checkpoint: Write, tmp_path: Path) -> None:
    output = tmp_path / "out"
    done = run("--input_dir", checkpoint(SPEC), "--output_dir", output, "--model_size", "tokenizer_only")
    assert done.returncode == 0, done.stderr
    assert (output / "tokenizer.json").exists()
    assert not list(output.glob("*.safetensors"))


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--safe_serialization", "False"), ".bin files run code when they are loaded"),
        (("--special_tokens", "<|x|>"), "each family's own are added"),
        (("--num_shards", "8"), "--num_shards 8: "),
        (("--llama_version", "3"), "sentencepiece"),
        (("--model_size", "9B"), "invalid choice"),
    ],
)
def test_what_cannot_be_done_is_refused_with_the_reason(
    checkpoint: Write, tmp_path: Path, flags: tuple[str, ...], words: str
) -> None:
    done = run("--input_dir", checkpoint(SPEC), "--output_dir", tmp_path / "out", *flags)
    assert done.returncode == 2, done.stderr
    assert words in done.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("family", "version", "words"),
    [
        ("code-llama", "2", "params.json has rope_theta 1e+06"),
        ("llama-3.1", "3", "params.json has use_scaled_rope"),
        ("llama-3", "3.1", "params.json has no use_scaled_rope"),
        ("llama-2", "3.2", "has a tiktoken tokenizer"),
    ],
)
def test_a_version_that_the_files_contradict_is_refused(
    checkpoint: Write, tmp_path: Path, family: str, version: str, words: str
) -> None:
    source = checkpoint(Spec(family))
    done = run("--input_dir", source, "--output_dir", tmp_path / "out", "--llama_version", version)
    assert done.returncode == 2, done.stderr
    assert words in " ".join(done.stderr.split())
    assert "leave --family out" in " ".join(done.stderr.split())
    assert not (tmp_path / "out").exists()


def test_of_several_models_without_a_size_none_is_taken(checkpoint: Write, tmp_path: Path) -> None:
    for size in ("7B", "13B"):
        shutil.copytree(checkpoint(SPEC), tmp_path / "in" / size)
    done = run("--input_dir", tmp_path / "in", "--output_dir", tmp_path / "out")
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert not (tmp_path / "out").exists()
