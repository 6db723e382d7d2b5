"""Models that Transformers saved, in Meta's layout: byte for byte what torch.save writes of each rank's part."""

import json
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import event, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

import distconv
from tests.checkpoints import Spec, Tensors
from tests.extent import share
from tests.test_to_meta import load, save, split
from tests.transformers_models import (
    ModelSpec,
    make_old_config,
    to_meta,
    write_model,
    write_tokenizer,
)

Tokenizers = Callable[[ModelSpec], Path]
FAMILIES = ("llama-2", "code-llama", "llama-3", "llama-3.1", "llama-3.2")
WRITER = Path(__file__).with_name("transformers_writer.py")
DTYPES = (torch.bfloat16, torch.float16, torch.float32)
# A sentencepiece vocabulary has 320 tokens here, Llama 3's 576; both are cut by rows at the output.
SHARDS = {True: (1, 2, 4, 5, 8), False: (1, 2, 3, 4, 6, 8)}


@st.composite
def cases(draw: st.DrawFn) -> tuple[ModelSpec, int]:
    """Draw a model and a number of shards by which Meta's code can divide it."""
    family = draw(st.sampled_from(FAMILIES))
    shards = draw(st.sampled_from(SHARDS[family in {"llama-2", "code-llama"}]))
    heads = shards * draw(st.integers(1, 3))
    divisors = [number for number in range(1, heads + 1) if heads % number == 0]
    kv_heads = draw(
        st.sampled_from([number for number in divisors if number % shards == 0 or shards % number == 0])
    )
    spec = ModelSpec(
        family,
        heads,
        kv_heads,
        head_dim=2 * draw(st.integers(1, 6)),
        ffn_dim=shards * draw(st.integers(1, 40)),
        layers=draw(st.integers(1, 3)),
        padding=draw(st.sampled_from([0, 0, 1, 7, 64])),
        dtype=draw(st.sampled_from(DTYPES)),
        norm_dtype=draw(st.sampled_from([None, None, torch.float32, torch.bfloat16])),
        tied=draw(st.booleans()),
        files=draw(st.sampled_from(["single", "index", "bin", "bin-index"])),
        seed=draw(st.integers(0, 1000)),
    )
    return spec, shards


def expect_shards(tensors: Tensors, spec: ModelSpec, shards: int) -> list[Tensors]:
    """Give each rank's tensors; a tied output is Meta's second name of a rank's part of the embedding."""
    whole = to_meta(tensors, spec)
    if spec.tied and spec.by_columns:
        whole["output.weight"] = whole["tok_embeddings.weight"]
    parts = split(whole, shards, spec.head_dim, by_columns=spec.by_columns)
    if spec.tied and not spec.by_columns:
        for part in parts:
            # As a module's state dict has it: a tensor of its own, in the same storage.
            part["output.weight"] = part["tok_embeddings.weight"].detach()
    return parts


def assert_shards(output: Path, expected: list[Tensors], place: Path) -> None:
    """Compare every shard with what torch saves, in the order of names that was found, and test its CRC32s."""
    found = load(output)
    assert [set(shard) for shard in found] == [set(shard) for shard in expected]
    place.mkdir()
    for rank, content in enumerate(save(expected, list(found[0]), place)):
        path = output / f"consolidated.{rank:02d}.pth"
        assert path.read_bytes() == content, path
        with zipfile.ZipFile(path) as archive:
            assert archive.testzip() is None


def assert_params(output: Path, spec: ModelSpec, shards: int) -> None:
    """Compare params.json with the model, by the formulas of Meta's code."""
    params = json.loads((output / "params.json").read_text())
    assert params["dim"] == spec.dim
    assert params["n_layers"] == spec.layers
    assert params["n_heads"] == spec.heads
    assert params.get("n_kv_heads", spec.heads) == max(spec.kv_heads, shards)
    assert params["norm_eps"] == 1e-5
    assert params.get("rope_theta", 1e4) == spec.theta
    assert params.get("vocab_size", -1) == (spec.tokens if not spec.by_columns else -1)
    assert params.get("use_scaled_rope", False) == (spec.family in {"llama-3.1", "llama-3.2"})
    sizes = Spec(
        dim=spec.dim,
        multiple_of=params.get("multiple_of", 256),
        ffn_dim_multiplier=params.get("ffn_dim_multiplier"),
    )
    assert sizes.ffn_dim == spec.ffn_dim


def check_case(spec: ModelSpec, shards: int, tokenizer: Path, place: Path) -> None:
    """Convert a model and compare everything that Meta's code reads."""
    event(f"{spec.family}, {spec.files}")
    event(f"{shards} shards")
    tensors = write_model(place / "model", spec, tokenizer)
    report = distconv.convert(place / "model", place / "out", to="meta", shards=shards, max_shard_size=8_000)
    assert_shards(place / "out", expect_shards(tensors, spec, shards), place / "saved")
    assert_params(place / "out", spec, shards)
    assert (place / "out/tokenizer.model").read_bytes() == tokenizer.read_bytes()
    expected = ["rows of vocabulary are padding"] * bool(spec.padding)
    expected += ["rope is scaled by 32, as published"] * (spec.family == "llama-3.2")
    assert len(report.notes) == len(expected)
    assert all(any(words in note for note in report.notes) for words in expected)
    assert distconv.verify(place / "out", against=place / "model").ok


OLD = [ModelSpec("llama-2"), ModelSpec("llama-3.1", padding=8), ModelSpec("llama-3.2", tied=True)]


@pytest.mark.peer
@pytest.mark.parametrize("version", ["4.47.1", "4.57.6"])
def test_what_older_versions_of_transformers_saved_is_read_as_well(
    version: str, run_peer: Callable[..., str], tokenizer_of: Tokenizers, tmp_path: Path
) -> None:
    cases = [(spec, safe, tmp_path / f"{spec.family}-{safe}") for spec in OLD for safe in (True, False)]
    tasks = [
        {"folder": str(place / "model"), "config": make_old_config(spec), "safe": safe, "dtype": "bfloat16"}
        for spec, safe, place in cases
    ]
    lines = "".join(json.dumps(task) + "\n" for task in tasks)
    run_peer(f"transformers-{version}", WRITER, lines=lines)
    for spec, safe, place in cases:
        write_tokenizer(place / "model", spec, tokenizer_of(spec))
        tensors: Tensors = {}
        for file in (place / "model").glob("*.safetensors" if safe else "*.bin"):
            tensors |= load_file(file) if safe else torch.load(file)
        distconv.convert(place / "model", place / "out", to="meta", shards=4)
        assert_tensors(place / "out", tensors, spec, 4)
        assert_params(place / "out", spec, 4)


def assert_tensors(output: Path, tensors: Tensors, spec: ModelSpec, shards: int) -> None:
    """Compare all tensors, whichever of them share a storage: a tied output may be saved under both names."""
    kept = {name: tensor for name, tensor in tensors.items() if not (spec.tied and name == "lm_head.weight")}
    expected, found = expect_shards(kept, spec, shards), load(output)
    for shard, parts in zip(found, expected, strict=True):
        assert shard.keys() == parts.keys()
        assert all(torch.equal(shard[name], part) for name, part in parts.items())


@settings(max_examples=share(40))
@given(case=cases())
def test_shards_of_any_model_are_what_torch_saves_of_reshaped_and_chunked_tensors(
    case: tuple[ModelSpec, int], tokenizer_of: Tokenizers, tmp_path_factory: pytest.TempPathFactory
) -> None:
    check_case(*case, tokenizer_of(case[0]), tmp_path_factory.mktemp("case"))


@pytest.mark.slow
@settings(max_examples=share(600))
@given(case=cases())
def test_shards_of_many_models_are_what_torch_saves_of_reshaped_and_chunked_tensors(
    case: tuple[ModelSpec, int], tokenizer_of: Tokenizers, tmp_path_factory: pytest.TempPathFactory
) -> None:
    check_case(*case, tokenizer_of(case[0]), tmp_path_factory.mktemp("case"))
