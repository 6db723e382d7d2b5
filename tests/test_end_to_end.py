"""The whole way through the verbs: convert, compare with the oracle, verify, load."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

import distconv
from distconv.errors import InputError, OutputError
from distconv.families.llama import FAMILIES
from tests import reference
from tests.checkpoints import Spec
from tests.reference import read_tensors

Write = Callable[[Spec], Path]

SHARDS_HEADS_AND_TYPES = [
    (1, 4, 4, torch.float16),
    (1, 4, 1, torch.bfloat16),
    (2, 8, 2, torch.bfloat16),
    (4, 8, 4, torch.float32),
    (8, 16, 8, torch.bfloat16),
    (16, 16, None, torch.float16),
]


def assert_equal(folder: Path, expected: dict[str, torch.Tensor]) -> None:
    """Compare all tensors, types included."""
    found = read_tensors(folder)
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype, name
        assert torch.equal(found[name], tensor), name


@pytest.mark.product
@pytest.mark.parametrize(("shards", "heads", "kv_heads", "dtype"), SHARDS_HEADS_AND_TYPES)
@pytest.mark.parametrize("family", FAMILIES)
def test_every_tensor_is_what_concatenation_and_permutation_give(
    checkpoint: Write,
    tmp_path: Path,
    family: str,
    shards: int,
    heads: int,
    kv_heads: int | None,
    dtype: torch.dtype,
) -> None:
    spec = Spec(family, shards=shards, heads=heads, kv_heads=kv_heads, dim=8 * heads, dtype=dtype)
    source = checkpoint(spec)
    distconv.convert(source, tmp_path / "out", family=spec.family, max_shard_size=50_000)
    assert_equal(tmp_path / "out", reference.convert(source, spec))
    assert distconv.verify(tmp_path / "out", against=source).ok


def test_doubled_key_heads_are_written_once(checkpoint: Write, tmp_path: Path) -> None:
    spec = Spec(family="llama-3.1", dim=128, heads=16, kv_heads=16, shards=16, doubled_kv=True)
    source = checkpoint(spec)
    distconv.convert(source, tmp_path / "out")
    assert json.loads((tmp_path / "out/config.json").read_text())["num_key_value_heads"] == 8
    assert_equal(tmp_path / "out", reference.convert(source, spec))
    assert distconv.verify(tmp_path / "out", against=source).ok


def test_16_key_heads_that_are_not_doubled_are_all_kept(checkpoint: Write, tmp_path: Path) -> None:
    spec = Spec(family="llama-3.1", dim=128, heads=16, kv_heads=16, shards=16)
    source = checkpoint(spec)
    report = distconv.convert(source, tmp_path / "out")
    assert json.loads((tmp_path / "out/config.json").read_text())["num_key_value_heads"] == 16
    assert any("not stored in pairs" in note for note in report.notes)
    assert_equal(tmp_path / "out", reference.convert(source, spec))


@pytest.mark.parametrize(
    ("spec", "tied"),
    [
        (Spec("llama-3.2", heads=8, kv_heads=2, tied=True), True),
        (Spec("llama-3.2", heads=8, kv_heads=2, copied=True), True),
        (Spec("llama-3.2", heads=8, kv_heads=2, shards=2, copied=True), True),
        (Spec("llama-3.2", heads=8, kv_heads=2, shards=2), False),
        (Spec("llama-3.2", heads=8, kv_heads=2, layout="transposed"), False),
    ],
    ids=["one storage", "two storages", "two shards", "different", "different and transposed"],
)
def test_the_output_layer_is_dropped_only_where_it_equals_the_embedding(
    checkpoint: Write, tmp_path: Path, spec: Spec, tied: bool
) -> None:
    source = checkpoint(spec)
    report = distconv.convert(source, tmp_path / "out", family="llama-3.2")
    assert json.loads((tmp_path / "out/config.json").read_text())["tie_word_embeddings"] is tied
    assert any("embedding and output differ" in note for note in report.notes) is not tied
    assert_equal(tmp_path / "out", reference.convert(source, spec))
    assert distconv.verify(tmp_path / "out", against=source).ok


def test_mixed_types_are_kept_and_the_config_names_the_main_one(checkpoint: Write, tmp_path: Path) -> None:
    spec = Spec("llama-3", heads=8, kv_heads=2, shards=2, norm_dtype=torch.float32)
    source = checkpoint(spec)
    distconv.convert(source, tmp_path / "out", max_shard_size=100_000)
    assert_equal(tmp_path / "out", reference.convert(source, spec))
    assert json.loads((tmp_path / "out/config.json").read_text())["dtype"] == "bfloat16"
    assert distconv.verify(tmp_path / "out", against=source).ok


@pytest.mark.parametrize(
    "spec",
    [
        Spec(nested_params=True, nested_state=True, legacy=True),
        Spec(shards=2, layout="packed"),
        Spec(shards=2, layout="transposed", legacy=True),
        Spec(naming="consolidated.pth", tokenizer="parent"),
        Spec("llama-3", naming="meta_model_{}.pt"),
        Spec(shards=12, heads=12, dim=96, multiple_of=96, vocab=320 + 4, naming="consolidated.{}.pth"),
    ],
    ids=lambda spec: f"{spec.naming}-{spec.layout}",
)
def test_every_layout_gives_the_same_tensors(checkpoint: Write, tmp_path: Path, spec: Spec) -> None:
    source = checkpoint(spec)
    distconv.convert(source, tmp_path / "out", family=spec.family)
    assert_equal(tmp_path / "out", reference.convert(source, spec))


@pytest.mark.parametrize("limit", [20_000, 10**9])
@pytest.mark.parametrize("tied", [False, True])
def test_a_reloaded_model_saves_the_same_bytes(
    checkpoint: Write, tmp_path: Path, limit: int, tied: bool
) -> None:
    source = checkpoint(
        Spec("llama-3.2" if tied else "llama-2", shards=2, heads=8, kv_heads=4, layers=12, copied=tied)
    )
    distconv.convert(source, tmp_path / "out", max_shard_size=limit, family="llama-3.2" if tied else None)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype="auto")
    model.save_pretrained(tmp_path / "again", max_shard_size=limit)
    names = [file.name for file in (tmp_path / "again").glob("model*")]
    assert names
    for name in names:
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "out" / name).read_bytes(), name


def test_a_flipped_bit_is_found(checkpoint: Write, tmp_path: Path) -> None:
    source = checkpoint(Spec(family="llama-2", shards=2, heads=8, kv_heads=4))
    distconv.convert(source, tmp_path / "out")
    file = tmp_path / "out/model.safetensors"
    content = bytearray(file.read_bytes())
    content[-5] ^= 4
    file.write_bytes(content)
    assert not distconv.verify(tmp_path / "out", against=source).ok


def test_a_finished_output_is_already_done_and_a_foreign_one_is_refused(
    checkpoint: Write, tmp_path: Path
) -> None:
    source = checkpoint(Spec(family="llama-2", shards=2, heads=8, kv_heads=4))
    distconv.convert(source, tmp_path / "out")
    assert distconv.convert(source, tmp_path / "out").already_done
    with pytest.raises(OutputError, match="another conversion"):
        distconv.convert(source, tmp_path / "out", dtype="float32")
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign/notes.txt").write_text("mine")
    with pytest.raises(OutputError, match=r"notes\.txt"):
        distconv.convert(source, tmp_path / "foreign")
    distconv.convert(source, tmp_path / "foreign", overwrite=True)
    assert (tmp_path / "foreign/notes.txt").read_text() == "mine"
    with pytest.raises(OutputError, match="inside"):
        distconv.convert(source, source / "out")


def test_bad_input_ends_with_exit_code_2_and_no_output(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in/consolidated.00.pth").write_text("<!DOCTYPE html><html>403</html>")
    (tmp_path / "in/params.json").write_text('{"dim": 64, "n_layers": 1, "n_heads": 4}')
    command = [sys.executable, "-m", "distconv", "convert", str(tmp_path / "in"), str(tmp_path / "out")]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 2
    assert "HTML" in ended.stderr
    assert "Traceback" not in ended.stderr
    assert not (tmp_path / "out").exists()
    with pytest.raises(InputError):
        distconv.inspect(tmp_path / "in")


@pytest.mark.parametrize(
    "spec",
    [
        Spec(family="llama-2", shards=2, heads=4, kv_heads=4, dtype=torch.float32),
        Spec(family="llama-2", shards=2, heads=8, kv_heads=2, dtype=torch.float32),
        Spec(family="llama-3", shards=1, heads=4, kv_heads=1, dtype=torch.float32),
        Spec(family="llama-3.1", shards=2, heads=4, kv_heads=2, dtype=torch.float32),
        Spec(family="llama-3.2", shards=1, heads=4, kv_heads=2, dtype=torch.float32, tied=True),
    ],
    ids=lambda spec: f"{spec.family}-{spec.kv_heads}",
)
def test_logits_are_those_of_metas_forward(checkpoint: Write, tmp_path: Path, spec: Spec) -> None:
    source = checkpoint(spec)
    distconv.convert(source, tmp_path / "out", family=spec.family)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float64)
    tokens = torch.randint(0, 300, (24,), generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        found = model(tokens[None]).logits[0]
    expected = reference.forward(source, spec, tokens)
    assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()
