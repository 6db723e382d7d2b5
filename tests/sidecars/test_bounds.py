"""Tokenizers and configs that would take for ever are refused, or take little time and memory."""

import base64
import contextlib
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText

from distconv.errors import InputError
from distconv.sidecars.empty import Wanted, read_empty_model
from distconv.sidecars.tokenizer import make_tokenizer_files, read_vocabulary
from distconv.storage.local import LocalStorage
from tests.extent import share

STORAGE = LocalStorage()
BYTES = [bytes([value]) for value in range(256)]


def make_ranks(tokens: list[bytes]) -> bytes:
    """Write a tiktoken file of the single bytes and these tokens."""
    lines = (f"{base64.b64encode(token).decode()} {rank}\n" for rank, token in enumerate([*BYTES, *tokens]))
    return "".join(lines).encode()


def field(number: int, content: bytes) -> bytes:
    """Write a protobuf field that holds bytes."""
    size, tail = len(content), b""
    while size >= 0x80:
        tail, size = tail + bytes([size & 0x7F | 0x80]), size >> 7
    return bytes([number << 3 | 2]) + tail + bytes([size]) + content


def make_pieces(good: bytes, texts: list[str]) -> bytes:
    """Append pieces to a sentencepiece file."""
    return good + b"".join(field(1, field(1, text.encode())) for text in texts)


def words(longest: int) -> Iterator[str]:
    """Give words of which every beginning and every end is one too."""
    for size in range(2, longest):
        for ones in range(size + 1):
            yield "a" * ones + "b" * (size - ones)


TEXTS: dict[str, Callable[[], list[str]]] = {
    "one of 200 kB": lambda: ["x" * 200_000],
    "one of 1,025": lambda: ["x" * 1025],
    "many of 1,000": lambda: [f"{number:x}".rjust(1000, "x") for number in range(6000)],
    "many that are made of each other": lambda: list(words(100)),
    "a million": lambda: [f"x{number:x}" for number in range(1_000_000)],
    "8 MB of one character": lambda: [chr(0x4E00 + number) for number in range(20_000)] * 70,
}


@pytest.mark.first(4)
@pytest.mark.parametrize("kind", ["tiktoken", "sentencepiece"])
@pytest.mark.parametrize("texts", TEXTS.values(), ids=TEXTS)
def test_tokens_of_any_size_and_number_take_little_time_or_are_refused(
    tmp_path: Path, sentencepiece_file: Path, texts: Callable[[], list[str]], kind: str
) -> None:
    path = tmp_path / "tokenizer.model"
    if kind == "tiktoken":
        path.write_bytes(make_ranks([text.encode() for text in texts()]))
    else:
        path.write_bytes(make_pieces(sentencepiece_file.read_bytes(), texts()))
    started = time.process_time()
    try:
        vocabulary = read_vocabulary(STORAGE, str(path))
        make_tokenizer_files(
            vocabulary, context=2048, instruct=False, chat_template=None,
            special_tokens="llama-3" if kind == "tiktoken" else None,
        )  # fmt: skip
    except InputError as error:
        assert len(str(error)) < 1000  # noqa: PT017  either way is right
        assert str(error).startswith(f"{path}: ")  # noqa: PT017
    assert time.process_time() - started < 15


def test_the_longest_token_and_no_longer_one_is_taken(tmp_path: Path, sentencepiece_file: Path) -> None:
    path = tmp_path / "tokenizer.model"
    for make in (
        lambda text: make_ranks([text.encode()]), lambda text: make_pieces(sentencepiece_file.read_bytes(), [text])
    ):  # fmt: skip
        path.write_bytes(make("x" * 1024))
        assert read_vocabulary(STORAGE, str(path)).size > 256
        path.write_bytes(make("x" * 1025))
        with pytest.raises(InputError, match=r"of 1,025 .*, expected at most 1,024"):
            read_vocabulary(STORAGE, str(path))


def test_merges_beyond_those_of_any_tokenizer_are_refused(tmp_path: Path, sentencepiece_file: Path) -> None:
    path = tmp_path / "tokenizer.model"
    # All of one score, so that which one is taken first is looked at when the file is read.
    path.write_bytes(make_pieces(sentencepiece_file.read_bytes(), list(words(160))))
    with pytest.raises(InputError, match=rf"^{path}: more than 1,000,000 merges"):
        read_vocabulary(STORAGE, str(path))
    path.write_bytes(make_ranks([word.encode() for word in words(160)]))
    vocabulary = read_vocabulary(STORAGE, str(path))
    with pytest.raises(InputError, match=rf"^{path}: more than 1,000,000 merges"):
        make_tokenizer_files(
            vocabulary, context=2048, instruct=False, chat_template=None, special_tokens="llama-3"
        )


CONFIG = {
    "model_type": "llama", "hidden_size": 16, "intermediate_size": 32, "vocab_size": 64, "num_hidden_layers": 2,
    "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8, "rms_norm_eps": 1e-5,
    "max_position_embeddings": 128, "rope_parameters": {"rope_type": "default", "rope_theta": 1e4},
}  # fmt: skip
SHAPES = {str(number): (64, 16) for number in range(21)}
HUGE = st.sampled_from(
    [2**62, 10**7, 1e308, -1, 0, 10**400, True, None, "x", [10**7], {"num_hidden_layers": 10**7}]
)
KEYS = st.sampled_from(
    [
        *CONFIG, "num_labels", "layer_types", "text_config", "vision_config", "auto_map", "quantization_config",
        "partial_rotary_factor", "pad_token_id", "id2label", "attn_implementation", "rope_scaling", "rope_theta",
        "original_max_position_embeddings", "architectures", "dtype", "torch_dtype", "max_length",
    ]
)  # fmt: skip
ROPE = st.dictionaries(
    st.sampled_from(
        [
            "rope_type", "type", "factor", "partial_rotary_factor", "low_freq_factor", "high_freq_factor",
            "original_max_position_embeddings", "short_factor", "long_factor", "beta_fast", "beta_slow",
        ]
    ),
    st.one_of(HUGE, st.sampled_from(["llama3", "linear", "dynamic", "yarn", "longrope", "default"])),
)  # fmt: skip


@settings(deadline=None, max_examples=share(60))
@given(changes=st.dictionaries(KEYS, st.one_of(HUGE, ROPE), max_size=3), nested=st.integers(0, 3))
def test_a_config_of_anything_makes_a_model_or_none_in_little_time(
    tmp_path_factory: pytest.TempPathFactory, changes: dict[str, object], nested: int
) -> None:
    path = tmp_path_factory.getbasetemp() / "config.json"
    content: object = CONFIG | changes
    for _ in range(nested):
        content = CONFIG | {"text_config": content, "rope_parameters": content}
    path.write_text(json.dumps(content))
    read_empty_model(STORAGE, write_good(path.with_name("good.json")), SHAPES)
    started = time.process_time()
    # What it raises is Transformers' own.
    with contextlib.suppress(Exception):
        read_empty_model(STORAGE, str(path), SHAPES)
    assert time.process_time() - started < 5


def write_good(path: Path) -> str:
    path.write_text(json.dumps(CONFIG))
    return str(path)


def test_a_plain_config_makes_the_tensors_that_it_says(tmp_path: Path) -> None:
    found = read_empty_model(STORAGE, write_good(tmp_path / "config.json"), SHAPES)
    assert found.wanted["model.layers.1.self_attn.k_proj.weight"] == Wanted((8, 16), is_float=True)
    assert len(found.wanted) == 21
    assert found.optional == set()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"num_hidden_layers": 22}, "num_hidden_layers 22, the 21 tensors that there are allow at most 21"),
        ({"vocab_size": 10**6}, "vocab_size 1,000,000"),
        ({"text_config": {"num_labels": [10**6]}}, "num_labels 1,000,000"),
        ({"rope_parameters": {"partial_rotary_factor": 1e9}}, "partial_rotary_factor"),
        ({"model_type": "nobody's"}, 'model_type "nobody\'s" is unknown to transformers'),
        ({"model_type": None}, "model_type None is unknown"),
        ({"architectures": ["Nobody"]}, "architecture 'Nobody' is no model of transformers"),
        ({"architectures": ["AutoConfig"]}, "architecture 'AutoConfig' is no model of transformers"),
        ({"architectures": ["Qwen2ForCausalLM"]}, "Qwen2ForCausalLM is none of model_type 'llama'"),
        (
            {"architectures": ["LlamaForCausalLM"], "model_type": "qwen2"},
            "LlamaForCausalLM is none of model_type 'qwen2'",
        ),
        ({"vocab_size": float("inf")}, "vocab_size inf"),
        ({"vocab_size": {"__float__": "Infinity"}}, "vocab_size inf"),
        ({"backbone": "resnet50"}, "backbone: a model that is elsewhere"),
    ],
)
def test_sizes_beyond_the_tensors_are_refused_before_a_model_is_made(
    tmp_path: Path, changes: dict[str, object], said: str
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(CONFIG | changes))
    with pytest.raises(InputError, match=said):
        read_empty_model(STORAGE, str(tmp_path / "config.json"), SHAPES)


SMALL = {
    "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "vocab_size": 128, "tie_word_embeddings": False,
}  # fmt: skip
LIMITS = {"mamba_n_heads": 8, "mamba_d_head": 16, "mamba_d_state": 16}
ROPES = {"full_attention": None, "sliding_attention": {"rope_theta": 1e4, "rope_type": "default"}}


@pytest.mark.parametrize(
    "config",
    [
        {"model_type": "bamba", "time_step_limit": [0.0, {"__float__": "Infinity"}], **LIMITS},
        {"model_type": "bamba", "time_step_limit": [0.0, float("inf")], **LIMITS},
        # As DeepSeek-V2-Lite says that its queries are of full rank; 1536 where nothing is said.
        {"model_type": "deepseek_v2", "q_lora_rank": None, "first_k_dense_replace": 2},
        {"model_type": "beam", "rope_parameters": ROPES, "head_dim": 16},
        {"model_type": "internlm3", "architectures": ["LlamaForCausalLM"], "backbone": None},
        {"model_type": "pp_chart2table", "architectures": ["GotOcr2ForConditionalGeneration"]},
    ],
    ids=[
        "infinity in an object",
        "infinity",
        "null",
        "null of one kind",
        "another's class",
        "another's class that sees",
    ],
)
def test_what_transformers_reads_of_a_config_makes_the_model_that_it_makes(
    tmp_path: Path, config: dict[str, object]
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(SMALL | config))
    with torch.device("meta"):
        auto = AutoModelForImageTextToText if "chart" in str(config["model_type"]) else AutoModelForCausalLM
        model = auto.from_config(AutoConfig.from_pretrained(tmp_path))
    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    found = read_empty_model(STORAGE, str(tmp_path / "config.json"), expected)
    # On disk some names are others than in memory.
    assert sorted(wanted.shape for wanted in found.wanted.values()) == sorted(expected.values())


def test_code_that_a_config_names_is_not_run(tmp_path: Path) -> None:
    (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    named = {"auto_map": {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"}}
    (tmp_path / "config.json").write_text(json.dumps(CONFIG | named))
    read_empty_model(STORAGE, str(tmp_path / "config.json"), SHAPES)
    assert not (tmp_path / "ran").exists()
