"""Configs are those that Transformers writes, and older versions read the same from them."""

import json
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, GenerationConfig, LlamaConfig, LlamaForCausalLM

from distconv.families.dimensions import Dimensions
from distconv.sidecars.config import (
    Rope,
    Settings,
    TokenIds,
    make_config,
    make_generation_config,
    to_json,
)

PEER_SCRIPT = Path(__file__).parent / "peer_config.py"
LEGACY = ("rope_theta", "rope_scaling", "torch_dtype")


@dataclass(frozen=True, slots=True)
class Case:
    """A family's row."""

    context: int
    rope: Rope
    tokens: TokenIds
    tied: bool = False
    sampled: bool = False
    dtype: str = "bfloat16"


CASES = {
    "llama-1": Case(2048, Rope(1e4, None), TokenIds(1, 2), dtype="float16"),
    "llama-2": Case(4096, Rope(1e4, None), TokenIds(1, 2)),
    "llama-2-chat": Case(4096, Rope(1e4, None), TokenIds(1, 2), sampled=True),
    "code-llama": Case(16384, Rope(1e6, None), TokenIds(1, 2)),
    "code-llama-70b-instruct": Case(4096, Rope(1e4, None), TokenIds(1, (2, 32015)), sampled=True),
    "llama-3": Case(8192, Rope(5e5, None), TokenIds(128000, 128001)),
    "llama-3-instruct": Case(8192, Rope(5e5, None), TokenIds(128000, (128001, 128009)), sampled=True),
    "llama-3.1": Case(131072, Rope(5e5, 8.0), TokenIds(128000, 128001)),
    "llama-3.1-instruct": Case(
        131072, Rope(5e5, 8.0), TokenIds(128000, (128001, 128008, 128009)), sampled=True
    ),
    "llama-3.2": Case(131072, Rope(5e5, 32.0), TokenIds(128000, 128001), tied=True),
    "llama-3.2-instruct-float32": Case(
        131072, Rope(5e5, 32.0), TokenIds(128000, (128001, 128008, 128009)), True, True, "float32"
    ),
}
SIZES = Dimensions(dim=64, layers=2, heads=8, kv_heads=2, head_dim=8, ffn_dim=96, vocab=320)


def make(case: Case) -> tuple[dict[str, object], dict[str, object]]:
    settings = Settings(1e-5, case.rope, case.context, case.tokens, case.dtype, tied=case.tied)
    config = make_config(SIZES, settings)
    return config, make_generation_config(case.tokens, sampled=case.sampled)


def write(folder: Path, case: Case) -> Path:
    for name, content in zip(("config.json", "generation_config.json"), make(case), strict=True):
        (folder / name).write_bytes(to_json(content))
    return folder


def rope_parameters(rope: Rope) -> dict[str, object]:
    if rope.factor is None:
        return {"rope_type": "default", "rope_theta": rope.theta}
    return {
        "rope_type": "llama3",
        "rope_theta": rope.theta,
        "factor": rope.factor,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }


@pytest.fixture(params=CASES)
def case(request) -> Case:
    return CASES[request.param]


def test_configs_are_what_transformers_writes_for_the_same_values(case, tmp_path):
    eos = case.tokens.eos if isinstance(case.tokens.eos, int) else list(case.tokens.eos)
    written = LlamaConfig(
        hidden_size=SIZES.dim,
        num_hidden_layers=SIZES.layers,
        num_attention_heads=SIZES.heads,
        num_key_value_heads=SIZES.kv_heads,
        head_dim=SIZES.head_dim,
        intermediate_size=SIZES.ffn_dim,
        vocab_size=SIZES.vocab,
        rms_norm_eps=1e-5,
        max_position_embeddings=case.context,
        rope_parameters=rope_parameters(case.rope),
        bos_token_id=case.tokens.bos,
        eos_token_id=eos,
        tie_word_embeddings=case.tied,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # token ids beyond this small vocabulary
        model = LlamaForCausalLM(written).to(getattr(torch, case.dtype))
        model.generation_config = GenerationConfig(bos_token_id=case.tokens.bos, eos_token_id=eos)
        if case.sampled:
            model.generation_config.update(do_sample=True, temperature=0.6, top_p=0.9)
        model.save_pretrained(tmp_path)
    config, generation = make(case)
    plain = {key: value for key, value in config.items() if key not in LEGACY}
    assert json.loads(to_json(plain)) == json.loads((tmp_path / "config.json").read_text())
    expected = json.loads((tmp_path / "generation_config.json").read_text())
    expected.pop("_from_model_config", None)
    assert json.loads(to_json(generation)) == expected


def test_generation_configs_are_written_to_the_byte_as_transformers_does(case, tmp_path):
    GenerationConfig(**make(case)[1]).save_pretrained(tmp_path)
    assert (tmp_path / "generation_config.json").read_bytes() == to_json(make(case)[1])


def test_older_keys_say_the_same_as_newer_ones(case):
    config, _ = make(case)
    parameters = dict(config["rope_parameters"])
    assert parameters.pop("rope_theta") == config["rope_theta"] == case.rope.theta
    assert config["rope_scaling"] == (None if case.rope.factor is None else parameters)
    assert config["torch_dtype"] == config["dtype"] == case.dtype


def test_transformers_reads_the_values_back(case, tmp_path):
    config = AutoConfig.from_pretrained(write(tmp_path, case))
    assert config.rope_parameters == rope_parameters(case.rope)
    assert config.max_position_embeddings == case.context
    assert config.dtype == getattr(torch, case.dtype)
    assert config.tie_word_embeddings is case.tied


def test_json_is_sorted_indented_and_ends_with_a_newline():
    assert to_json({"b": (1, 2), "a": None}) == b'{\n  "a": null,\n  "b": [\n    1,\n    2\n  ]\n}\n'


def describe(config: LlamaConfig, generation: GenerationConfig, case: Case) -> dict[str, object]:
    return {
        "theta": case.rope.theta,
        "scaling": None if case.rope.factor is None else case.rope.scaling(),
        "context": config.max_position_embeddings,
        "bos": config.bos_token_id,
        "eos": config.eos_token_id,
        "pad": config.pad_token_id,
        "tied": config.tie_word_embeddings,
        "dtype": str(config.dtype),
        "sizes": [config.hidden_size, config.head_dim, config.num_key_value_heads, config.vocab_size],
        "generation": [
            generation.bos_token_id,
            generation.eos_token_id,
            bool(generation.do_sample),
            generation.temperature if case.sampled else 1.0,
            generation.top_p if case.sampled else 1.0,
        ],
    }


@pytest.mark.peer
@pytest.mark.parametrize("version", ["4.43.4", "4.47.1", "4.57.6"])
def test_other_versions_read_the_same_values(
    version: str, run_peer: Callable[..., str], tmp_path: Path
) -> None:
    folders, expected, inverse = [], [], []
    for name, case in CASES.items():
        folder = tmp_path / name
        folder.mkdir()
        write(folder, case)
        folders.append(folder)
        config = AutoConfig.from_pretrained(folder)
        expected.append(describe(config, GenerationConfig.from_pretrained(folder), case))
        inverse.append(LlamaForCausalLM(config).model.rotary_emb.inv_freq.tolist())
    found = json.loads(run_peer(f"transformers-{version}", PEER_SCRIPT, *folders))
    assert [each.pop("version") for each in found] == [version] * len(CASES)
    assert all({"rope_theta", "rope_scaling"} <= set(each.pop("known")) for each in found)
    frequencies = [each.pop("inv_freq") for each in found]
    assert found == json.loads(json.dumps(expected))
    if frequencies[0] is not None:
        assert frequencies == inverse
