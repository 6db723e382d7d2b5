"""Processor files say of images what Meta's code does with them, and Transformers reads them in all versions."""

import ast
import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoProcessor

from distconv.sidecars.config import to_json
from distconv.sidecars.processors import make_llama_4_processor, make_mllama_processor
from distconv.sidecars.special_tokens import SpecialTokens
from distconv.sidecars.tokenizer import Vocabulary
from tests.sidecars.conftest import packaged_file
from tests.sidecars.image_cases import CONFIGS, LLAMA_4, VISION_SIZES
from tests.sidecars.written_tokenizers import write_tokenizer

PEER_SCRIPT = Path(__file__).parent / "peer_processor.py"
SIZES = [(300, 800), (1200, 900), (560, 560), (2000, 300)]
"""Widths and heights of images."""


def make_image(width: int, height: int) -> Image.Image:
    """Make a smooth image, of which resizing says much."""
    rows, columns = np.mgrid[0:height, 0:width]
    waves = [np.sin(rows / 17 + channel) * np.cos(columns / (11 + channel)) for channel in range(3)]
    return Image.fromarray(((np.stack(waves, -1) + 1) * 127).astype(np.uint8))


@pytest.fixture(scope="module")
def vision_folder(tmp_path_factory: pytest.TempPathFactory, llama_3_vocabulary: Vocabulary) -> Path:
    folder = tmp_path_factory.mktemp("vision")
    files = make_mllama_processor(VISION_SIZES["11b-instruct"])
    for name, content in (*files.items(), ("config.json", to_json(CONFIGS["11b-instruct"]))):
        (folder / name).write_bytes(content)
    name: SpecialTokens = "llama-3.2-vision"
    return write_tokenizer(folder, llama_3_vocabulary, name, chat=name, instruct=True, context=131072)


class Torchvision(ModuleType):
    """The few functions of torchvision's that Meta's transform uses, over PIL."""

    class InterpolationMode:
        """Names of filters."""

        BILINEAR = Image.Resampling.BILINEAR

    class ToTensor:
        """Give an image's values between 0 and 1, channels first."""

        def __call__(self, image: Image.Image) -> torch.Tensor:
            return torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255

    class Normalize:
        """Take the mean off, and divide by the standard deviation."""

        def __init__(self, mean: tuple[float, ...], std: tuple[float, ...], **_options: object) -> None:
            self.mean, self.std = torch.tensor(mean)[:, None, None], torch.tensor(std)[:, None, None]

        def __call__(self, image: torch.Tensor) -> torch.Tensor:
            return (image - self.mean) / self.std

    @staticmethod
    def resize(image: Image.Image, size: tuple[int, int], interpolation: int) -> Image.Image:
        """Resize to rows and columns."""
        return image.resize((size[1], size[0]), interpolation)

    @staticmethod
    def pad(image: Image.Image, padding: tuple[int, int, int, int], fill: int) -> Image.Image:
        """Add columns and rows around an image."""
        left, top, right, bottom = padding
        made = Image.new("RGB", (image.width + left + right, image.height + top + bottom), (fill,) * 3)
        made.paste(image, (left, top))
        return made


@pytest.fixture
def torchvision(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let Meta's transforms find what they use."""
    for name in ("torchvision", "torchvision.transforms", "torchvision.transforms.functional"):
        monkeypatch.setitem(sys.modules, name, Torchvision(name))
    vars(sys.modules["torchvision.transforms"])["functional"] = Torchvision
    # Others import them with what stands for it there.
    for name in ("llama_models.llama3.multimodal.image_transform", "llama_models.llama4.preprocess"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
        del sys.modules[name]


@pytest.mark.first(2)
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.usefixtures("torchvision")
def test_pixels_of_vision_are_those_of_metas_transform(vision_folder, size):
    from llama_models.llama3.multimodal.image_transform import VariableSizeImageTransform

    image = make_image(*size)
    expected, ratio = VariableSizeImageTransform(560)(image, max_num_chunks=4, normalize_img=True)
    made = AutoImageProcessor.from_pretrained(vision_folder)(image, return_tensors="pt")
    tiles = made["pixel_values"][0, 0, : len(expected)]
    assert tiles.shape == expected.shape
    # Meta's takes its mean off the padding, too; both are compared where there is an image.
    assert (tiles - expected).abs().max() < 0.02
    ratios = CONFIGS["11b-instruct"]["vision_config"]["supported_aspect_ratios"]
    assert ratios[int(made["aspect_ratio_ids"][0, 0]) - 1] == list(ratio)


def test_a_processor_makes_pixels_and_ids_of_a_conversation(vision_folder):
    processor = AutoProcessor.from_pretrained(vision_folder)
    assert type(processor).__name__ == "MllamaProcessor"
    messages = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What?"}]}]
    text = processor.apply_chat_template(messages, add_generation_prompt=True)
    made = processor(make_image(300, 200), text, add_special_tokens=False, return_tensors="pt")
    assert made["input_ids"][0].tolist().count(128256) == 1
    assert made["input_ids"][0].tolist().count(128000) == 1
    assert made["pixel_values"].shape == (1, 1, 4, 3, 560, 560)


def test_a_base_models_tiles_are_smaller():
    settings = json.loads(make_mllama_processor(VISION_SIZES["11b"])["preprocessor_config.json"])
    assert settings["size"] == {"height": 448, "width": 448}
    assert settings["max_image_tiles"] == 4


def read_defaults() -> dict[str, object]:
    """Read the values of Transformers' class, which cannot be imported without torchvision."""
    source = packaged_file("transformers", "models/llama4/image_processing_llama4.py").read_text()
    body = next(
        node.body
        for node in ast.parse(source).body
        if isinstance(node, ast.ClassDef) and node.name == "Llama4ImageProcessor"
    )
    values = [(node.targets[0].id, node.value) for node in body if isinstance(node, ast.Assign)]
    return {
        name: ast.literal_eval(value)
        for name, value in values
        if isinstance(value, ast.Constant | ast.List | ast.Dict)
    }


@pytest.mark.usefixtures("torchvision")
def test_llama_4s_values_are_those_of_metas_transforms_and_of_transformers():
    """Neither works without torchvision, which has no build beside the CPU's torch: their values are compared."""
    from llama_models.llama4.preprocess import VariableSizeImageTransform

    case = LLAMA_4["scout"]
    files = make_llama_4_processor(case.sizes, case.params)
    settings = json.loads(files["preprocessor_config.json"])
    defaults = read_defaults()
    assert len(defaults) == 9
    assert {key: settings[key] for key in defaults} == defaults
    meta = VariableSizeImageTransform(settings["size"]["height"])
    assert (list(meta._mean), list(meta._std)) == (settings["image_mean"], settings["image_std"])
    assert settings["resample"] == meta.resample
    assert settings["rescale_factor"] == 1 / 255
    assert settings["image_processor_type"] == "Llama4ImageProcessorFast"
    prompts = json.loads(files["processor_config.json"])
    assert prompts == {
        "processor_class": "Llama4Processor", "patch_size": 14, "pixel_shuffle_ratio": 0.5, "image_token": "<|image|>",
        "fake_image_token": "<|image|>",
    }  # fmt: skip


def test_transformers_finds_llama_4s_processor(tmp_path):
    from transformers.models.auto.image_processing_auto import get_image_processor_config
    from transformers.models.auto.processing_auto import PROCESSOR_MAPPING_NAMES

    case = LLAMA_4["scout"]
    for name, content in make_llama_4_processor(case.sizes, case.params).items():
        (tmp_path / name).write_bytes(content)
    assert get_image_processor_config(tmp_path)["size"] == {"height": 336, "width": 336}
    assert PROCESSOR_MAPPING_NAMES["llama4"] == "Llama4Processor"


@pytest.mark.peer
@pytest.mark.parametrize("version", ["4.57.6"])
def test_other_versions_make_the_same_pixels_and_ids(
    version: str, run_peer: Callable[..., str], vision_folder: Path, tmp_path: Path
) -> None:
    image = tmp_path / "image.png"
    make_image(300, 200).save(image)
    found = json.loads(run_peer(f"transformers-{version}", PEER_SCRIPT, vision_folder, image))
    processor = AutoProcessor.from_pretrained(vision_folder)
    text = processor.apply_chat_template(found["messages"], add_generation_prompt=True)
    made = processor(Image.open(image), text, add_special_tokens=False, return_tensors="pt")
    assert found["version"] == version
    assert found["text"] == text
    assert found["ids"] == made["input_ids"].tolist()
    sums = made["pixel_values"].double().sum((-1, -2)).flatten()
    torch.testing.assert_close(torch.tensor(found["sums"], dtype=torch.double), sums, rtol=1e-4, atol=1e-2)
