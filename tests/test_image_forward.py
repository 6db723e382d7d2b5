"""What Transformers computes of a converted model that sees is what Meta's own code computes of its shards, text and image."""

import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch

import distconv
from tests.image_checkpoints import RATIOS, Llama4Spec, VisionSpec, write_image_checkpoint
from tests.meta_model import Images, MetaCode, meta_logits

ROOT = Path(__file__).parents[1]
Spec = VisionSpec | Llama4Spec
SPECS: dict[str, Spec] = {
    "vision": VisionSpec(),
    "scout": Llama4Spec(chunk=8),
    "maverick": Llama4Spec(step=2, qk_norm=False, scaled=False, chunk=8),
    "guard 4": Llama4Spec(experts=0, nope=None, chunk=None, scaled=False, qk_norm=False),
}
"""Scout and Maverick have more tokens than one chunk of attention."""
LENGTH = 20
Ask = tuple["Case", list[int] | None]
"""What is asked, and the inner layers to be taken in place of the config's."""

_CODE = """
import sys, torch
from transformers import AutoConfig, AutoModelForImageTextToText
answers = []
for asked in torch.load(sys.argv[1], weights_only=True):
    config = AutoConfig.from_pretrained(asked["folder"])
    if asked["indices"]:
        config.vision_config.intermediate_layers_indices = asked["indices"]
    model = AutoModelForImageTextToText.from_pretrained(
        asked["folder"], config=config, attn_implementation="eager"
    ).float().eval()
    with torch.inference_mode():
        answers.append(model(**asked["inputs"], use_cache=False).logits)
torch.save(answers, sys.argv[2])
"""


@dataclass(frozen=True, slots=True)
class Case:
    """A model in both layouts, and what it is asked; what Meta's code answers."""

    spec: Spec
    place: Path
    """Has the one shard in ``meta`` and what became of it in ``hf``."""
    tokens: torch.Tensor
    images: Images | None
    expected: torch.Tensor


def draw_images(spec: Spec) -> Images:
    """Draw an image for each sequence: all ratios that Llama 3.2 Vision knows, or single tiles for Llama 4."""
    generator = torch.Generator().manual_seed(1)
    pixels = 3, spec.side * 14, spec.side * 14
    if isinstance(spec, Llama4Spec):
        return Images(torch.randn(2, 1, *pixels, generator=generator), [(1, 1)] * 2, 320 + 92)
    tiles = torch.randn(len(RATIOS), 4, *pixels, generator=generator)
    for own, (rows, columns) in zip(tiles, RATIOS, strict=True):
        own[rows * columns :] = 0
    return Images(tiles, RATIOS, spec.vocab)


def draw_tokens(spec: Spec, images: Images | None) -> torch.Tensor:
    """Draw a text, the same for each image, which a token stands for first of all, or four for the patches of Llama 4."""
    tokens = torch.randint(0, 256, (1, LENGTH), generator=torch.Generator().manual_seed(2))
    if images is not None:
        tokens = tokens.repeat(len(images.tiles), 1)
        # Tokens before an image see nothing in Meta's code, and all of it in Transformers' Llama 3.2 Vision.
        tokens[:, : 1 if isinstance(spec, VisionSpec) else spec.side**2 // 4] = images.token
    return tokens


@pytest.fixture(scope="module")
def cases(
    tmp_path_factory: pytest.TempPathFactory, tiktoken_file: Path, meta_code: MetaCode
) -> dict[str, list[Case]]:
    """Convert each model, and ask Meta's code about a text, and about a text with images."""
    made: dict[str, list[Case]] = {}
    for name, spec in SPECS.items():
        place = tmp_path_factory.mktemp("forward")
        write_image_checkpoint(place / "meta", spec, tiktoken_file)
        distconv.convert(place / "meta", place / "hf")
        for images in (None, draw_images(spec)):
            tokens = draw_tokens(spec, images)
            logits = meta_logits(meta_code, place / "meta", tokens.tolist(), 1, images=images)
            made.setdefault(name, []).append(Case(spec, place, tokens, images, torch.from_numpy(logits)))
    return made


def list_inputs(case: Case) -> dict[str, torch.Tensor]:
    """Give what Transformers' forward takes."""
    if case.images is None:
        return {"input_ids": case.tokens}
    tiles = case.images.tiles
    if tiles.shape[1] == 1:
        return {"input_ids": case.tokens, "pixel_values": tiles.flatten(0, 1)}
    counts = torch.tensor([rows * columns for rows, columns in case.images.ratios])
    real = (torch.arange(tiles.shape[1]) < counts[:, None]).long()[:, None]
    return {
        "input_ids": case.tokens,
        "pixel_values": tiles[:, None],
        "aspect_ratio_ids": torch.tensor([[RATIOS.index(ratio) + 1] for ratio in case.images.ratios]),
        "aspect_ratio_mask": real,
        "cross_attention_mask": real[:, None].expand(-1, LENGTH, -1, -1).contiguous(),
    }


def ask(python: Path | str, asked: list[Ask], place: Path) -> list[torch.Tensor]:
    """Have Transformers compute logits in a process of its own."""
    requests = [
        {"folder": str(case.place / "hf"), "inputs": list_inputs(case), "indices": indices}
        for case, indices in asked
    ]
    torch.save(requests, place / "requests.pt")
    command = [str(python), "-c", _CODE, str(place / "requests.pt"), str(place / "answers.pt")]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    found: list[torch.Tensor] = torch.load(place / "answers.pt", weights_only=True)
    return found


def is_same(found: torch.Tensor, expected: torch.Tensor) -> bool:
    """Whether logits of float32 computations differ by rounding only."""
    assert found.shape == expected.shape
    return bool((found - expected).abs().max() < 1e-5 * expected.abs().max())


def list_all(cases: dict[str, list[Case]]) -> list[Ask]:
    """List what is asked of versions that take outputs of inner layers of Llama 3.2 Vision where Meta's code takes inputs."""
    return [
        (case, [2, 6] if isinstance(case.spec, VisionSpec) else None)
        for both in cases.values()
        for case in both
    ]


@pytest.mark.slow
def test_logits_are_those_of_metas_code(cases: dict[str, list[Case]], tmp_path: Path) -> None:
    asked = list_all(cases)
    *found, as_published = ask(sys.executable, [*asked, (cases["vision"][1], None)], tmp_path)
    for logits, (case, _indices) in zip(found, asked, strict=True):
        assert is_same(logits, case.expected), case.spec
    # README says so: where this fails, Transformers has been put right.
    assert not is_same(as_published, cases["vision"][1].expected)


@pytest.mark.slow
def test_what_meta_s_code_computes_depends_on_the_image(cases: dict[str, list[Case]]) -> None:
    for _text, case in cases.values():
        first, second, *_others = case.expected
        assert (first - second).abs().max() > 0.1


@pytest.mark.peer
@pytest.mark.slow
def test_logits_are_those_of_metas_code_in_an_older_transformers(
    cases: dict[str, list[Case]], tmp_path: Path, peer_python: Callable[[str], Path]
) -> None:
    asked = list_all(cases)
    found = ask(peer_python("transformers-4.57.6"), asked, tmp_path)
    for logits, (case, _indices) in zip(found, asked, strict=True):
        assert is_same(logits, case.expected), case.spec


@pytest.mark.peer
@pytest.mark.slow
def test_logits_are_those_of_metas_code_with_the_layers_of_the_config_before_transformers_took_others(
    cases: dict[str, list[Case]], tmp_path: Path, peer_python: Callable[[str], Path]
) -> None:
    asked: list[Ask] = [(case, None) for case in cases["vision"]]
    found = ask(peer_python("transformers-4.47.1"), asked, tmp_path)
    for logits, (case, _indices) in zip(found, asked, strict=True):
        assert is_same(logits, case.expected)


@pytest.mark.slow
@pytest.mark.parametrize("shards", [2, 4])
@pytest.mark.parametrize("name", SPECS)
def test_each_rank_of_metas_code_loads_its_shard_and_all_compute_the_same(
    cases: dict[str, list[Case]],
    meta_code: MetaCode,
    tiktoken_file: Path,
    tmp_path: Path,
    name: str,
    shards: int,
) -> None:
    _text, case = cases[name]
    write_image_checkpoint(tmp_path / "published", replace(case.spec, shards=shards), tiktoken_file)
    distconv.convert(case.place / "meta", tmp_path / "from one shard", to="meta", shards=shards)
    distconv.convert(case.place / "hf", tmp_path / "from Transformers", to="meta", shards=shards)
    for folder in sorted(tmp_path.iterdir()):
        found = meta_logits(meta_code, folder, case.tokens.tolist(), shards, images=case.images)
        assert is_same(torch.from_numpy(found), case.expected), folder.name
