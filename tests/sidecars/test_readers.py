"""What other readers than today's Transformers take from a converted folder."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import sentencepiece
from tokenizers import Tokenizer
from transformers import AutoTokenizer

import distconv
from distconv.errors import OutputError
from distconv.sidecars.tokenizer import Vocabulary, read_vocabulary
from distconv.storage.local import LocalStorage
from distconv.verbs.tokenizer import convert_tokenizer
from tests.checkpoints import Spec
from tests.sidecars.strings import make_strings
from tests.sidecars.test_pieces import mix, train
from tests.sidecars.written_tokenizers import ask_peer, write_tokenizer

Write = Callable[[Spec], Path]
CONFIG_SCRIPT = Path(__file__).parent / "peer_config.py"

# The first versions that know all that a family's config says, among those that are tried here:
# 4.31 has grouped key heads, 4.33 rope_theta, 4.43 the rope of Llama 3.1.
OLDEST = {
    "4.31.0": ("llama-1", "llama-2", "llama-guard-1"),
    "4.34.1": ("code-llama", "code-llama-70b-python", "llama-3", "llama-guard-2"),
    "4.43.4": ("llama-3.1", "llama-3.2", "llama-3.3", "llama-guard-3", "llama-guard-3-1b"),
}


@pytest.fixture(scope="module")
def pieces_folder(pieces_vocabulary: Vocabulary, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tokenizer(tmp_path_factory.mktemp("pieces"), pieces_vocabulary, chat="llama-2")


@pytest.fixture(scope="module")
def llama_3_folder(llama_3_vocabulary: Vocabulary, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tokenizer(tmp_path_factory.mktemp("llama_3"), llama_3_vocabulary, chat="llama-3.1")


def test_sentencepieces_own_file_is_in_output_and_in_the_receipt(checkpoint: Write, tmp_path: Path) -> None:
    source, output = checkpoint(Spec("llama-2")), tmp_path / "out"
    distconv.convert(source, output)
    assert (output / "tokenizer.model").read_bytes() == (source / "tokenizer.model").read_bytes()
    assert "tokenizer.model" in (output / "distconv.json").read_text()
    assert distconv.verify(output).ok
    (output / "tokenizer.model").write_bytes(b"another")
    assert not distconv.verify(output).ok
    distconv.convert(source, output, overwrite=True)
    assert distconv.verify(output).ok


def test_a_file_of_ranks_is_left_out_for_readers_would_take_it_for_sentencepieces(
    checkpoint: Write, tmp_path: Path
) -> None:
    distconv.convert(checkpoint(Spec("llama-3.1")), tmp_path / "out")
    assert not (tmp_path / "out/tokenizer.model").exists()


def test_the_tokenizer_alone_brings_its_file_and_may_be_written_beside_it(
    checkpoint: Write, tmp_path: Path
) -> None:
    model = checkpoint(Spec("llama-2")) / "tokenizer.model"
    convert_tokenizer(model, tmp_path / "out")
    assert (tmp_path / "out/tokenizer.model").read_bytes() == model.read_bytes()
    (tmp_path / "own").mkdir()
    (tmp_path / "own/tokenizer.model").write_bytes(model.read_bytes())
    convert_tokenizer(tmp_path / "own", tmp_path / "own")
    assert (tmp_path / "own/tokenizer.json").exists()
    (tmp_path / "other").mkdir()
    (tmp_path / "other/tokenizer.model").write_bytes(b"another")
    with pytest.raises(OutputError, match=r"already holds tokenizer\.model"):
        convert_tokenizer(model, tmp_path / "other")


def test_who_takes_scores_from_sentencepieces_file_gets_those_of_the_ids(
    pieces_folder: Path, pieces_file: Path
) -> None:
    """llama.cpp's converter takes text, score and kind of each id from tokenizer.model, or -1000 for all."""
    own = sentencepiece.SentencePieceProcessor(model_file=str(pieces_folder / "tokenizer.model"))
    oracle = sentencepiece.SentencePieceProcessor(model_file=str(pieces_file))
    vocabulary = json.loads((pieces_folder / "tokenizer.json").read_text())["model"]["vocab"]
    assert {own.id_to_piece(number): number for number in range(own.get_piece_size())} == vocabulary
    assert [own.get_score(number) for number in range(32000)] == [
        oracle.get_score(number) for number in range(32000)
    ]
    strings = make_strings(1000, seed=7)
    fast = Tokenizer.from_file(str(pieces_folder / "tokenizer.json"))
    assert own.encode(strings) == [fast.encode(string, add_special_tokens=False).ids for string in strings]


@pytest.mark.first(1)
@pytest.mark.parametrize("name", ["pieces_folder", "llama_3_folder"])
def test_who_asks_the_config_whether_text_begins_with_a_token_is_told_so(
    name: str, request: pytest.FixtureRequest
) -> None:
    """litgpt takes that token away again, unless add_bos_token is true or the class is LlamaTokenizer."""
    folder = request.getfixturevalue(name)
    config = json.loads((folder / "tokenizer_config.json").read_text())
    fast = Tokenizer.from_file(str(folder / "tokenizer.json"))
    begin, end = (fast.token_to_id(config[key]) for key in ("bos_token", "eos_token"))
    uses_begin = config.get("add_bos_token", config["tokenizer_class"] == "LlamaTokenizer")
    ids = fast.encode("Once upon a time").ids
    if ids[0] == begin and not uses_begin:
        ids = ids[1:]
    assert ids == AutoTokenizer.from_pretrained(folder)("Once upon a time")["input_ids"]
    assert ids[0] == begin
    assert config["add_eos_token"] is False
    assert end not in ids


@pytest.mark.parametrize("name", ["pieces_folder", "llama_3_folder"])
def test_the_template_of_older_versions_is_that_of_newer_ones(
    name: str, request: pytest.FixtureRequest
) -> None:
    folder = request.getfixturevalue(name)
    config = json.loads((folder / "tokenizer_config.json").read_text())
    assert config["chat_template"] == (folder / "chat_template.jinja").read_text()


def test_a_base_model_has_no_template(llama_3_vocabulary: Vocabulary, tmp_path: Path) -> None:
    write_tokenizer(tmp_path, llama_3_vocabulary)
    assert "chat_template" not in json.loads((tmp_path / "tokenizer_config.json").read_text())


@pytest.mark.peer
@pytest.mark.parametrize("version", ["4.34.1", "4.43.4", "4.47.1", "4.57.6"])
def test_other_versions_find_user_defined_pieces(
    version: str, run_peer: Callable[..., str], tmp_path: Path
) -> None:
    symbols = ("<|im_start|>", "ab", "aba", "\n", "▁<X>")
    path = tmp_path / "tokenizer.model"
    path.write_bytes(train(symbols))
    folder = tmp_path / "out"
    folder.mkdir()
    write_tokenizer(folder, read_vocabulary(LocalStorage(), str(path)), chat="llama-2")
    strings = mix([*symbols, "a", " ", "  ", "the quick", " <X>", "<|im"], 1000)
    found = ask_peer(run_peer, version, folder, strings)
    assert found["ids"] == AutoTokenizer.from_pretrained(folder)(strings)["input_ids"]


@pytest.mark.peer
@pytest.mark.parametrize(
    ("version", "family"), [(version, family) for version, families in OLDEST.items() for family in families]
)
def test_the_oldest_version_for_a_family_loads_its_folder(
    version: str, family: str, run_peer: Callable[..., str], checkpoint: Write, tmp_path: Path
) -> None:
    folder = tmp_path / "out"
    distconv.convert(checkpoint(Spec(family)), folder, family=family)
    strings = make_strings(200, seed=8)
    found = ask_peer(run_peer, version, folder, strings)
    assert found["ids"] == AutoTokenizer.from_pretrained(folder)(strings)["input_ids"]
    (read,) = json.loads(
        run_peer(f"transformers-{version}", "-W", "error::UserWarning", CONFIG_SCRIPT, folder)
    )
    config = json.loads((folder / "config.json").read_text())
    assert read["scaling"] == config["rope_scaling"]
    # A key that a version does not know would be kept, and not be heeded.
    assert set(read["known"]) >= {"num_key_value_heads", "rope_scaling"} | (
        set() if config["rope_theta"] == 1e4 else {"rope_theta"}
    )
