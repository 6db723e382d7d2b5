"""Configs of models with images are the published ones, and Transformers reads the same from them in all versions."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForImageTextToText, Llama4ForCausalLM

from distconv.errors import InputError
from distconv.families.dimensions import Dimensions
from distconv.formats.meta.rope import RopeScaling
from distconv.sidecars.config import make_generation_config, to_json
from distconv.sidecars.llama_4_config import make_llama_4_rope
from distconv.sidecars.mllama_config import list_aspect_ratios
from tests.sidecars import peer_image_config
from tests.sidecars.image_cases import (
    CONFIGS,
    LLAMA_4,
    LLAMA_4_TOKENS,
    VISION_BASE,
    VISION_SIZES,
    configure_llama_4,
    configure_vision,
)

LEGACY = {"rope_theta", "rope_scaling", "torch_dtype"}
LLAMA_3_SCALING = {
    "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}  # fmt: skip
SCOUT_SCALING = LLAMA_3_SCALING | {"factor": 16.0, "high_freq_factor": 1.0}
ROPE = [1, 1, 1, 0] * 12
PUBLISHED: dict[str, dict[str, dict[str, object]]] = {
    "11b": {
        "text_config": {
            "hidden_size": 4096, "num_hidden_layers": 40, "num_attention_heads": 32, "num_key_value_heads": 8,
            "intermediate_size": 14336, "cross_attention_layers": [3, 8, 13, 18, 23, 28, 33, 38],
            "vocab_size": 128256, "max_position_embeddings": 131072, "rope_theta": 5e5, "pad_token_id": 128004,
            "rope_scaling": LLAMA_3_SCALING, "bos_token_id": 128000, "rms_norm_eps": 1e-5,
            "tie_word_embeddings": False, "hidden_act": "silu", "dropout": 0.0,
        },
        "vision_config": {
            "hidden_size": 1280, "num_hidden_layers": 32, "num_global_layers": 8, "attention_heads": 16,
            "intermediate_size": 5120, "patch_size": 14, "image_size": 448, "vision_output_dim": 7680,
            "intermediate_layers_indices": [3, 7, 15, 23, 30], "max_num_tiles": 4, "hidden_act": "gelu",
            "supported_aspect_ratios": [[1, 1], [1, 2], [1, 3], [1, 4], [2, 1], [2, 2], [3, 1], [4, 1]],
            "norm_eps": 1e-5, "num_channels": 3,
        },
    },
    "11b-instruct": {
        "text_config": {"eos_token_id": [128001, 128008, 128009]}, "vision_config": {"image_size": 560},
    },
    "90b": {
        "text_config": {
            "hidden_size": 8192, "num_hidden_layers": 100, "num_attention_heads": 64, "intermediate_size": 28672,
            "cross_attention_layers": list(range(3, 100, 5)),
        },
        "vision_config": {"image_size": 560},
    },
    "scout": {
        "text_config": {
            "hidden_size": 5120, "num_hidden_layers": 48, "num_attention_heads": 40, "num_key_value_heads": 8,
            "head_dim": 128, "intermediate_size": 8192, "intermediate_size_mlp": 16384, "num_local_experts": 16,
            "num_experts_per_tok": 1, "interleave_moe_layer_step": 1, "moe_layers": list(range(48)),
            "no_rope_layers": ROPE, "attention_chunk_size": 8192, "use_qk_norm": True, "vocab_size": 202048,
            "rope_theta": 5e5, "rope_scaling": SCOUT_SCALING, "max_position_embeddings": 262144,
            "bos_token_id": 200000, "eos_token_id": [200001, 200007, 200008], "pad_token_id": 200018,
            "attn_temperature_tuning": True, "floor_scale": 8192, "attn_scale": 0.1, "rms_norm_eps": 1e-5,
            "layer_types": ["chunked_attention" if turns else "full_attention" for turns in ROPE],
        },
        "vision_config": {
            "hidden_size": 1408, "num_hidden_layers": 34, "num_attention_heads": 16, "intermediate_size": 5632,
            "image_size": 336, "patch_size": 14, "pixel_shuffle_ratio": 0.5, "projector_input_dim": 4096,
            "projector_output_dim": 4096, "vision_output_dim": 4096, "rope_theta": 1e4, "norm_eps": 1e-5,
        },
    },
    "scout-instruct": {"text_config": {"max_position_embeddings": 10485760}},
    "maverick": {
        "text_config": {
            "num_local_experts": 128, "interleave_moe_layer_step": 2, "moe_layers": list(range(1, 48, 2)),
            "intermediate_size": 8192, "intermediate_size_mlp": 16384, "use_qk_norm": False, "rope_scaling": None,
            "no_rope_layers": ROPE, "attention_chunk_size": 8192, "max_position_embeddings": 262144,
        },
    },
    "maverick-instruct": {"text_config": {"max_position_embeddings": 1048576}},
    "guard-4": {
        "text_config": {
            "num_local_experts": 0, "interleave_moe_layer_step": 0, "moe_layers": [], "no_rope_layers": [1] * 48,
            "intermediate_size": 8192, "rope_scaling": None, "max_position_embeddings": 8192, "use_qk_norm": False,
        },
    },
}  # fmt: skip


@pytest.mark.parametrize("name", PUBLISHED)
def test_values_are_the_published_ones(name):
    for part, values in PUBLISHED[name].items():
        found = CONFIGS[name][part]
        assert {key: found[key] for key in values} == values
    assert CONFIGS[name]["image_token_index"] == (128256 if "b" in name.partition("-")[0] else 200092)


def test_a_base_model_of_vision_ends_where_text_does():
    text = configure_vision(VISION_SIZES["11b"], VISION_BASE)["text_config"]
    assert (text["eos_token_id"], text["pad_token_id"]) == (128001, 128004)


def test_llama_4s_images_begin_and_end_with_tokens():
    config = CONFIGS["scout"]
    assert (config["boi_token_index"], config["eoi_token_index"]) == (200080, 200081)


def write(folder: Path, config: dict[str, object]) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_bytes(to_json(config))
    (folder / "generation_config.json").write_bytes(
        to_json(make_generation_config(LLAMA_4_TOKENS, sampled=True))
    )
    return folder


@pytest.mark.parametrize("name", CONFIGS)
def test_transformers_writes_again_what_it_reads(name, tmp_path):
    AutoConfig.from_pretrained(write(tmp_path / "ours", CONFIGS[name])).save_pretrained(tmp_path / "again")
    again = json.loads((tmp_path / "again" / "config.json").read_text())
    ours = json.loads(to_json(CONFIGS[name]))
    parts = [ours, ours["text_config"], ours["vision_config"]]
    for part in parts:
        for key in LEGACY & part.keys():
            del part[key]
    assert again == ours


@pytest.mark.parametrize("name", CONFIGS)
def test_models_saved_by_transformers_have_these_keys(name, tmp_path):
    """Compare with what a model that Transformers made of the same config saves beside its weights."""
    config = shrink(CONFIGS[name])
    loaded = AutoConfig.from_pretrained(write(tmp_path / "ours", config))
    AutoModelForImageTextToText.from_config(loaded, dtype=torch.bfloat16).save_pretrained(tmp_path / "again")
    again = json.loads((tmp_path / "again" / "config.json").read_text())
    ours = json.loads(to_json(config))
    for part in (ours, ours["text_config"], ours["vision_config"]):
        for key in LEGACY & part.keys():
            del part[key]
    assert again == ours


def shrink(config: dict[str, object]) -> dict[str, object]:
    """Make a model small whose config is as ours otherwise."""
    made = json.loads(to_json(config))
    text, vision = made["text_config"], made["vision_config"]
    text |= {"hidden_size": 32, "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 16}
    text |= {"vocab_size": 300, "pad_token_id": 4}
    if made["model_type"] == "llama4":
        text |= {"head_dim": 8, "intermediate_size_mlp": 32, "num_hidden_layers": 4}
        text |= {
            "moe_layers": [i for i in text["moe_layers"] if i < 4],
            "num_local_experts": min(text["num_local_experts"], 2),
        }
        text |= {"no_rope_layers": text["no_rope_layers"][:4], "layer_types": text["layer_types"][:4]}
        vision |= {
            "hidden_size": 16,
            "num_attention_heads": 2,
            "num_hidden_layers": 2,
            "intermediate_size": 64,
        }
        vision |= {
            "projector_input_dim": 32,
            "projector_output_dim": 32,
            "vision_output_dim": 32,
            "image_size": 56,
        }
    else:
        text |= {"num_hidden_layers": 5, "cross_attention_layers": [3]}
        vision |= {"hidden_size": 16, "attention_heads": 2, "intermediate_size": 32, "vision_output_dim": 96}
        vision |= {"image_size": 56, "num_global_layers": 1}
    return made


def test_scouts_rope_is_that_of_metas_code():
    from llama_models.llama4.args import ModelArgs
    from llama_models.llama4.model import apply_scaling
    from transformers.models.llama4.modeling_llama4 import Llama4TextRotaryEmbedding

    args = ModelArgs(dim=5120, n_layers=48, n_heads=40, n_kv_heads=8, use_scaled_rope=True)
    plain = 1.0 / (5e5 ** (torch.arange(0, 128, 2).float() / 128))
    expected = apply_scaling(plain, args.rope_scaling_factor, args.rope_high_freq_factor)
    text = AutoConfig.for_model(**CONFIGS["scout"]).text_config
    torch.testing.assert_close(Llama4TextRotaryEmbedding(text).inv_freq, expected, rtol=1e-6, atol=0)
    other = AutoConfig.for_model(**CONFIGS["maverick"]).text_config
    torch.testing.assert_close(Llama4TextRotaryEmbedding(other).inv_freq, plain, rtol=1e-6, atol=0)


def test_numbers_of_scaling_that_params_json_gives_count():
    assert make_llama_4_rope(1e4, RopeScaling(factor=8.0, high=4.0)).scaling() == LLAMA_3_SCALING


def test_guard_4_without_chunks_attends_to_all_and_runs():
    text = CONFIGS["guard-4"]["text_config"]
    assert text["layer_types"] == ["full_attention"] * 48
    assert text["attention_chunk_size"] == 8192
    small = AutoConfig.for_model(**shrink(CONFIGS["guard-4"]))
    model = Llama4ForCausalLM(small.text_config).eval()
    with torch.no_grad():
        logits = model(torch.arange(6)[None]).logits
        assert logits.shape == (1, 6, 300)
        # As published, with no number, nothing can be made.
        small.text_config.attention_chunk_size = None
        with pytest.raises((ValueError, TypeError)):
            Llama4ForCausalLM(small.text_config)(torch.arange(6)[None])


@pytest.mark.parametrize(("key", "value"), [("attn_temperature_tuning", 4), ("floor_scale", 8192.0)])
def test_values_are_of_the_types_that_transformers_demands(key, value, tmp_path):
    """Published configs of older versions have others, which 5.23 refuses."""
    config = json.loads(to_json(CONFIGS["scout"]))
    AutoConfig.from_pretrained(write(tmp_path / "ours", config))
    config["text_config"][key] = value
    with pytest.raises(Exception, match=key):
        AutoConfig.from_pretrained(write(tmp_path / "other", config))


def test_frequencies_of_vision_are_those_of_metas_code():
    from llama_models.llama3.model import apply_scaling
    from transformers.models.mllama.modeling_mllama import MllamaRotaryEmbedding

    plain = 1.0 / (5e5 ** (torch.arange(0, 128, 2).float() / 128))
    text = AutoConfig.for_model(**CONFIGS["11b"]).text_config
    torch.testing.assert_close(MllamaRotaryEmbedding(text).inv_freq, apply_scaling(plain), rtol=1e-6, atol=0)


def test_a_small_model_takes_the_inner_layers_that_it_has():
    sizes = VISION_SIZES["11b"]
    small = replace(sizes, vision=replace(sizes.vision, layers=8, output_dim=3 * 1280))
    assert configure_vision(small)["vision_config"]["intermediate_layers_indices"] == [3, 7]
    wrong = replace(sizes, vision=replace(sizes.vision, layers=24))
    with pytest.raises(
        InputError, match=r"model: the projection takes 7,680 features .* 24 layers, .* expected 5 times"
    ):
        configure_vision(wrong)


def test_aspect_ratios_are_those_of_transformers():
    from transformers.models.mllama.image_processing_pil_mllama import get_all_supported_aspect_ratios

    for tiles in (1, 2, 4, 6, 9):
        assert list_aspect_ratios(tiles) == [list(pair) for pair in get_all_supported_aspect_ratios(tiles)]


def test_an_encoder_that_transformers_has_no_words_for_is_refused():
    case = LLAMA_4["scout"]
    other = replace(case, sizes=replace(case.sizes, adapter_dim=2048))
    with pytest.raises(
        InputError, match=r"feed-forward size is 5,632, its adapter takes 2,048; Transformers has one"
    ):
        configure_llama_4(other)


def test_ids_follow_the_tokenizer_of_a_small_model():
    case = LLAMA_4["scout"]
    tokens = replace(LLAMA_4_TOKENS, bos=300)
    sizes = replace(case.sizes, text=Dimensions(5120, 48, 40, 8, 128, 0, 2348))
    config = configure_llama_4(replace(case, sizes=sizes), tokens)
    assert (config["image_token_index"], config["boi_token_index"]) == (392, 380)


def test_generation_is_sampled_and_padded():
    assert make_generation_config(LLAMA_4_TOKENS, sampled=True) == {
        "bos_token_id": 200000, "eos_token_id": [200001, 200007, 200008], "pad_token_id": 200018, "do_sample": True,
        "temperature": 0.6, "top_p": 0.9, "transformers_version": CONFIGS["scout"]["transformers_version"],
    }  # fmt: skip


@pytest.mark.peer
@pytest.mark.parametrize("version", ["4.57.6"])
def test_other_versions_read_the_same_values(
    version: str, run_peer: Callable[..., str], tmp_path: Path
) -> None:
    folders = [str(write(tmp_path / name, config)) for name, config in CONFIGS.items()]
    found = json.loads(run_peer(f"transformers-{version}", peer_image_config.__file__, *folders))
    for name, folder, theirs in zip(CONFIGS, folders, found, strict=True):
        ours = json.loads(json.dumps(peer_image_config.describe(folder)))
        assert theirs.pop("version") == version
        assert ours.pop("version") != version
        torch.testing.assert_close(
            torch.tensor(theirs.pop("frequencies")),
            torch.tensor(ours.pop("frequencies")),
            rtol=1e-6,
            atol=1e-6,
        )
        written = json.loads(to_json(CONFIGS[name]))
        for part in ("text", "vision"):
            said = written[f"{part}_config"]
            plain = said.keys() - LEGACY - {"rope_parameters", "dtype"}
            read, other = ours.pop(part), theirs.pop(part)
            assert {key: read[key] for key in plain} == {key: said[key] for key in plain}
            # The older version keeps no interval where each layer is told.
            kept = plain - {"no_rope_layer_interval"}
            assert {key: other[key] for key in kept} == {key: said[key] for key in kept}
        assert theirs == ours
