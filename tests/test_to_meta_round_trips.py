"""There and back: Transformers' format to Meta's layout, from one number of shards to another, and back again."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import event, given, settings
from hypothesis import strategies as st
from llama_models.checkpoint import map_mp_rank, reshard_mp
from safetensors.torch import load_file
from transformers import LlamaForCausalLM

import distconv
from tests.checkpoints import Spec
from tests.extent import share
from tests.faults import digest_folder, digest_shards
from tests.test_to_meta import load
from tests.test_to_meta_from_transformers import cases
from tests.transformers_models import ModelSpec, name_of, write_model

Write = Callable[[ModelSpec], Path]
Tokenizers = Callable[[ModelSpec], Path]
MODELS = [
    ModelSpec("llama-2", heads=8, kv_heads=4),
    ModelSpec("llama-2", heads=8, kv_heads=8, dtype=torch.float16, files="index"),
    ModelSpec("code-llama", heads=8, kv_heads=2, dtype=torch.float32),
    ModelSpec("llama-3", heads=8, kv_heads=4, norm_dtype=torch.float32),
    ModelSpec("llama-3.1", heads=8, kv_heads=2, files="index"),
    ModelSpec("llama-3.2", heads=8, kv_heads=8, tied=True),
    ModelSpec("llama-3.2", heads=8, kv_heads=4, tied=True, files="bin-index"),
]
CHUNK_BYTES = 20_000
"""Of a model that lies in several files."""


def saved_again(source: Path, spec: ModelSpec, place: Path) -> dict[str, str]:
    """Give the digests of what Transformers writes of a model that it has loaded."""
    size = CHUNK_BYTES if "index" in spec.files else 1_000_000_000
    model = LlamaForCausalLM.from_pretrained(source, dtype="auto")
    state = {
        name: tensor for file in source.glob("*.safetensors") for name, tensor in load_file(file).items()
    }
    for name, parameter in model.named_parameters():
        # Transformers gives all tensors one type when it loads them.
        parameter.data = state.get(name, parameter.data)
    model.save_pretrained(place, max_shard_size=size)
    return weights_of(place)


def weights_of(folder: Path) -> dict[str, str]:
    """Give the digests of a folder's weights and of their index."""
    return {name: digest for name, digest in digest_folder(folder).items() if "safetensors" in name}


def values_of(folder: Path) -> Iterator[tuple[str, object]]:
    """Give what config.json says of the model; how it was saved is not of it."""
    for key, value in json.loads((folder / "config.json").read_text()).items():
        if key not in {"transformers_version", "torch_dtype", "rope_scaling", "rope_theta", "dtype"}:
            yield key, value


@pytest.mark.product
@pytest.mark.parametrize("shards", [1, 2, 4, 8])
@pytest.mark.parametrize("spec", MODELS, ids=name_of)
def test_there_and_back_gives_the_files_that_transformers_writes(
    spec: ModelSpec, shards: int, transformers_model: Write, tmp_path: Path
) -> None:
    source = transformers_model(spec)
    distconv.convert(source, tmp_path / "meta", to="meta", shards=shards)
    size = CHUNK_BYTES if "index" in spec.files else None
    distconv.convert(tmp_path / "meta", tmp_path / "back", family=spec.family, max_shard_size=size)
    # A model that was never loaded is cut into files in another order of its tensors.
    expected = weights_of(source) if spec.files == "single" else saved_again(source, spec, tmp_path / "again")
    assert weights_of(tmp_path / "back") == expected
    found, said = dict(values_of(tmp_path / "back")), dict(values_of(source))
    assert {key: found.get(key) for key in said} == said


@pytest.mark.first(2)
@pytest.mark.parametrize(("kv_heads", "shards"), [(8, 24), (2, 12), (1, 8), (1, 3), (4, 4)])
def test_key_heads_are_as_many_as_they_were_however_often_the_shards_have_each(
    kv_heads: int, shards: int, transformers_model: Write, tmp_path: Path
) -> None:
    source = transformers_model(ModelSpec("llama-3", heads=24, kv_heads=kv_heads, head_dim=4, ffn_dim=240))
    distconv.convert(source, tmp_path / "meta", to="meta", shards=shards)
    assert json.loads((tmp_path / "meta/params.json").read_text())["n_kv_heads"] == max(kv_heads, shards)
    distconv.convert(tmp_path / "meta", tmp_path / "back")
    assert weights_of(tmp_path / "back") == weights_of(source)
    assert json.loads((tmp_path / "back/config.json").read_text())["num_key_value_heads"] == kv_heads


@pytest.mark.product
@pytest.mark.parametrize("shards", [1, 2, 4, 8])
@pytest.mark.parametrize("family", ["llama-1", "llama-2", "code-llama", "llama-3", "llama-3.1", "llama-3.2"])
def test_meta_s_layout_there_and_back_gives_every_tensor_and_every_value_of_params(
    family: str, shards: int, checkpoint: Callable[[Spec], Path], tmp_path: Path
) -> None:
    spec = Spec(
        family,
        heads=8,
        kv_heads=None if family == "llama-1" else 8,
        shards=shards,
        equal_norms=True,
        tied=family == "llama-3.2",
    )
    source = checkpoint(spec)
    distconv.convert(source, tmp_path / "hf", family=family)
    distconv.convert(tmp_path / "hf", tmp_path / "meta", to="meta", shards=shards, family=family)
    for before, after in zip(load(source), load(tmp_path / "meta"), strict=True):
        before.pop("rope.freqs", None)
        assert before.keys() == after.keys()
        assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
        shared = after["output.weight"].data_ptr() == after["tok_embeddings.weight"].data_ptr()
        assert shared == spec.tied
    assert (tmp_path / "meta/tokenizer.model").read_bytes() == (source / "tokenizer.model").read_bytes()
    before, after = (
        json.loads((folder / "params.json").read_text()) for folder in (source, tmp_path / "meta")
    )
    different = {key for key in before | after if before.get(key) != after.get(key)}
    # The size of feed-forward layers may be said by another pair, and key heads that are all heads by nothing.
    assert different <= {"multiple_of", "ffn_dim_multiplier", "n_kv_heads"}
    assert ffn_dim_of(after) == spec.ffn_dim
    assert after.get("n_kv_heads", 8) == 8


def ffn_dim_of(params: dict[str, object]) -> int:
    """Give the rows of w1 that Meta's formula makes of params.json."""
    sizes = {name: params[name] for name in ("dim", "multiple_of", "ffn_dim_multiplier") if name in params}
    return Spec(**sizes).ffn_dim  # type: ignore[arg-type]


@settings(max_examples=share(24))
@given(data=st.data(), case=cases())
def test_from_one_number_of_shards_to_another_and_back_gives_the_same_bytes(
    data: st.DataObject,
    case: tuple[ModelSpec, int],
    tokenizer_of: Tokenizers,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    spec, first = case
    between = data.draw(st.sampled_from([number for number in range(1, 13) if divides(number, spec)]))
    event(f"{first} to {between}")
    place = tmp_path_factory.mktemp("case")
    write_model(place / "model", spec, tokenizer_of(spec))
    distconv.convert(place / "model", place / "first", to="meta", shards=first)
    distconv.convert(place / "first", place / "between", to="meta", shards=between, family=spec.family)
    distconv.convert(place / "model", place / "direct", to="meta", shards=between)
    distconv.convert(place / "between", place / "back", to="meta", shards=first, family=spec.family)
    assert digest_shards(place / "between") == digest_shards(place / "direct")
    assert digest_shards(place / "back") == digest_shards(place / "first")


def divides(shards: int, spec: ModelSpec) -> bool:
    """Whether Meta's code can cut a model into so many parts."""
    sizes = (spec.heads, spec.ffn_dim, spec.tokens, *([spec.dim] if spec.by_columns else []))
    keys = spec.kv_heads % shards == 0 or shards % spec.kv_heads == 0
    return keys and all(size % shards == 0 for size in sizes)


# Where an old shard has several key heads and there are more ranks than heads, Meta's repeats the wrong ones.
@pytest.mark.first(3)
@pytest.mark.parametrize(
    ("before", "after"), [(1, 2), (1, 4), (2, 4), (4, 8), (8, 16), (2, 1), (4, 1), (4, 2)]
)
def test_meta_s_own_resharding_gives_the_same_tensors(
    before: int, after: int, transformers_model: Write, tmp_path: Path
) -> None:
    spec = ModelSpec("llama-3.1", heads=16, kv_heads=max(4, before), ffn_dim=192)
    distconv.convert(transformers_model(spec), tmp_path / "before", to="meta", shards=before)
    distconv.convert(tmp_path / "before", tmp_path / "after", to="meta", shards=after)
    old = load(tmp_path / "before")
    for rank, found in enumerate(load(tmp_path / "after")):
        pieces = max(after // before, 1)
        expected = reshard_mp(
            [old[number] for number in map_mp_rank(before, after, rank)],
            size=pieces,
            rank=rank % pieces,
            repeat_qk_qv=max(after // spec.kv_heads, 1),
        )
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
