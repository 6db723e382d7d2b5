"""tokenizer.model out of a Transformers folder, the rows that go with it, and checklist.chk."""

import base64
import hashlib
import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers.convert_slow_tokenizer import TikTokenConverter

from distconv.errors import InputError, MismatchError
from distconv.formats.meta.checklist import parse_checklist
from distconv.sidecars.meta_checklist import make_checklist
from distconv.sidecars.meta_tokenizer import MetaTokenizer, decide_rows, make_meta_tokenizer
from distconv.sidecars.ranks import make_rank_tokenizer, make_rank_vocabulary
from distconv.sidecars.special_tokens import TOKEN_SETS

Change = Callable[[dict[str, object]], object]


def make_table(content: bytes) -> bytes:
    """Make tokenizer.json as distconv does."""
    return make_rank_tokenizer(make_rank_vocabulary("tokenizer.model", content), TOKEN_SETS["llama-3.1"])


def regenerate(table: bytes) -> MetaTokenizer:
    return make_meta_tokenizer("hf", {"tokenizer.json": table})


@pytest.fixture(scope="module")
def small_table(tiktoken_file: Path) -> bytes:
    return make_table(tiktoken_file.read_bytes())


def test_a_small_tokenizer_comes_back_byte_for_byte(tiktoken_file: Path, small_table: bytes) -> None:
    made = regenerate(small_table)
    assert made.content == tiktoken_file.read_bytes()
    assert (made.kind, made.size, made.beyond, made.notes) == ("tiktoken", 576, {}, ())


def test_llama_3s_own_comes_back_from_what_distconv_wrote(llama_3_file: Path, llama_3_folder: Path) -> None:
    made = regenerate((llama_3_folder / "tokenizer.json").read_bytes())
    assert made.content == llama_3_file.read_bytes()
    assert made.size == 128256


@pytest.mark.parametrize("name", ["tiktoken_file", pytest.param("llama_3_file", marks=pytest.mark.slow)])
def test_one_comes_back_from_what_transformers_wrote(name: str, request: pytest.FixtureRequest) -> None:
    file: Path = request.getfixturevalue(name)
    special = list(TOKEN_SETS["llama-3"].texts)
    own = TikTokenConverter(vocab_file=str(file), extra_special_tokens=special).converted()
    assert regenerate(own.to_str().encode()).content == file.read_bytes()


@given(extra=st.sets(st.binary(min_size=2, max_size=6), max_size=40), seed=st.randoms())
def test_any_tokens_come_back_in_their_order(extra: set[bytes], seed: object) -> None:
    tokens = [bytes([value]) for value in range(256)] + sorted(extra)
    seed.shuffle(tokens)  # type: ignore[attr-defined]
    lines = [f"{base64.b64encode(token).decode()} {rank}\n" for rank, token in enumerate(tokens)]
    content = "".join(lines).encode()
    assert regenerate(make_table(content)).content == content


def test_merges_may_be_pairs(tiktoken_file: Path, small_table: bytes) -> None:
    parsed = json.loads(small_table)
    parsed["model"]["merges"] = [text.split(" ") for text in parsed["model"]["merges"]]
    assert regenerate(json.dumps(parsed).encode()).content == tiktoken_file.read_bytes()


def set_model(key: str, value: object) -> Change:
    return lambda parsed: parsed["model"].update({key: value})  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (set_model("type", "Unigram"), "no BPE with a vocabulary"),
        (set_model("vocab", []), "no BPE with a vocabulary"),
        (set_model("byte_fallback", True), "the BPE of a sentencepiece model, whose scores"),
        (set_model("vocab", {"a": 0, "b": 2}), "ids are not those from 0 to 1"),
        (set_model("vocab", {"a": 0, "b": "1"}), "ids are not those from 0 to 1"),
        (set_model("vocab", {"a": 0, "b c": 1}), "token 1 ('b c') is not written in bytes"),
        (set_model("vocab", {"a": 0}), "255 of the 256 single bytes have no rank"),
        (set_model("merges", []), "its 0 merges are not those that follow from ranks"),
        (set_model("merges", None), "its 0 merges are not"),
        (set_model("merges", [5, [1, 2], "a", ["a", "b", "c"], {}]), "its 5 merges are not"),
        (lambda parsed: parsed["model"]["merges"].reverse(), "they are in another order"),
        (lambda parsed: parsed["model"]["merges"].pop(), "(1 of them too many or too few)"),
        (
            lambda parsed: parsed.update(normalizer={"type": "NFC"}),
            "text is cut before it is merged in another way",
        ),
        (lambda parsed: parsed.update(pre_tokenizer=None), "text is cut before it is merged in another way"),
        (lambda parsed: parsed.update(pre_tokenizer={"type": "ByteLevel"}), "text is cut before"),
        (lambda parsed: parsed.update(model=None), "no BPE with a vocabulary"),
    ],
)
def test_what_tiktoken_would_not_do_as_well_is_refused(
    small_table: bytes, change: Change, words: str
) -> None:
    parsed = json.loads(small_table)
    change(parsed)
    with pytest.raises(InputError) as raised:
        regenerate(json.dumps(parsed).encode())
    assert words in str(raised.value)


def test_a_trained_byte_level_bpe_is_refused_for_its_merges() -> None:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(["banana bandana ananas " * 9], trainer)
    with pytest.raises(InputError, match="merges are not those that follow from ranks"):
        regenerate(tokenizer.to_str().encode())


def test_a_sentencepiece_model_is_copied(sentencepiece_file: Path) -> None:
    content = sentencepiece_file.read_bytes()
    added = json.dumps(
        {"added_tokens": [{"id": 0, "content": "<unk>"}, {"id": 320, "content": "[PAD]"}]}
    ).encode()
    made = make_meta_tokenizer("hf", {"tokenizer.model": content, "tokenizer.json": added})
    assert (made.kind, made.content, made.size, made.beyond) == (
        "sentencepiece",
        content,
        320,
        {320: "[PAD]"},
    )


def test_added_tokens_of_an_older_folder_count(sentencepiece_file: Path) -> None:
    files = {"tokenizer.model": sentencepiece_file.read_bytes(), "added_tokens.json": b'{"<|im_end|>": 320}'}
    with pytest.raises(MismatchError, match=r"1 added tokens .* '<\|im_end\|>' \(320\)"):
        decide_rows("config.json", 321, make_meta_tokenizer("hf", files))


def test_what_is_no_tokenizer_and_none_at_all_are_said() -> None:
    with pytest.raises(InputError, match=r"hf/tokenizer\.model: "):
        make_meta_tokenizer("hf", {"tokenizer.model": b"version https://git-lfs"})
    with pytest.raises(InputError, match=r"hf: neither tokenizer\.model nor tokenizer\.json"):
        make_meta_tokenizer("hf", {})


def test_renamed_special_tokens_are_named(small_table: bytes) -> None:
    renamed = small_table.replace(b"<|reserved_special_token_0|>", b"<|im_start|>")
    (note,) = regenerate(renamed).notes
    assert "1 special tokens ('<|im_start|>')" in note


def test_rows_that_no_token_has_are_left_out_with_a_word() -> None:
    plain = MetaTokenizer("sentencepiece", b"", 32000, {})
    assert decide_rows("config.json", 32000, plain) == (32000, None)
    rows, note = decide_rows("config.json", 32064, plain)
    assert rows == 32000
    assert note is not None
    assert "the last 64 of 32,064 rows" in note
    padded = MetaTokenizer("tiktoken", b"", 128256, {128256: "<|pad|>"})
    assert decide_rows("config.json", 128257, padded)[0] == 128256


def test_too_few_rows_and_rows_of_trained_tokens_are_refused() -> None:
    spoken = MetaTokenizer(
        "sentencepiece", b"", 32000, {32000: "<|im_start|>", 32001: "[PAD]", 32002: "<|im_end|>"}
    )
    with pytest.raises(
        MismatchError, match=r"2 added tokens .* '<\|im_start\|>' \(32000\), '<\|im_end\|>' \(32002\)"
    ):
        decide_rows("config.json", 32064, spoken)
    with pytest.raises(MismatchError, match=r"has 31,999 rows, tokenizer\.model 32,000 tokens"):
        decide_rows("config.json", 31999, spoken)


def test_md5sum_and_distconv_read_the_checklist(tmp_path: Path) -> None:
    files = {"params.json": b"{}", "consolidated.00.pth": b"weights"}
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    digests = {name: hashlib.md5(content).hexdigest() for name, content in files.items()}
    made = make_checklist(digests)
    (tmp_path / "checklist.chk").write_bytes(made)
    subprocess.run(
        ["md5sum", "--check", "--strict", "checklist.chk"], cwd=tmp_path, check=True, capture_output=True
    )
    listed = [(entry.path, entry.md5) for entry in parse_checklist("checklist.chk", "x", made)]
    assert listed == [(f"x/{name}", md5) for name, md5 in sorted(digests.items())]
