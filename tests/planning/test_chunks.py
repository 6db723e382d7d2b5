"""Chunks, headers and index are those that safetensors and save_pretrained write."""

import json
import math
from pathlib import Path

import pytest
import torch
from huggingface_hub import split_torch_state_dict_into_shards
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.core_model_loading import dot_natural_key

from distconv.formats.safetensors.chunks import (
    chunk_name,
    default_chunk_bytes,
    file_order,
    group_tensors,
    lay_out_chunks,
    make_header,
    make_index,
    make_index_file,
    natural_key,
)
from distconv.layout.dtypes import DTYPES, contiguous_strides
from distconv.layout.files import OutputTensor
from distconv.layout.regions import Region
from distconv.layout.tensors import view_tensor
from tests.extent import share

FLOATS = ("float16", "bfloat16", "float32", "float64")


@given(
    st.dictionaries(
        st.text(min_size=1, max_size=12).filter(lambda name: name != "__metadata__"),
        st.tuples(st.sampled_from(FLOATS), st.lists(st.integers(0, 4), max_size=3)),
        max_size=6,
    )
)
@settings(max_examples=share(60))
def test_a_header_is_the_one_that_safetensors_writes(tensors: dict[str, tuple[str, list[int]]]) -> None:
    values = {
        name: torch.zeros(shape, dtype=getattr(torch, dtype)) for name, (dtype, shape) in tensors.items()
    }
    written = save(values, metadata={"format": "pt"})
    order = file_order((name, DTYPES[dtype]) for name, (dtype, _shape) in tensors.items())
    header, offsets = make_header([(n, DTYPES[tensors[n][0]], tuple(tensors[n][1])) for n in order])
    assert written.startswith(header)
    table = json.loads(written[8 : 8 + int.from_bytes(written[:8], "little")])
    assert offsets == tuple(len(header) + table[name]["data_offsets"][0] for name in order)


def lay_out(name: str, shape: tuple[int, ...]) -> OutputTensor:
    """Give a tensor of the output that is all of a file's."""
    dtype = DTYPES["bfloat16"]
    region = Region("source", 0, math.prod(shape) * dtype.size_bytes, 0, zipped=False)
    copies = view_tensor(name, dtype, region, 0, shape, contiguous_strides(shape)).copies
    return OutputTensor(name, name, shape, dtype, dtype, copies)


@pytest.mark.product
@pytest.mark.parametrize("layers", [1, 13])
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("limit", [2_047, 2_048, 2_049, 6_000, 40_000, 10**9])
def test_grouping_and_index_are_those_of_a_model_saved_again(
    tmp_path: Path, limit: int, tied: bool, layers: int
) -> None:
    config = LlamaConfig(
        hidden_size=16, intermediate_size=32, num_hidden_layers=layers, num_attention_heads=2, vocab_size=64,
        tie_word_embeddings=tied,
    )  # fmt: skip
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(tmp_path / "first")
    model = LlamaForCausalLM.from_pretrained(tmp_path / "first", dtype=torch.bfloat16)
    model.save_pretrained(tmp_path / "again", max_shard_size=limit)
    tensors = {
        name: value for name, value in model.state_dict().items() if not (tied and name == "lm_head.weight")
    }
    sizes = {name: value.numel() * 2 for name, value in tensors.items()}
    groups = group_tensors(sizes, limit)
    names = [chunk_name(number, len(groups)) for number in range(1, len(groups) + 1)]
    assert sorted(path.name for path in (tmp_path / "again").glob("*.safetensors")) == names
    for name, group in zip(names, groups, strict=True):
        order = file_order((tensor, DTYPES["bfloat16"]) for tensor in group)
        header, _offsets = make_header([(n, DTYPES["bfloat16"], tuple(tensors[n].shape)) for n in order])
        assert (tmp_path / "again" / name).read_bytes().startswith(header)
    if len(groups) > 1:
        weight_map = {tensor: name for name, group in zip(names, groups, strict=True) for tensor in group}
        index = make_index(weight_map, sum(value.numel() for value in tensors.values()), sum(sizes.values()))
        assert (tmp_path / "again" / "model.safetensors.index.json").read_bytes() == index
    laid = lay_out_chunks([lay_out(name, tuple(value.shape)) for name, value in tensors.items()], limit)
    assert [chunk.name for chunk in laid] == names
    written = make_index_file(laid)
    assert list(written) == (["model.safetensors.index.json"] if len(groups) > 1 else [])
    for name, content in written.items():
        assert (tmp_path / "again" / name).read_bytes() == content


@given(sizes=st.lists(st.integers(1, 5), min_size=1, max_size=12), limit=st.integers(1, 7))
def test_tensors_below_at_and_above_the_limit_are_grouped_as_by_huggingface_hub(
    sizes: list[int], limit: int
) -> None:
    named = {f"layers.{number}.weight": size for number, size in enumerate(sizes)}
    split = split_torch_state_dict_into_shards(
        {name: torch.zeros(size, dtype=torch.uint8) for name, size in named.items()},
        filename_pattern="model{suffix}.safetensors",
        max_shard_size=limit,
    )
    groups = group_tensors(named, limit)
    names = [chunk_name(number, len(groups)) for number in range(1, len(groups) + 1)]
    assert dict(zip(names, map(list, groups), strict=True)) == split.filename_to_tensors


def test_names_are_ordered_by_number_within_their_parts() -> None:
    names = [
        "model.norm.weight",
        "model.layers.10.a",
        "lm_head.weight",
        "model.layers.2.a",
        "model.embed_tokens.weight",
    ]
    assert sorted(names, key=natural_key) == [
        "lm_head.weight",
        "model.embed_tokens.weight",
        "model.layers.2.a",
        "model.layers.10.a",
        "model.norm.weight",
    ]


NAME_PART = st.sampled_from(["layers", "q", "wq", "w10q", "weight", "LayerNorm"]) | st.integers(0, 30).map(
    str
)
NUMBERED = st.builds("{}{}".format, st.sampled_from(["q", "w", "layers", ""]), st.integers(0, 30))


@given(
    st.lists(st.lists(NAME_PART | NUMBERED, min_size=1, max_size=4).map(".".join), max_size=9, unique=True)
)
def test_names_of_any_form_are_ordered_as_transformers_does(names: list[str]) -> None:
    assert sorted(names, key=natural_key) == sorted(names, key=dot_natural_key)


@given(st.integers(1, 10**13))
def test_the_default_chunk_size_follows_from_the_bytes_alone_and_is_bounded(total: int) -> None:
    size = default_chunk_bytes(total)
    assert type(size) is int
    assert 256_000_000 <= size <= 5_000_000_000
    assert total / size <= 64 or size == 5_000_000_000


@pytest.mark.parametrize(
    ("total", "size"),
    [
        (1, 256_000_000),
        (64 * 256_000_000, 256_000_000),
        (64 * 256_000_000 + 1, 257_000_000),
        (64 * 300_000_000 - 1, 300_000_000),
        (64 * 300_000_000, 300_000_000),
        (64 * 300_000_000 + 1, 301_000_000),
        (64 * 4_999_000_000 + 1, 5_000_000_000),
        (64 * 5_000_000_000 + 1, 5_000_000_000),
    ],
)
def test_the_default_chunk_size_is_a_64th_in_whole_megabytes_within_its_bounds(total: int, size: int) -> None:
    assert default_chunk_bytes(total) == size


def test_the_index_is_plain_json_that_ends_with_a_newline() -> None:
    index = make_index({"b": "2", "a": "1"}, 3, 6)
    assert index.endswith(b"}\n")
    assert json.loads(index)["metadata"] == {"total_parameters": 3, "total_size": 6}
