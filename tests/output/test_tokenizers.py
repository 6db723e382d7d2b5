"""Whether a folder's tokenizer fits its model: compared with what tokenizers and Transformers make of the same files."""

import json
import random
from collections.abc import Callable
from pathlib import Path

import pytest
import sentencepiece
from tokenizers import Tokenizer, models
from transformers import AutoTokenizer, PreTrainedTokenizerFast

import distconv
from tests.checkpoints import Spec
from tests.foreign_folders import SIZES, save_dense

ROWS = int(str(SIZES["vocab_size"]))
WORDS = [f"w{number}" for number in range(ROWS - 6)]
MODELS = {
    "words": lambda: models.WordLevel({word: number for number, word in enumerate(WORDS)}, "w0"),
    "word pieces": lambda: models.WordPiece(
        {word: number for number, word in enumerate(WORDS)}, unk_token="w0"
    ),
    "pairs": lambda: models.BPE({word: number for number, word in enumerate(WORDS)}, []),
    "pieces": lambda: models.Unigram([(word, -1.0) for word in WORDS], 0),
}
SPECIAL = ["<bos>", "<eos>", "<pad>"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Give a model without a tokenizer, of 64 rows, whose first and last tokens are 1 and 2."""
    return save_dense(tmp_path / "model")


def save_tokenizer(folder: Path, model: models.Model, added: list[str]) -> int:
    """Let Transformers save a tokenizer; gives how many ids it has, by its own count."""
    tokenizer = Tokenizer(model)
    tokenizer.add_special_tokens(added)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(folder)
    return max(AutoTokenizer.from_pretrained(folder).get_vocab().values()) + 1


def edit(path: Path, **changes: object) -> None:
    content = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps(content | changes))


@pytest.mark.parametrize("kind", MODELS)
def test_tokens_that_the_model_has_no_row_for_are_named_with_their_ids(folder: Path, kind: str) -> None:
    assert save_tokenizer(folder, MODELS[kind](), [*SPECIAL, "<a>", "<b>", "<c>"]) == ROWS
    report = distconv.verify(folder)
    assert report.ok, report.differences
    assert not any("tokenizer" in note for note in report.notes)
    assert save_tokenizer(folder, MODELS[kind](), [*SPECIAL, "<a>", "<b>", "<c>", "<d>", "<e>"]) == ROWS + 2
    (words,) = distconv.verify(folder).differences
    assert words == (
        f"{folder}/tokenizer.json: ids beyond the vocabulary, of which {folder}/config.json and the embedding give 64 rows: "
        "'<d>' (64), '<e>' (65)"
    )


def test_special_ids_that_the_tokenizer_lacks_are_named_and_those_that_are_not_used_are_not(
    folder: Path,
) -> None:
    save_tokenizer(folder, MODELS["words"](), SPECIAL)
    edit(folder / "config.json", pad_token_id=-1, sep_token_id=None)
    edit(folder / "generation_config.json", eos_token_id=[2, 63], pad_token_id=60)
    assert distconv.verify(folder).differences == (
        f"{folder}/generation_config.json: eos_token_id 63, {folder}/tokenizer.json has no token of that id",
    )
    edit(folder / "config.json", bos_token_id=61)
    found = distconv.verify(folder).differences
    assert f"{folder}/config.json: bos_token_id 61, {folder}/tokenizer.json has no token of that id" in found


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-3])


def remove_vocabulary(path: Path) -> None:
    edit(path, model={"type": "BPE"})


def spoil_id(path: Path) -> None:
    edit(path, model={"type": "WordLevel", "vocab": {"a": "one"}})


def spoil_added(path: Path) -> None:
    edit(path, added_tokens=[{"id": -5, "content": "x"}])


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (cut, "tokenizer.json: not JSON ("),
        (remove_vocabulary, "tokenizer.json: no model.vocab, expected the tokens of a tokenizer"),
        (spoil_id, "tokenizer.json: 'a' has the id 'one' in model.vocab, expected a whole number from 0 on"),
        (spoil_added, "tokenizer.json: id -5 among added_tokens, expected a whole number from 0 on"),
    ],
)
def test_a_tokenizer_that_cannot_be_read_is_found(
    folder: Path, damage: Callable[[Path], None], words: str
) -> None:
    save_tokenizer(folder, MODELS["pairs"](), SPECIAL)
    damage(folder / "tokenizer.json")
    (found,) = distconv.verify(folder).differences
    assert words in found


def test_a_folder_without_a_tokenizer_is_whole_and_a_note_says_so(folder: Path) -> None:
    report = distconv.verify(folder)
    assert report.ok
    assert (
        f"{folder}: no tokenizer here (as tokenizer.json or tokenizer.model), without which no text can be read or written"
        in report.notes
    )
    (folder / "tekken.json").write_text("{}")
    assert (
        f"{folder}/tekken.json: a tokenizer of a kind that is not looked at" in distconv.verify(folder).notes
    )


@pytest.mark.parametrize("size", [ROWS, ROWS + 1])
def test_tokens_of_a_sentencepiece_model_are_counted(folder: Path, tmp_path: Path, size: int) -> None:
    letters = random.Random(0).choices("abcdefghijklmnopqrstuvwxyz", k=4000)
    (tmp_path / "text").write_text("\n".join("".join(letters[first : first + 8]) for first in range(3990)))
    sentencepiece.SentencePieceTrainer.train(
        input=str(tmp_path / "text"), model_prefix=str(folder / "tokenizer"), vocab_size=size, hard_vocab_limit=True,
        minloglevel=2,
    )  # fmt: skip
    (folder / "tokenizer.vocab").unlink()
    beyond = [words for words in distconv.verify(folder).differences if "ids beyond the vocabulary" in words]
    assert [f"'' ({ROWS})" in words for words in beyond] == [True] * (size - ROWS)


def test_tokens_in_files_of_older_versions_count(folder: Path) -> None:
    (folder / "vocab.json").write_text(json.dumps({word: number for number, word in enumerate(WORDS)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    assert distconv.verify(folder).ok
    edit(folder / "generation_config.json", pad_token_id=60)
    assert not distconv.verify(folder).ok
    edit(folder / "added_tokens.json", **{"<pad>": 60})
    assert distconv.verify(folder).ok
    edit(folder / "tokenizer_config.json", added_tokens_decoder={"64": {"content": "<more>"}})
    (words,) = distconv.verify(folder).differences
    assert words.endswith("'<more>' (64)")
    for name in ("vocab.json", "merges.txt", "added_tokens.json", "tokenizer_config.json"):
        (folder / name).unlink()
    (folder / "vocab.txt").write_text("".join(f"{word}\n" for word in (*WORDS, *"abc")))
    assert distconv.verify(folder).ok
    edit(folder / "generation_config.json", pad_token_id=61)
    assert not distconv.verify(folder).ok


def test_a_tokenizer_that_distconv_made_fits_without_a_receipt_too(
    checkpoint: Callable[[Spec], Path], tmp_path: Path
) -> None:
    distconv.convert(checkpoint(Spec("llama-3")), tmp_path / "out", instruct=True)
    (tmp_path / "out/distconv.json").unlink()
    assert distconv.verify(tmp_path / "out").ok
