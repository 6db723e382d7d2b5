"""What is read of each kind of a tokenizer's files: which tokens are beyond the model's rows, or what is wrong with a file."""

import json
from collections.abc import Iterable
from pathlib import Path

import pytest

from distconv.output.tokenizers import find_tokenizer_faults, is_tokenizer, lacks_tokenizer
from distconv.storage.local import LocalStorage

ROWS = 3


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Give the folder of a model with so many rows, as its config says."""
    (tmp_path / "config.json").write_text(json.dumps({"vocab_size": ROWS}))
    return tmp_path


def look(folder: Path) -> tuple[list[str], list[str]]:
    """Give findings and notes."""
    return find_tokenizer_faults(LocalStorage(), str(folder), {})


def tell_beyond(folder: Path, name: str, tokens: Iterable[str]) -> str:
    """Give how tokens beyond the rows are told."""
    shown = ", ".join(f"{token!a} ({ROWS + place})" for place, token in enumerate(tokens))
    return (
        f"{folder}/{name}: ids beyond the vocabulary, of which {folder}/config.json and the embedding give {ROWS} rows: "
        f"{shown}"
    )


@pytest.mark.parametrize(
    ("content", "beyond"),
    [
        (b"a\nb c\nd", []),
        (b"a\nb c\n\n\r\n\r\n", []),
        (b"a\nb c\nd\n \n", [" "]),
        (b"a\nb\nc\nXX\n", ["XX"]),
        (b"a\nb\nc\n\xff\n", ["\ufffd"]),
        (b"a\nb\nc\n\nd\n", ["", "d"]),
    ],
)
def test_each_line_of_a_vocabulary_is_a_token_to_the_last_that_is_not_empty(
    folder: Path, content: bytes, beyond: list[str]
) -> None:
    (folder / "vocab.txt").write_bytes(content)
    assert look(folder)[0] == ([tell_beyond(folder, "vocab.txt", beyond)] if beyond else [])


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{no", "not JSON"),
        ('{"a": 0, "b": "1"}', "'b' has the id '1' in the file, expected a whole number from 0 on"),
        ('{"a": -1}', "'a' has the id -1 in the file, expected a whole number from 0 on"),
    ],
)
def test_what_is_no_vocabulary_is_named_with_its_file(folder: Path, content: str, words: str) -> None:
    (folder / "vocab.json").write_text(content)
    ((finding,), _notes) = look(folder)
    assert finding.startswith(f"{folder}/vocab.json: {words}")


@pytest.mark.parametrize("content", [b"", b"\x12\x00", b"no protobuf, but something"])
def test_a_sentencepiece_model_without_pieces_is_of_another_kind(folder: Path, content: bytes) -> None:
    (folder / "spiece.model").write_bytes(content)
    assert look(folder) == ([], [f"{folder}/spiece.model: a tokenizer of a kind that is not looked at"])


def test_of_a_sentencepiece_model_ids_alone_are_known(folder: Path) -> None:
    (folder / "spiece.model").write_bytes(b"\x0a\x03abc" * (ROWS + 1))
    (folder / "special_tokens_map.json").write_text('{"eos_token": "</s>"}')
    assert look(folder) == ([tell_beyond(folder, "spiece.model", [""])], [])


@pytest.mark.parametrize("names", ["LlamaForCausalLM", {"a": 1}, None, [None, 7]])
def test_architectures_that_name_none_give_no_text(folder: Path, names: object) -> None:
    (folder / "config.json").write_text(
        json.dumps({"vocab_size": ROWS, "eos_token_id": 5, "architectures": names})
    )
    (folder / "vocab.txt").write_text("a\nb\nc")
    words = f"{folder}/config.json: eos_token_id 5, {folder}/vocab.txt has no token of that id"
    assert look(folder) == ([], [words])


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("tokenizer.json", True), ("vocab.txt", True), ("spiece.model", True), ("tekken.json", True),
        ("source.spm", True), ("merges.txt", True), ("config.json", False), ("tokenizer_config.json", False),
        ("model.safetensors", False),
    ],
)  # fmt: skip
def test_files_are_a_tokenizers_by_their_names(name: str, expected: bool) -> None:
    assert is_tokenizer(name) is expected


@pytest.mark.parametrize(
    ("config", "names", "expected"),
    [
        ({"vocab_size": 3}, ["config.json", "model.safetensors"], True),
        ({"text_config": {"vocab_size": 3}}, [], True),
        ({"vocab_size": 3}, ["config.json", "vocab.txt"], False),
        ({"vocab_size": 3}, ["tokenizer_config.json"], False),
        ({"hidden_size": 3}, [], False),
        ({"hidden_size": 3}, ["vocab.txt"], False),
    ],
)
def test_a_model_with_a_vocabulary_lacks_a_tokenizer_where_no_file_could_be_one(
    config: dict[str, object], names: list[str], expected: bool
) -> None:
    assert lacks_tokenizer(config, names) is expected
