"""Mistral's and Mixtral's originals become Transformers' folders, as plain torch and Mistral's forward have them."""

import json
import re
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

import distconv
from distconv.errors import InputError, MismatchError
from distconv.output.receipt import read_receipt
from distconv.storage.local import LocalStorage
from distconv.verbs import turning
from distconv.verbs.card import make_card
from distconv.verbs.tokenizer import convert_tokenizer
from tests.checkpoints import Tensors, write_tiktoken
from tests.faults import read_data
from tests.mistral_checkpoints import (
    MistralSpec,
    convert_plainly,
    forward,
    make_model,
    write_mistral,
    write_tekken,
)
from tests.refusals import refuse
from tests.test_end_to_end import assert_equal

TEKKEN_ROWS = 444
SPECS = {
    "7B v0.1": MistralSpec(theta=None, window=7),
    "7B v0.3": MistralSpec(files="safetensors"),
    "nemo": MistralSpec(head_dim=24, vocab=TEKKEN_ROWS, files="safetensors"),
    "a head wider than dim": MistralSpec(dim=48, heads=2, kv_heads=1, head_dim=32),
    "small 3": MistralSpec(theta=1e8, vocab=TEKKEN_ROWS, files="parts", context=32768),
    "ministral": MistralSpec(layers=4, window=[7, None], window_key="_sliding_window", vocab=TEKKEN_ROWS),
    "tied": MistralSpec(tied=True),
    "mixtral": MistralSpec(experts=4, theta=None),
    "mixtral in parts": MistralSpec(experts=3, layers=3, files="parts"),
    "mixtral's first files": MistralSpec(experts=4, theta=None, stacked=True),
}
Write = Callable[[MistralSpec], Path]
on_all = pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS.keys())


@pytest.fixture(scope="module")
def tekken_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tekken(tmp_path_factory.mktemp("tekken") / "tekken.json")


@pytest.fixture(scope="module")
def write(tmp_path_factory: pytest.TempPathFactory, sentencepiece_file: Path, tekken_file: Path) -> Write:
    """Give a function that writes a checkpoint once and gives its folder, to be read only."""
    written: dict[str, Path] = {}

    def run(spec: MistralSpec) -> Path:
        if repr(spec) not in written:
            tokenizer = tekken_file if spec.vocab == TEKKEN_ROWS else sentencepiece_file
            folder = tmp_path_factory.mktemp("mistral") / "model"
            written[repr(spec)] = write_mistral(folder, spec, tokenizer)
        return written[repr(spec)]

    return run


def read_config(folder: Path) -> dict[str, object]:
    found: dict[str, object] = json.loads((folder / "config.json").read_text())
    return found


@pytest.mark.first(5)
@on_all
def test_every_tensor_is_what_plain_torch_makes_of_the_files(
    write: Write, tmp_path: Path, spec: MistralSpec
) -> None:
    source = write(spec)
    distconv.convert(source, tmp_path / "hf", max_shard_size=40_000)
    assert_equal(tmp_path / "hf", convert_plainly(spec, make_model(spec)))
    assert distconv.verify(tmp_path / "hf", against=source).ok


@pytest.mark.first(5)
@on_all
def test_logits_are_those_of_mistrals_forward(write: Write, tmp_path: Path, spec: MistralSpec) -> None:
    exact = replace(spec, dtype=torch.float32)
    distconv.convert(write(exact), tmp_path / "hf")
    # Transformers multiplies experts in float32 at most.
    wide = torch.float32 if spec.experts else torch.float64
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "hf", dtype=wide)
    tokens = torch.randint(0, 300, (24,), generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        found = model(tokens[None]).logits[0].double()
    expected = forward(exact, make_model(exact), tokens)
    assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()


def test_several_files_of_one_shard_are_counted_and_told_as_that(write: Write) -> None:
    found = distconv.inspect(write(SPECS["mixtral's first files"]))
    assert re.fullmatch(r"1, in 8 files \(.* kB\)", dict(found.rows)["shards"])
    assert (
        " and 7 more: no two of them hold the same tensor, so they are parts of one shard" in found.notes[0]
    )
    assert dict(distconv.inspect(write(SPECS["7B v0.3"])).rows)["shards"].startswith("1 (")


@pytest.mark.first(5)
@on_all
def test_saving_a_reloaded_model_changes_neither_weights_nor_config(
    write: Write, tmp_path: Path, spec: MistralSpec
) -> None:
    # Transformers fills chunks with experts in the order that they have in memory.
    limit = 10_000_000 if spec.experts else 100_000
    distconv.convert(write(spec), tmp_path / "hf", max_shard_size=limit)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "hf", dtype="auto")
    model.save_pretrained(tmp_path / "again", max_shard_size=limit)
    names = [file.name for file in (tmp_path / "again").glob("model*")]
    assert (len(names) == 1) is bool(spec.experts)
    for name in names:
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "hf" / name).read_bytes(), name
    ours = {
        key: value
        for key, value in read_config(tmp_path / "hf").items()
        if key not in {"rope_theta", "rope_scaling", "torch_dtype"}
    }
    assert ours == read_config(tmp_path / "again")


@pytest.mark.parametrize(
    ("spec", "kind", "theta", "window", "context"),
    [
        (SPECS["7B v0.1"], "mistral", 1e4, 7, 32768),
        (replace(SPECS["7B v0.1"], window="7"), "mistral", 1e4, 7, 32768),
        (replace(SPECS["7B v0.1"], window=None), "mistral", 1e6, None, 32768),
        (SPECS["nemo"], "mistral", 1e6, None, 32768),
        (replace(SPECS["small 3"], context=131_072), "mistral", 1e8, None, 131_072),
        (SPECS["ministral"], "ministral", 1e6, 7, 32768),
        (replace(SPECS["ministral"], window=[7]), "mistral", 1e6, 7, 32768),
        (SPECS["mixtral"], "mixtral", 1e6, None, 32768),
        (SPECS["mixtral's first files"], "mixtral", 1e6, None, 32768),
    ],
    ids=str,
)
def test_the_config_says_what_mistrals_code_takes(
    write: Write, tmp_path: Path, spec: MistralSpec, kind: str, theta: float, window: int | None, context: int
) -> None:
    report = distconv.convert(write(spec), tmp_path / "hf")
    config = AutoConfig.from_pretrained(tmp_path / "hf")
    assert (config.model_type, config.rope_parameters["rope_theta"]) == (kind, theta)
    assert (config.sliding_window, config.max_position_embeddings) == (window, context)
    assert (config.head_dim, config.rms_norm_eps) == (spec.head_dim, 1e-5)
    assert (config.bos_token_id, config.eos_token_id, config.tie_word_embeddings) == (1, 2, spec.tied)
    assert any("no rope_theta" in note for note in report.notes) is (spec.theta is None)
    assert any("nothing of the context" in note for note in report.notes) is (spec.context is None)
    if kind == "ministral":
        assert config.layer_types == ["sliding_attention", "full_attention"] * 2
    if spec.experts:
        assert (config.num_local_experts, config.num_experts_per_tok) == (spec.experts, 2)


@pytest.mark.product
@pytest.mark.parametrize(
    "spec", [SPECS["mixtral"], SPECS["mixtral's first files"]], ids=["one by one", "stacked"]
)
@pytest.mark.parametrize("name", ["w1", "w2", "w3"])
def test_an_element_of_an_expert_that_was_changed_is_found_with_its_tensor(
    write: Write, tmp_path: Path, spec: MistralSpec, name: str
) -> None:
    source = write(spec)
    distconv.convert(source, tmp_path / "hf")
    (tmp_path / "hf/distconv.json").unlink()
    path, tensor = (
        tmp_path / "hf/model.safetensors",
        f"model.layers.1.block_sparse_moe.experts.2.{name}.weight",
    )
    content = bytearray(path.read_bytes())
    head = int.from_bytes(content[:8], "little")
    begin, _end = json.loads(content[8 : 8 + head])[tensor]["data_offsets"]
    content[8 + head + begin + 200] ^= 1
    path.write_bytes(content)
    (words,) = distconv.verify(tmp_path / "hf", against=source).differences
    row, column = divmod(100, spec.ffn if name == "w2" else spec.dim)
    assert tensor in words
    assert f"row {row}, column {column}" in words


def test_stacked_experts_are_compared_some_columns_at_a_time(
    write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = write(SPECS["mixtral's first files"])
    distconv.convert(source, tmp_path / "hf")
    monkeypatch.setattr(turning, "BAND_BYTES", 96 * 2 * 5)
    assert distconv.verify(tmp_path / "hf", against=source).ok


def test_a_conversion_goes_on_where_an_earlier_one_was_cut_off(write: Write, tmp_path: Path) -> None:
    source = write(SPECS["mixtral's first files"])
    distconv.convert(source, tmp_path / "whole", max_shard_size=40_000)
    shutil.copytree(tmp_path / "whole", tmp_path / "part")
    gone = max((tmp_path / "part").glob("*.safetensors"))
    gone.unlink()
    report = distconv.convert(source, tmp_path / "part", max_shard_size=40_000)
    assert report.kept_chunks == report.chunks - 1
    assert gone.read_bytes() == (tmp_path / "whole" / gone.name).read_bytes()


@pytest.mark.slow
def test_workers_on_ray_make_the_same_bytes(write: Write, tmp_path: Path) -> None:
    source = write(SPECS["mixtral's first files"])
    distconv.convert(source, tmp_path / "one", max_shard_size=40_000)
    distconv.convert(source, tmp_path / "two", max_shard_size=40_000, workers=2)
    assert read_data(tmp_path / "two") == read_data(tmp_path / "one")


def test_each_kind_of_tokenizer_is_found_by_its_name_and_begins_a_text(
    tmp_path: Path, sentencepiece_file: Path, tekken_file: Path
) -> None:
    versioned = tmp_path / "tokenizer.model.v3"
    versioned.write_bytes(sentencepiece_file.read_bytes())
    for number, (tokenizer, copy, rows) in enumerate(
        [(versioned, "tokenizer.model", 320), (tekken_file, "tekken.json", TEKKEN_ROWS)]
    ):
        source = write_mistral(tmp_path / f"in{number}", MistralSpec(vocab=rows), tokenizer)
        out = tmp_path / f"out{number}"
        distconv.convert(source, out)
        assert (out / copy).read_bytes() == tokenizer.read_bytes()
        loaded = AutoTokenizer.from_pretrained(out)
        assert loaded("the rain").input_ids[0] == loaded.bos_token_id == 1
        assert loaded.eos_token_id == 2
        assert convert_tokenizer(source, tmp_path / f"alone{number}").files == (
            "tokenizer.json", "tokenizer_config.json", copy,
        )  # fmt: skip
    report = convert_tokenizer(tekken_file, tmp_path / "alone")
    assert report.notes == ("taken as the tokenizer of Mistral with tekken; `family=` changes that",)


def test_an_instruct_model_gets_no_template_and_that_is_said(write: Write, tmp_path: Path) -> None:
    report = distconv.convert(write(SPECS["nemo"]), tmp_path / "hf", instruct=True)
    assert any("no chat template is written for Mistral" in note for note in report.notes)
    assert not (tmp_path / "hf/chat_template.jinja").exists()


def test_what_it_is_is_told(write: Write) -> None:
    nemo, mixtral = (distconv.inspect(write(SPECS[name])).to_json() for name in ("nemo", "mixtral"))
    assert (nemo["family"], nemo["tokenizer_kind"], nemo["head_dim"]) == ("mistral-tekken", "tekken", 24)
    assert nemo["for_meta"] == {"shards": []}
    assert (mixtral["family"], mixtral["experts"], mixtral["ffn_dim"]) == ("mixtral", 4, 96)
    shown = dict(distconv.inspect(write(SPECS["mixtral"])).rows)
    assert shown["layers"] == "2, each of 4 experts"
    assert "for Meta" not in shown


def test_a_folder_that_was_made_has_no_way_to_metas_layout(write: Write, tmp_path: Path) -> None:
    distconv.convert(write(SPECS["nemo"]), tmp_path / "hf")
    with pytest.raises(
        InputError, match=r"model_type is 'mistral', expected 'llama'.*own layout is not written: take"
    ):
        distconv.convert(tmp_path / "hf", tmp_path / "meta", to="meta")


def test_a_repository_with_both_formats_is_mistrals(write: Write, tmp_path: Path) -> None:
    source, both = write(SPECS["nemo"]), tmp_path / "both"
    distconv.convert(source, both)
    expected = (both / "model.safetensors").read_bytes()
    for name in ("params.json", "consolidated.safetensors"):
        shutil.copy(source / name, both / name)
    assert distconv.inspect(both).to_json()["format"] == "meta"
    distconv.convert(both, tmp_path / "again")
    assert (tmp_path / "again/model.safetensors").read_bytes() == expected


def test_the_card_names_who_made_it(write: Write, tmp_path: Path) -> None:
    distconv.convert(write(SPECS["mixtral"]), tmp_path / "hf")
    card = make_card(read_receipt(LocalStorage(), str(tmp_path / "hf/distconv.json")), {})
    assert "# Mixtral\n\nMistral's original checkpoint, converted by" in card
    assert "license_name: mistral" in card
    assert "- mistral" in card


def test_metas_layout_is_refused_before_anything_is_written(write: Write, tmp_path: Path) -> None:
    error = refuse(write(SPECS["7B v0.3"]), tmp_path / "meta", to="meta", shards=2)
    assert re.search(r"Mistral's code reads one file.*leave `to=` out", str(error))


def remove(name: str) -> Callable[[Tensors], None]:
    return lambda model: model.__delitem__(name)


def add(name: str) -> Callable[[Tensors], None]:
    return lambda model: model.__setitem__(name, torch.ones(3, 3))


@pytest.mark.parametrize(
    ("spec", "change", "words"),
    [
        (SPECS["nemo"], remove("layers.1.attention.wk.weight"), r"layers\.1\.attention\.wk\.weight: missing"),
        (SPECS["nemo"], add("vision_encoder.conv.weight"), r"vision_encoder\.conv\.weight is no tensor"),
        (SPECS["mixtral"], remove("layers.0.feed_forward.gate.weight"), r"no tensor layers\.0\.feed_forward\.gate"),
        (SPECS["mixtral"], remove("layers.1.feed_forward.experts.3.w2.weight"), r"experts\.3\.w2\.weight: missing"),
        (SPECS["mixtral"], add("layers.0.feed_forward.experts.4.w1.weight"), r"experts\.4\.w1\.weight is no tensor"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_tensors_that_are_not_those_of_the_model_are_named(
    tmp_path: Path, sentencepiece_file: Path, spec: MistralSpec, change: Callable[[Tensors], None], words: str
) -> None:
    source = write_mistral(tmp_path / "in", replace(spec, vocab=320, files="safetensors"), sentencepiece_file)
    model = make_model(replace(spec, vocab=320))
    change(model)
    save_file(model, source / "consolidated.safetensors")
    assert re.search(words, str(refuse(source, tmp_path / "out")))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"moe": {"num_experts": 8, "num_experts_per_tok": 2}}, "8 experts and hidden_dim 96, layer 0 has 4 of 96"),
        ({"hidden_dim": 128}, "4 experts and hidden_dim 128, layer 0 has 4 of 96"),
        ({"n_layers": 3}, r"there is no layers\.2\.\*"),
        ({"sliding_window": [7, None]}, "a Mixtral of Transformers cannot have"),
        ({"head_dim": 8}, r"wq.*shape \(64, 64\).*expected \(32, 64\)"),
    ],
    ids=str,
)  # fmt: skip
def test_a_params_file_of_another_model_is_refused(
    write: Write, tmp_path: Path, change: dict[str, object], words: str
) -> None:
    shutil.copytree(write(SPECS["mixtral"]), tmp_path / "in")
    params = json.loads((tmp_path / "in/params.json").read_text())
    (tmp_path / "in/params.json").write_text(json.dumps(params | change))
    assert re.search(words, str(refuse(tmp_path / "in", tmp_path / "out")))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (
            {"family": "llama-2"},
            "`family='llama-2'` .*, but params.json has head_dim and hidden_dim: Mistral",
        ),
        ({"family": "mixtral"}, "leave `family=` out"),
        ({"tokenizer": "tiktoken"}, "a tiktoken file of 576 tokens, expected a sentencepiece one"),
    ],
    ids=str,
)
def test_another_familys_name_or_tokenizer_is_refused(
    write: Write, tmp_path: Path, options: dict[str, str], words: str
) -> None:
    if "tokenizer" in options:
        options = {"tokenizer": str(write_tiktoken(tmp_path / "tokenizer.model"))}
    error = refuse(write(SPECS["7B v0.3"]), tmp_path / "out", **options)
    assert isinstance(error, MismatchError)
    assert re.search(words, str(error))
    assert options.get("tokenizer", "") in str(error)


def test_mistrals_names_are_no_familys_of_a_llama(checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    from tests.checkpoints import Spec

    with pytest.raises(MismatchError, match=r"`family='mistral'` \(Mistral\), but params.json is of a Llama"):
        distconv.convert(checkpoint(Spec()), tmp_path / "out", family="mistral")


@pytest.mark.slow
@pytest.mark.peer
@pytest.mark.parametrize(
    ("version", "names"),
    [
        ("4.47.1", ["7B v0.1", "7B v0.3", "nemo", "mixtral"]),
        ("4.57.6", ["7B v0.1", "7B v0.3", "nemo", "ministral", "mixtral"]),
    ],
)
def test_other_versions_give_the_same_logits(
    version: str, names: list[str], write: Write, tmp_path: Path, peer_python: Callable[[str], Path]
) -> None:
    specs = {name: replace(SPECS[name], dtype=torch.float32) for name in names}
    for name, spec in specs.items():
        distconv.convert(write(spec), tmp_path / name)
    script = Path(__file__).with_name("peer_mistral_logits.py")
    command = [
        str(peer_python(f"transformers-{version}")),
        str(script),
        *(str(tmp_path / name) for name in names),
    ]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    tokens = torch.randint(0, 300, (24,), generator=torch.Generator().manual_seed(3))
    for name, spec in specs.items():
        found = torch.load(tmp_path / name / "logits.pt")
        expected = forward(spec, make_model(spec), tokens)
        assert (found - expected).abs().max() <= 1e-5 * expected.abs().max(), name
