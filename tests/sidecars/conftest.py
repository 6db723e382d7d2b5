"""Fixtures: Meta's own code for the size of the feed-forward layers, and real tokenizer files."""

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from distconv.sidecars.tokenizer import Vocabulary, read_vocabulary
from distconv.storage.local import LocalStorage
from tests.sidecars.written_tokenizers import write_tokenizer


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
def llama_4_file() -> Path:
    """Give the tokenizer of Llama 4, a tiktoken file."""
    return packaged_file("llama_models", "llama4/tokenizer.model")


@pytest.fixture(scope="session")
def pieces_file() -> Path:
    """Give a published sentencepiece model made as Llama 2's is."""
    return packaged_file("mistral_common", "data/tokenizer.model.v1")


@pytest.fixture(scope="session")
def llama_3_vocabulary(llama_3_file: Path) -> Vocabulary:
    """Give Llama 3's vocabulary."""
    return read_vocabulary(LocalStorage(), str(llama_3_file))


@pytest.fixture(scope="session")
def llama_4_vocabulary(llama_4_file: Path) -> Vocabulary:
    """Give Llama 4's vocabulary."""
    return read_vocabulary(LocalStorage(), str(llama_4_file))


@pytest.fixture(scope="session")
def pieces_vocabulary(pieces_file: Path) -> Vocabulary:
    """Give a sentencepiece vocabulary."""
    return read_vocabulary(LocalStorage(), str(pieces_file))


@pytest.fixture(scope="session")
def llama_3_folder(llama_3_vocabulary: Vocabulary, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give what is written of Llama 3.1's tokenizer, an instruct model's; to be read only, as those below."""
    folder = tmp_path_factory.mktemp("llama_3")
    return write_tokenizer(folder, llama_3_vocabulary, chat="llama-3.1", instruct=True)


@pytest.fixture(scope="session")
def vision_folder(llama_3_vocabulary: Vocabulary, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give what is written of Llama 3.2 Vision's tokenizer."""
    name = "llama-3.2-vision"
    folder = tmp_path_factory.mktemp("vision")
    return write_tokenizer(folder, llama_3_vocabulary, name, chat=name, instruct=True, context=131072)


@pytest.fixture(scope="session")
def llama_4_folder(llama_4_vocabulary: Vocabulary, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give what is written of Llama 4's tokenizer."""
    name = "llama-4"
    folder = tmp_path_factory.mktemp("llama_4")
    return write_tokenizer(folder, llama_4_vocabulary, name, chat=name, instruct=True, context=131072)


class Linear:
    """Stands for fairscale's parallel layers, of which only the sizes count."""

    def __init__(self, inner: int, outer: int, **_options: object) -> None:
        self.sizes = (inner, outer)


@pytest.fixture(scope="session")
def meta_ffn_dim() -> Callable[[int, int, float | None], int]:
    """Give a function from dim, multiple_of and ffn_dim_multiplier to the rows of w1 that Meta's model makes."""
    layers, parallel = "fairscale.nn.model_parallel.layers", "fairscale.nn.model_parallel"
    names = ("fairscale", "fairscale.nn", parallel, f"{parallel}.initialize", layers)
    model = "llama_models.llama3.model"
    with pytest.MonkeyPatch.context() as patch:
        # Others may have imported it with fairscale itself, and will.
        patch.setitem(sys.modules, model, ModuleType(model))
        del sys.modules[model]
        for name in names:
            patch.setitem(sys.modules, name, ModuleType(name))
        vars(sys.modules[parallel])["initialize"] = sys.modules[f"{parallel}.initialize"]
        for name in ("ColumnParallelLinear", "RowParallelLinear", "VocabParallelEmbedding"):
            vars(sys.modules[layers])[name] = Linear
        from llama_models.llama3.model import FeedForward

    def compute(dim: int, multiple_of: int, multiplier: float | None) -> int:
        layer = FeedForward.__new__(FeedForward)
        with pytest.MonkeyPatch.context() as patch:
            # torch's module takes no part in it, and takes only modules for attributes before it is set up.
            patch.setattr(FeedForward, "__setattr__", object.__setattr__)
            patch.setattr("torch.nn.Module.__init__", lambda _self: None)
            FeedForward.__init__(layer, dim, 4 * dim, multiple_of, multiplier)
        return layer.w1.sizes[1]

    return compute
