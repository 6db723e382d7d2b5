"""``verify --generate --image``: what a model says of an image is what its logits say, with the layers that Meta's code takes."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageFile
from transformers import AutoImageProcessor, AutoModelForImageTextToText, AutoTokenizer

import distconv
from distconv.cli.screen import defuse
from distconv.errors import InputError, UsageError
from distconv.verbs.image import open_image
from tests.checkpoints import Spec
from tests.image_checkpoints import Llama4Spec, VisionSpec, write_image_checkpoint

TEXT, COUNT = "One day", 6
META, PUBLISHED = [2, 6], [3, 7]
"""Layers of the small encoder whose outputs are the inputs that Meta's code takes, and what the config says."""


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give a file with an image of two tiles."""
    path = tmp_path_factory.mktemp("image") / "noise.png"
    Image.fromarray(np.random.default_rng(1).integers(0, 256, (50, 100, 3), dtype=np.uint8)).save(path)
    return path


def say(folder: Path, image: Path, *, instruct: bool, layers: list[int]) -> str:
    """Take the likeliest token again and again, with no cache, no processor of both and no generate()."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForImageTextToText.from_pretrained(folder, dtype="auto")
    model.model.vision_model.intermediate_layers_indices = layers
    seen = AutoImageProcessor.from_pretrained(folder)(Image.open(image), return_tensors="pt")
    seen.pop("num_tiles")
    text = "<|image|>" + tokenizer.bos_token + TEXT
    if instruct:
        content = [{"type": "image"}, {"type": "text", "text": TEXT}]
        text = tokenizer.apply_chat_template(
            [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
        )
    ids = tokenizer(text, add_special_tokens=not instruct)["input_ids"]
    begun, ends = len(ids), model.generation_config.eos_token_id
    with torch.no_grad():
        while len(ids) - begun < COUNT and ids[-1] not in (ends if isinstance(ends, list) else [ends]):
            visible = torch.zeros(1, len(ids), 1, 4, dtype=torch.long)
            visible[:, ids.index(model.config.image_token_index) :] = seen["aspect_ratio_mask"][:, None]
            logits = model(torch.tensor([ids]), cross_attention_mask=visible, **seen).logits
            ids.append(int(logits[0, -1].argmax()))
    return tokenizer.decode(ids[begun:], skip_special_tokens=True)


def convert(place: Path, tokenizer: Path, *, instruct: bool) -> Path:
    """Write and convert a model; gives the folder."""
    write_image_checkpoint(place / "meta", VisionSpec(seed=1), tokenizer)
    distconv.convert(place / "meta", place / "out", instruct=instruct, dtype="float32")
    return place / "out"


def test_it_says_of_an_image_what_the_logits_say(image: Path, tiktoken_file: Path, tmp_path: Path) -> None:
    folder = convert(tmp_path, tiktoken_file, instruct=True)
    said = distconv.generate(folder, TEXT, COUNT, image=image)
    assert said == say(folder, image, instruct=True, layers=META)
    assert said != say(folder, image, instruct=True, layers=PUBLISHED)


@pytest.mark.slow
def test_a_base_model_is_shown_the_image_before_the_text(
    image: Path, tiktoken_file: Path, tmp_path: Path
) -> None:
    folder = convert(tmp_path, tiktoken_file, instruct=False)
    said = distconv.generate(folder, TEXT, COUNT, image=image)
    assert said == say(folder, image, instruct=False, layers=META)
    command = ["verify", str(folder), "--image", str(image), "--generate", TEXT, "--quiet"]
    done = subprocess.run(
        [sys.executable, "-m", "distconv", *command], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert defuse(said) in done.stdout
    assert "vision_config.intermediate_layers_indices to [2, 6]" in done.stderr


def test_a_model_that_sees_nothing_and_one_that_needs_more_packages_are_refused_before_they_are_read(
    checkpoint: Callable[[Spec], Path], image: Path, tiktoken_file: Path, tmp_path: Path
) -> None:
    distconv.convert(checkpoint(Spec(shards=2)), tmp_path / "text")
    write_image_checkpoint(tmp_path / "meta", Llama4Spec(), tiktoken_file)
    distconv.convert(tmp_path / "meta", tmp_path / "llama-4")
    for name, words in (
        ("text", "a llama model, which sees no images; leave out --image"),
        ("llama-4", "images for llama4 are prepared by torchvision, which is not installed"),
    ):
        command = ["verify", str(tmp_path / name), "--image", str(image), "--generate", TEXT]
        done = subprocess.run(
            [sys.executable, "-m", "distconv", *command], capture_output=True, text=True, check=False
        )
        assert (done.returncode, done.stdout) == (2, "")
        assert words in done.stderr
        with pytest.raises(UsageError, match="leave out `image=`"):
            distconv.generate(tmp_path / name, TEXT, image=image)


def test_files_that_are_no_images_are_refused(
    image: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Meta's code, where another test has imported it, lets Pillow fill up what is cut off.
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", False)
    (tmp_path / "cut.png").write_bytes(image.read_bytes()[:300])
    (tmp_path / "text.png").write_text("no image")
    for path, words in (
        (tmp_path / "cut.png", "does not read: image file is truncated"),
        (tmp_path / "text.png", "expected an image: PNG, JPEG"),
        (tmp_path / "missing.png", "no such file"),
        (tmp_path, "a folder, pipe or device"),
    ):
        with pytest.raises(InputError, match=words):
            distconv.generate(tmp_path, TEXT, image=path)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 50 * 100 - 1)
    with pytest.raises(InputError, match="does not read: Image size"):
        distconv.generate(tmp_path, TEXT, image=image)


def test_programs_and_numbers_without_bounds_are_no_images(tmp_path: Path) -> None:
    program, numbers, grey = (tmp_path / name for name in ("a.png", "b.tiff", "c.png"))
    program.write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n")
    with pytest.raises(InputError, match="expected an image: PNG"):
        open_image(program)
    Image.new("F", (20, 10), 0.5).save(numbers)
    with pytest.raises(InputError, match="pixels of mode F, expected 8 or 16 bits"):
        open_image(numbers)
    Image.new("I;16", (20, 10), 40_000).save(grey)
    assert open_image(grey).getpixel((0, 0)) in {(155,) * 3, (156,) * 3}


def test_a_missing_pillow_is_told(image: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(
        UsageError,
        match=r"`image=`: Pillow is not installed: in a clone of distconv, `pip install .*'\.\[image\]'`; or leave it out",
    ):
        distconv.generate(tmp_path, TEXT, image=image)


def test_an_image_without_a_text_is_wrong_usage(image: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "distconv", "verify", str(tmp_path), "--image", str(image)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "--image is shown before the TEXT of --generate" in done.stderr
