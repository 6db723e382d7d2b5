"""Tokenizers give the ids that Meta's own libraries give, in every supported transformers."""

import base64
import json
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
import sentencepiece
import tiktoken
from tokenizers import Tokenizer
from transformers import AutoTokenizer

from distconv.errors import InputError
from distconv.sidecars.pieces import PieceVocabulary, make_piece_merges
from distconv.sidecars.ranks import RankVocabulary
from distconv.sidecars.special_tokens import TOKEN_SETS
from distconv.sidecars.tokenizer import Vocabulary, make_tokenizer_files, read_vocabulary
from distconv.storage.local import LocalStorage
from tests.extent import share
from tests.sidecars.strings import make_strings
from tests.sidecars.written_tokenizers import ask_peer, load, write_tokenizer

CONTROL, USER_DEFINED = 3, 4


@pytest.fixture(scope="session")
def pieces_folder(pieces_vocabulary: Vocabulary, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tokenizer(tmp_path_factory.mktemp("pieces"), pieces_vocabulary, chat="llama-2")


@pytest.fixture(scope="session")
def pieces_oracle(pieces_file: Path) -> sentencepiece.SentencePieceProcessor:
    return sentencepiece.SentencePieceProcessor(model_file=str(pieces_file))


@pytest.fixture(scope="session")
def llama_3_oracle(llama_3_file: Path) -> tiktoken.Encoding:
    """Meta's tokenizer, put together as Meta's llama3/tokenizer.py does."""
    ranks = {}
    for line in llama_3_file.read_bytes().splitlines():
        token, rank = line.split()
        ranks[base64.b64decode(token)] = int(rank)
    pattern = (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
        r"|\s*[\r\n]+|\s+(?!\S)|\s+"
    )
    return tiktoken.Encoding("llama-3", pat_str=pattern, mergeable_ranks=ranks, special_tokens={})


def test_ids_equal_those_of_sentencepiece_after_the_beginning_of_text(pieces_folder, pieces_oracle):
    tokenizer = load(pieces_folder)
    strings = make_strings(share(8000))
    expected = [[1, *ids] for ids in pieces_oracle.encode(strings)]
    found = tokenizer(strings)["input_ids"]
    assert [s for s, a, b in zip(strings, found, expected, strict=True) if a != b] == []


def test_ids_equal_those_of_tiktoken_after_the_beginning_of_text(llama_3_folder, llama_3_oracle):
    tokenizer = load(llama_3_folder)
    strings = make_strings(share(8000))
    expected = [[128000, *llama_3_oracle.encode_ordinary(string)] for string in strings]
    found = tokenizer(strings)["input_ids"]
    assert [s for s, a, b in zip(strings, found, expected, strict=True) if a != b] == []


def test_decoded_text_equals_that_of_sentencepiece(pieces_folder, pieces_oracle):
    tokenizer = load(pieces_folder)
    encoded = pieces_oracle.encode(make_strings(share(5000), seed=1))
    expected = pieces_oracle.decode(encoded)
    assert [tokenizer.decode(ids) for ids in encoded] == expected


def test_sentencepiece_text_survives_encoding_and_decoding(pieces_folder):
    tokenizer = load(pieces_folder)
    strings = [string for string in make_strings(share(5000), seed=2) if "▁" not in string]
    found = [tokenizer.decode(ids, skip_special_tokens=True) for ids in tokenizer(strings)["input_ids"]]
    assert found == strings


def test_tiktoken_text_survives_encoding_and_decoding(llama_3_folder):
    tokenizer = load(llama_3_folder)
    strings = make_strings(share(5000), seed=2)
    found = [tokenizer.decode(ids, skip_special_tokens=True) for ids in tokenizer(strings)["input_ids"]]
    assert found == strings


@pytest.mark.slow
@pytest.mark.parametrize("folder_name", ["pieces_folder", "llama_3_folder"])
def test_a_tokenizer_saved_and_loaded_again_gives_the_same_ids(folder_name, request, tmp_path):
    first = load(request.getfixturevalue(folder_name))
    first.save_pretrained(tmp_path)
    second = AutoTokenizer.from_pretrained(tmp_path)
    strings = make_strings(share(5000), seed=3)
    assert second(strings)["input_ids"] == first(strings)["input_ids"]
    assert second.chat_template == first.chat_template


def test_a_pair_of_texts_begins_twice(pieces_folder, llama_3_folder):
    assert load(pieces_folder)("a", "b")["input_ids"].count(1) == 2
    assert load(llama_3_folder)("a", "b")["input_ids"].count(128000) == 2


def test_settings_are_those_of_the_model(pieces_folder, llama_3_folder, llama_3_vocabulary, tmp_path):
    pieces = load(pieces_folder)
    assert (pieces.bos_token_id, pieces.eos_token_id, pieces.unk_token_id) == (1, 2, 0)
    assert pieces.model_max_length == 4096
    assert list(pieces("a")) == ["input_ids", "attention_mask"]
    instruct = load(llama_3_folder)
    assert (instruct.bos_token_id, instruct.eos_token_id) == (128000, 128009)
    base = AutoTokenizer.from_pretrained(write_tokenizer(tmp_path, llama_3_vocabulary))
    assert (base.bos_token_id, base.eos_token_id) == (128000, 128001)
    assert base.chat_template is None


def test_the_size_is_that_of_the_embedding(
    pieces_folder, llama_3_folder, pieces_vocabulary, llama_3_vocabulary
):
    assert pieces_vocabulary.size == len(load(pieces_folder)) == 32000
    assert llama_3_vocabulary.size == len(load(llama_3_folder)) == 128256


def test_pieces_scores_and_kinds_are_those_that_sentencepiece_reads(pieces_vocabulary, pieces_oracle):
    assert isinstance(pieces_vocabulary, PieceVocabulary)
    ids = range(pieces_oracle.get_piece_size())
    assert [(piece.text, piece.score) for piece in pieces_vocabulary.pieces] == [
        (pieces_oracle.id_to_piece(number), pieces_oracle.get_score(number)) for number in ids
    ]
    kinds = [piece.kind for piece in pieces_vocabulary.pieces]
    assert [kind == 6 for kind in kinds] == [pieces_oracle.is_byte(number) for number in ids]
    assert [kind == 3 for kind in kinds] == [pieces_oracle.is_control(number) for number in ids]


def test_the_published_file_has_its_published_number_of_merges(pieces_vocabulary):
    assert len(make_piece_merges("tokenizer.model", pieces_vocabulary.pieces)) == 58980


@pytest.mark.slow
def test_tiktoken_merges_are_those_of_the_converter_in_transformers(llama_3_vocabulary, llama_3_file):
    from transformers.convert_slow_tokenizer import TikTokenConverter

    files = make_tokenizer_files(
        llama_3_vocabulary, special_tokens="llama-3", context=8192, instruct=False, chat_template=None
    )
    converter = TikTokenConverter(
        vocab_file=str(llama_3_file), extra_special_tokens=list(TOKEN_SETS["llama-3"].texts)
    )
    expected = json.loads(converter.converted().to_str())
    found = json.loads(Tokenizer.from_str(files["tokenizer.json"].decode()).to_str())
    for part in ("model", "added_tokens", "pre_tokenizer", "decoder", "normalizer"):
        assert found[part] == expected[part]


def test_a_small_trained_model_gives_sentencepieces_ids(sentencepiece_file, tmp_path):
    vocabulary = read_vocabulary(LocalStorage(), str(sentencepiece_file))
    tokenizer = AutoTokenizer.from_pretrained(write_tokenizer(tmp_path, vocabulary))
    oracle = sentencepiece.SentencePieceProcessor(model_file=str(sentencepiece_file))
    strings = make_strings(share(2000), seed=4)
    assert tokenizer(strings, add_special_tokens=False)["input_ids"] == oracle.encode(strings)


def test_special_tokens_of_llama_3_have_their_published_ids():
    older, newer = TOKEN_SETS["llama-3"].texts, TOKEN_SETS["llama-3.1"].texts
    assert len(set(older)) == len(set(newer)) == 256
    assert older[:6] == (
        "<|begin_of_text|>",
        "<|end_of_text|>",
        *(f"<|reserved_special_token_{number}|>" for number in range(4)),
    )
    assert older[8:11] == (
        "<|reserved_special_token_4|>",
        "<|eot_id|>",
        "<|reserved_special_token_5|>",
    )
    assert older[255] == "<|reserved_special_token_250|>"
    assert newer[4:6] == ("<|finetune_right_pad_id|>", "<|reserved_special_token_2|>")
    assert newer[8:12] == ("<|eom_id|>", "<|eot_id|>", "<|python_tag|>", "<|reserved_special_token_3|>")
    assert newer[255] == "<|reserved_special_token_247|>"


def make_field(number: int, content: bytes) -> bytes:
    size, encoded = len(content), b""
    while size >= 0x80:
        encoded += bytes([size & 0x7F | 0x80])
        size >>= 7
    return bytes([number << 3 | 2]) + encoded + bytes([size]) + content


def add_piece(model: bytes, text: str, kind: int, score: float = 0.0) -> bytes:
    """Append a piece to a sentencepiece model: fields of one number add up in protobuf."""
    piece = make_field(1, text.encode()) + b"\x15" + struct.pack("<f", score) + bytes([0x18, kind])
    return model + make_field(1, piece)


def read(tmp_path: Path, content: bytes) -> Vocabulary:
    path = tmp_path / "tokenizer.model"
    path.write_bytes(content)
    return read_vocabulary(LocalStorage(), str(path))


def test_user_defined_pieces_are_named_in_a_note(tmp_path, pieces_file):
    vocabulary = read(tmp_path, add_piece(pieces_file.read_bytes(), "▁<PRE>", USER_DEFINED))
    assert vocabulary.size == 32001
    assert len(vocabulary.notes) == 1
    assert "1 user-defined pieces (▁<PRE>)" in vocabulary.notes[0]


@pytest.mark.parametrize("kind", [1, CONTROL, USER_DEFINED])
def test_the_pieces_of_code_llamas_prompts_are_special_tokens(tmp_path, pieces_file, kind):
    model = pieces_file.read_bytes()
    for text in ("▁<PRE>", "▁<SUF>", "▁<MID>", "▁<EOT>", "<step>"):
        model = add_piece(model, text, kind)
    tokenizer = AutoTokenizer.from_pretrained(write_tokenizer(tmp_path, read(tmp_path, model)))
    found = tokenizer("▁<PRE>def▁<SUF>x▁<MID>", add_special_tokens=False)["input_ids"]
    assert [number for number in found if number >= 32000] == [32000, 32001, 32002]
    assert tokenizer.convert_tokens_to_ids("<step>") == 32004


def test_control_pieces_are_left_out_of_decoded_text(tmp_path, pieces_file):
    model = add_piece(pieces_file.read_bytes(), "<step>", CONTROL)
    tokenizer = AutoTokenizer.from_pretrained(write_tokenizer(tmp_path, read(tmp_path, model)))
    ids = tokenizer("yes<step>")["input_ids"]
    assert ids[-1] == 32000
    assert tokenizer.decode(ids, skip_special_tokens=True) == "yes"


def rank_lines(count: int) -> list[str]:
    tokens = [bytes([value]) for value in range(256)]
    tokens += [bytes([65 + first, 65 + second]) for first in range(26) for second in range(26)]
    return [f"{base64.b64encode(token).decode()} {rank}" for rank, token in enumerate(tokens[:count])]


def test_a_rank_file_is_read_with_or_without_its_last_line_end(tmp_path):
    text = "\n".join(rank_lines(300))
    for content in (text, text + "\n", text.replace("\n", "\r\n") + "\r\n"):
        vocabulary = read(tmp_path, content.encode())
        assert isinstance(vocabulary, RankVocabulary)
        assert vocabulary.kind == "tiktoken"
        assert vocabulary.size == 300 + 256


def test_llama_4s_ranks_are_followed_by_as_many_special_tokens_as_its_code_has(tmp_path):
    tokens = [bytes([value]) for value in range(256)] + [b"x%d" % rank for rank in range(256, 200_000)]
    lines = [f"{base64.b64encode(token).decode()} {rank}" for rank, token in enumerate(tokens)]
    vocabulary = read(tmp_path, "\n".join(lines).encode())
    assert vocabulary.size == 202_048
    with pytest.raises(
        InputError, match=r"200,000 ranks, which 2,048 special tokens follow; expected .* 256 of them"
    ):
        write_tokenizer(tmp_path, vocabulary)
    assert read(tmp_path, "\n".join(lines[:-1]).encode()).size == 199_999 + 256


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (b"", "an empty file"),
        (b"\0" * 4096, "a file of zeros"),
        (b"<!DOCTYPE html><html></html>", "an HTML or XML page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 499723\n", "a git-LFS pointer"),
        (b'{"model": {}}', "JSON text"),
        (b"PK\x03\x04" + b"\0" * 64, "a zip archive"),
        (b"\xff" * 64, "unknown content"),
    ],
)
def test_what_is_no_tokenizer_is_named_for_what_it_is(tmp_path, content, found):
    with pytest.raises(InputError, match=found) as caught:
        read(tmp_path, content)
    assert str(tmp_path / "tokenizer.model") in str(caught.value)
    assert "expected a sentencepiece model" in str(caught.value)


def test_a_truncated_sentencepiece_model_is_refused(tmp_path, pieces_file):
    with pytest.raises(InputError, match="a damaged or truncated sentencepiece model"):
        read(tmp_path, pieces_file.read_bytes()[:200_000])


def test_a_sentencepiece_model_cut_between_its_pieces_is_refused(tmp_path):
    piece = make_field(1, make_field(1, b"<unk>") + bytes([0x18, 2]))
    with pytest.raises(InputError, match="a damaged or truncated sentencepiece model"):
        read(tmp_path, piece)


def test_a_rank_file_cut_within_a_line_is_refused(tmp_path):
    with pytest.raises(
        InputError, match=r"line 300 is .*expected `base64 299`; the file is damaged or truncated"
    ):
        read(tmp_path, "\n".join(rank_lines(300)).encode()[:-2])


def test_a_rank_file_with_a_line_missing_is_refused(tmp_path):
    lines = rank_lines(300)
    del lines[270]
    with pytest.raises(InputError, match=r"line 271 is .*expected `base64 270`"):
        read(tmp_path, "\n".join(lines).encode())


def test_a_rank_file_with_broken_base64_is_refused(tmp_path):
    lines = rank_lines(300)
    lines[280] = "QUF 280"
    with pytest.raises(InputError, match="line 281: Incorrect padding"):
        read(tmp_path, "\n".join(lines).encode())


def test_a_rank_file_with_a_token_twice_is_refused(tmp_path):
    lines = rank_lines(300)
    lines[299] = lines[298].split()[0] + " 299"
    with pytest.raises(InputError, match="1 tokens stand there twice"):
        read(tmp_path, "\n".join(lines).encode())


def test_a_rank_file_without_all_bytes_is_refused(tmp_path):
    with pytest.raises(InputError, match="56 of the 256 single bytes have no rank"):
        read(tmp_path, "\n".join(rank_lines(200)).encode())


@pytest.mark.parametrize(
    ("settings", "finding"),
    [
        ({"model_type": "unigram"}, "is not BPE"),
        ({"normalization_rule_name": "nmt_nfkc"}, "normalizes characters"),
        ({"add_dummy_prefix": False}, "puts no space before text"),
        ({"remove_extra_whitespaces": True}, "removes extra spaces"),
        ({"treat_whitespace_as_suffix": True}, "marks spaces at the end of words"),
        ({"bos_piece": "<begin>"}, "first pieces are <unk>, <begin>, </s>"),
    ],
)
def test_a_sentencepiece_model_of_another_kind_is_refused(tmp_path, settings, finding):
    defaults: dict[str, object] = {
        "model_type": "bpe",
        "normalization_rule_name": "identity",
        "remove_extra_whitespaces": False,
    }
    text = tmp_path / "text"
    text.write_text("the quick brown fox jumps over a lazy dog\n" * 10)
    sentencepiece.SentencePieceTrainer.train(
        input=str(text),
        model_prefix=str(tmp_path / "other"),
        vocab_size=60,
        hard_vocab_limit=False,
        minloglevel=2,
        **(defaults | settings),
    )
    with pytest.raises(InputError, match=finding):
        read(tmp_path, (tmp_path / "other.model").read_bytes())


def test_special_tokens_and_kind_must_go_together(pieces_vocabulary, llama_3_vocabulary):
    for vocabulary, special in ((pieces_vocabulary, "llama-3"), (llama_3_vocabulary, None)):
        with pytest.raises(InputError, match="expected a"):
            make_tokenizer_files(
                vocabulary, special_tokens=special, context=1, instruct=False, chat_template=None
            )


def test_a_rank_file_that_holds_special_tokens_is_refused(tmp_path):
    lines = rank_lines(300)
    lines[299] = f"{base64.b64encode(b'<|eot_id|>').decode()} 299"
    with pytest.raises(InputError, match="1 of Llama's special tokens stand among the ranks"):
        read(tmp_path, "\n".join(lines).encode())


@pytest.mark.peer
@pytest.mark.parametrize("version", ["4.31.0", "4.34.1", "4.43.4", "4.47.1", "4.57.6"])
@pytest.mark.parametrize("folder_name", ["pieces_folder", "llama_3_folder"])
def test_other_versions_give_the_same_ids_texts_and_prompts(
    folder_name: str,
    version: str,
    run_peer: Callable[..., str],
    request: pytest.FixtureRequest,
):
    folder = request.getfixturevalue(folder_name)
    strings = make_strings(share(5000), seed=5)
    messages = [
        {"role": "system", "content": " Be brief. "},
        {"role": "user", "content": "Why?\n"},
        {"role": "assistant", "content": "Because."},
        {"role": "user", "content": "So?"},
    ]
    found = ask_peer(run_peer, version, folder, strings, messages)
    ours = load(folder)
    ids = ours(strings)["input_ids"]
    assert found["version"] == version
    assert found["ids"] == ids
    assert found["texts"] == [ours.decode(row, skip_special_tokens=True) for row in ids]
    # 4.31 knows no templates.
    expected = ours.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert found["prompt"] == (None if version == "4.31.0" else expected)
    assert found["names"] == ["input_ids", "attention_mask"]
    assert found["special"] == [ours.bos_token_id, ours.eos_token_id, ours.model_max_length, len(ours)]
