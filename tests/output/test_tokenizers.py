"""Whether a folder's tokenizer fits its model: compared with what tokenizers and Transformers make of the same files."""

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
from tokenizers import Tokenizer, models
from transformers import (
    AutoTokenizer,
    ByT5Tokenizer,
    CsmConfig,
    CsmForConditionalGeneration,
    IdeficsConfig,
    IdeficsForVisionText2Text,
    PreTrainedTokenizerFast,
    SiglipConfig,
    SiglipModel,
    T5Config,
    T5ForConditionalGeneration,
)

import distconv
from tests.checkpoints import Spec
from tests.foreign_folders import SIZES, save_dense, save_model

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
    report = distconv.verify(folder)
    assert report.ok
    assert (
        f"{folder}/tokenizer.json: added tokens that the model has no row for, as {folder}/config.json and the embedding give "
        "64 rows: '<d>' (64), '<e>' (65)"
    ) in report.notes
    edit(folder / "generation_config.json", eos_token_id=[2, ROWS])
    assert distconv.verify(folder).differences == (
        f"{folder}/generation_config.json: eos_token_id 64, the model has 64 rows",
    )


def test_a_vocabulary_that_is_larger_than_the_model_is_found(folder: Path) -> None:
    words = [f"w{number}" for number in range(ROWS + 2)]
    Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, "w0")).save(
        str(folder / "tokenizer.json")
    )
    (found,) = distconv.verify(folder).differences
    assert found == (
        f"{folder}/tokenizer.json: ids beyond the vocabulary, of which {folder}/config.json and the embedding give 64 rows: "
        "'w64' (64), 'w65' (65)"
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
    edit(folder / "config.json", image_token_id=61)
    found = distconv.verify(folder).differences
    assert (
        f"{folder}/config.json: image_token_id 61, {folder}/tokenizer.json has no token of that id" in found
    )


@pytest.mark.parametrize(("architecture", "is_fault"), [("LlamaForCausalLM", True), ("LlamaModel", False)])
def test_an_end_that_no_token_has_is_a_fault_of_who_speaks_alone(
    folder: Path, architecture: str, *, is_fault: bool
) -> None:
    save_tokenizer(folder, MODELS["words"](), SPECIAL)
    (folder / "generation_config.json").unlink()
    edit(folder / "config.json", architectures=[architecture], eos_token_id=63)
    report = distconv.verify(folder)
    found = [words for words in (*report.differences, *report.notes) if "eos_token_id 63" in words]
    assert len(found) == 1
    assert (found[0] in report.differences) == is_fault


def test_rows_of_a_vocabulary_that_are_none_are_tokens_without_text(folder: Path) -> None:
    save_tokenizer(folder, MODELS["pieces"](), SPECIAL)
    content = json.loads((folder / "tokenizer.json").read_text())
    content["model"]["vocab"] += [["more", 0.0]] * (ROWS - len(WORDS)) + [5, [], None, [7]]
    edit(folder / "tokenizer.json", **content)
    (found,) = distconv.verify(folder).differences
    assert found.endswith("give 64 rows: '' (64), '' (65), '' (66), '7' (67)")


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


@pytest.mark.first(1)
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
    edit(folder / "generation_config.json", eos_token_id=60)
    assert not distconv.verify(folder).ok
    edit(folder / "added_tokens.json", **{"<pad>": 60})
    assert distconv.verify(folder).ok
    edit(folder / "tokenizer_config.json", added_tokens_decoder={"64": {"content": "<more>"}})
    report = distconv.verify(folder)
    assert report.ok
    assert any(words.endswith("'<more>' (64)") for words in report.notes)
    for name in ("vocab.json", "merges.txt", "added_tokens.json", "tokenizer_config.json"):
        (folder / name).unlink()
    (folder / "vocab.txt").write_text("".join(f"{word}\n" for word in (*WORDS, *"abc")))
    assert distconv.verify(folder).ok
    edit(folder / "generation_config.json", eos_token_id=61)
    assert not distconv.verify(folder).ok


def test_a_tokenizer_that_distconv_made_fits_without_a_receipt_too(
    checkpoint: Callable[[Spec], Path], tmp_path: Path
) -> None:
    distconv.convert(checkpoint(Spec("llama-3")), tmp_path / "out", instruct=True)
    (tmp_path / "out/distconv.json").unlink()
    assert distconv.verify(tmp_path / "out").ok


def test_ids_that_code_knows_by_itself_are_a_note_where_the_model_has_a_row_for_them(folder: Path) -> None:
    save_tokenizer(folder, MODELS["words"](), SPECIAL)
    # As M2M100's languages and BLIP's beginning are in no vocabulary.
    edit(folder / "generation_config.json", forced_bos_token_id=62)
    report = distconv.verify(folder)
    assert report.ok
    words = f"{folder}/generation_config.json: forced_bos_token_id 62, {folder}/tokenizer.json has no token of that id"
    assert words in report.notes
    edit(folder / "generation_config.json", forced_bos_token_id=ROWS)
    assert not distconv.verify(folder).ok


def test_ends_that_a_class_has_from_another_are_a_note_where_the_model_gives_no_text(tmp_path: Path) -> None:
    sizes = {
        "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 4,
        "image_size": 32, "patch_size": 16,
    }  # fmt: skip
    config = SiglipConfig(text_config={**sizes, "vocab_size": ROWS}, vision_config=sizes)
    folder = save_model(tmp_path / "model", SiglipModel, config, "1GB")
    save_tokenizer(folder, MODELS["words"](), SPECIAL)
    report = distconv.verify(folder)
    assert report.ok, report.differences
    assert (
        f"{folder}/config.json: eos_token_id 49,407, {folder}/tokenizer.json has no token of that id"
        in report.notes
    )


def test_a_vocabulary_for_each_language_is_not_looked_at(folder: Path) -> None:
    (folder / "vocab.json").write_text(json.dumps({"eng": {"<pad>": 0, "a": 1}, "fra": {"<pad>": 0, "b": 1}}))
    report = distconv.verify(folder)
    assert report.ok, report.differences
    assert f"{folder}/vocab.json: a tokenizer of a kind that is not looked at" in report.notes


@pytest.mark.parametrize("end", ["", "\n", "\r\n\r\n"])
def test_empty_lines_at_the_end_of_a_vocabulary_are_no_tokens(folder: Path, end: str) -> None:
    (folder / "vocab.txt").write_text("\n".join(f"w{number}" for number in range(ROWS)) + end)
    report = distconv.verify(folder)
    assert report.ok, report.differences


def test_a_model_that_speaks_has_rows_for_text_beside_those_for_sound(tmp_path: Path) -> None:
    sizes: dict[str, Any] = {
        "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 4,
        "num_key_value_heads": 2, "head_dim": 8, "num_codebooks": 4, "vocab_size": 19,
    }  # fmt: skip
    sound = {
        "model_type": "mimi", "num_filters": 4, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
        "num_key_value_heads": 2, "head_dim": 16, "intermediate_size": 16, "codebook_size": 16, "codebook_dim": 8,
        "vector_quantization_hidden_dimension": 8, "upsample_groups": 32, "num_quantizers": 4,
        "num_semantic_quantizers": 1,
    }  # fmt: skip
    deep = {**sizes, "backbone_hidden_size": 32, "max_position_embeddings": 5}
    config = CsmConfig(
        **sizes, text_vocab_size=100, depth_decoder_config=deep, codec_config=sound, codebook_pad_token_id=18,
        codebook_eos_token_id=0, bos_token_id=1, pad_token_id=2, audio_token_id=3, audio_eos_token_id=4,
    )  # fmt: skip
    folder = save_model(tmp_path / "model", CsmForConditionalGeneration, config, "1GB")
    words = {f"w{number}": number for number in range(100)}
    save_tokenizer(folder, models.WordLevel(words, "w0"), [])
    # Codebooks that were not trained are zeros.
    assert not [words for words in distconv.verify(folder).differences if "every value is zero" not in words]


def test_a_tokenizer_too_large_to_be_looked_at_is_no_fault(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_tokenizer(folder, MODELS["words"](), SPECIAL)
    monkeypatch.setattr("distconv.output.tokenizers.SMALL_FILE_BYTES", 2_000)
    size = (folder / "tokenizer.json").stat().st_size
    assert size > 2_000
    report = distconv.verify(folder)
    assert report.ok, report.differences
    words = f"{folder}/tokenizer.json: {size / 1000:.1f} kB, a larger tokenizer than is looked at"
    assert words in report.notes


def test_special_tokens_that_a_vocabulary_lacks_are_named_and_transformers_adds_them(folder: Path) -> None:
    size = save_tokenizer(folder, MODELS["words"](), SPECIAL)
    content = {
        "bos_token": "<bos>",
        "eos_token": {"content": "</s>"},
        "additional_special_tokens": ["w1", "<x>"],
    }
    (folder / "special_tokens_map.json").write_text(json.dumps(content))
    loaded = AutoTokenizer.from_pretrained(folder)
    assert (loaded.bos_token_id, loaded.eos_token_id >= size) == (size - 3, True)
    report = distconv.verify(folder)
    assert report.ok, report.differences
    path = folder / "special_tokens_map.json"
    assert [note for note in report.notes if str(path) in note] == [
        f"{path}: {key} {text}, {folder}/tokenizer.json has no such token, and Transformers adds it behind all others"
        for key, text in (("eos_token", "'</s>'"), ("additional_special_tokens", "'<x>'"))
    ]


@pytest.mark.parametrize("has_tokenizer", [True, False])
@pytest.mark.parametrize("name", ["generation_config.json", "special_tokens_map.json", "added_tokens.json"])
def test_a_file_of_no_json_is_found_whatever_else_is_there(
    folder: Path, name: str, has_tokenizer: bool
) -> None:
    if has_tokenizer:
        save_tokenizer(folder, MODELS["words"](), SPECIAL)
    (folder / name).write_text("{no")
    (found,) = distconv.verify(folder).differences
    assert found.startswith(f"{folder / name}: not JSON (")


def test_files_of_tokenizers_are_called_by_what_they_are(folder: Path) -> None:
    (folder / "vocab.json").write_text(json.dumps({word: number for number, word in enumerate(WORDS)}))
    for name, content in (
        ("merges.txt", "#version: 0.2\n"),
        ("added_tokens.json", "{}"),
        ("special_tokens_map.json", "{}"),
    ):
        (folder / name).write_text(content)
    (unrecorded,) = distconv.verify(folder).notes
    assert "no distconv.json" in unrecorded
    (folder / "vocab.json").unlink()
    (folder / "merges.txt").unlink()
    (folder / "spiece.model").write_bytes(b"\x0a\x03abc" * ROWS)
    (unrecorded,) = distconv.verify(folder).notes
    assert "no distconv.json" in unrecorded
    (folder / "quantize_config.json").write_text("{}")
    assert f"{folder}/quantize_config.json: not looked at, and may be loaded" in distconv.verify(folder).notes


def test_a_tokenizer_of_bytes_needs_no_vocabulary(tmp_path: Path) -> None:
    sizes = {"d_model": 16, "d_kv": 4, "d_ff": 32, "num_layers": 1, "num_heads": 4}
    config = T5Config(vocab_size=384, decoder_start_token_id=0, **sizes)
    folder = save_model(tmp_path / "model", T5ForConditionalGeneration, config)
    ByT5Tokenizer().save_pretrained(folder)
    assert AutoTokenizer.from_pretrained(folder)("a").input_ids
    report = distconv.verify(folder)
    assert report.ok, report.differences
    assert not any("no tokenizer here" in note for note in report.notes)
    words = f"{folder}/tokenizer_config.json: ByT5Tokenizer, a tokenizer of bytes, without a vocabulary to be looked at"
    assert words in report.notes


def test_rows_in_a_table_of_their_own_are_rows_too(tmp_path: Path) -> None:
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 4}
    seen = {
        "embed_dim": 32,
        "image_size": 32,
        "patch_size": 16,
        "intermediate_size": 48,
        "num_hidden_layers": 1,
    }
    config = IdeficsConfig(
        **sizes, vocab_size=ROWS, additional_vocab_size=2, cross_layer_interval=1, use_resampler=False,
        vision_config={**seen, "num_attention_heads": 4},
    )  # fmt: skip
    folder = save_model(tmp_path / "model", IdeficsForVisionText2Text, config)
    words = {f"w{number}": number for number in range(ROWS)}
    save_tokenizer(folder, models.WordLevel(words, "w0"), ["<fake_token_around_image>", "<image>"])
    assert not [note for note in distconv.verify(folder).notes if "tokenizer" in note]
    save_tokenizer(folder, models.WordLevel(words, "w0"), ["<fake_token_around_image>", "<image>", "<more>"])
    assert any(note.endswith("66 rows: '<more>' (66)") for note in distconv.verify(folder).notes)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
@pytest.mark.parametrize(
    "name", ["config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"]
)
def test_a_file_that_transformers_cannot_read_for_its_encoding_is_found(
    folder: Path, name: str, encoding: str
) -> None:
    save_tokenizer(folder, MODELS["words"](), SPECIAL)
    edit(folder / "tokenizer_config.json")
    assert distconv.verify(folder).ok
    path = folder / name
    path.write_bytes(path.read_text(encoding="utf-8").encode(encoding))
    found = distconv.verify(folder).differences
    words = f"{path}: not JSON ("
    assert any(
        line.startswith(words) and "save it as UTF-8 without a byte order mark" in line for line in found
    ), found
