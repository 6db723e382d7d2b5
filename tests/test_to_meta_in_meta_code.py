"""Models that Transformers saved, as shards: Meta's own code and torchtune's compute what Transformers does."""

import functools
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import distconv
from tests.meta_model import MetaCode, meta_logits
from tests.test_meta_model import TOKENS, assert_same
from tests.torchtune_logits import TuneModel, torchtune_logits
from tests.transformers_models import ModelSpec, compute_logits, name_of

Write = Callable[[ModelSpec], Path]

make = functools.partial(ModelSpec, heads=16, kv_heads=8, ffn_dim=344)
"""Sizes that 8 processes can share; 344 is no multiple of a power of two that the heads have."""


CASES = [
    (make("llama-3"), 1),
    (make("llama-3.1", padding=64), 2),
    (make("llama-3.1", tied=True), 4),
    (make("llama-3", dtype=torch.float32, files="index"), 8),
    (make("llama-3.1", kv_heads=2, tied=True), 8),
    (make("llama-2", padding=1), 1),
    (make("llama-2", tied=True), 2),
    (make("code-llama", files="bin"), 4),
    (make("llama-2", kv_heads=16, dtype=torch.float16), 8),
    (make("llama-2", kv_heads=2), 8),
    (make("code-llama", kv_heads=1, ffn_dim=520), 8),
]
RESHARDED = [
    (make("llama-3.1", kv_heads=2), 8, 2),
    (make("llama-3", kv_heads=4), 1, 8),
    (make("llama-3", tied=True), 4, 1),
    (make("llama-2", kv_heads=4), 2, 8),
    (make("llama-2"), 8, 4),
    (make("code-llama", kv_heads=1), 1, 4),
]


def expected_logits(folder: Path, spec: ModelSpec) -> np.ndarray:
    """Give what Transformers computes, for the tokens that the tokenizer has."""
    return compute_logits(folder, TOKENS)[..., : spec.tokens].numpy()


@pytest.mark.first(5)
@pytest.mark.parametrize(("spec", "shards"), CASES, ids=name_of)
def test_meta_s_code_loads_the_shards_strictly_and_computes_what_transformers_computes(
    spec: ModelSpec, shards: int, transformers_model: Write, meta_code: MetaCode, tmp_path: Path
) -> None:
    source = transformers_model(spec)
    distconv.convert(source, tmp_path / "meta", to="meta", shards=shards)
    found = meta_logits(meta_code, tmp_path / "meta", TOKENS, shards, columns=spec.by_columns)
    assert_same(found, expected_logits(source, spec))


@pytest.mark.first(2)
@pytest.mark.parametrize(("spec", "first", "shards"), RESHARDED, ids=name_of)
def test_shards_of_another_number_of_shards_compute_the_same(
    spec: ModelSpec, first: int, shards: int, transformers_model: Write, meta_code: MetaCode, tmp_path: Path
) -> None:
    source = transformers_model(spec)
    distconv.convert(source, tmp_path / "first", to="meta", shards=first)
    distconv.convert(tmp_path / "first", tmp_path / "meta", to="meta", shards=shards)
    found = meta_logits(meta_code, tmp_path / "meta", TOKENS, shards, columns=spec.by_columns)
    assert_same(found, expected_logits(source, spec))


def test_an_output_that_is_stored_though_the_config_calls_it_tied_is_the_one_that_transformers_takes(
    transformers_model: Write, meta_code: MetaCode, tmp_path: Path
) -> None:
    spec = make("llama-3", tied=True)
    source = shutil.copytree(transformers_model(spec), tmp_path / "model")
    state = load_file(source / "model.safetensors")
    state["lm_head.weight"] = state["model.embed_tokens.weight"].flip(0).contiguous()
    save_file(state, source / "model.safetensors", {"format": "pt"})
    distconv.convert(source, tmp_path / "meta", to="meta", shards=2)
    assert_same(meta_logits(meta_code, tmp_path / "meta", TOKENS, 2), expected_logits(source, spec))


# Name of the checkpointer's model type and of the builder, with what sizes alone do not say.
TORCHTUNE = [
    (make("llama-2"), "LLAMA2", "llama2", {}),
    (make("code-llama", kv_heads=2), "LLAMA2", "llama2", {"rope_base": 1e6}),
    (make("llama-3", padding=64), "LLAMA3", "llama3", {}),
    (make("llama-3.1", dtype=torch.float32), "LLAMA3", "llama3_1", {}),
    (make("llama-3.2", tied=True), "LLAMA3_2", "llama3_2", {}),
]


@pytest.mark.peer
def test_torchtune_s_checkpointer_loads_the_only_shard(
    transformers_model: Write, peer_python: Callable[[str], Path], tmp_path: Path
) -> None:
    models, sources = [], []
    for number, (spec, kind, builder, sizes) in enumerate(TORCHTUNE):
        sources.append(transformers_model(spec))
        distconv.convert(sources[-1], tmp_path / f"meta{number}", to="meta")
        whole = {
            "vocab_size": spec.tokens,
            "num_layers": spec.layers,
            "num_heads": spec.heads,
            "num_kv_heads": spec.kv_heads,
            "embed_dim": spec.dim,
            "intermediate_dim": spec.ffn_dim,
            **sizes,
        }
        models.append(TuneModel(tmp_path / f"meta{number}", kind, builder, whole))
    found = torchtune_logits(peer_python("torchtune-0.6.1"), models, TOKENS, tmp_path)
    for logits, source, (spec, *_rest) in zip(found, sources, TORCHTUNE, strict=True):
        assert_same(logits, expected_logits(source, spec))
