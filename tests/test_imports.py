"""What each command imports of what distconv depends on: nothing that it does not use."""

import re
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.checkpoints import Spec

SPEC = Spec("llama-2", heads=8, kv_heads=4, shards=2)
HEADERS = {"click", "xxhash", "zlib_ng"}
MOVING = {*HEADERS, "numpy"}
TRANSFORMERS = {
    *MOVING, "accelerate", "huggingface_hub", "rich", "safetensors", "tokenizers", "torch", "transformers"
}  # fmt: skip

# META is a checkpoint of two shards, MODEL what was converted from it.
COMMANDS = {
    "--version": {"click"},
    "inspect META": HEADERS,
    "convert META new": {*MOVING, "tokenizers"},
    "convert MODEL new --to meta": MOVING,
    "completion bash": {"click"},
    "check META": HEADERS,
    "plan META": {*HEADERS, "tokenizers"},
    "convert META new --to meta --shards 4": MOVING,
    "tokenizer META new": {"click", "tokenizers", "xxhash"},
    "manifest META new": MOVING,
    "inspect MODEL": HEADERS,
    "plan MODEL --to meta": HEADERS,
    # Values are cast by torch, whose rounding is the one that all others are compared with.
    "convert META new --dtype float16": {*MOVING, "tokenizers", "torch"},
    # Whether a model takes every tensor is asked of Transformers' own model.
    "verify MODEL --against META": TRANSFORMERS,
}


def read_dependencies() -> list[str]:
    """Give what distconv and its extras depend on, as it is imported."""
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    wanted = [
        *project["dependencies"],
        *(line for name in ("report", "sign", "s3", "gs") for line in extras[name]),
    ]
    return [re.match(r"[\w-]+", line)[0].replace("-", "_") for line in wanted]


@pytest.fixture(scope="module")
def model(checkpoint: Callable[[Spec], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give a converted model."""
    folder = tmp_path_factory.mktemp("model") / "out"
    command = [sys.executable, "-m", "distconv", "convert", checkpoint(SPEC), folder]
    subprocess.run(command, check=True, capture_output=True)
    return folder


@pytest.mark.first(4)
@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_imports_nothing_that_it_does_not_use(
    command: str, checkpoint: Callable[[Spec], Path], model: Path, tmp_path: Path
) -> None:
    places = {"META": checkpoint(SPEC), "MODEL": model, "new": tmp_path / "new"}
    arguments = [str(places.get(word, word)) for word in command.split()]
    code = (
        "import sys; from distconv.cli import main; main(sys.argv[1:]); "
        f"sys.stderr.write(' '.join(name for name in {read_dependencies()} if name in sys.modules))"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True
    )
    imported = set(ended.stderr.splitlines()[-1].split())
    assert imported <= COMMANDS[command]
    assert "click" in imported
