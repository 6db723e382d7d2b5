"""The tables of Mistral's and Mixtral's published sizes give the tensors that Transformers' own models have and save."""

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.core_model_loading import revert_weight_conversion

from distconv.families.architectures import MISTRAL, MIXTRAL, Architecture
from distconv.families.dimensions import Dimensions, MixtralDimensions, ModelDimensions
from distconv.families.rules import expand_rules
from distconv.families.translate import list_target_shapes
from distconv.formats.meta.mistral import MistralParams
from distconv.sidecars.config import ModelShape, Rope, Settings, TokenIds
from distconv.sidecars.mistral_config import make_mistral_config

# dim, layers, heads, key heads, size of a head, feed-forward, vocabulary, experts; parameters in billions as they are published
PUBLISHED = {
    "7B v0.1": (4096, 32, 32, 8, 128, 14336, 32000, 0, 7.24),
    "7B v0.3": (4096, 32, 32, 8, 128, 14336, 32768, 0, 7.25),
    "Nemo": (5120, 40, 32, 8, 128, 14336, 131072, 0, 12.2),
    "Ministral 8B": (4096, 36, 32, 8, 128, 12288, 131072, 0, 8.02),
    "Small 22B": (6144, 56, 48, 8, 128, 16384, 32768, 0, 22.2),
    "Small 3": (5120, 40, 32, 8, 128, 32768, 131072, 0, 23.6),
    "Large 2": (12288, 88, 96, 8, 128, 28672, 32768, 0, 123),
    "8x7B": (4096, 32, 32, 8, 128, 14336, 32000, 8, 46.7),
    "8x22B": (6144, 56, 48, 8, 128, 16384, 32768, 8, 141),
}


CASES = [
    (name, stacked)
    for name, sizes in PUBLISHED.items()
    for stacked in (False, True)
    if sizes[7] or not stacked
]


@pytest.mark.parametrize(("name", "stacked"), CASES)
def test_names_and_shapes_of_published_sizes_are_those_that_transformers_saves(
    name: str, stacked: bool
) -> None:
    *sizes, experts, billions = PUBLISHED[name]
    dim, layers, heads, kv_heads, head_dim, ffn_dim, vocab = sizes
    text = Dimensions(dim, layers, heads, kv_heads, head_dim, ffn_dim, vocab)
    found: ModelDimensions = MixtralDimensions(text, experts, stacked) if experts else text
    architecture: Architecture = MIXTRAL if experts else MISTRAL
    shapes = list_target_shapes(architecture.make_rules(found), found)
    shape = ModelShape(dim, layers, heads, kv_heads, head_dim, ffn_dim, vocab, 1e-5)
    settings = Settings(1e-5, Rope(1e6), 32768, TokenIds(1, 2), "bfloat16")
    params = MistralParams(head_dim, (None,), experts, 2 if experts else 0)
    content = make_mistral_config("params.json", shape, params, settings, tied=False)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**content))
    saved = revert_weight_conversion(model, dict(model.state_dict()))
    assert shapes == {key: tuple(tensor.shape) for key, tensor in saved.items()}
    count = sum(tensor.numel() for tensor in saved.values())
    assert abs(count / 1e9 - billions) <= 0.006 * billions


def test_stacked_experts_are_stored_by_three_names_a_layer() -> None:
    sizes = MixtralDimensions(Dimensions(64, 2, 4, 2, 16, 96, 320), 4, stacked=True)
    stored = [
        one.stored for one in expand_rules(MIXTRAL.make_rules(sizes), sizes) if "block_sparse" in one.stored
    ]
    assert len(stored) == 2 * (3 * 4 + 1)
    assert {name.rpartition("block_sparse_moe.")[2] for name in stored} == {"w1", "w2", "w3", "gate.weight"}
