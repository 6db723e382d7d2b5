"""tekken.json: ids equal mistral-common's, in the order of its special tokens; damaged files are told apart."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from mistral_common.tokens.tokenizers.base import TokenizerVersion
from mistral_common.tokens.tokenizers.sentencepiece import SentencePieceTokenizer
from mistral_common.tokens.tokenizers.tekken import Tekkenizer
from tokenizers import Tokenizer

from distconv.errors import InputError
from distconv.sidecars.pieces import PieceVocabulary
from distconv.sidecars.tekken import TekkenVocabulary
from distconv.sidecars.tokenizer import Vocabulary, make_tokenizer_files, read_vocabulary
from distconv.storage.local import LocalStorage
from tests.mistral_checkpoints import TEKKEN_SPECIAL, write_tekken
from tests.sidecars.conftest import packaged_file
from tests.sidecars.strings import make_strings

SPECIAL = ("[INST]", "[/INST]", "<s>")


def read(path: Path) -> Vocabulary:
    return read_vocabulary(LocalStorage(), str(path))


def make(vocabulary: Vocabulary) -> Tokenizer:
    files = make_tokenizer_files(
        vocabulary, special_tokens=None, context=32768, instruct=False, chat_template=None
    )
    return Tokenizer.from_str(files["tokenizer.json"].decode())


def list_plain(count: int) -> list[str]:
    """Give strings that hold no special token's text, which mistral-common takes for text."""
    return [text for text in make_strings(count) if not any(special in text for special in SPECIAL)]


def assert_same_ids(path: Path, strings: list[str]) -> None:
    ours, theirs = make(read(path)), Tekkenizer.from_file(path)
    encoded = ours.encode_batch(strings)
    for text, found in zip(strings, encoded, strict=True):
        assert found.ids == theirs.encode(text, bos=True, eos=False), text
        assert ours.decode(found.ids) == text
    for rank in range(theirs.num_special_tokens):
        assert ours.id_to_token(rank) == theirs.id_to_piece(rank)
    assert ours.get_vocab_size() == theirs.n_words


@pytest.mark.slow
@pytest.mark.parametrize("name", ["tekken_240718.json", "tekken_240911.json"])
def test_ids_of_published_files_are_those_of_mistral_common(name: str) -> None:
    assert_same_ids(packaged_file("mistral_common", f"data/{name}"), list_plain(2000))


@pytest.mark.parametrize("named", [True, False])
def test_ids_of_files_of_either_age_are_those_of_mistral_common(tmp_path: Path, named: bool) -> None:
    assert_same_ids(write_tekken(tmp_path / "tekken.json", named=named), list_plain(300))


@pytest.mark.first(1)
@pytest.mark.parametrize("version", ["240216.model.v2", "240323.model.v3", "241114.model.v7"])
def test_ids_of_mistrals_sentencepiece_models_are_those_of_mistral_common(version: str) -> None:
    path = packaged_file("mistral_common", f"data/mistral_instruct_tokenizer_{version}")
    vocabulary, theirs = read(path), SentencePieceTokenizer(path)
    assert isinstance(vocabulary, PieceVocabulary)
    assert vocabulary.size == theirs.n_words == 32768
    ours = make(vocabulary)
    for text in list_plain(1000):
        assert ours.encode(text).ids == theirs.encode(text, bos=True, eos=False), text


def test_ranks_beyond_the_vocabulary_are_left_out(tmp_path: Path) -> None:
    path = write_tekken(tmp_path / "tekken.json", padding=8)
    vocabulary, ranks = read(path), json.loads(path.read_text())["vocab"]
    assert isinstance(vocabulary, TekkenVocabulary)
    assert (vocabulary.size, len(vocabulary.special)) == (len(ranks) - 8 + TEKKEN_SPECIAL, TEKKEN_SPECIAL)


Change = Callable[[dict[str, dict[str, object]]], object]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda found: found.pop("config"), "no 'config' and 'vocab' in it, expected Mistral's tekken.json"),
        (lambda found: found["config"].pop("pattern"), "config.pattern is no text"),
        (lambda found: found["config"].update(pattern="a" * 5000), "config.pattern is no text of at most 4,096"),
        (lambda found: found["config"].update(default_vocab_size=10**6), "config.default_vocab_size is 1000000, expected"),
        (lambda found: found["config"].update(default_vocab_size=3), "config.default_vocab_size is 3, expected"),
        (lambda found: found["config"].update(default_num_special_tokens=4), "expected at least the 20 that are named"),
        (lambda found: found["config"].update(default_num_special_tokens="x"), "config.default_num_special_tokens is 'x'"),
        (lambda found: found["special_tokens"].reverse(), None),
        (lambda found: found["special_tokens"].pop(1), "special_tokens are no list with a 'token_str' for each 'rank'"),
        (lambda found: found["special_tokens"][1].update(token_str="</s>"), "expected <s> and </s> as 1 and 2"),
        (lambda found: found.update(special_tokens=8), "special_tokens are no list"),
        (lambda found: found["vocab"][7].update(rank=8), "entry 7 of 'vocab' is .* expected 'rank' 7"),
        (lambda found: found["vocab"][7].update(token_bytes="!"), "entry 7 of 'vocab'"),
        (lambda found: found["vocab"].__setitem__(7, None), "entry 7 of 'vocab' is None"),
        (lambda found: found["vocab"][7].update(token_bytes="AAAA"), "1 of the 256 single bytes have no rank"),
        (lambda found: found["vocab"][300].update(token_bytes="AA=="), "1 tokens stand there twice"),
        (lambda found: found["vocab"][300].update(token_bytes="A" * 4096), "a token of 3,072 bytes"),
    ],
)  # fmt: skip
def test_a_damaged_file_is_refused_with_what_is_wrong(
    tmp_path: Path, change: Change, words: str | None
) -> None:
    path = write_tekken(tmp_path / "tekken.json")
    found = json.loads(path.read_text())
    change(found)
    path.write_text(json.dumps(found))
    if words is None:
        assert read(path).size
        return
    with pytest.raises(InputError, match=words) as raised:
        read(path)
    assert str(path) in str(raised.value)


@pytest.mark.parametrize("version", ["v99", None, 7, ["v7"]])
def test_a_version_that_mistral_common_does_not_read_is_said(tmp_path: Path, version: object) -> None:
    path = write_tekken(tmp_path / "tekken.json")
    found = json.loads(path.read_text())
    assert read(path).notes == ()
    found["config"]["version"] = version
    path.write_text(json.dumps(found))
    with pytest.raises((ValueError, TypeError)):
        Tekkenizer.from_file(path)
    (note,) = read(path).notes
    assert f"config.version is {version!r}, expected one of v1, v2, v3, v7, v11, v13, v15" in note


def test_every_version_of_mistral_common_is_known(tmp_path: Path) -> None:
    path = write_tekken(tmp_path / "tekken.json")
    found = json.loads(path.read_text())
    for version in TokenizerVersion:
        found["config"]["version"] = version.value
        path.write_text(json.dumps(found))
        assert read(path).notes == ()


def test_json_of_another_kind_is_no_tokenizer(tmp_path: Path) -> None:
    path = tmp_path / "tekken.json"
    path.write_text('{"model": {}}')
    with pytest.raises(InputError, match=r"JSON text, expected .* or Mistral's tekken\.json"):
        read(path)


def test_a_pattern_that_is_no_expression_is_told(tmp_path: Path) -> None:
    from distconv.families.mistral import MISTRAL_FAMILIES
    from distconv.verbs.assembly import make_family_tokenizer

    path = write_tekken(tmp_path / "tekken.json")
    found = json.loads(path.read_text())
    found["config"]["pattern"] = "("
    path.write_text(json.dumps(found))
    with pytest.raises(InputError, match="no tokenizer can be made of it"):
        make_family_tokenizer(read(path), MISTRAL_FAMILIES["mistral-tekken"], 32768, instruct=False)
