"""The recipes do what they say: each command is typed as it stands, and what is printed is what they show.

Models have the names of real ones and the form of their families, and are small.
"""

import contextlib
import io
import itertools
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

import distconv
from distconv.cli import main
from distconv.formats.safetensors import chunks
from distconv.output.folder import Folder
from tests import dcp_folders, downloads, hub, hub_files
from tests.checkpoints import Spec, write_checkpoint
from tests.clusters import head
from tests.documents import ROOT, Block, find_missing_line, read_sections
from tests.faults import interrupted_at, read_recorded
from tests.mistral_checkpoints import MistralSpec, write_mistral
from tests.object_store import start
from tests.patience import HANG_SECONDS

RECIPES = read_sections(ROOT / "examples" / "README.md")
LLAMA_2_7B = Spec("llama-2", dim=128, heads=8, layers=6)
LLAMA_2_70B = Spec("llama-2", dim=128, heads=16, kv_heads=8, layers=6, shards=8)
MISTRAL_7B = MistralSpec(files="safetensors", layers=4)
MIXTRAL = MistralSpec(experts=8, theta=None, stacked=True)
LLAMA_3_8B = Spec("llama-3", dim=128, heads=8, kv_heads=4, layers=6)


@dataclass(frozen=True, slots=True)
class Place:
    """Where a recipe is followed, and what is at hand there."""

    folder: Path
    sentencepiece: Path
    tiktoken: Path
    running: ExitStack
    patch: pytest.MonkeyPatch

    def write(self, name: str, spec: Spec) -> Path:
        """Write a checkpoint of Meta's."""
        return write_checkpoint(
            self.folder / name, spec, self.sentencepiece if spec.by_columns else self.tiktoken
        )


Prepare = Callable[[Place], Mapping[str, str]]


def serve_release(place: Place) -> Mapping[str, str]:
    served = place.folder.parent / "served"
    write_checkpoint(served / "Meta-Llama-3-8B-Instruct", LLAMA_3_8B, place.tiktoken)
    for name in ("LICENSE", "USE_POLICY.md"):
        (served / name).write_text("terms")
    return {"DISTCONV_URL": place.running.enter_context(downloads.serving(downloads.Files(served))).url}


def write_70b(place: Place) -> Mapping[str, str]:
    place.write("Llama-2-70b", LLAMA_2_70B)
    return {}


def start_cluster(place: Place) -> Mapping[str, str]:
    write_70b(place)
    up = place.running.enter_context(head(place.folder.parent, "--num-cpus=2"))
    return {**up.environment, "RAY_API_SERVER_ADDRESS": up.job_server, "SHARED": str(place.folder)}


def serve_hub_and_bucket(place: Place) -> Mapping[str, str]:
    served = place.folder.parent
    write_checkpoint(served / "repository", LLAMA_2_7B, place.sentencepiece)
    files = place.running.enter_context(hub_files.serving(hub_files.HubFiles(served / "repository")))
    store = place.running.enter_context(start("models"))
    write_checkpoint(served / "bucket", LLAMA_2_70B, place.sentencepiece)
    store.share(served / "bucket", "models", "Llama-2-70b/")
    return {
        "HF_ENDPOINT": files.endpoint,
        "HF_TOKEN": hub_files.TOKEN,
        "AWS_ENDPOINT_URL": store.url,
        "AWS_ACCESS_KEY_ID": store.access_key,
        "AWS_SECRET_ACCESS_KEY": store.secret_key,
        "AWS_REGION": "us-east-1",
    }


def write_8b(place: Place) -> Mapping[str, str]:
    source = place.write("Meta-Llama-3-8B-Instruct", LLAMA_3_8B)
    distconv.convert(source, place.folder / "llama-3-8b-hf", instruct=True)
    return {}


def write_8b_to_train(place: Place) -> Mapping[str, str]:
    shutil.copy(ROOT / "examples" / "train.py", place.folder)
    return write_8b(place)


def write_both(place: Place) -> Mapping[str, str]:
    return {**write_8b(place), **write_70b(place)}


def write_mistrals(place: Place) -> Mapping[str, str]:
    for name, spec in (("Mistral-7B-v0.3", MISTRAL_7B), ("Mixtral-8x7B-v0.1", MIXTRAL)):
        write_mistral(place.folder / name, spec, place.sentencepiece)
    return {}


def write_qwen(place: Place) -> Mapping[str, str]:
    # It is so small that distconv writes it in one chunk.
    dcp_folders.make_model("qwen3").save_pretrained(place.folder / "Qwen3-0.6B", max_shard_size="50kB")
    return {}


def serve_uploads(place: Place) -> Mapping[str, str]:
    distconv.convert(place.write("Llama-2-7b", LLAMA_2_7B), place.folder / "llama-2-7b-hf")
    served = place.running.enter_context(hub.serving(hub.Hub()))
    # The stand-in speaks the hub's LFS protocol; xet needs a server of its own.
    return {"HF_ENDPOINT": served.endpoint, "HF_TOKEN": hub.TOKEN, "HF_HUB_DISABLE_XET": "1"}


def interrupt(place: Place) -> Mapping[str, str]:
    """Leave a conversion that ended in the middle, some of its chunks recorded."""
    write_70b(place)
    source, output = place.folder / "Llama-2-70b", place.folder / "llama-2-70b-hf"
    with interrupted_at(Folder, "finish"):
        distconv.convert(source, output)
    (output / min(read_recorded(output))).unlink()
    return {}


PREPARED: dict[str, Prepare] = {
    "My first 8B": serve_release,
    "70B on one machine": write_70b,
    "70B on a cluster": start_cluster,
    "From the hub or a bucket": serve_hub_and_bucket,
    "What FSDP or torchtitan saved": write_8b_to_train,
    "Back to Meta's layout, in any number of shards": write_both,
    "Mistral and Mixtral": write_mistrals,
    "Somebody else's folder": write_qwen,
    "Sharing a model": serve_uploads,
    "It was killed, what now": interrupt,
}
SLOW = {"70B on a cluster", "From the hub or a bucket", "What FSDP or torchtitan saved"}


@pytest.fixture
def place(
    tmp_path: Path, sentencepiece_file: Path, tiktoken_file: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Place]:
    """Give an empty folder to work in."""
    folder = tmp_path / "work"
    folder.mkdir()
    monkeypatch.chdir(folder)
    # Small models come in several chunks too.
    monkeypatch.setattr(chunks, "SMALLEST_CHUNK_BYTES", 100_000)
    with ExitStack() as running:
        yield Place(folder, sentencepiece_file, tiktoken_file, running, monkeypatch)


def type_command(command: str) -> str:
    """Run a command as a person would; give all that it prints, and how it ended where that was not well."""
    words = shlex.split(command)
    # What speaks with other hosts reads its environment once.
    if words[0] == "distconv" and "push" not in words and "://" not in command:
        return _call(words[1:])
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", command],
        env={**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"},
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False, timeout=HANG_SECONDS,
    )  # fmt: skip
    return done.stdout + _tell_code(done.returncode)


def _call(arguments: list[str]) -> str:
    """Run distconv in this process, which has imported already what takes seconds."""
    handler = signal.getsignal(signal.SIGTERM)
    arguments = [os.path.expandvars(argument) for argument in arguments]
    printed, code = io.StringIO(), 0
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
        try:
            main(arguments)
        except SystemExit as ended:
            code = int(ended.code or 0)
        finally:
            signal.signal(signal.SIGTERM, handler)
    return printed.getvalue() + _tell_code(code)


def _tell_code(code: int) -> str:
    return f"exit code {code}\n" if code else ""


def follow(blocks: list[Block]) -> None:
    """Type commands, and compare what was printed with what is shown below them."""
    for block, after in itertools.zip_longest(blocks, blocks[1:]):
        if block.language == "sh" and block.is_run:
            printed = "".join(map(type_command, block.commands))
            shown = after.text if after is not None and after.language == "text" else ""
            missing = find_missing_line(shown, printed)
            assert missing is None, f"not as shown from {missing!r} on:\n{printed}"
            assert _find_codes(printed) == _find_codes(shown), printed


def _find_codes(text: str) -> list[str]:
    return re.findall(r"^exit code \d+$", text, re.MULTILINE)


@pytest.mark.first(3)
@pytest.mark.parametrize(
    "title", [pytest.param(title, marks=[pytest.mark.slow] if title in SLOW else []) for title in PREPARED]
)
def test_a_recipe_goes_as_it_is_written(title: str, place: Place) -> None:
    for name, value in PREPARED[title](place).items():
        place.patch.setenv(name, value)
    follow(RECIPES[title])


def test_every_recipe_is_followed() -> None:
    with_commands = {
        title
        for title, blocks in RECIPES.items()
        if any(block.language == "sh" and block.is_run for block in blocks)
    }
    assert with_commands == set(PREPARED)
