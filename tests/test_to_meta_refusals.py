"""What Meta's code cannot run or INPUT does not hold is refused by name, and nothing is left behind."""

import dataclasses
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import distconv
from distconv.cli import main
from distconv.cli.screen import name_options
from distconv.errors import DistconvError, UsageError
from tests.refusals import refuse
from tests.transformers_models import ModelSpec, write_model

Write = Callable[[ModelSpec], Path]
Change = Callable[[Path], None]
LLAMA_2 = ModelSpec("llama-2")
LLAMA_31 = ModelSpec("llama-3.1")
IN_FILES = ModelSpec("llama-3", files="index")
IN_BIN = ModelSpec("llama-3", files="bin")
INDEX = "model.safetensors.index.json"
NORM = "model.norm.weight"


def edit(folder: Path, name: str, change: Callable[[dict[str, object]], object]) -> None:
    """Change a JSON file in place."""
    content = json.loads((folder / name).read_text())
    change(content)
    (folder / name).write_text(json.dumps(content))


def say(**values: object) -> Change:
    """Let config.json say something else."""
    return lambda folder: edit(folder, "config.json", lambda config: config.update(values))


def scale(kind: str) -> Change:
    """Let config.json say another scaling of the rotary embedding."""
    return say(rope_parameters={"rope_type": kind, "rope_theta": 5e5, "factor": 4.0})


def scale_as_version_4_does(folder: Path) -> None:
    """Let config.json say what files of 2023 say."""
    edit(folder, "config.json", lambda config: config.pop("rope_parameters"))
    say(rope_theta=1e4, rope_scaling={"type": "linear", "factor": 2.0})(folder)


def remove(*names: str) -> Change:
    """Remove files."""

    def change(folder: Path) -> None:
        for name in names:
            (folder / name).unlink()

    return change


def add_chatml(folder: Path) -> None:
    """Add two tokens behind all others, and two rows of embedding for them, as trainers do."""
    table = json.loads((folder / "tokenizer.json").read_text())
    for place, text in enumerate(("<|im_start|>", "<|im_end|>")):
        table["added_tokens"].append({"id": LLAMA_31.tokens + place, "content": text, "special": True})
    (folder / "tokenizer.json").write_text(json.dumps(table))
    add_rows(folder, 2)


def add_chatml_to_sentencepiece(folder: Path) -> None:
    """The same in the file that Transformers 4 wrote beside a sentencepiece model."""
    (folder / "added_tokens.json").write_text(json.dumps({"<|im_end|>": 320, "<|im_start|>": 321}))
    add_rows(folder, 2)


def add_rows(folder: Path, count: int) -> None:
    """Make the vocabulary longer (or shorter, where ``count`` is negative)."""
    state = load_file(folder / "model.safetensors")
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        rows = state[name].shape[0] + count
        state[name] = torch.cat([state[name], torch.zeros(max(count, 0), 64).to(state[name].dtype)])[:rows]
    save_file(state, folder / "model.safetensors", {"format": "pt"})
    say(vocab_size=rows)(folder)


def replace_tensors(**changes: torch.Tensor | None) -> Change:
    """Put tensors of a file in place of others, add some, or take some away (None)."""

    def change(folder: Path) -> None:
        state = load_file(folder / "model.safetensors") | changes
        kept = {name: tensor for name, tensor in state.items() if tensor is not None}
        save_file(kept, folder / "model.safetensors", {"format": "pt"})

    return change


def leave_a_table(folder: Path) -> None:
    """Leave of a sentencepiece tokenizer what has no scores."""
    (folder / "tokenizer.model").unlink()
    model = {"type": "BPE", "byte_fallback": True, "vocab": {"<unk>": 0, "\u2581a": 1}, "merges": []}
    (folder / "tokenizer.json").write_text(json.dumps({"model": model}))


def leave_an_adapter(folder: Path) -> None:
    """Leave what training by LoRA leaves."""
    for name in ("model.safetensors", "config.json"):
        (folder / name).unlink()
    (folder / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    save_file({"base_model.model.lora_A.weight": torch.ones(2, 2)}, folder / "adapter_model.safetensors")


def remove_a_chunk(folder: Path) -> None:
    """Remove a file that the index names."""
    sorted(folder.glob("model-*.safetensors"))[1].unlink()


def exchange_in_index(folder: Path) -> None:
    """Let the index name another file for a tensor than the one that has it."""

    def change(index: dict[str, object]) -> None:
        homes: dict[str, str] = index["weight_map"]  # type: ignore[assignment]
        homes[NORM] = next(home for home in homes.values() if home != homes[NORM])

    edit(folder, INDEX, change)


def invent_in_index(folder: Path) -> None:
    """Let the index name a tensor that no file has."""

    def change(index: dict[str, object]) -> None:
        homes: dict[str, str] = index["weight_map"]  # type: ignore[assignment]
        homes["model.layers.7.mlp.up_proj.weight"] = next(iter(homes.values()))

    edit(folder, INDEX, change)


def truncate(folder: Path) -> None:
    """Cut the end off, as an interrupted download does."""
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


REFUSED: list[tuple[str, ModelSpec, Change, str]] = [
    ("yarn", LLAMA_31, scale("yarn"), r"rope scaling of type 'yarn'"),
    ("dynamic", LLAMA_31, scale("dynamic"), r"rope scaling of type 'dynamic'"),
    ("linear", LLAMA_2, scale_as_version_4_does, r"rope scaling of type 'linear'"),
    ("attention bias", LLAMA_31, say(attention_bias=True), r"attention_bias is true"),
    ("mlp bias", LLAMA_2, say(mlp_bias=True), r"mlp_bias is true"),
    ("head size", LLAMA_31, say(head_dim=16), r"head_dim 16 for hidden_size 64 and 8 heads"),
    ("activation", LLAMA_31, say(hidden_act="gelu"), r"hidden_act is 'gelu'"),
    ("key heads", LLAMA_2, say(num_key_value_heads=3), r"not a multiple of num_key_value_heads 3"),
    ("Mistral", LLAMA_2, say(model_type="mistral"), r"model_type is 'mistral'"),
    ("quantised", LLAMA_2, say(quantization_config={"quant_method": "gptq"}), r"quantized model .*convert the bf16 one"),
    ("ChatML", LLAMA_31, add_chatml, r"2 added tokens have no place in tokenizer\.model.*'<\|im_start\|>' \(576\)"),
    ("ChatML, sentencepiece", LLAMA_2, add_chatml_to_sentencepiece, r"2 added tokens .*'<\|im_end\|>' \(320\)"),
    ("too few rows", LLAMA_31, lambda folder: add_rows(folder, -1), r"embedding has 575 rows, tokenizer\.model 576 tokens"),
    ("no tokenizer", LLAMA_2, remove("tokenizer.model"), r"neither tokenizer\.model nor tokenizer\.json; put tokenizer\.model of the base model"),
    ("a table alone", LLAMA_2, leave_a_table, r"whose scores tokenizer\.json does not have; put tokenizer\.model of the base model"),
    ("LoRA", LLAMA_2, leave_an_adapter, r"LoRA adapter without its model .*merge it into the model first"),
    ("no config", LLAMA_2, remove("config.json"), r"no config\.json beside the weights \(model\.safetensors\); copy it from the model"),
    ("no config, an index", IN_FILES, remove("config.json"), r"no config\.json beside the weights \(model-\*-of-\d+\.safetensors\); copy it"),
    ("no config, bin", IN_BIN, remove("config.json"), r"no config\.json beside the weights \(pytorch_model\.bin\); copy it"),
    ("missing file", IN_FILES, remove_a_chunk, r"names model-00002-of-\d+\.safetensors: not in .*download the missing files"),
    ("wrong file", IN_FILES, exchange_in_index, r"index\.json.*model\.norm\.weight"),
    ("invented tensor", IN_FILES, invent_in_index, r"model\.layers\.7\.mlp\.up_proj\.weight"),
    ("truncated", LLAMA_31, truncate, r"model\.safetensors.*truncated|damaged"),
    ("missing tensor", LLAMA_31, replace_tensors(**{NORM: None}), r"model\.norm\.weight is missing"),
    ("unknown tensor", LLAMA_31, replace_tensors(**{"model.extra": torch.ones(1)}), r"model\.extra is no tensor of a 2-layer model"),
    ("shape", LLAMA_31, replace_tensors(**{NORM: torch.ones(63)}), r"model\.norm\.weight.*shape \(63,\), config\.json gives \(64,\)"),
    ("whole numbers", LLAMA_31, replace_tensors(**{NORM: torch.ones(64, dtype=torch.int8)}), r"model\.norm\.weight.*int8"),
]  # fmt: skip


@pytest.fixture
def refused(request: pytest.FixtureRequest, transformers_model: Write, tmp_path: Path) -> tuple[Path, str]:
    """Give a folder in which something is wrong, and the words for it."""
    _name, spec, change, words = request.param
    source = shutil.copytree(transformers_model(spec), tmp_path / "in/model")
    change(source)
    return source, words


@pytest.mark.parametrize("refused", REFUSED, ids=[name for name, *_rest in REFUSED], indirect=True)
def test_what_cannot_be_written_for_meta_s_code_is_one_line_and_nothing_else(
    refused: tuple[Path, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, words = refused
    (tmp_path / "output").mkdir()
    before = sorted(source.iterdir())
    error = refuse(source, tmp_path / "output/out", to="meta", shards=2)
    (line,) = str(error).splitlines()
    assert re.search(words, line), line
    assert str(source) in line
    assert error.exit_code == 2
    assert list((tmp_path / "output").iterdir()) == []
    with pytest.raises(SystemExit) as ended:
        main(["convert", str(source), str(tmp_path / "output/out"), "--to", "meta", "--shards", "2"])
    assert ended.value.code == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert name_options(line) in printed.err
    assert list((tmp_path / "output").iterdir()) == []
    assert sorted(source.iterdir()) == before


def test_a_given_tokenizer_is_named_where_it_is_wrong_and_where_it_is_not(
    transformers_model: Write, tmp_path: Path
) -> None:
    source, other = transformers_model(LLAMA_2), tmp_path / "other/tokenizer.model"
    error = refuse(source, tmp_path / "out", to="meta", tokenizer=other)
    assert str(error) == f"{other}: no such file (given as the tokenizer)"
    other.parent.mkdir()
    other.write_bytes(b"<html>403</html>")
    for given in (other, other.parent):
        assert str(refuse(source, tmp_path / "out", to="meta", tokenizer=given)).startswith(f"{other}: ")


def can_be_cut(source: Path, shards: int) -> bool:
    """Whether a plan is made for so many shards."""
    try:
        distconv.plan(source, to="meta", shards=shards)
    except UsageError:
        return False
    return True


@pytest.mark.parametrize("shards", [3, 5, 16])
def test_numbers_of_shards_that_heads_cannot_be_divided_by_are_refused_and_the_others_named(
    transformers_model: Write, tmp_path: Path, shards: int, capsys: pytest.CaptureFixture[str]
) -> None:
    source = transformers_model(LLAMA_31)
    main_arguments = ["convert", str(source), str(tmp_path / "out"), "--to", "meta", "--shards", str(shards)]
    with pytest.raises(SystemExit) as ended:
        main(main_arguments)
    assert ended.value.code == 2
    told = capsys.readouterr().err
    assert f"{shards} shards: attention.wq.weight has 8 query heads, which Meta's code cannot divide" in told
    *others, last = (str(number) for number in range(1, 33) if can_be_cut(source, number))
    assert told.endswith(f"expected {', '.join(others)} or {last} shards\n")
    assert list(tmp_path.iterdir()) == []


def test_a_model_that_cannot_be_divided_at_all_is_said_to_be_for_one_shard(
    tokenizer_of: Callable[[ModelSpec], Path], tmp_path: Path
) -> None:
    spec = dataclasses.replace(LLAMA_31, heads=7, kv_heads=7)
    write_model(tmp_path / "in", spec, tokenizer_of(spec))
    with pytest.raises(UsageError, match=r"\nexpected 1 shard$"):
        distconv.convert(tmp_path / "in", tmp_path / "out", to="meta", shards=2)


def test_rows_for_padding_are_left_out_and_that_is_said(transformers_model: Write, tmp_path: Path) -> None:
    source = shutil.copytree(transformers_model(LLAMA_2), tmp_path / "in")
    (source / "added_tokens.json").write_text(json.dumps({"[PAD]": 320}))
    add_rows(source, 3)
    report = distconv.convert(source, tmp_path / "out", to="meta", shards=2)
    assert any("the last 3 of 323 rows of vocabulary are padding" in note for note in report.notes)
    distconv.convert(transformers_model(LLAMA_2), tmp_path / "plain", to="meta", shards=2)
    for name in ("consolidated.00.pth", "consolidated.01.pth", "params.json", "tokenizer.model"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "plain" / name).read_bytes()


@pytest.mark.parametrize(
    ("place", "where"), [("", "equal to"), ("out", "inside"), ("deep/out", "inside"), ("..", "above")]
)
def test_an_output_in_or_above_input_is_refused(
    transformers_model: Write, tmp_path: Path, place: str, where: str
) -> None:
    source = shutil.copytree(transformers_model(LLAMA_31), tmp_path / "all/in")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(DistconvError, match=f": {where} INPUT's folder") as raised:
        distconv.convert(source, source / place, to="meta", overwrite=True)
    assert raised.value.exit_code == 2
    assert sorted(tmp_path.rglob("*")) == before
