"""Tokenizers of models with images give the ids of Meta's own, special tokens included."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Literal

import pytest
from llama_models.llama3.tokenizer import Tokenizer as Llama3Tokenizer
from llama_models.llama4.tokenizer import Tokenizer as Llama4Tokenizer
from transformers import AutoTokenizer

from distconv.sidecars.meta_tokenizer import make_meta_tokenizer
from distconv.sidecars.ranks import make_rank_tokenizer, make_rank_vocabulary
from distconv.sidecars.special_tokens import TOKEN_SETS
from tests.extent import share
from tests.sidecars.strings import make_strings
from tests.sidecars.written_tokenizers import ask_peer, load, write_tokenizer

Generation = Literal["llama-3.2-vision", "llama-4"]
CASED = [
    "HelloWorld",
    "camelCaseWORDS",
    "I'M it's DON'T",
    "a/b//c",
    "path/\r\n/x",
    "ÀÉé",
    "ǅabc",
    "你好World",
    "!/\n/",
]
"""What Llama 4 cuts otherwise than Llama 3."""
STRINGS = [*CASED, *make_strings(share(4500), seed=21)]


@pytest.fixture(scope="module")
def folders(vision_folder: Path, llama_4_folder: Path) -> Mapping[Generation, Path]:
    return {"llama-3.2-vision": vision_folder, "llama-4": llama_4_folder}


@pytest.fixture(scope="module")
def oracles() -> Mapping[Generation, Llama3Tokenizer | Llama4Tokenizer]:
    return {"llama-3.2-vision": Llama3Tokenizer.get_instance(), "llama-4": Llama4Tokenizer.get_instance()}


GENERATIONS: tuple[Generation, ...] = ("llama-3.2-vision", "llama-4")
# The larger vocabulary, with eight times the special tokens, is the one in the default suite.
LARGEST = ("llama-4", pytest.param("llama-3.2-vision", marks=pytest.mark.slow))


@pytest.mark.parametrize("generation", LARGEST)
def test_ids_and_decoded_texts_equal_those_of_metas_tokenizer(folders, oracles, generation):
    tokenizer, oracle = load(folders[generation]), oracles[generation]
    expected = [oracle.encode(string, bos=True, eos=False) for string in STRINGS]
    found = tokenizer(STRINGS)["input_ids"]
    assert [s for s, a, b in zip(STRINGS, found, expected, strict=True) if a != b] == []
    assert [tokenizer.decode(ids) for ids in found] == [oracle.decode(ids) for ids in expected]


@pytest.mark.slow
@pytest.mark.parametrize("generation", GENERATIONS)
def test_a_tokenizer_saved_and_loaded_again_gives_the_same_ids(folders, generation, tmp_path):
    first = load(folders[generation])
    first.save_pretrained(tmp_path)
    second = AutoTokenizer.from_pretrained(tmp_path)
    assert second(STRINGS)["input_ids"] == first(STRINGS)["input_ids"]
    assert (second.pad_token_id, second.eos_token_id) == (first.pad_token_id, first.eos_token_id)


def test_all_of_llama_4s_special_tokens_have_the_ids_of_metas_tokenizer(folders, oracles):
    oracle, tokenizer = oracles["llama-4"], load(folders["llama-4"])
    special = oracle.special_tokens
    assert len(special) == 2048
    assert tokenizer.convert_tokens_to_ids(list(special)) == list(special.values())
    assert len(tokenizer) == oracle.n_words == 202048
    text = "".join(special)
    assert tokenizer(text, add_special_tokens=False)["input_ids"] == list(special.values())
    assert tokenizer.decode(list(special.values()), skip_special_tokens=True) == ""
    assert tokenizer.pad_token == "<|finetune_right_pad|>"
    assert tokenizer.pad_token_id == oracle.pad_id == 200018


def test_llama_3_2_visions_special_tokens_have_the_ids_that_its_model_takes(folders, oracles):
    oracle, tokenizer = oracles["llama-3.2-vision"], load(folders["llama-3.2-vision"])
    first = {text: number for text, number in oracle.special_tokens.items() if number < 128011}
    assert tokenizer.convert_tokens_to_ids(list(first)) == list(first.values())
    # Meta's code puts 128256 in the place of its tokenizer's 128011.
    assert tokenizer.convert_tokens_to_ids("<|image|>") == 128256
    assert tokenizer.convert_tokens_to_ids("<|reserved_special_token_2|>") == 128011
    assert tokenizer.convert_tokens_to_ids("<|reserved_special_token_246|>") == 128255
    assert len(tokenizer) == 128257
    assert (tokenizer.pad_token_id, tokenizer.eos_token) == (oracle.pad_id, "<|eot_id|>")


@pytest.mark.parametrize("generation", GENERATIONS)
def test_a_base_model_ends_text_and_an_instruct_model_turns(
    folders, oracles, generation, tmp_path, tiktoken_file
):
    instruct, oracle = load(folders[generation]), oracles[generation]
    assert (instruct.bos_token_id, instruct.eos_token_id) == (oracle.bos_id, oracle.eot_id)
    # Of a small vocabulary, in which the same tokens have other ids.
    count = TOKEN_SETS[generation].counted
    vocabulary = make_rank_vocabulary("tokenizer.model", tiktoken_file.read_bytes(), special_count=count)
    base = AutoTokenizer.from_pretrained(write_tokenizer(tmp_path, vocabulary, generation))
    assert (base.bos_token, base.eos_token) == (
        oracle.decode([oracle.bos_id]),
        oracle.decode([oracle.eos_id]),
    )


@pytest.mark.slow
@pytest.mark.parametrize("generation", LARGEST)
def test_metas_file_comes_back_byte_for_byte(folders, generation, llama_3_file, llama_4_file):
    source = llama_4_file if generation == "llama-4" else llama_3_file
    table = (folders[generation] / "tokenizer.json").read_bytes()
    made = make_meta_tokenizer("hf", {"tokenizer.json": table})
    assert made.content == source.read_bytes()
    assert made.size == (202048 if generation == "llama-4" else 128256)
    assert made.beyond == ({} if generation == "llama-4" else {128256: "<|image|>"})
    assert made.notes == ()


def test_what_cuts_text_as_llama_4_does_has_its_special_tokens_whatever_its_size(tiktoken_file):
    content = tiktoken_file.read_bytes()
    vocabulary = make_rank_vocabulary("tokenizer.model", content, special_count=2048)
    table = make_rank_tokenizer(vocabulary, TOKEN_SETS["llama-4"])
    made = make_meta_tokenizer("hf", {"tokenizer.json": table})
    assert (made.content, made.size, made.notes) == (content, len(vocabulary.tokens) + 2048, ())


@pytest.mark.peer
@pytest.mark.parametrize("generation", GENERATIONS)
@pytest.mark.parametrize("version", ["4.57.6"])
def test_other_versions_give_the_same_ids_and_texts(
    folders: Mapping[Generation, Path],
    generation: Generation,
    version: str,
    run_peer: Callable[..., str],
) -> None:
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What? "}]},
        {"role": "assistant", "content": "This."},
        {"role": "user", "content": "So?"},
    ]
    found = ask_peer(run_peer, version, folders[generation], STRINGS, messages)
    ours = load(folders[generation])
    ids = ours(STRINGS)["input_ids"]
    assert found["version"] == version
    assert found["ids"] == ids
    assert found["texts"] == [ours.decode(row, skip_special_tokens=True) for row in ids]
    expected = ours.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert found["prompt"] == expected
    assert found["names"] == ["input_ids", "attention_mask"]
    assert found["special"] == [ours.bos_token_id, ours.eos_token_id, ours.model_max_length, len(ours)]
