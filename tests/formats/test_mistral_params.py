"""params.json of Mistral's models: published ones are read, newer architectures refused, each by its name."""

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from distconv.errors import InputError
from distconv.formats.meta.mistral import MistralParams
from tests.formats.test_params import GOOD, read

V3: dict[str, object] = {
    "dim": 4096, "n_layers": 32, "head_dim": 128, "hidden_dim": 14336, "n_heads": 32, "n_kv_heads": 8,
    "norm_eps": 1e-05, "vocab_size": 32768, "rope_theta": 1000000.0,
}  # fmt: skip
V1 = {key: value for key, value in V3.items() if key != "rope_theta"} | {
    "sliding_window": 4096,
    "vocab_size": 32000,
}
NEMO = V3 | {"dim": 5120, "n_layers": 40, "vocab_size": 131072}
MIXTRAL = {key: value for key, value in V3.items() if key != "rope_theta"} | {
    "vocab_size": 32000,
    "moe": {"num_experts_per_tok": 2, "num_experts": 8},
}
FIRST_MIXTRAL: dict[str, object] = {
    "hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8,
    "intermediate_size": 14336, "rms_norm_eps": 1e-05, "vocab_size": 32000, "num_local_experts": 8,
}  # fmt: skip


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        (V1, MistralParams(128, (4096,), 0, 0)),
        (V1 | {"sliding_window": "4096"}, MistralParams(128, (4096,), 0, 0)),
        (V3, MistralParams(128, (None,), 0, 0)),
        (V3 | {"sliding_window": None, "moe": None, "model_type": "transformer"}, MistralParams(128, (None,), 0, 0)),
        (V3 | {"_sliding_window": [32768, None]}, MistralParams(128, (32768, None), 0, 0)),
        (NEMO, MistralParams(128, (None,), 0, 0)),
        (MIXTRAL, MistralParams(128, (None,), 8, 2)),
        (FIRST_MIXTRAL, MistralParams(128, (None,), 8, 2)),
        (FIRST_MIXTRAL | {"sliding_window": "4096", "num_experts_per_tok": 3}, MistralParams(128, (4096,), 8, 3)),
    ],
)  # fmt: skip
def test_published_files_are_read_whole(
    tmp_path: Path, fields: dict[str, object], expected: MistralParams
) -> None:
    params = read(tmp_path, fields)
    assert params.mistral == expected
    assert (params.head_dim, params.kv_heads, params.hidden_dim, params.notes) == (128, 8, 14336, ())


def test_a_head_is_as_wide_as_the_file_says_whatever_dim_is(tmp_path: Path) -> None:
    params = read(tmp_path, NEMO)
    assert params.dim // params.n_heads == 160
    assert params.head_dim == 128
    assert read(tmp_path, NEMO | {"dim": 5121}).head_dim == 128
    with pytest.raises(InputError, match="head size 127 is odd"):
        read(tmp_path, NEMO | {"head_dim": 127})


@pytest.mark.parametrize(
    ("fields", "theta"), [(V1, 1e4), (V1 | {"sliding_window": [None, 4096]}, 1e4), (MIXTRAL, 1e6), (V3, 1e6)]
)
def test_a_theta_that_is_not_said_is_the_one_of_that_times_code(
    tmp_path: Path, fields: dict[str, object], theta: float
) -> None:
    found = read(tmp_path, fields).mistral
    assert found is not None
    assert found.absent_theta == theta


YARN = {"factor": 16, "original_max_position_embeddings": 16384, "beta": 32, "alpha": 1, "apply_scale": False}


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"vision_encoder": {"hidden_size": 1024}}, r"a vision encoder \(Pixtral, Small 3.1 and later\)"),
        ({"multimodal": {"whisper_model_args": {"dim": 1}}}, r"an audio encoder \(Voxtral\)"),
        ({"yarn": YARN}, "rope that is scaled by yarn"),
        ({"llama_4_scaling": {"beta": 0.1}}, "attention that is scaled by position"),
        ({"q_lora_rank": 1536, "kv_lora_rank": 512}, "latent attention"),
        ({"quantization": {"qformat_weight": "fp8_e4m3"}}, "FP8 weights"),
        ({"lora": {"rank": 16, "scaling": 2.0}}, "LoRA adapters"),
        ({"model_type": "mamba"}, "model_type is 'mamba', expected 'transformer'"),
        ({"sliding_window": [4096, "x"]}, "sliding_window is a list|sliding_window is .*expected whole numbers of tokens"),
        ({"sliding_window": 4096, "_sliding_window": 4096}, "sliding_window and _sliding_window are both given"),
        ({"moe": {"num_experts": 8}}, r"no 'moe\.num_experts_per_tok'"),
        ({"moe": 8}, "moe is 8, expected an object"),
        ({"use_scaled_rope": True}, ": rope is scaled, as that of no Mistral is; leave rope_scaling and use_scaled_rope out$"),
    ],
)  # fmt: skip
def test_what_is_not_converted_is_refused_by_its_own_name(
    tmp_path: Path, fields: dict[str, object], words: str
) -> None:
    with pytest.raises(InputError, match=words) as raised:
        read(tmp_path, V3 | fields)
    assert str(tmp_path / "params.json") in str(raised.value)


@pytest.mark.parametrize("key", ["head_dim", "hidden_dim"])
def test_what_every_mistral_has_is_asked_for(tmp_path: Path, key: str) -> None:
    found = {name: value for name, value in V1.items() if name != key}
    with pytest.raises(
        InputError, match=f"no '{key}', which every Mistral model has \\(it has 'sliding_window'"
    ):
        read(tmp_path, found)


def test_a_config_of_transformers_is_no_file_of_mixtrals(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"a config\.json of Transformers"):
        read(tmp_path, FIRST_MIXTRAL | {"architectures": ["MixtralForCausalLM"]})


def test_a_llama_is_none_of_mistrals(tmp_path: Path) -> None:
    assert read(tmp_path, GOOD | {"hidden_dim": 14336, "head_dim": 128}).mistral is None


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.none() | st.integers(1, 1 << 20), min_size=1, max_size=6))
def test_any_pattern_of_windows_is_taken_as_it_is(tmp_path: Path, windows: list[int | None]) -> None:
    found = read(tmp_path, V3 | {"sliding_window": windows}).mistral
    assert found is not None
    assert found.windows == (tuple(windows) if any(windows) else (None,))


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        (MIXTRAL | {"moe": {"num_experts_per_tok": 9, "num_experts": 8}}, "moe.num_experts_per_tok is 9, expected at most the 8"),
        (V3 | {"use_scaled_rope": True}, "rope is scaled, as that of no Mistral is"),
        (V3 | {"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, "rope is scaled, as that of no Mistral is"),
    ],
    ids=str,
)  # fmt: skip
def test_what_no_mistral_can_have_is_named(tmp_path: Path, fields: dict[str, object], words: str) -> None:
    with pytest.raises(InputError) as raised:
        read(tmp_path, fields)
    assert words in str(raised.value)


def test_a_rope_that_is_said_not_to_be_scaled_is_none(tmp_path: Path) -> None:
    assert read(tmp_path, V3 | {"rope_scaling": {"rope_type": "default"}}).mistral is not None
