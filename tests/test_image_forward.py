"""What Transformers computes of a converted Llama 4 is what Meta's own code computes of its shards, text and image."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig

import distconv
from tests.image_checkpoints import Llama4Spec, write_image_checkpoint

ROOT = Path(__file__).parents[1]
SPECS = (
    Llama4Spec(chunk=8),
    Llama4Spec(step=2, qk_norm=False, scaled=False, chunk=8),
    Llama4Spec(experts=0, nope=None, chunk=None, scaled=False, qk_norm=False),
)
"""Scout, Maverick and Guard 4, the first two with more tokens than one chunk of attention has."""


_CODE = """
import sys, torch
from transformers import AutoModelForImageTextToText
answers = []
for asked in torch.load(sys.argv[1], weights_only=True):
    model = AutoModelForImageTextToText.from_pretrained(asked["hf"], attn_implementation="eager").float().eval()
    tiles = {} if asked["tiles"] is None else {"pixel_values": torch.cat(list(asked["tiles"]))}
    with torch.inference_mode():
        answers.append(model(input_ids=asked["tokens"], use_cache=False, **tiles).logits)
torch.save(answers, sys.argv[2])
"""


def ask(command: list[str], requests: Path, answers: Path) -> list[torch.Tensor]:
    """Have a process of its own compute logits."""
    ended = subprocess.run(
        [*command, str(requests), str(answers)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0, ended.stderr
    found: list[torch.Tensor] = torch.load(answers, weights_only=True)
    return found


def make_request(place: Path, spec: Llama4Spec, *, sees: bool) -> dict[str, object]:
    """Draw tokens, and for each sequence a tile where it sees: four of its tokens are the tile's."""
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(0, 256, (2, 20), generator=generator)
    patch, tiles = AutoConfig.from_pretrained(place / "hf").image_token_index, None
    if sees:
        tokens[:, 1 : 1 + spec.side**2 // 4] = patch
        tiles = torch.randn(2, 1, 3, spec.side * 14, spec.side * 14, generator=generator)
    return {
        "meta": str(place / "meta"), "hf": str(place / "hf"), "tokens": tokens, "tiles": tiles, "patch": patch
    }  # fmt: skip


@pytest.fixture(scope="module")
def requests(tmp_path_factory: pytest.TempPathFactory, tiktoken_file: Path) -> Path:
    """Convert each model, and give the file of what is asked of both sides."""
    place, found = tmp_path_factory.mktemp("forward"), []
    for number, spec in enumerate(SPECS):
        here = place / str(number)
        write_image_checkpoint(here / "meta", spec, tiktoken_file)
        distconv.convert(here / "meta", here / "hf")
        found += [make_request(here, spec, sees=sees) for sees in (False, True)]
    torch.save(found, place / "requests.pt")
    return place / "requests.pt"


@pytest.fixture(scope="module")
def expected(requests: Path) -> list[torch.Tensor]:
    """Ask Meta's code."""
    return ask([sys.executable, "-m", "tests.meta_image_logits"], requests, requests.with_name("meta.pt"))


def compare(found: list[torch.Tensor], expected: list[torch.Tensor]) -> None:
    """Compare logits with those of Meta's code; with an image they are others."""
    for logits, wanted in zip(found, expected, strict=True):
        assert wanted.abs().max() > 1
        assert (logits - wanted).abs().max() < 1e-4 * wanted.abs().max()
    for text, image in zip(expected[::2], expected[1::2], strict=True):
        assert (text - image).abs().max() > 0.1


@pytest.mark.slow
def test_logits_are_those_of_metas_code(requests: Path, expected: list[torch.Tensor]) -> None:
    compare(ask([sys.executable, "-c", _CODE], requests, requests.with_name("found.pt")), expected)


@pytest.mark.peer
def test_logits_are_those_of_metas_code_in_an_older_transformers(
    requests: Path, expected: list[torch.Tensor], peer_python: Callable[[str], Path]
) -> None:
    python = str(peer_python("transformers-4.57.6"))
    compare(ask([python, "-c", _CODE], requests, requests.with_name("older.pt")), expected)
