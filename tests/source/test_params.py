"""params.json: what it says, and everything that can be wrong with it."""

import json
from pathlib import Path

import pytest

from distconv.errors import InputError
from distconv.source.params import Params, read_params
from distconv.storage import LocalStorage

GOOD: dict[str, object] = {
    "dim": 4096, "multiple_of": 256, "n_heads": 32, "n_layers": 32, "norm_eps": 1e-06, "vocab_size": -1,
}  # fmt: skip


def read(folder: Path, content: object) -> Params:
    """Read params.json with this content: bytes as they are, anything else as JSON."""
    path = folder / "params.json"
    path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    return read_params(LocalStorage(), str(path))


def test_llama_1_has_as_many_key_heads_as_heads(tmp_path: Path) -> None:
    params = read(tmp_path, GOOD)
    assert (params.kv_heads, params.head_dim, params.vocab_size, params.rope_theta) == (32, 128, None, None)
    assert not params.ends_with_newline


def test_fields_may_lie_under_model(tmp_path: Path) -> None:
    params = read(tmp_path, {"model": GOOD, "other": 1})
    assert params.nested
    assert params.dim == 4096


@pytest.mark.parametrize(
    ("dim", "multiple_of", "multiplier", "rows"),
    [
        (4096, 256, None, 11008), (5120, 256, None, 13824), (6656, 256, None, 17920), (8192, 256, None, 22016),
        (8192, 4096, 1.3, 28672), (4096, 256, 1.0, 11008), (4096, 1024, 1.3, 14336), (16384, 4096, 1.2, 53248),
        (2048, 256, 1.5, 8192), (3072, 256, 1.0, 8192),
    ],
)  # fmt: skip
def test_the_feed_forward_size_is_that_of_every_published_model(
    tmp_path: Path, dim: int, multiple_of: int, multiplier: float | None, rows: int
) -> None:
    params = read(tmp_path, GOOD | {"dim": dim, "multiple_of": multiple_of, "ffn_dim_multiplier": multiplier})
    assert params.ffn_dim == rows


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"dim": "4096"}, "dim is '4096', expected a whole number"),
        ({"dim": 4096.0}, "dim is 4096.0, expected a whole number"),
        ({"dim": True}, "dim is True, expected a whole number"),
        ({"dim": 0}, "dim is 0, expected a whole number"),
        ({"dim": -4096}, "dim is -4096, expected a whole number"),
        ({"dim": 10**30}, "dim is 1000000000"),
        ({"dim": None}, "no 'dim'"),
        ({"n_layers": [32]}, "n_layers is [32], expected a whole number"),
        ({"n_heads": 0}, "n_heads is 0"),
        ({"n_heads": 33}, "dim 4096 is not a multiple of n_heads 33"),
        ({"n_kv_heads": 5}, "n_heads 32 is not a multiple of n_kv_heads 5"),
        ({"n_kv_heads": "8"}, "n_kv_heads is '8'"),
        ({"dim": 96, "n_heads": 32}, "head size 3 is odd"),
        ({"norm_eps": 0}, "norm_eps is 0, expected a positive number"),
        ({"norm_eps": "small"}, "norm_eps is 'small'"),
        ({"norm_eps": 1e400}, "Infinity"),
        ({"norm_eps": float("nan")}, "NaN"),
        ({"rope_theta": -1.0}, "rope_theta is -1.0"),
        ({"use_scaled_rope": "yes"}, "use_scaled_rope is 'yes', expected true or false"),
        ({"ffn_dim_multiplier": "1.3"}, "ffn_dim_multiplier is '1.3'"),
        ({"multiple_of": 0}, "multiple_of is 0"),
        ({"vocab_size": 1.5}, "vocab_size is 1.5"),
    ],
)  # fmt: skip
def test_an_impossible_field_is_named_with_what_was_expected(
    tmp_path: Path, change: dict[str, object], words: str
) -> None:
    with pytest.raises(InputError) as raised:
        read(tmp_path, GOOD | change)
    assert words in str(raised.value)
    assert all(line.startswith(str(tmp_path / "params.json")) for line in str(raised.value).splitlines())


@pytest.mark.parametrize("key", ["dim", "n_layers", "n_heads"])
def test_a_missing_field_is_named(tmp_path: Path, key: str) -> None:
    with pytest.raises(InputError, match=f"no '{key}'"):
        read(tmp_path, {name: value for name, value in GOOD.items() if name != key})


def test_all_findings_come_at_once(tmp_path: Path) -> None:
    with pytest.raises(InputError) as raised:
        read(tmp_path, {"dim": "x", "n_heads": -1, "norm_eps": []})
    assert len(str(raised.value).splitlines()) == 4


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "an empty file"),
        (b"<!DOCTYPE html><html>403</html>", "an HTML or XML page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "a git-LFS pointer"),
        (b"\x80\x02}q\x00.", "a pickle"),
        (b'{"dim": 4096', "not JSON"),
        (b"[1, 2]", "list, expected a JSON object"),
        (b'"text"', "str, expected a JSON object"),
        (b'{"dim": \xff}', "not JSON"),
        (b"[" * 200_000, "not JSON"),
        (b"{}" + b" " * (2 << 20), "bytes, expected at most"),
    ],
)  # fmt: skip
def test_what_is_no_params_file_is_told_by_its_content(tmp_path: Path, content: bytes, words: str) -> None:
    with pytest.raises(InputError) as raised:
        read(tmp_path, content)
    assert words in str(raised.value)
    assert str(tmp_path / "params.json") in str(raised.value)


@pytest.mark.parametrize(
    ("key", "words"),
    [
        ("quantization_args", "quantized"),
        ("lora_args", "LoRA"),
        ("vision_chunk_size", "Vision"),
        ("moe_args", "Llama 4"),
        ("nope_layer_interval", "Llama 4"),
        ("vision_args", "Llama 4"),
        ("moe", "Mixtral"),
        ("sliding_window", "Mistral"),
        ("hidden_dim", "Mistral"),
        ("head_dim", "Mistral"),
    ],
)
def test_other_models_are_refused_by_name(tmp_path: Path, key: str, words: str) -> None:
    with pytest.raises(InputError, match=words):
        read(tmp_path, GOOD | {key: 1})
