"""params.json of models with images: Llama 3.2 Vision and Llama 4."""

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from llama_models.llama3 import args as llama3
from llama_models.llama4 import args as llama4

from distconv.errors import InputError
from distconv.formats.meta.multimodal import ExpertParams, Llama4Params, TowerParams, VisionParams
from tests.formats.test_params import read

VISION: dict[str, object] = {
    "dim": 4096, "n_layers": 32, "n_heads": 32, "n_kv_heads": 8, "vocab_size": 128256, "ffn_dim_multiplier": 1.3,
    "multiple_of": 1024, "norm_eps": 1e-05, "rope_theta": 500000.0, "use_scaled_rope": True,
    "vision_chunk_size": 560, "vision_max_num_chunks": 4, "vision_num_cross_attention_layers": 8,
}  # fmt: skip
TOWER: dict[str, object] = {
    "image_size": {"height": 336, "width": 336}, "patch_size": {"height": 14, "width": 14}, "dim": 1408,
    "n_layers": 34, "n_heads": 16, "mlp_ratio": 4.0, "output_dim": 4096, "pixel_shuffle_ratio": 0.5,
}  # fmt: skip
EXPERTS: dict[str, object] = {
    "num_experts": 16, "capacity_factor": 1.0, "auto_scale_F": True, "top_k": 1, "interleave_moe_layer_step": 1,
}  # fmt: skip
SCOUT: dict[str, object] = {
    "dim": 5120, "n_layers": 48, "n_heads": 40, "n_kv_heads": 8, "vocab_size": 202048, "multiple_of": 2048,
    "ffn_dim_multiplier": 1.2, "ffn_exp": 4.0, "norm_eps": 1e-05, "attention_chunk_size": 8192, "rope_theta": 500000,
    "use_scaled_rope": True, "nope_layer_interval": 4, "use_qk_norm": True, "vision_args": TOWER, "moe_args": EXPERTS,
}  # fmt: skip
MAVERICK = SCOUT | {
    "use_scaled_rope": False, "use_qk_norm": False,
    "moe_args": EXPERTS | {"num_experts": 128, "interleave_moe_layer_step": 2},
}  # fmt: skip
GUARD_4 = SCOUT | {
    "ffn_dim_multiplier": 0.6, "attention_chunk_size": None, "use_scaled_rope": False, "nope_layer_interval": None,
    "use_qk_norm": False, "moe_args": None,
}  # fmt: skip
PUBLISHED = {"scout": SCOUT, "maverick": MAVERICK, "guard-4": GUARD_4}


def test_llama_3_2_vision_is_read_whole(tmp_path: Path) -> None:
    params = read(tmp_path, VISION)
    assert params.vision == VisionParams(chunk_size=560, max_tiles=4, cross_attention_layers=8)
    assert (params.llama_4, params.ffn_dim, params.notes) == (None, 14336, ())


def test_cross_attention_layers_may_lie_where_the_first_files_had_them(tmp_path: Path) -> None:
    older = {key: value for key, value in VISION.items() if key != "vision_num_cross_attention_layers"}
    nested = {"vision_model": {"cross_attention_adapter": {"num_layers": 20}}}
    params = read(tmp_path, older | nested)
    assert params.vision is not None
    assert (
        params.vision.cross_attention_layers
        == llama3.ModelArgs(**older, **nested).vision_num_cross_attention_layers
        == 20
    )
    with pytest.raises(InputError, match="cross-attention layers is given twice, and differs"):
        read(tmp_path, VISION | nested)


def test_tiles_are_those_of_metas_code_where_none_are_told(tmp_path: Path) -> None:
    params = read(tmp_path, {key: value for key, value in VISION.items() if key != "vision_max_num_chunks"})
    assert params.vision is not None
    assert params.vision.max_tiles == llama3.ModelArgs().vision_max_num_chunks


def test_llama_4_is_read_whole(tmp_path: Path) -> None:
    params = read(tmp_path, SCOUT)
    assert params.llama_4 == Llama4Params(
        tower=TowerParams(16, 0.5, width=1408, layers=34, output_dim=4096, image_size=336, patch=14),
        experts=ExpertParams(16, top_k=1, step=1),
        attention_chunk_size=8192,
        nope_interval=4,
        qk_norm=True,
        floor_scale=8192,
        attention_scale=0.1,
    )
    assert (params.vision, params.use_scaled_rope, params.notes) == (None, True, ())


def test_a_llama_4_without_experts_chunks_and_layers_without_rope_is_read(tmp_path: Path) -> None:
    found = read(tmp_path, GUARD_4).llama_4
    assert found is not None
    assert (found.experts, found.attention_chunk_size, found.nope_interval, found.qk_norm) == (
        None,
        None,
        None,
        False,
    )


@pytest.mark.parametrize("name", PUBLISHED)
def test_llama_4_may_lie_under_model_and_be_written_by_metas_own_class(tmp_path: Path, name: str) -> None:
    fields = llama4.ModelArgs(**PUBLISHED[name]).model_dump(mode="json")  # type: ignore[arg-type]
    plain, nested = read(tmp_path, PUBLISHED[name]), read(tmp_path, {"model": fields})
    assert nested.nested
    assert nested.llama_4 == plain.llama_4
    assert nested.notes == ()


def test_what_experts_and_attention_may_leave_out_is_as_metas_classes_have_it(tmp_path: Path) -> None:
    found = read(tmp_path, SCOUT | {"moe_args": {"num_experts": 2}}).llama_4
    theirs = llama4.MoEArgs(num_experts=2)
    assert found is not None
    assert found.experts == ExpertParams(2, top_k=theirs.top_k, step=theirs.interleave_moe_layer_step)
    every = read(tmp_path, SCOUT | {"moe_args": EXPERTS | {"top_k": 16}, "attn_scale": 0.25}).llama_4
    assert every is not None
    assert every.experts == ExpertParams(16, top_k=16, step=1)
    assert every.attention_scale == 0.25
    assert read(tmp_path, SCOUT | {"moe_args": {"num_experts": 0, "top_k": 1}}).llama_4 == replace(
        found, experts=None
    )


def without(fields: dict[str, object], *keys: str) -> dict[str, object]:
    return {key: value for key, value in fields.items() if key not in keys}


DENSE = without(SCOUT, "vision_args", "attention_chunk_size", "nope_layer_interval", "use_qk_norm")


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        (without(VISION, "vision_chunk_size"), "no 'vision_chunk_size', which every Llama 3.2 Vision model has"),
        (without(VISION, "vision_num_cross_attention_layers"), "no 'vision_num_cross_attention_layers', which"),
        (VISION | {"vision_chunk_size": "large"}, "vision_chunk_size is 'large', expected a whole number"),
        (VISION | {"vision_max_num_chunks": 1.5}, "vision_max_num_chunks is 1.5, expected a whole number"),
        (VISION | {"vision_model": 8}, "vision_model is 8, expected an object"),
        (VISION | {"vision_model": {"cross_attention_adapter": [8]}}, "vision_model.cross_attention_adapter is [8]"),
        (VISION | SCOUT, "fields of Llama 3.2 Vision and of Llama 4 in one file, expected those of one"),
        (without(SCOUT, "vision_args"), "no 'vision_args', which every Llama 4 model has (it has 'nope_layer_interval')"),
        (without(DENSE, "vision_args") | {"moe_args": EXPERTS}, "no 'vision_args', which every Llama 4 model has (it has 'moe_args')"),
        (SCOUT | {"vision_args": without(TOWER, "output_dim")}, "no 'vision_args.output_dim'"),
        (SCOUT | {"vision_args": without(TOWER, "mlp_ratio")}, "no 'vision_args.mlp_ratio'"),
        (SCOUT | {"vision_args": without(TOWER, "patch_size")}, "no 'vision_args.patch_size'"),
        (SCOUT | {"vision_args": TOWER | {"image_size": 336}}, "vision_args.image_size is 336, expected an object"),
        (
            SCOUT | {"vision_args": TOWER | {"image_size": {"height": 336, "width": 224}}},
            "vision_args.image_size is '336 x 224', expected a square",
        ),
        (SCOUT | {"moe_args": EXPERTS | {"num_experts": "16x"}}, "moe_args.num_experts is '16x'"),
        (SCOUT | {"moe_args": EXPERTS | {"top_k": 17}}, "moe_args.top_k is 17, expected at most the 16 experts"),
        (SCOUT | {"moe_args": [16]}, "moe_args is [16], expected an object"),
        (SCOUT | {"moe_args": EXPERTS | {"auto_scale_F": 2}}, "moe_args.auto_scale_F is 2, expected true or false"),
        (SCOUT | {"floor_scale": 8192.5}, "floor_scale is 8192.5, expected a whole number"),
        (SCOUT | {"use_qk_norm": "yes"}, "use_qk_norm is 'yes', expected true or false"),
        (SCOUT | {"attn_temperature_tuning": 4.5}, "attn_temperature_tuning is 4.5, expected true or false"),
        (SCOUT | {"head_dim": 64}, "head_dim 64, dim / n_heads gives 128"),
    ],
)  # fmt: skip
def test_an_impossible_field_is_named_with_what_was_expected(
    tmp_path: Path, fields: dict[str, object], words: str
) -> None:
    with pytest.raises(InputError) as raised:
        read(tmp_path, fields)
    assert words in str(raised.value)
    assert all(line.startswith(str(tmp_path / "params.json")) for line in str(raised.value).splitlines())


def test_what_is_not_known_is_told_wherever_it_lies(tmp_path: Path) -> None:
    fields = SCOUT | {
        "vision_args": TOWER | {"dropout": 0.1},
        "moe_args": EXPERTS | {"jitter": 1},
        "later": 3,
    }
    assert read(tmp_path, fields).notes == (
        f"{tmp_path / 'params.json'}: 'later', 'vision_args.dropout', 'moe_args.jitter': not known to distconv, and left out",
    )


def test_a_floor_that_is_written_as_a_float_is_a_whole_number(tmp_path: Path) -> None:
    found = read(tmp_path, SCOUT | {"floor_scale": 4.0}).llama_4
    assert found is not None
    assert type(found.floor_scale) is int
    assert found.floor_scale == 4


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=6),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["height", "width", "dim"]), inner)
    ),
    max_leaves=4,
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), whole=st.sampled_from([VISION, SCOUT]))
def test_whatever_stands_in_a_field_is_read_or_named(
    tmp_path: Path, data: st.DataObject, whole: dict[str, object]
) -> None:
    fields = dict(whole)
    for key in data.draw(st.lists(st.sampled_from([*whole]), min_size=1, max_size=3)):
        inner = fields[key]
        value = data.draw(VALUES)
        fields[key] = (
            inner | {data.draw(st.sampled_from([*inner])): value}
            if isinstance(inner, dict) and inner
            else value
        )
    try:
        params = read(tmp_path, fields)
    except InputError as error:
        assert str(error).startswith(str(tmp_path))  # noqa: PT017
    else:
        assert params.dim > 0
