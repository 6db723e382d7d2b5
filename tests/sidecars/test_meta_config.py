"""config.json: which family it is of, and everything that Meta's code cannot say."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import LlamaConfig

from distconv.errors import InputError, UsageError
from distconv.families.dimensions import Dimensions
from distconv.families.llama import FAMILIES
from distconv.sidecars.config import Rope, Settings, TokenIds, make_config, to_json
from distconv.sidecars.meta_config import MetaConfig, read_meta_config

GOOD: dict[str, object] = {
    "model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": 4096, "num_hidden_layers": 32,
    "num_attention_heads": 32, "num_key_value_heads": 8, "intermediate_size": 14336, "vocab_size": 128256,
    "rms_norm_eps": 1e-05, "rope_theta": 500000.0, "max_position_embeddings": 8192, "bos_token_id": 128000,
    "torch_dtype": "bfloat16",
}  # fmt: skip
SCALING = {
    "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}  # fmt: skip
OLD: dict[str, object] = GOOD | {"vocab_size": 32000, "rope_theta": 10000.0, "bos_token_id": 1}


def read(content: dict[str, object], **options: str) -> MetaConfig:
    return read_meta_config("config.json", json.dumps(content).encode(), **options)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("change", "family"),
    [
        ({}, "llama-3"),
        ({"rope_scaling": SCALING}, "llama-3.1"),
        ({"rope_scaling": SCALING | {"factor": 32.0}, "tie_word_embeddings": True}, "llama-3.2"),
        ({"vocab_size": 32000, "bos_token_id": 1, "rope_theta": 1e6}, "code-llama"),
        ({"vocab_size": 32000, "bos_token_id": 1, "rope_theta": None}, "llama-2"),
        ({"vocab_size": 32016, "bos_token_id": 1, "rope_theta": 1e4, "hidden_size": 8192}, "code-llama-70b-python"),
        ({"vocab_size": 32000, "bos_token_id": 1, "rope_theta": 1e4, "num_key_value_heads": None}, "llama-2"),
        (
            {
                "vocab_size": 32000, "bos_token_id": 1, "rope_theta": 1e4, "num_key_value_heads": None,
                "max_position_embeddings": 2048,
            },
            "llama-1",
        ),
        ({"vocab_size": 576, "bos_token_id": 320}, "llama-3"),
    ],
)  # fmt: skip
def test_the_family_is_told_and_by_what(change: dict[str, object], family: str) -> None:
    config = read(GOOD | change)
    assert config.family.name == family
    assert config.evidence


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_what_distconv_writes_for_a_family_is_read_as_one_with_the_same_params(family: str) -> None:
    chosen = FAMILIES[family]
    vocab = 128256 if chosen.tokenizer == "tiktoken" else 32016
    sizes = Dimensions(8192, 3, 64, 64, 128, 22016, vocab)
    rope = Rope(chosen.theta, chosen.factor)
    tokens = TokenIds(chosen.bos, chosen.eos)
    written = make_config(sizes, Settings(1e-5, rope, chosen.context, tokens, "float16"))
    config = read_meta_config("config.json", to_json(written))
    assert (config.dimensions, config.norm_eps, config.rope) == (sizes, 1e-5, rope)
    assert (config.context, config.dtype) == (chosen.context, "float16")
    expected = "code-llama-70b-python" if vocab == 32016 and rope.theta == 1e4 else family
    assert config.family.is_like(FAMILIES[expected])
    assert read_meta_config("config.json", to_json(written), family=family).family is chosen


@pytest.mark.parametrize("scaling", [None, SCALING])
def test_what_transformers_itself_writes_is_read(tmp_path: Path, scaling: dict[str, object] | None) -> None:
    rope = {"rope_theta": 5e5, **(scaling or {"rope_type": "default"})}
    own = LlamaConfig(
        hidden_size=512, num_attention_heads=8, num_key_value_heads=2, num_hidden_layers=3, intermediate_size=999,
        vocab_size=128256, max_position_embeddings=131072, rope_parameters=rope, architectures=["LlamaForCausalLM"],
        bos_token_id=128000, dtype="bfloat16",
    )  # fmt: skip
    own.save_pretrained(tmp_path)
    config = read_meta_config("config.json", (tmp_path / "config.json").read_bytes())
    assert config.dimensions == Dimensions(512, 3, 8, 2, 64, 999, 128256)
    assert config.norm_eps == own.rms_norm_eps
    assert config.rope == Rope(5e5, None if scaling is None else 8.0)
    assert (config.dtype, config.tied) == ("bfloat16", False)
    assert not any("not known" in note for note in config.notes)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"model_type": "mistral"}, "model_type is 'mistral', expected 'llama'"),
        ({"model_type": None}, "model_type is None, expected 'llama'"),
        ({"architectures": ["LlamaForSequenceClassification"]}, "architectures is ['LlamaForSequenceClassification']"),
        ({"quantization_config": {"quant_method": "gptq"}}, "a quantized model"),
        ({"hidden_size": None}, "no 'hidden_size'"),
        ({"vocab_size": "many"}, "vocab_size is 'many', expected a whole number"),
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, "rope scaling of type 'linear'"),
        ({"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}, "rope scaling of type 'dynamic'"),
        ({"rope_parameters": {"rope_type": "yarn", "factor": 4, "rope_theta": 5e5}}, "rope scaling of type 'yarn'"),
        ({"rope_scaling": SCALING | {"factor": 16.0}}, "factor 16.0, low_freq_factor 1.0"),
        ({"rope_scaling": SCALING | {"high_freq_factor": 8.0}}, "the code of Llama 3.1 takes rope_type llama3"),
        ({"rope_scaling": SCALING | {"original_max_position_embeddings": 4096}}, "Llama 3.1 takes"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, "without all of its four numbers"),
        ({"rope_scaling": SCALING, "rope_parameters": {"rope_theta": 5e5}}, "rope_parameters and rope_scaling differ"),
        ({"rope_parameters": {"rope_theta": 1e6}}, "rope_theta is given twice"),
        ({"rope_parameters": {"rope_theta": 5e5, "partial_rotary_factor": 0.5}}, "partial_rotary_factor 0.5"),
        ({"rope_scaling": 8}, "rope_scaling is 8, expected an object"),
        ({"head_dim": 160}, "head_dim 160 for hidden_size 4096 and 32 heads"),
        ({"num_attention_heads": 33}, "head_dim 124 for hidden_size 4096 and 33 heads"),
        ({"hidden_size": 96, "num_attention_heads": 32}, "head_dim 3 is odd"),
        ({"num_key_value_heads": 5}, "32 is not a multiple of num_key_value_heads 5"),
        ({"attention_bias": True}, "attention_bias is true"),
        ({"mlp_bias": True}, "mlp_bias is true"),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
        ({"hidden_act": ["silu"]}, "hidden_act is ['silu']"),
        ({"sliding_window": 4096}, "sliding_window is 4096"),
        ({"torch_dtype": "int8"}, "dtype is int8"),
        ({"dtype": "float16"}, "dtype is bfloat16 and float16"),
    ],
)  # fmt: skip
def test_what_metas_code_cannot_say_is_refused_by_name(change: dict[str, object], words: str) -> None:
    with pytest.raises(InputError) as raised:
        read(GOOD | change)
    assert words in str(raised.value)
    assert all(line.startswith("config.json: ") for line in str(raised.value).splitlines())


@pytest.mark.parametrize(
    ("content", "options", "words"),
    [
        (
            OLD | {"rope_theta": 1e6},
            {"family": "llama-2"},
            "rope_theta 1e+06; the code of Llama 2 always takes 10000",
        ),
        (OLD | {"rope_theta": 5e4}, {"family": "llama-1"}, "the code of Llama 1 always takes 10000"),
        (GOOD, {"family": "llama-3.1"}, "rope scaling is rope_type default; the code of Llama 3.1"),
        (GOOD | {"rope_scaling": SCALING}, {"family": "llama-3.2"}, "the code of Llama 3.2 takes"),
        (
            GOOD | {"rope_scaling": SCALING},
            {"family": "llama-3"},
            "the code of Llama 3 takes rope_type default",
        ),
        (
            GOOD,
            {"tokenizer": "tiktoken", "family": "code-llama"},
            "has a sentencepiece tokenizer, found a tiktoken",
        ),
        (GOOD, {"family": "llama-2"}, "vocabulary of 128,256, Llama 2 has a sentencepiece tokenizer"),
    ],
)
def test_a_family_that_config_contradicts_is_refused(
    content: dict[str, object], options: dict[str, str], words: str
) -> None:
    with pytest.raises(InputError) as raised:
        read(content, **options)
    assert words in str(raised.value)


def test_all_that_is_wrong_is_said_at_once() -> None:
    with pytest.raises(InputError) as raised:
        read(
            GOOD
            | {"attention_bias": True, "head_dim": 64, "hidden_size": "x", "rope_scaling": {"type": "yarn"}}
        )
    assert len(str(raised.value).splitlines()) == 4


@pytest.mark.parametrize(
    "change",
    [
        {
            "head_dim": None,
            "attention_bias": False,
            "mlp_bias": None,
            "hidden_act": None,
            "sliding_window": None,
        },
        {"rope_scaling": None, "sliding_window": -1, "quantization_config": None, "rope_parameters": {}},
        {
            "rope_scaling": {"rope_type": "default"},
            "rope_parameters": {"rope_theta": 5e5, "rope_type": "default"},
        },
        {"sliding_window": 4096, "use_sliding_window": False},
        {"dtype": "bfloat16", "architectures": None},
        {"architectures": ["LLaMAForCausalLM"]},
    ],
)
def test_what_is_not_used_says_nothing(change: dict[str, object]) -> None:
    config, plain = read(GOOD | change), read(GOOD)
    assert config == plain


def test_any_theta_is_kept_where_params_json_has_one() -> None:
    assert read(GOOD | {"rope_theta": 2.8e6}).rope.theta == 2.8e6
    assert read(OLD | {"rope_theta": 5e6}, tokenizer="sentencepiece").family.name == "code-llama"


def test_what_has_no_place_in_params_json_is_noted() -> None:
    context, factor, unknown = read(
        GOOD
        | {"rope_scaling": SCALING | {"factor": 32.0}, "max_position_embeddings": 9000, "logit_scale": 0.5}
    ).notes
    assert "max_position_embeddings 9,000" in context
    assert "Meta's own code then takes 8" in factor
    assert "'logit_scale': not known" in unknown


def test_an_unknown_family_is_named() -> None:
    with pytest.raises(UsageError, match="`family='llama-9'`: unknown"):
        read(GOOD, family="llama-9")


@pytest.mark.parametrize("content", [b"", b"[]", b"{", b"<html>", b"\xff"])
def test_what_is_no_json_object_is_said(content: bytes) -> None:
    with pytest.raises(InputError, match=r"^config\.json: "):
        read_meta_config("config.json", content)


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(["llama3", "yarn"]),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from([*SCALING, "rope_theta"]), inner)
    ),
    max_leaves=6,
)
KEYS = (
    *GOOD,
    "rope_scaling",
    "rope_parameters",
    "head_dim",
    "hidden_act",
    "dtype",
    "sliding_window",
    "mlp_bias",
)


@given(change=st.dictionaries(st.sampled_from(KEYS), JSON, max_size=3))
def test_whatever_a_key_holds_it_is_read_or_refused_by_name(change: dict[str, object]) -> None:
    said = "config.json: "
    try:
        sizes = read(GOOD | change).dimensions
    except InputError as error:
        said = str(error)
    else:
        assert sizes.head_dim * sizes.heads == sizes.dim
    assert all(line.startswith("config.json: ") for line in said.splitlines())


HUB: dict[str, dict[str, object]] = {
    "llama-1": {
        "hidden_size": 3200, "intermediate_size": 8640, "num_attention_heads": 32, "num_hidden_layers": 26,
        "num_key_value_heads": None, "rope_theta": None, "vocab_size": 32000, "bos_token_id": 1, "rms_norm_eps": 1e-6,
        "max_position_embeddings": 2048, "torch_dtype": "float16",
    },
    "llama-2": {
        "hidden_size": 2048, "intermediate_size": 5632, "num_key_value_heads": 4, "num_hidden_layers": 22,
        "rope_theta": None, "vocab_size": 32000, "bos_token_id": 1, "max_position_embeddings": 2048,
        "rope_scaling": None, "pretraining_tp": 1, "torch_dtype": "float32", "use_cache": True,
    },
    "llama-3.2": {
        "hidden_size": 3072, "intermediate_size": 8192, "num_attention_heads": 24, "num_hidden_layers": 28,
        "head_dim": 128, "rope_scaling": SCALING | {"factor": 32.0}, "tie_word_embeddings": True,
        "max_position_embeddings": 131072, "transformers_version": "4.45.0.dev0", "mlp_bias": False,
    },
}  # fmt: skip


@pytest.mark.parametrize("family", HUB)
def test_models_of_the_hub_are_told_and_say_nothing_unknown(family: str) -> None:
    config = read(GOOD | HUB[family])
    assert config.family.name == family
    assert config.dtype == HUB[family].get("torch_dtype", "bfloat16")
    assert not any("not known" in note for note in config.notes)
