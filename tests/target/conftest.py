"""Fixtures: Meta's and Mistral's real tokenizer files."""

import importlib.util
from pathlib import Path

import pytest

from distconv.sidecars.tokenizer import Vocabulary, read_vocabulary
from distconv.storage.local import LocalStorage


def packaged_file(package: str, name: str) -> Path:
    """Find a file that an installed package carries, without importing the package."""
    found = importlib.util.find_spec(package)
    if found is None or found.origin is None:
        pytest.fail(f"{package} is not installed; it carries {name}")
    return Path(found.origin).parent / name


@pytest.fixture(scope="session")
def llama_3_file() -> Path:
    """Give the tokenizer of Llama 3, a tiktoken file."""
    return packaged_file("llama_models", "llama3/tokenizer.model")


@pytest.fixture(scope="session")
def pieces_file() -> Path:
    """Give a published sentencepiece model made as Llama 2's is."""
    return packaged_file("mistral_common", "data/tokenizer.model.v1")


@pytest.fixture(scope="session")
def llama_3_vocabulary(llama_3_file: Path) -> Vocabulary:
    """Give Llama 3's vocabulary."""
    return read_vocabulary(LocalStorage(), str(llama_3_file))


@pytest.fixture(scope="session")
def pieces_vocabulary(pieces_file: Path) -> Vocabulary:
    """Give a sentencepiece vocabulary."""
    return read_vocabulary(LocalStorage(), str(pieces_file))
