"""What sentencepiece files may hold beside trained pieces: ids equal sentencepiece's, or a note says where not."""

import io
import random
from collections.abc import Sequence
from pathlib import Path

import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer
from transformers import AutoTokenizer

from distconv.errors import InputError
from distconv.sidecars.pieces import PieceVocabulary, make_piece_tokenizer, make_piece_vocabulary
from tests.extent import share
from tests.sidecars.strings import make_strings
from tests.sidecars.test_tokenizer import CONTROL, USER_DEFINED, add_piece, read
from tests.sidecars.written_tokenizers import write_tokenizer

NORMAL, UNUSED = 1, 5


def train(symbols: Sequence[str] = (), size: int = 360) -> bytes:
    """Train a small model whose user-defined pieces are these."""
    words = ("the quick brown fox", "jumps over", "a lazy dog", "in spain", "abba cabbage", "im start end")
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([f"{a} {b} {c}" for a in words for b in words for c in words]),
        model_writer=model,
        model_type="bpe",
        vocab_size=size,
        byte_fallback=True,
        hard_vocab_limit=False,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        user_defined_symbols=list(symbols),
        minloglevel=2,
    )
    return model.getvalue()


@pytest.fixture(scope="module")
def trained() -> bytes:
    return train()


def compare(model: bytes, strings: Sequence[str]) -> tuple[PieceVocabulary, list[str]]:
    """Read a model, and give the strings to which tokenizer.json gives other ids than sentencepiece."""
    vocabulary = make_piece_vocabulary("tokenizer.model", model)
    tokenizer = Tokenizer.from_str(make_piece_tokenizer(vocabulary).decode())
    oracle = sentencepiece.SentencePieceProcessor(model_proto=model)
    found = [each.ids for each in tokenizer.encode_batch(list(strings), add_special_tokens=False)]
    expected = oracle.encode(list(strings))
    return vocabulary, [s for s, a, b in zip(strings, found, expected, strict=True) if a != b]


def mix(parts: Sequence[str], count: int = 2000) -> list[str]:
    """Put parts at beginnings, at ends, side by side, and between spaces."""
    chosen = random.Random(0)
    return ["".join(chosen.choice(parts) for _ in range(chosen.randint(1, 9))) for _ in range(count)]


SYMBOLS = [
    ("<|im_start|>", "<|im_end|>"),
    ("<|im", "<|im_start|>", "|>", "ab", "aba", "abab"),
    ("\n", "\t", "0", "1", "\r\n"),
    ("(.*)", "[a-z]+", "\\n", "$^", "a|b", "#x -y"),
    ("日本", "😀", "é"),
    ("▁<X>", "▁", "a▁b"),
    (" ", "  ", "a b"),
]


@pytest.mark.parametrize("symbols", SYMBOLS)
def test_user_defined_pieces_are_found_in_text_as_sentencepiece_finds_them(symbols: Sequence[str]) -> None:
    parts = [
        *symbols,
        "a",
        "b",
        "ab",
        " ",
        "  ",
        "the quick",
        "<",
        "|",
        "im",
        "\n",
        "▁",
        "日本語",
        " <X>",
        "x",
    ]
    strings = ["", *symbols, *make_strings(300, seed=6), *mix(parts)]
    vocabulary, differ = compare(train(symbols), strings)
    # The one exception, of which the note tells.
    assert set(differ) <= set(symbols)
    if differ:
        assert "only a text that is one of them and nothing else" in "\n".join(vocabulary.notes)


def test_user_defined_pieces_are_added_tokens_that_decoding_keeps(tmp_path: Path) -> None:
    model = train(("<|im_start|>", "<|im_end|>"))
    (tmp_path / "out").mkdir()
    tokenizer = AutoTokenizer.from_pretrained(write_tokenizer(tmp_path / "out", read(tmp_path, model)))
    oracle = sentencepiece.SentencePieceProcessor(model_proto=model)
    added = {str(token): number for number, token in tokenizer.added_tokens_decoder.items()}
    assert added["<|im_start|>"] == oracle.piece_to_id("<|im_start|>")
    assert not tokenizer.added_tokens_decoder[added["<|im_end|>"]].special
    strings = mix(["<|im_start|>", "<|im_end|>", "user", " ", "\n", "the quick"], 300)
    for ids in oracle.encode(strings):
        assert tokenizer.decode(ids, skip_special_tokens=True) == oracle.decode(ids)
    tokenizer.save_pretrained(tmp_path / "again")
    again = AutoTokenizer.from_pretrained(tmp_path / "again")
    assert again(strings)["input_ids"] == tokenizer(strings)["input_ids"]


def test_merged_in_pieces_that_tie_are_said_not_to_be_exact(trained: bytes) -> None:
    model = trained
    for text in ("cb", "bc", "ac"):
        model = add_piece(model, text, NORMAL)
    vocabulary, differ = compare(model, mix(["a", "b", "c"]))
    assert differ
    (note,) = vocabulary.notes
    assert "tokenizer.model: 4 equally scored pieces (ab, cb, bc, ac)" in note
    assert "cannot be exact" in note
    assert "tokenizer.model, which is copied beside tokenizer.json, is exact" in note


def test_trained_pieces_and_runs_of_spaces_tie_in_no_way_that_matters(
    trained: bytes, pieces_file: Path
) -> None:
    assert make_piece_vocabulary("", trained).notes == ()
    published = pieces_file.read_bytes()
    vocabulary, differ = compare(published, [" " * length + "a" for length in range(200)])
    tied = [piece for piece in vocabulary.pieces if piece.score == -1e9]
    assert len(tied) > 10
    assert (vocabulary.notes, differ) == ((), [])


def test_runs_of_spaces_that_would_be_merged_otherwise_are_said_not_to_be_exact(trained: bytes) -> None:
    model = trained
    for length in (3, 2, 5):
        model = add_piece(model, "▁" * length, NORMAL, -1e9)
    vocabulary, differ = compare(model, [" " * length for length in range(40)])
    assert bool(differ) == bool(vocabulary.notes) is True


@settings(max_examples=share(60), deadline=None)
@given(
    st.dictionaries(
        st.text("abc▁", min_size=2, max_size=4), st.sampled_from([0.0, -5.0, -1000.0, -1e9]), max_size=10
    )
)
def test_where_nothing_is_said_merged_in_pieces_give_sentencepieces_ids(
    trained: bytes, merged: dict[str, float]
) -> None:
    known = {piece.text for piece in make_piece_vocabulary("", trained).pieces}
    model = trained
    for text, score in merged.items():
        if text not in known:
            model = add_piece(model, text, NORMAL, score)
    vocabulary, differ = compare(model, mix(["a", "b", "c", " "], 300))
    assert vocabulary.notes or not differ


def test_unused_pieces_are_said_not_to_be_exact(trained: bytes) -> None:
    model = add_piece(add_piece(trained, "cb", UNUSED), "cbc", NORMAL)
    vocabulary, differ = compare(model, ["xcbc"])
    assert differ
    assert "1 unused pieces (cb)" in vocabulary.notes[0]


def test_scores_that_are_no_numbers_are_refused(trained: bytes) -> None:
    with pytest.raises(InputError, match="scores that are no numbers"):
        make_piece_vocabulary("tokenizer.model", add_piece(trained, "cb", NORMAL, float("nan")))


def test_a_merge_that_a_list_of_texts_would_lose_is_kept(trained: bytes) -> None:
    # A text that begins like the first line of a file of merges is skipped where it is read.
    model = trained
    for number, text in enumerate(
        ("#v", "#ve", "#ver", "#vers", "#versi", "#versio", "#version", "#versiona")
    ):
        model = add_piece(model, text, NORMAL, -2000.0 - number)
    model = add_piece(model, "#", NORMAL, -3000.0)
    assert compare(model, ["#version", "#versiona", "a#versiona #version"])[1] == []


def test_control_pieces_beside_user_defined_ones_stay_special(tmp_path: Path) -> None:
    model = add_piece(add_piece(train(("<tool>",)), "<pad>", CONTROL), "<step>", USER_DEFINED)
    tokenizer = AutoTokenizer.from_pretrained(write_tokenizer(tmp_path, read(tmp_path, model)))
    ids = tokenizer("a<tool>b<pad><step>", add_special_tokens=False)["input_ids"]
    assert tokenizer.decode(ids, skip_special_tokens=True) == "a<tool>b"
