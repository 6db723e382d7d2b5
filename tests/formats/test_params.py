"""params.json: what it says, and everything that can be wrong with it."""

import dataclasses
import json
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from llama_models.llama3 import args as llama3
from llama_models.llama4 import args as llama4

import distconv
from distconv.errors import InputError
from distconv.formats.meta.params import Params, read_params
from distconv.storage.local import LocalStorage
from tests.checkpoints import Spec, make_params
from tests.extent import share

GOOD: dict[str, object] = {
    "dim": 4096, "multiple_of": 256, "n_heads": 32, "n_layers": 32, "norm_eps": 1e-06, "vocab_size": -1,
}  # fmt: skip


def read(folder: Path, content: object) -> Params:
    """Read params.json with this content: bytes as they are, anything else as JSON."""
    path = folder / "params.json"
    path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    return read_params(LocalStorage(), str(path))


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give a folder in which params.json is written again and again."""
    return tmp_path_factory.mktemp("params")


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
        ({"dim": "wide"}, "dim is 'wide', expected a whole number from 1 to 16,777,216"),
        ({"dim": 4096.5}, "dim is 4096.5, expected a whole number from 1 to 16,777,216"),
        ({"dim": "4_096"}, "dim is '4_096', expected a whole number from 1 to 16,777,216"),
        ({"dim": {"a": {}}}, "dim is an object, expected a whole number from 1 to 16,777,216"),
        ({"dim": -1}, "dim is -1, expected a whole number from 1 to 16,777,216"),
        ({"dim": True}, "dim is True, expected a whole number from 1 to 16,777,216"),
        ({"dim": 0}, "dim is 0, expected a whole number from 1 to 16,777,216"),
        ({"dim": -4096}, "dim is -4096, expected a whole number from 1 to 16,777,216"),
        ({"dim": 10**30}, "dim is 1000000000000000000000000000000, expected a whole number from 1 to 16,777,216"),
        ({"dim": None}, "no 'dim'"),
        ({"dim": [[1]]}, "dim is a list, expected a whole number from 1 to 16,777,216"),
        ({"dim": [1] * 100}, "dim is [1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, ..., expected a whole number from 1 to 16,777,216"),
        ({"dim": "x" * 38}, f"dim is '{'x' * 38}', expected a whole number from 1 to 16,777,216"),
        ({"dim": "x" * 39}, f"dim is '{'x' * 36}..., expected a whole number from 1 to 16,777,216"),
        ({"dim": float("-inf")}, "dim is -Infinity, expected a whole number from 1 to 16,777,216"),
        ({"n_layers": [32]}, "n_layers is [32], expected a whole number from 1 to 16,777,216"),
        ({"n_heads": 0}, "n_heads is 0, expected a whole number from 1 to 16,777,216"),
        ({"n_heads": 33}, "dim 4096 is not a multiple of n_heads 33"),
        ({"n_kv_heads": 5}, "n_heads 32 is not a multiple of n_kv_heads 5"),
        ({"n_kv_heads": "eight"}, "n_kv_heads is 'eight', expected a whole number from 1 to 16,777,216"),
        ({"n_kv_heads": True}, "n_kv_heads is True, expected a whole number from 1 to 16,777,216"),
        ({"dim": 96, "n_heads": 32}, "head size 3 is odd; rotary embeddings pair up elements"),
        ({"norm_eps": 2}, "norm_eps is 2, expected a positive number of at most 1"),
        ({"norm_eps": 0}, "norm_eps is 0, expected a positive number of at most 1"),
        ({"norm_eps": "small"}, "norm_eps is 'small', expected a positive number of at most 1"),
        ({"norm_eps": 1e400}, "norm_eps is Infinity, expected a positive number of at most 1"),
        ({"norm_eps": float("nan")}, "norm_eps is NaN, expected a positive number of at most 1"),
        ({"rope_theta": -1.0}, "rope_theta is -1.0, expected a positive number"),
        ({"use_scaled_rope": "yes"}, "use_scaled_rope is 'yes', expected true or false"),
        ({"rope_theta": 1e5, "rope_base": 1e6}, "rope_theta 100000 and rope_base 1e+06, expected one of them or equal ones"),
        ({"ffn_dim_multiplier": "some"}, "ffn_dim_multiplier is 'some', expected a positive number of at most 1e+06"),
        ({"ffn_dim_multiplier": 1e308}, "ffn_dim_multiplier is 1e+308, expected a positive number of at most 1e+06"),
        ({"multiple_of": -256}, "multiple_of is -256, expected a whole number from 1 to 16,777,216"),
        ({"head_dim": 160}, "head_dim 160, dim / n_heads gives 128: a model whose heads are not as wide as it is, as some of Mistral's are, which have 'hidden_dim' and no 'multiple_of'; distconv converts Llama and Mistral"),
        ({"use_scaled_rope": True, "rope_scaling": {"rope_type": "yarn", "factor": 4}}, "rope scaling of type 'yarn', expected that of Llama 3.1 ('llama3')"),
        ({"use_scaled_rope": True, "rope_scaling": {"rope_type": "default"}}, "rope scaling of type 'default', expected that of Llama 3.1 ('llama3')"),
        ({"rope_scaling": {"factor": 8}, "rope_scaling_factor": 16}, "rope_scaling_factor is given twice, with different values"),
        ({"rope_scaling": 8}, "rope_scaling is 8, expected an object"),
        ({"rope_scaling": {"factor": "x"}}, "rope_scaling.factor is 'x', expected a positive number"),
        ({"vocab_size": 1.5}, "vocab_size is 1.5, expected a whole number from 1 to 16,777,216"),
    ],
)  # fmt: skip
def test_an_impossible_field_is_named_with_what_was_expected(
    tmp_path: Path, change: dict[str, object], words: str
) -> None:
    with pytest.raises(InputError) as raised:
        read(tmp_path, GOOD | change)
    assert str(raised.value) == f"{tmp_path / 'params.json'}: {words}"


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
        (b"", "not JSON (Expecting value: line 1 column 1 (char 0)); it is an empty file"),
        (b"<!DOCTYPE html><html>403</html>", "not JSON (Expecting value: line 1 column 1 (char 0)); it is an HTML or XML page, as an expired download link gives"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "not JSON (Expecting value: line 1 column 1 (char 0)); it is a git-LFS pointer; run `git lfs pull` to get the file"),
        (b"\x80\x02}q\x00.", "not JSON ('utf-8' codec can't decode byte 0x80 in position 0: invalid start byte); it is a pickle"),
        (b'{"dim": 4096', "not JSON (Expecting ',' delimiter: line 1 column 13 (char 12))"),
        (b"[1, 2]", "list, expected a JSON object"),
        (b'"text"', "str, expected a JSON object"),
        (b'{"dim": \xff}', "not JSON ('utf-8' codec can't decode byte 0xff in position 8: invalid start byte)"),
        (b"[" * 200_000, "not JSON (nested too deeply); it is JSON text"),
        (b'{"dim": 64, "dim": 128}', "not JSON ('dim' is there twice, with different values)"),
        (b'{"dim": 1' + b"0" * 5000 + b"}", "dim is Infinity, expected a whole number from 1 to 16,777,216\nno 'n_layers'\nno 'n_heads'"),
        (b'{"dim": 1e400}', "dim is Infinity, expected a whole number from 1 to 16,777,216\nno 'n_layers'\nno 'n_heads'"),
        (b"{}" + b" " * (2 << 20), "2,097,154 bytes, expected at most 1,048,576"),
    ],
)  # fmt: skip
def test_what_is_no_params_file_is_told_by_its_content(tmp_path: Path, content: bytes, words: str) -> None:
    with pytest.raises(InputError) as raised:
        read(tmp_path, content)
    lines = words.splitlines()
    assert str(raised.value) == "\n".join(f"{tmp_path / 'params.json'}: {line}" for line in lines)


BUSY = settings(
    deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture]
)
"""Examples may take as long as a busy machine needs."""
FOREIGN = {
    "quantization_args": "quantized",
    "lora_args": "LoRA",
    "moe": "Mistral",
    "sliding_window": "Mistral",
}
PARTS = {
    "vision_chunk_size": "Llama 3.2 Vision",
    "vision_num_cross_attention_layers": "Llama 3.2 Vision",
    "vision_model": "Llama 3.2 Vision",
    "moe_args": "Llama 4",
    "nope_layer_interval": "Llama 4",
    "attention_chunk_size": "Llama 4",
    "use_qk_norm": "Llama 4",
    "attn_temperature_tuning": "Llama 4",
    "vision_args": "vision_args",
}
"""Fields of models with images, none of which makes one alone."""
OPTIONAL = (
    "n_kv_heads", "multiple_of", "ffn_dim_multiplier", "hidden_dim", "head_dim", "vocab_size", "use_scaled_rope",
    "rope_scaling", "rope_scaling_factor", "max_seq_len", "weight_tying",
)  # fmt: skip
UNUSED = st.recursive(
    st.sampled_from([None, False, 0, 0.0, -1, "", "null", "None", "false", "-1"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
USED = st.one_of(
    st.integers(1, 10**6),
    st.floats(0.001, 1e6),
    st.just(value=True),
    st.sampled_from(["4096", "yes", "int4"]),
    st.dictionaries(st.sampled_from(["a", "rank", "num_experts"]), st.integers(1, 8), min_size=1),
    st.lists(st.integers(1, 8), min_size=1, max_size=3),
)


@BUSY
@given(key=st.sampled_from([*FOREIGN, *PARTS, *OPTIONAL]), value=UNUSED)
def test_a_field_that_says_unused_says_nothing(scratch: Path, key: str, value: object) -> None:
    plain = {name: field for name, field in GOOD.items() if name != key}
    expected, found = read(scratch, plain), read(scratch, plain | {key: value})
    assert replace(found, md5=expected.md5) == expected


SCHEME: dict[str, object] = {"scheme": "int4_weight_int8_dynamic_activation", "group_size": 32}


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"quantization_args": SCHEME, "lora_args": {"rank": 16, "scale": 2.0}}, "a QLoRA checkpoint"),
        ({"quantization_args": {**SCHEME, "spinquant": True}, "lora_args": None}, "a SpinQuant checkpoint"),
        ({"quantization_args": {**SCHEME, "spinquant": False}}, "an int4-quantized checkpoint"),
        ({"quantization_args": "int4"}, "an int4-quantized checkpoint"),
        ({"quantization_args": SCHEME, "lora_args": {"rank": 0, "scale": 2.0}}, "an int4-quantized checkpoint"),
        ({"quantization_args": {"scheme": None}, "lora_args": {"rank": 16}}, "a LoRA checkpoint; merge it into the model"),
    ],
)  # fmt: skip
def test_quantized_models_are_each_refused_by_their_own_name(
    tmp_path: Path, fields: dict[str, object], words: str
) -> None:
    with pytest.raises(InputError, match=words) as raised:
        read(tmp_path, GOOD | fields)
    assert "merge it" in str(raised.value) or "convert the bf16 model instead" in str(raised.value)


@BUSY
@given(key=st.sampled_from([*FOREIGN, *PARTS]), value=USED)
def test_a_field_of_another_model_that_is_used_is_refused_by_name(
    scratch: Path, key: str, value: object
) -> None:
    with pytest.raises(InputError, match=(FOREIGN | PARTS)[key]):
        read(scratch, GOOD | {key: value})


def test_experts_that_are_counted_as_none_are_none(tmp_path: Path) -> None:
    unused = {"num_experts": -1, "capacity_factor": 1.0, "auto_scale_F": True, "top_k": 1}
    assert read(tmp_path, GOOD | {"moe_args": unused}).dim == 4096
    with pytest.raises(InputError, match="Llama 4"):
        read(tmp_path, GOOD | {"moe_args": unused | {"num_experts": 16}})


def test_lora_of_no_rank_is_none(tmp_path: Path) -> None:
    assert read(tmp_path, GOOD | {"lora_args": {"rank": 0, "scale": 2.0}}).dim == 4096
    with pytest.raises(InputError, match="LoRA"):
        read(tmp_path, GOOD | {"lora_args": {"scale": 2.0}})


def test_what_metas_own_classes_write_of_a_plain_model_is_plain(tmp_path: Path) -> None:
    older = dataclasses.asdict(
        llama3.ModelArgs(dim=4096, n_layers=32, n_heads=32, n_kv_heads=8, multiple_of=1024)
    )
    assert older["vision_chunk_size"] == -1
    newer = llama4.ModelArgs(dim=4096, n_layers=32, n_heads=32, n_kv_heads=8, multiple_of=1024).model_dump()
    for fields in (older, newer):
        params = read(tmp_path, fields)
        assert (params.kv_heads, params.vocab_size, params.use_scaled_rope) == (8, None, False)
        assert params.trained_context == ("max_seq_len", 2048)
        assert params.notes == ()


def test_a_trainers_file_holds_the_model_under_a_key_and_null_for_what_it_does_not_use(
    tmp_path: Path,
) -> None:
    model = {
        "dim": 4096, "n_layers": 32, "head_dim": 128, "n_heads": None, "n_kv_heads": None, "ffn_dim_multiplier": None,
        "multiple_of": 256, "norm_eps": 1e-05, "rope_theta": 10000.0, "init_base_std": None,
        "init_std_factor": "disabled", "max_seqlen": 4096, "seed": 42, "vocab_size": 32000, "weight_tying": False,
        "sliding_window": None,
    }  # fmt: skip
    params = read(tmp_path, {"name": "run", "optim": {"clip": float("inf")}, "model": model, "steps": 1000})
    assert (params.n_heads, params.kv_heads, params.head_dim, params.nested) == (32, 32, 128, True)
    assert (params.trained_context, params.tied, params.notes) == (("max_seqlen", 4096), False, ())


def test_of_two_models_in_one_file_none_is_taken(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="'text', 'draft' each hold a 'dim'"):
        read(tmp_path, {"text": GOOD, "draft": GOOD})
    assert read(tmp_path, {"args": GOOD, "model": {"name": "llama"}}).dim == 4096
    with pytest.raises(InputError, match="no 'dim'"):
        read(tmp_path, {"model": {"n_layers": 2}})


@BUSY
@given(data=st.data())
def test_a_number_is_read_however_it_is_written(scratch: Path, data: st.DataObject) -> None:
    written = {
        key: data.draw(st.sampled_from([value, float(value), str(value), f" {float(value)} "]), label=key)
        for key, value in GOOD.items()
        if isinstance(value, int | float) and key != "vocab_size"
    }
    written["norm_eps"] = data.draw(st.sampled_from([1e-6, "1e-06", "1E-6", "0.000001"]))
    written["vocab_size"] = data.draw(st.sampled_from([-1, 0, None, -1.0, "-1", 0.0]))
    expected = read(scratch, GOOD)
    assert replace(read(scratch, written), md5=expected.md5) == expected


def test_a_config_of_transformers_is_called_what_it_is(tmp_path: Path) -> None:
    config = {
        "architectures": ["LlamaForCausalLM"],
        "hidden_size": 4096,
        "num_hidden_layers": 32,
        "head_dim": 128,
    }
    with pytest.raises(
        InputError, match=r"a config\.json of Transformers \(it has 'hidden_size'\), .*`params=`"
    ):
        read(tmp_path, config)


@pytest.mark.parametrize(
    ("fields", "scaled", "factor"),
    [
        ({"use_scaled_rope": True}, True, None),
        ({"use_scaled_rope": True, "rope_scaling_factor": 32}, True, 32),
        ({"use_scaled_rope": "true", "rope_scaling_factor": "16"}, True, 16),
        ({"use_scaled_rope": False, "rope_scaling_factor": 32}, False, 32),
        (
            {"use_scaled_rope": None, "rope_scaling_args": {"scaling_factor": 8.0, "low_freq_factor": 1.0}},
            True,
            8,
        ),
        (
            {"rope_scaling": {"rope_type": "llama3", "factor": 4, "original_max_position_embeddings": 8192}},
            True,
            4,
        ),
        ({"use_scaled_rope": False, "rope_scaling": {"factor": 4}}, False, 4),
        ({"use_scaled_rope": 0, "rope_scaling": None}, False, None),
        ({"rope_scaling": {"rope_type": "default"}}, False, None),
        ({"use_scaled_rope": False, "rope_scaling": {"type": "default", "factor": 1.0}}, False, None),
    ],
)
def test_rope_scaling_is_read_under_every_name(
    tmp_path: Path, fields: dict[str, object], scaled: bool, factor: float | None
) -> None:
    params = read(tmp_path, GOOD | fields)
    assert (params.use_scaled_rope, params.rope_scaling.factor) == (scaled, factor)
    assert params.notes == ()


def test_what_has_no_place_in_a_config_is_mentioned(tmp_path: Path) -> None:
    (note,) = read(tmp_path, GOOD | {"logit_softcap": 30.0, "flash": True, "dropout": 0.0}).notes
    assert (
        note == f"{tmp_path / 'params.json'}: 'logit_softcap', 'flash': not known to distconv, and left out"
    )


def test_the_base_of_rope_and_the_epsilon_have_several_names(tmp_path: Path) -> None:
    plain = {key: value for key, value in GOOD.items() if key != "norm_eps"}
    assert read(tmp_path, plain | {"rms_norm_eps": 1e-6}).norm_eps == 1e-6
    assert read(tmp_path, plain).norm_eps == 1e-5
    assert read(tmp_path, GOOD | {"rotary_base": 5e5}).rope_theta == 5e5
    assert read(tmp_path, GOOD | {"rope_base": 5e5}).rope_theta == 5e5
    assert read(tmp_path, GOOD | {"rope_base": 5e5, "rope_theta": 500000}).rope_theta == 5e5


HUGE = "a number of 5,000 digits"
JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.sampled_from([10**30, 10**400, 1 << 18, 1 << 24, (1 << 24) + 1])
    | st.floats()
    | st.text(max_size=20)
    | st.sampled_from(["1e308", "9" * 5000, HUGE, "\ud800", "1e-400"]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)


@BUSY
@given(
    changes=st.dictionaries(
        st.sampled_from([*GOOD, *OPTIONAL, *FOREIGN, "rope_theta", "model"]), JSON, min_size=1, max_size=3
    )
)
def test_any_value_in_any_field_is_read_or_is_one_clear_error(
    scratch: Path, changes: dict[str, object]
) -> None:
    content = json.dumps(GOOD | changes).replace(json.dumps(HUGE), "9" * 5000).encode()
    started = time.process_time()
    found = attempt(scratch, content)
    assert time.process_time() - started < 1
    if isinstance(found, Params):
        assert found.head_dim * found.n_heads == found.dim
        assert found.ffn_dim is None or found.ffn_dim > 0
    else:
        assert all(line.startswith(str(scratch / "params.json")) for line in found.splitlines())
        assert len(found) < 2000


@settings(BUSY, max_examples=share(60))
@given(key=st.sampled_from([*GOOD, *OPTIONAL, *FOREIGN, "rope_theta", "max_seq_len"]), value=JSON)
def test_any_value_beside_real_shards_makes_a_plan_or_one_clear_error(
    checkpoint: Callable[[Spec], Path], scratch: Path, key: str, value: object
) -> None:
    spec = Spec(dim=32, multiple_of=16)
    path = scratch / "params.json"
    content = json.dumps(make_params(spec) | {key: value}).replace(json.dumps(HUGE), "9" * 5000)
    path.write_text(content)
    started = time.process_time()
    try:
        assert len(distconv.plan(checkpoint(spec), params=path).plan.tensors) == 21
    except InputError as error:
        findings = str(error).splitlines()
    else:
        findings = []
    assert time.process_time() - started < 1
    assert len(findings) <= 21
    assert sum(map(len, findings)) < 8000


def attempt(folder: Path, content: bytes) -> Params | str:
    """Read it, or give what is said against it."""
    try:
        return read(folder, content)
    except InputError as error:
        return str(error)
