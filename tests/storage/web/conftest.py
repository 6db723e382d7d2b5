"""A stand-in for the hub that this process asks, with a token of its own."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import huggingface_hub.constants
import pytest

from distconv.storage.web.client import get_client
from tests.checkpoints import Spec, write_checkpoint
from tests.hub_files import TOKEN, HubFiles, serving

SPEC = Spec("llama-2", dim=512, layers=5, heads=8, multiple_of=256, shards=2)


@pytest.fixture(scope="session")
def repository(tmp_path_factory: pytest.TempPathFactory, sentencepiece_file: Path) -> Path:
    """Give a folder as the hub has Meta's models, to be read only: shards and tokenizer in ``original/``."""
    folder = tmp_path_factory.mktemp("repository")
    write_checkpoint(folder / "original", SPEC, sentencepiece_file)
    (folder / "LICENSE.txt").write_text("Meta's licence of Llama")
    (folder / "README.md").write_text("A model's card")
    return folder


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Path], HubFiles]]:
    """Give a function that serves a folder as a repository, and has this process ask there."""
    with ExitStack() as running:

        def start(folder: Path) -> HubFiles:
            hub = running.enter_context(serving(HubFiles(folder)))
            monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", hub.endpoint)
            monkeypatch.setenv("HF_ENDPOINT", hub.endpoint)
            monkeypatch.setenv("HF_TOKEN", TOKEN)
            return hub

        yield start
        get_client().close()


@pytest.fixture
def hub(repository: Path, serve: Callable[[Path], HubFiles]) -> HubFiles:
    """Serve the repository."""
    return serve(repository)


@pytest.fixture
def sleeps(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Give how long was slept; nobody sleeps."""
    slept: list[float] = []
    monkeypatch.setattr("time.sleep", slept.append)
    return slept
