"""A small model that was really trained tells the same story word for word, whichever way its weights went."""

import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer, LlamaForCausalLM

import distconv
from tests.meta_model import ROOT, MetaCode, meta_logits
from tests.test_meta_model import assert_same
from tests.test_to_meta import Tensors, load

SHARED = ROOT.parent / "shared"
DATA = SHARED / "data" / "stories260K"
WRITER = SHARED / "tools" / "stories.py"
BEGINNING = "Once upon a time"

pytestmark = pytest.mark.skipif(
    not (DATA.is_dir() and WRITER.exists()), reason="the trained model does not lie beside the checkout"
)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], Path]:
    """Give a function that has the model written as Meta would, once, in so many shards."""
    written: dict[int, Path] = {}

    def write(shards: int) -> Path:
        if shards not in written:
            folder = written[shards] = tmp_path_factory.mktemp("stories") / "model"
            files = [str(DATA / "stories260K.bin"), str(DATA / "tok512.bin")]
            subprocess.run([sys.executable, str(WRITER), *files, str(folder), str(shards)], check=True)
        return written[shards]

    return write


@pytest.fixture(scope="module")
def story() -> str:
    """Give how the story goes, as it was published with the model."""
    lines = (DATA / "README.md").read_text(encoding="utf-8").splitlines()
    return "\n".join(line.removeprefix("> ") for line in lines if line.startswith("> "))


def tell(folder: Path, story: str) -> str:
    """Let Transformers go on with the beginning, greedily, for as many tokens as a story has."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32)
    given = tokenizer(BEGINNING, return_tensors="pt")
    count = len(tokenizer(story)["input_ids"])
    told = model.generate(**given, max_new_tokens=count, do_sample=False)
    return str(tokenizer.decode(told[0], skip_special_tokens=True))


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Let torch wait for no second thread: matrices are too small, and on a busy machine that takes long."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def one_line(text: str) -> str:
    """Give text with each run of white space as one blank."""
    return re.sub(r"\s+", " ", text).strip()


@pytest.mark.first(1)
@pytest.mark.parametrize(("before", "after"), [(1, 4), (2, 2), (4, 1)])
def test_the_story_is_the_same_after_the_way_there_and_back(
    trained: Callable[[int], Path], story: str, tmp_path: Path, before: int, after: int
) -> None:
    source = trained(before)
    distconv.convert(source, tmp_path / "first")
    distconv.convert(tmp_path / "first", tmp_path / "meta", to="meta", shards=after, verify=True)
    distconv.convert(tmp_path / "meta", tmp_path / "second", verify=True)
    for name in ("model.safetensors", "config.json", "tokenizer.json"):
        assert (tmp_path / "second" / name).read_bytes() == (tmp_path / "first" / name).read_bytes()
    assert one_line(tell(tmp_path / "second", story)).startswith(one_line(story))


def test_shards_that_went_through_transformers_are_those_that_the_writer_makes(
    trained: Callable[[int], Path], tmp_path: Path
) -> None:
    distconv.convert(trained(4), tmp_path / "hf")
    for shards in (1, 2, 4):
        distconv.convert(tmp_path / "hf", tmp_path / f"meta-{shards}", to="meta", shards=shards)
        for found, expected in zip(load(tmp_path / f"meta-{shards}"), load(trained(shards)), strict=True):
            assert_equal(found, expected)


def assert_equal(found: Tensors, expected: Tensors) -> None:
    """Compare two shards."""
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


def test_meta_s_own_code_tells_it_too(
    trained: Callable[[int], Path], story: str, tmp_path: Path, meta_code: MetaCode
) -> None:
    distconv.convert(trained(1), tmp_path / "hf")
    distconv.convert(tmp_path / "hf", tmp_path / "meta", to="meta", shards=4)
    tokens = AutoTokenizer.from_pretrained(tmp_path / "hf")(story)["input_ids"]
    found = meta_logits(meta_code, tmp_path / "meta", [tokens], 4, columns=True)
    # The most likely token after each is the next one of the story.
    assert found[0, 4:-1].argmax(-1).tolist() == tokens[5:]
    model = LlamaForCausalLM.from_pretrained(tmp_path / "hf", dtype=torch.float32)
    with torch.inference_mode():
        assert_same(found, np.asarray(model(torch.tensor([tokens])).logits))
