"""config.json of models with images gives params.json of the same meaning, or is refused with the reason."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from llama_models.llama4.moe import MoE

from distconv.errors import InputError, MismatchError, UsageError
from distconv.families.dimensions import Dimensions
from distconv.formats.meta.params import Params, compute_ffn_dim, read_params
from distconv.sidecars.config import to_json
from distconv.sidecars.meta_experts import ExpertFormula, find_expert_formula
from distconv.sidecars.meta_images import read_image_config, to_params
from distconv.storage.local import LocalStorage
from tests.formats.test_multimodal_params import GUARD_4, MAVERICK, SCOUT, VISION
from tests.sidecars.image_cases import CONFIGS, LLAMA_4, VISION_SIZES

PUBLISHED: dict[str, dict[str, object]] = {
    "11b": VISION | {"vision_chunk_size": 448},
    "11b-instruct": VISION,
    "90b": VISION | {
        "dim": 8192, "n_layers": 80, "n_heads": 64, "multiple_of": 4096, "vision_num_cross_attention_layers": 20,
    },
    "scout": SCOUT,
    "scout-instruct": SCOUT,
    "maverick": MAVERICK,
    "maverick-instruct": MAVERICK,
    "guard-4": GUARD_4,
}  # fmt: skip
TEMPERED = {"attn_temperature_tuning": True, "floor_scale": 8192, "attn_scale": 0.1}
"""What Transformers always does, and published files need not say."""


@pytest.mark.parametrize("name", CONFIGS)
def test_params_are_the_published_ones(name):
    made = json.loads(to_params(read_image_config("config.json", to_json(CONFIGS[name]))))
    expected = PUBLISHED[name] | (TEMPERED if made.get("nope_layer_interval") else {})
    assert made == expected


@pytest.mark.parametrize("name", CONFIGS)
def test_sizes_come_back(name):
    found = read_image_config("config.json", to_json(CONFIGS[name]))
    assert found.dimensions == (VISION_SIZES[name] if name in VISION_SIZES else LLAMA_4[name].sizes)
    assert found.notes == ()
    assert found.family.name == {"g": "llama-guard-4", "s": "llama-4", "m": "llama-4"}.get(
        name[0], "llama-3.2-vision"
    )


@pytest.mark.parametrize("name", LLAMA_4)
def test_metas_class_takes_what_is_made(name):
    from llama_models.llama4.args import ModelArgs

    made = json.loads(to_params(read_image_config("config.json", to_json(CONFIGS[name]))))
    args = ModelArgs(**made)
    assert args.model_dump(include=set(made), mode="json") == made
    assert (args.rope_scaling_factor, args.rope_high_freq_factor) == (
        (16, 1) if args.use_scaled_rope else (None, None)
    )


def reread(tmp_path: Path, content: bytes) -> Params:
    (tmp_path / "params.json").write_bytes(content)
    return read_params(LocalStorage(), str(tmp_path / "params.json"))


@pytest.mark.parametrize("name", CONFIGS)
def test_params_that_are_made_are_read_as_the_published_ones(name, tmp_path):
    made = reread(tmp_path, to_params(read_image_config("config.json", to_json(CONFIGS[name]))))
    published = reread(tmp_path, json.dumps(PUBLISHED[name]).encode())
    assert replace(made, md5="") == replace(published, md5="")


Change = Callable[[dict, dict, dict], object]


def set_text(key: str, value: object) -> Change:
    return lambda _top, text, _vision: text.update({key: value})


def set_vision(key: str, value: object) -> Change:
    return lambda _top, _text, vision: vision.update({key: value})


def set_top(key: str, value: object) -> Change:
    return lambda top, _text, _vision: top.update({key: value})


def change(name: str, how: Change) -> bytes:
    config = json.loads(to_json(CONFIGS[name]))
    how(config, config["text_config"], config["vision_config"])
    return json.dumps(config).encode()


def drop(*keys: str) -> Change:
    def remove(_top: dict, text: dict, vision: dict) -> None:
        for part in (text, vision):
            for key in keys:
                part.pop(key, None)

    return remove


def squeeze(_top: dict, text: dict, _vision: dict) -> None:
    """Make sizes of which no power of two divides both, the one far larger than the other."""
    text |= {"intermediate_size": 3, "intermediate_size_mlp": 163841}


@pytest.mark.parametrize(
    ("name", "keys"),
    [
        # 4.51 published no kinds of layers, and told where rotary embeddings and experts are by intervals.
        (
            "scout",
            ("layer_types", "no_rope_layers", "moe_layers", "rope_parameters", "no_rope_layer_interval"),
        ),
        (
            "maverick",
            ("layer_types", "no_rope_layers", "moe_layers", "attn_temperature_tuning", "rope_theta"),
        ),
        ("guard-4", ("moe_layers", "rope_parameters", "torch_dtype")),
        ("11b", ("rope_parameters", "supported_aspect_ratios", "intermediate_layers_indices", "dtype")),
        ("11b", ("rope_theta", "rope_scaling")),
    ],
)
def test_what_a_config_leaves_out_follows_as_transformers_has_it(name, keys):
    whole = read_image_config("config.json", to_json(CONFIGS[name]))
    assert read_image_config("config.json", change(name, drop(*keys))) == whole


def test_values_of_older_versions_are_read():
    whole = read_image_config("config.json", to_json(CONFIGS["scout"]))
    for how in (
        set_text("attn_temperature_tuning", 4),
        set_text("floor_scale", 8192.0),
        set_text("no_rope_layers", []),
        set_text("top_k", 50),
        set_vision("vision_feature_layer", -1),
    ):
        assert read_image_config("config.json", change("scout", how)) == whole
    guard = read_image_config("config.json", to_json(CONFIGS["guard-4"]))
    assert (
        read_image_config("config.json", change("guard-4", set_text("attention_chunk_size", None))) == guard
    )


def test_what_scales_otherwise_than_scout_is_written_out():
    def rescale(_top: dict, text: dict, _vision: dict) -> None:
        for key in ("rope_parameters", "rope_scaling"):
            text[key] |= {"factor": 8.0, "high_freq_factor": 4.0}

    made = json.loads(to_params(read_image_config("config.json", change("scout", rescale))))
    assert (made["rope_scaling_factor"], made["rope_high_freq_factor"]) == (8.0, 4.0)


def test_attention_that_is_not_tempered_needs_no_word():
    made = json.loads(
        to_params(
            read_image_config("config.json", change("scout", set_text("attn_temperature_tuning", False)))
        )
    )
    assert made == SCOUT


@pytest.mark.parametrize(
    ("name", "how", "words"),
    [
        ("11b", set_top("architectures", ["MllamaForCausalLM"]), "architectures is ['MllamaForCausalLM'], expected"),
        ("scout", set_top("quantization_config", {"bits": 4}), "a quantized model (it has 'quantization_config')"),
        ("11b", set_top("text_config", None), "text_config is None, expected an object"),
        ("11b", set_top("image_token_index", 128011), "image_token_index is 128011, expected 128256"),
        ("11b", set_text("cross_attention_layers", [3, 8]), "text_config.cross_attention_layers is [3, 8], expected"),
        ("11b", set_text("cross_attention_layers", "all"), "cross_attention_layers is 'all', expected a list of whole"),
        ("11b", set_text("hidden_act", "gelu"), "text_config.hidden_act is 'gelu', expected 'silu'"),
        ("11b", set_text("tie_word_embeddings", True), "text_config.tie_word_embeddings is True, expected False"),
        ("11b", set_text("hidden_size", 4100), "text_config.head_dim is 128, expected 128.125"),
        ("11b", set_text("num_key_value_heads", 5), "num_key_value_heads is 5, expected a number that divides 32"),
        ("11b", set_vision("intermediate_layers_indices", [2, 6, 14, 22, 29]), "intermediate_layers_indices is"),
        ("11b", set_vision("attention_heads", 20), "vision_config.attention_heads is 20, expected 16"),
        ("11b", set_vision("supported_aspect_ratios", [[1, 1]]), "supported_aspect_ratios is a list, expected"),
        ("11b", set_vision("vision_output_dim", 6400), "vision_output_dim is 6400, expected 7680"),
        ("11b", set_vision("norm_eps", 1e-6), "vision_config.norm_eps is 1e-06, expected 1e-05"),
        ("11b", drop("hidden_size"), "no 'text_config.hidden_size'"),
        ("scout", set_text("moe_layers", [0, 3, 4]), "text_config.moe_layers is [0, 3, 4], expected layers that lie"),
        ("scout", set_text("no_rope_layers", [0, 1, 1, 1] * 12), "no_rope_layers is [0, 1, 1, 1"),
        ("scout", set_text("no_rope_layers", [1, 1]), "no_rope_layers is [1, 1], expected a number for each of 48"),
        ("scout", set_text("layer_types", ["chunked_attention"] * 48), "layer_types is ['chunked"),
        ("scout", set_text("attention_bias", True), "text_config.attention_bias is True, expected False"),
        ("scout", set_text("rope_scaling", {"rope_type": "yarn"}), "rope scaling of type 'yarn'"),
        ("scout", set_vision("projector_input_dim", 1024), "projector_input_dim is 1024, expected 4096"),
        ("scout", set_vision("intermediate_size", 2816), "intermediate_size is 2816, expected 5632"),
        ("scout", set_vision("multi_modal_projector_bias", True), "multi_modal_projector_bias is True, expected"),
        ("scout", set_top("image_token_index", 200090), "image_token_index is 200090, expected 200092"),
        ("maverick", squeeze, "text_config.intermediate_size_mlp is 163841, expected a size that goes with experts of 3"),
    ],
)  # fmt: skip
def test_what_metas_code_cannot_say_is_refused(name, how, words):
    with pytest.raises(InputError) as raised:
        read_image_config("hf/config.json", change(name, how))
    assert words in str(raised.value)
    assert all(line.startswith("hf/config.json: ") for line in str(raised.value).splitlines())


def test_what_is_lost_is_told():
    content = change("scout", set_text("max_position_embeddings", 65536))
    (note,) = read_image_config("config.json", content).notes
    assert "max_position_embeddings 65,536 has no place in params.json" in note
    (note,) = read_image_config("config.json", change("11b", set_vision("drop_path", 0.1))).notes
    assert "'vision_config.drop_path': not known to distconv, and left out" in note


def test_a_family_that_is_asked_for_counts_where_it_has_the_same_tensors():
    content = to_json(CONFIGS["11b"])
    found = read_image_config("config.json", content, family="llama-guard-3-vision")
    assert (found.family.name, found.evidence) == ("llama-guard-3-vision", ("`family=` says so",))
    with pytest.raises(MismatchError, match=r"`family='llama-4'` .*, but it is a Llama 3.2 Vision model"):
        read_image_config("config.json", content, family="llama-4")
    with pytest.raises(UsageError):
        read_image_config("config.json", content, family="llama-5")


def make_metas_expert(dim: int, formula: ExpertFormula) -> int:
    """Give the size that Meta's own module makes experts of."""
    from llama_models.llama4 import moe
    from llama_models.llama4.args import MoEArgs

    sizes: list[int] = []

    class Experts:
        def __init__(self, _count: int, _dim: int, hidden_dim: int) -> None:
            sizes.append(hidden_dim)

    layer = MoE.__new__(MoE)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(MoE, "__setattr__", object.__setattr__)
        patch.setattr("torch.nn.Module.__init__", lambda _self: None)
        patch.setattr(MoE, "_register_load_state_dict_pre_hook", lambda *_args: None)
        patch.setattr(moe, "Experts", Experts)
        patch.setattr(moe, "FeedForward", lambda *_args, **_options: None)
        MoE.__init__(
            layer, dim, int(formula.ffn_exp * dim), formula.multiplier, formula.multiple_of,
            MoEArgs(num_experts=2, auto_scale_F=formula.halved),
        )  # fmt: skip
    return sizes[0]


@given(
    dim=st.integers(1, 64).map(lambda count: 64 * count),
    shares=st.tuples(st.integers(0, 16), st.integers(1, 16)),
    wide=st.sampled_from([16, 48, 256]),
)
def test_numbers_are_found_from_which_metas_modules_make_both_sizes(
    dim: int, shares: tuple[int, int], wide: int
) -> None:
    dense, expert = (max(1, dim * share // 4 // wide) * wide if share else 0 for share in shares)
    sizes = LLAMA_4["scout"].sizes
    text = Dimensions(dim, 4, 4, 4, dim // 4, dense, 300)
    found = find_expert_formula(replace(sizes, text=text, expert_ffn_dim=expert))
    assert found is not None
    assert make_metas_expert(dim, found) == found.expert_size(dim) == expert
    assert not dense or compute_ffn_dim(dim, found.multiple_of, found.multiplier) == dense
