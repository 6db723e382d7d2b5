"""params.json as Meta publishes it, and the numbers from which Meta's code computes the feed-forward size."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from llama_models.llama3.args import ModelArgs

import distconv
from distconv.families.dimensions import Dimensions
from distconv.families.evidence import LLAMA_1_MD5, LLAMA_2_MD5
from distconv.families.llama import FAMILIES
from distconv.formats.meta.params import read_params
from distconv.sidecars.config import Rope
from distconv.sidecars.meta_config import MetaConfig, read_meta_config
from distconv.sidecars.meta_params import find_ffn_pair, make_params
from distconv.storage.local import LocalStorage
from tests.checkpoints import Spec
from tests.checkpoints import make_params as make_fields

# dim, layers, heads, key heads, feed-forward size, norm_eps, then multiple_of and ffn_dim_multiplier as published.
PUBLISHED = {
    ("llama-1", "7B"): (4096, 32, 32, 32, 11008, 1e-6, 256, None),
    ("llama-1", "13B"): (5120, 40, 40, 40, 13824, 1e-6, 256, None),
    ("llama-1", "30B"): (6656, 60, 52, 52, 17920, 1e-6, 256, None),
    ("llama-1", "65B"): (8192, 80, 64, 64, 22016, 1e-5, 256, None),
    ("llama-2", "7B"): (4096, 32, 32, 32, 11008, 1e-5, 256, None),
    ("llama-2", "7B-chat"): (4096, 32, 32, 32, 11008, 1e-6, 256, None),
    ("llama-2", "13B"): (5120, 40, 40, 40, 13824, 1e-5, 256, None),
    ("llama-2", "70B"): (8192, 80, 64, 8, 28672, 1e-5, 4096, 1.3),
    ("code-llama", "7B"): (4096, 32, 32, 32, 11008, 1e-5, 256, 1.0),
    ("code-llama", "34B"): (8192, 48, 64, 8, 22016, 1e-5, 256, 1.0),
    ("code-llama", "70B"): (8192, 80, 64, 8, 28672, 1e-5, 4096, 1.3),
    ("code-llama-70b-python", "70B"): (8192, 80, 64, 8, 28672, 1e-5, 4096, 1.3),
    ("llama-3", "8B"): (4096, 32, 32, 8, 14336, 1e-5, 1024, 1.3),
    ("llama-3", "70B"): (8192, 80, 64, 8, 28672, 1e-5, 4096, 1.3),
    ("llama-3.1", "405B"): (16384, 126, 128, 8, 53248, 1e-5, 4096, 1.2),
    ("llama-3.2", "1B"): (2048, 16, 32, 8, 8192, 1e-5, 256, 1.5),
    ("llama-3.2", "3B"): (3072, 28, 24, 8, 8192, 1e-5, 256, 1.0),
}


def make_config(family: str, numbers: tuple[int, int, int, int, int, float]) -> MetaConfig:
    """Make what a Transformers config of such a model is read as."""
    chosen, (dim, layers, heads, kv_heads, ffn_dim, norm_eps) = FAMILIES[family], numbers
    sizes = Dimensions(dim, layers, heads, kv_heads, dim // heads, ffn_dim, 128256)
    return MetaConfig(sizes, norm_eps, Rope(chosen.theta, chosen.factor), 4096, False, None, chosen, (), ())


@pytest.mark.parametrize(("family", "size"), PUBLISHED)
def test_every_published_model_has_its_published_numbers_and_no_key_that_its_own_code_lacks(
    family: str, size: str
) -> None:
    *numbers, multiple_of, multiplier = PUBLISHED[family, size]
    found = json.loads(make_params(make_config(family, tuple(numbers)), rows=128256))
    dim, layers, heads, kv_heads, _ffn_dim, norm_eps = numbers
    spec = Spec(
        family, dim, layers, heads, None if kv_heads == heads else kv_heads, multiple_of, multiplier, 128256,
        norm_eps=norm_eps,
    )  # fmt: skip
    assert found == make_fields(spec)
    args = ModelArgs(**found)
    assert (args.dim, args.n_layers, args.n_heads, args.n_kv_heads) == (dim, layers, heads, kv_heads)
    assert (args.norm_eps, args.use_scaled_rope) == (norm_eps, FAMILIES[family].factor is not None)


@pytest.mark.parametrize(
    ("family", "md5", "size"),
    [(family, md5, size) for family, table in (("llama-1", LLAMA_1_MD5), ("llama-2", LLAMA_2_MD5)) for md5, size in table.items()],
)  # fmt: skip
def test_the_files_whose_md5_meta_published_come_back_byte_for_byte(family: str, md5: str, size: str) -> None:
    content = make_params(make_config(family, PUBLISHED[family, size][:6]), rows=32000)
    assert hashlib.md5(content).hexdigest() == md5


def test_code_llama_has_its_own_order_and_short_numbers() -> None:
    content = make_params(make_config("code-llama", PUBLISHED["code-llama", "7B"][:6]), rows=32016)
    assert content == (
        b'{"dim": 4096, "n_layers": 32, "n_heads": 32, "multiple_of": 256, "ffn_dim_multiplier": 1.0, '
        b'"norm_eps": 1e-5, "rope_theta": 1000000}\n'
    )


@given(dim=st.integers(1, 1 << 17), ffn_dim=st.integers(1, 1 << 20), family=st.sampled_from(sorted(FAMILIES)))
@example(dim=3200, ffn_dim=8640, family="llama-1")
@example(dim=2048, ffn_dim=5632, family="llama-2")
@example(dim=1, ffn_dim=1 << 20, family="llama-3")
@example(dim=1 << 17, ffn_dim=1, family="llama-3.1")
def test_metas_model_makes_any_feed_forward_size_from_the_two_numbers_after_json(
    meta_ffn_dim: Callable[[int, int, float | None], int], dim: int, ffn_dim: int, family: str
) -> None:
    pair = json.loads(json.dumps(find_ffn_pair(dim, ffn_dim, FAMILIES[family])))
    assert meta_ffn_dim(dim, *pair) == ffn_dim


@given(
    dim=st.integers(1, 256).map(lambda count: 64 * count),
    multiple_of=st.sampled_from([1, 32, 64, 100, 256, 1000, 1024, 4096]),
    multiplier=st.none() | st.floats(0.25, 4),
)
def test_a_size_that_metas_model_made_is_found_again(
    meta_ffn_dim: Callable[[int, int, float | None], int],
    dim: int,
    multiple_of: int,
    multiplier: float | None,
) -> None:
    ffn_dim = meta_ffn_dim(dim, multiple_of, multiplier)
    assert meta_ffn_dim(dim, *find_ffn_pair(dim, ffn_dim, FAMILIES["llama-2"])) == ffn_dim


def test_a_small_open_model_gets_numbers_that_a_person_would_have_chosen() -> None:
    assert find_ffn_pair(3200, 8640, FAMILIES["llama-1"]) == (64, 1.01)


def test_as_many_key_heads_are_counted_as_there_are_shards() -> None:
    config = make_config("llama-3.1", PUBLISHED["llama-3.1", "405B"][:6])
    counts = {
        shards: json.loads(make_params(config, rows=128256, shards=shards))["n_kv_heads"]
        for shards in (1, 8, 16)
    }
    assert counts == {1: 8, 8: 8, 16: 16}


CHECKPOINTS = [
    Spec("llama-1"),
    Spec("llama-2", shards=2),
    Spec("llama-2", kv_heads=2, ffn_dim_multiplier=1.3, norm_eps=1e-6),
    Spec("code-llama", ffn_dim_multiplier=1.0),
    Spec("llama-3", kv_heads=2, ffn_dim_multiplier=1.3),
    Spec("llama-3.1", kv_heads=2, ffn_dim_multiplier=0.7, shards=2),
    Spec("llama-3.2", kv_heads=2, ffn_dim_multiplier=1.5, tied=True),
    Spec("llama-guard-3-1b", kv_heads=2, tied=True),
    Spec("llama-guard-1", heads=8),
]


@pytest.mark.parametrize("spec", CHECKPOINTS, ids=lambda spec: spec.family)
def test_a_converted_checkpoints_config_gives_params_of_the_same_meaning(
    checkpoint: Callable[[Spec], Path], tmp_path: Path, spec: Spec
) -> None:
    source = checkpoint(spec)
    distconv.convert(source, tmp_path / "hf", family=spec.family)
    path = tmp_path / "hf" / "config.json"
    config = read_meta_config(str(path), path.read_bytes())
    assert FAMILIES[spec.family].is_like(config.family)
    (tmp_path / "params.json").write_bytes(
        make_params(config, rows=config.dimensions.vocab, shards=spec.shards)
    )
    left, right = (read_params(LocalStorage(), str(folder / "params.json")) for folder in (source, tmp_path))
    assert left.ffn_dim == right.ffn_dim == spec.ffn_dim
    assert left.kv_heads == right.kv_heads
    said = {"path": "", "multiple_of": None, "ffn_dim_multiplier": None, "n_kv_heads": None, "md5": ""}
    assert replace(left, **said, ends_with_newline=True) == replace(right, **said, ends_with_newline=True)
    assert set(json.loads((tmp_path / "params.json").read_bytes())) <= {
        *make_fields(spec), "ffn_dim_multiplier"
    }  # fmt: skip
