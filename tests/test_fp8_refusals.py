"""What is wrong with the scales of an FP8 checkpoint is told in one message, and nothing is made of it."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import distconv
from distconv.errors import InputError
from tests.checkpoints import Spec, write_checkpoint
from tests.fp8_checkpoints import Tensors, quantize_checkpoint
from tests.image_checkpoints import Llama4Spec, write_image_checkpoint
from tests.refusals import refuse

SPEC = Spec("llama-3.1", dim=64, layers=3, heads=8, kv_heads=4, shards=2, checklist=False)
EXPERTS = Llama4Spec(layers=6, step=2, qk_norm=False, scaled=False, shards=2)
KEY, TENSOR = "1_feed_forward.w2_1", "layers.1.feed_forward.w2.weight"
EXPERT_KEY = "layers.1.feed_forward.experts.w2"
Damage = Callable[[Path], object]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory, tiktoken_file: Path) -> dict[str, Path]:
    """Give a checkpoint of each family, to be read only."""
    folder = tmp_path_factory.mktemp("fp8")
    write_checkpoint(folder / "dense", SPEC, tiktoken_file)
    write_image_checkpoint(folder / "experts", EXPERTS, tiktoken_file)
    return {
        "dense": quantize_checkpoint(folder / "dense", SPEC.layers),
        "experts": quantize_checkpoint(folder / "experts", EXPERTS.layers, EXPERTS.experts),
    }


def scales(change: Callable[[Tensors], object], rank: int = 1) -> Damage:
    """Change what a file of scales holds."""

    def act(folder: Path) -> None:
        path = folder / f"fp8_scales_{rank}.pt"
        found = torch.load(path)
        change(found)
        torch.save(found, path)

    return act


def shard(change: Callable[[Tensors], object]) -> Damage:
    """Change what the second shard holds."""

    def act(folder: Path) -> None:
        path = folder / "consolidated.01.pth"
        found = torch.load(path, weights_only=False)
        change(found)
        torch.save(found, path)

    return act


def put(key: str, make: Callable[[torch.Tensor], torch.Tensor]) -> Damage:
    """Make another tensor of a scale."""
    return scales(lambda found: found.update({key: make(found[key])}))


def value(number: float, place: int = 3) -> Damage:
    """Let one of the scales be a number."""
    return scales(lambda found: found[KEY].view(-1)[place : place + 1].fill_(number))


def exchange(folder: Path) -> None:
    """Exchange the files of two shards."""
    first, second = folder / "fp8_scales_0.pt", folder / "fp8_scales_1.pt"
    content = first.read_bytes()
    first.write_bytes(second.read_bytes())
    second.write_bytes(content)


def leave_none(folder: Path) -> None:
    """Take all scales away."""
    for path in folder.glob("fp8_scales_*"):
        path.unlink()


def use_bf16(folder: Path) -> None:
    """Have the shards of a bf16 model."""
    for path in folder.glob("consolidated.*"):
        found = {name: tensor.bfloat16() for name, tensor in torch.load(path).items()}
        torch.save(found, path)


BEFORE: list[tuple[str, str, Damage, str]] = [
    ("dense", "no file", leave_none, r"layers\.1\.feed_forward\.w1\.weight and 2 more in consolidated\.00\.pth: stored as float8_e4m3fn, and there is no file of scales \(fp8_scales_0\.pt …\) beside the shards in .*; download the scales"),
    ("dense", "the last file missing", lambda folder: (folder / "fp8_scales_1.pt").unlink(), r"scales for 1 shards, and there are 2: fp8_scales_1\.pt missing; download"),
    ("dense", "the first file missing", lambda folder: (folder / "fp8_scales_0.pt").unlink(), r"fp8_scales_0\.pt missing beside fp8_scales_1\.pt; download the missing files"),
    ("dense", "a file too many", lambda folder: shutil.copy(folder / "fp8_scales_1.pt", folder / "fp8_scales_2.pt"), r"scales for 3 shards, and there are 2: .*fp8_scales_2\.pt is beyond"),
    ("dense", "another shard's file", exchange, r"fp8_scales_0\.pt: 1_feed_forward\.w1_1: a scale of shard 1 in the file of shard 0"),
    ("dense", "no scale for a tensor", scales(lambda found: found.pop(KEY)), rf"{TENSOR} in consolidated\.01\.pth: stored as float8_e4m3fn, and .*fp8_scales_1\.pt has no scale for it; download it again"),
    ("dense", "a scale for no tensor", scales(lambda found: found.update({"7_feed_forward.w1_1": torch.ones(88)})), r"fp8_scales_1\.pt: 7_feed_forward\.w1_1 is the scale of no tensor of consolidated\.01\.pth"),
    ("dense", "a scale by no name", scales(lambda found: found.update({"w1": torch.ones(88)})), r"fp8_scales_1\.pt: w1 is the scale of no tensor"),
    ("dense", "a scale for a bf16 tensor", scales(lambda found: found.update({"0_feed_forward.w2_1": found[KEY]})), r"0_feed_forward\.w2_1: layers\.0\.feed_forward\.w2\.weight in consolidated\.01\.pth is stored as bfloat16, expected float8_e4m3fn"),
    ("dense", "too few rows", put(KEY, lambda scale: scale[1:].clone()), rf"fp8_scales_1\.pt: {KEY}: shape \(63,\), expected \(64,\): one for each row of {TENSOR} in consolidated\.01\.pth"),
    ("dense", "one for all", put(KEY, lambda scale: scale[0].clone()), rf"{KEY}: shape \(\), expected \(64,\)"),
    ("dense", "another type", put(KEY, lambda scale: scale.bfloat16()), rf"fp8_scales_1\.pt: {KEY}: stored as bfloat16, expected float32"),
    ("dense", "not a checkpoint", lambda folder: (folder / "fp8_scales_1.pt").write_bytes(b"<html>403"), r"fp8_scales_1\.pt: it is an HTML"),
    ("dense", "cut off", lambda folder: (folder / "fp8_scales_1.pt").write_bytes((folder / "fp8_scales_1.pt").read_bytes()[:300]), r"fp8_scales_1\.pt: .*download it again"),
    ("dense", "a shard of bf16 beside one of float8", shard(lambda found: found.update({TENSOR: found[TENSOR].bfloat16()})), rf"{KEY}: {TENSOR} in consolidated\.01\.pth is stored as bfloat16"),
    ("dense", "shards of bf16", use_bf16, r"fp8_scales_0\.pt: the scales of a shard, and no tensor is stored as float8_e4m3fn; take the files of one model$"),
    ("dense", "int4 scales", lambda folder: (folder / "int4_scales_0.pt").write_bytes(b""), r"int4_scales_0\.pt: an int4-quantized checkpoint; convert the bf16 model instead"),
    ("experts", "no file", leave_none, r"layers\.\d\.feed_forward\.experts\.moe_w_.* and 5 more in consolidated\.00\.pth: stored as float8_e4m3fn, and there is no file of scales"),
    ("experts", "other experts", put(EXPERT_KEY, lambda scale: scale[:2].clone()), r"experts\.w2: shape \(2, 64\), expected \(4, 64\): one for each column of each expert of layers\.1\.feed_forward\.experts\.moe_w_out_eF_D"),
    ("experts", "other columns", put(EXPERT_KEY, lambda scale: scale[:, :32].clone()), r"experts\.w2: shape \(4, 32\), expected \(4, 64\)"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("family", "damage", "words"),
    [(case[0], *case[2:]) for case in BEFORE],
    ids=[f"{case[0]}: {case[1]}" for case in BEFORE],
)
def test_wrong_scales_are_told_from_headers_in_one_line_each(
    folders: dict[str, Path], tmp_path: Path, family: str, damage: Damage, words: str
) -> None:
    folder = shutil.copytree(folders[family], tmp_path / "meta")
    damage(folder)
    with pytest.raises(InputError, match=words) as raised:
        distconv.inspect(folder)
    # The other shard's may be told too.
    assert len(str(raised.value).splitlines()) <= 6
    assert str(refuse(folder, tmp_path / "out", dtype="bfloat16")) == str(raised.value)


@pytest.mark.parametrize(
    ("number", "said"),
    [(0.0, "0"), (-1.5, "-1.5"), (float("nan"), "nan"), (float("inf"), "inf"), (-0.0, "-0")],
)
def test_a_scale_that_no_weight_can_have_is_told_when_it_is_met(
    folders: dict[str, Path], tmp_path: Path, number: float, said: str
) -> None:
    folder = shutil.copytree(folders["dense"], tmp_path / "meta")
    value(number)(folder)
    with pytest.raises(InputError) as raised:
        distconv.convert(folder, tmp_path / "out", dtype="bfloat16")
    assert str(raised.value) == (
        f"{folder}/fp8_scales_1.pt: the scale of {TENSOR} is {said} for some of its rows, expected positive numbers; "
        "the file is damaged: download it again"
    )
    assert not (tmp_path / "out/config.json").exists()
