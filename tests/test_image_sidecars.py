"""What stands beside converted weights of models with images: Transformers loads model, tokenizer and processor."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from transformers import AutoConfig, AutoModelForImageTextToText, AutoTokenizer, GenerationConfig

import distconv
from distconv.errors import MismatchError
from distconv.formats.meta.params import read_params
from distconv.storage.local import LocalStorage
from tests.checkpoints import write_tiktoken
from tests.image_checkpoints import Llama4Spec, VisionSpec, write_image_checkpoint
from tests.sidecars.conftest import packaged_file

SPECS = {
    "vision": VisionSpec(),
    "scout": Llama4Spec(),
    "maverick": Llama4Spec(step=2, qk_norm=False, scaled=False),
    "guard-4": Llama4Spec(experts=0, nope=None, chunk=None, scaled=False, qk_norm=False),
}
Convert = Callable[..., Path]


@pytest.fixture(scope="module")
def convert(tmp_path_factory: pytest.TempPathFactory, tiktoken_file: Path) -> Convert:
    """Give a function that converts a model once, and gives its folder."""
    made: dict[tuple[str, bool], Path] = {}

    def run(name: str, *, instruct: bool = True) -> Path:
        if (name, instruct) not in made:
            folder = tmp_path_factory.mktemp(name)
            write_image_checkpoint(folder / "meta", SPECS[name], tiktoken_file)
            distconv.convert(folder / "meta", folder / "hf", instruct=instruct)
            made[name, instruct] = folder / "hf"
        return made[name, instruct]

    return run


@pytest.mark.parametrize("name", SPECS)
def test_a_model_loads_with_every_tensor(convert: Convert, name: str) -> None:
    model, report = AutoModelForImageTextToText.from_pretrained(convert(name), output_loading_info=True)
    assert not any(report[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert model.dtype is SPECS[name].dtype


@pytest.mark.parametrize("name", SPECS)
def test_ids_of_config_tokenizer_and_generation_are_the_same(convert: Convert, name: str) -> None:
    folder = convert(name)
    config, tokenizer = AutoConfig.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    generation = GenerationConfig.from_pretrained(folder)
    text = config.text_config
    assert tokenizer.bos_token_id == text.bos_token_id == generation.bos_token_id
    assert tokenizer.pad_token_id == text.pad_token_id == generation.pad_token_id
    assert tokenizer.eos_token_id in text.eos_token_id
    assert generation.eos_token_id == text.eos_token_id
    image = "<|image|>" if name == "vision" else "<|patch|>"
    assert tokenizer.convert_tokens_to_ids(image) == config.image_token_index
    assert (generation.do_sample, generation.temperature, generation.top_p) == (True, 0.6, 0.9)


@pytest.mark.parametrize("name", SPECS)
def test_sizes_are_those_of_the_tensors_and_not_of_published_models(convert: Convert, name: str) -> None:
    spec, config = SPECS[name], AutoConfig.from_pretrained(convert(name))
    text, vision = config.text_config, config.vision_config
    assert (text.hidden_size, text.num_attention_heads, text.vocab_size) == (spec.dim, spec.heads, spec.vocab)
    assert vision.image_size == spec.side * 14
    if isinstance(spec, VisionSpec):
        assert text.intermediate_size == spec.ffn_dim
        assert text.num_hidden_layers == spec.layers + spec.cross
        return
    assert text.moe_layers == spec.moe_layers
    assert text.num_local_experts == spec.experts
    assert text.intermediate_size == (spec.expert_ffn if spec.experts else spec.ffn)
    assert (
        not spec.moe_layers or len(spec.moe_layers) == spec.layers or text.intermediate_size_mlp == spec.ffn
    )
    assert vision.num_attention_heads == spec.encoder_heads


def test_instruct_models_of_llama_4_have_longer_contexts_and_templates(convert: Convert) -> None:
    base, instruct = convert("scout", instruct=False), convert("scout")
    contexts = [
        AutoConfig.from_pretrained(folder).text_config.max_position_embeddings for folder in (base, instruct)
    ]
    assert contexts == [262_144, 10_485_760]
    tokenizers = [AutoTokenizer.from_pretrained(folder) for folder in (base, instruct)]
    assert [tokenizer.model_max_length for tokenizer in tokenizers] == contexts
    assert [tokenizer.eos_token for tokenizer in tokenizers] == ["<|end_of_text|>", "<|eot|>"]
    assert tokenizers[0].chat_template is None
    assert "<|header_start|>" in tokenizers[1].chat_template


def test_guards_have_no_template(convert: Convert) -> None:
    assert AutoTokenizer.from_pretrained(convert("guard-4")).chat_template is None
    assert not (convert("guard-4") / "chat_template.jinja").exists()


def test_processor_files_are_written(convert: Convert) -> None:
    settings = json.loads((convert("vision") / "preprocessor_config.json").read_text())
    assert settings["size"] == {"height": 56, "width": 56}
    assert not (convert("vision") / "processor_config.json").exists()
    assert json.loads((convert("scout") / "processor_config.json").read_text())["patch_size"] == 14


def test_a_tokenizer_whose_image_token_is_another_row_is_refused(tmp_path: Path) -> None:
    tokenizer = write_tiktoken(tmp_path / "smaller.model", 300)
    write_image_checkpoint(tmp_path / "meta", SPECS["vision"], tokenizer)
    with pytest.raises(
        MismatchError, match=r"tokenizer\.model: 556 tokens, and the embedding has 576 rows before"
    ):
        distconv.convert(tmp_path / "meta", tmp_path / "hf")


@pytest.mark.slow
def test_llama_4s_tokenizer_alone_is_told_by_its_ranks(tmp_path: Path) -> None:
    report = distconv.convert_tokenizer(
        packaged_file("llama_models", "llama4/tokenizer.model"), tmp_path / "out"
    )
    assert any("taken as the tokenizer of Llama 4" in note for note in report.notes)
    assert AutoTokenizer.from_pretrained(tmp_path / "out").pad_token_id == 200018


@pytest.mark.parametrize("name", SPECS)
def test_params_and_tokenizer_come_back(
    convert: Convert, tiktoken_file: Path, tmp_path: Path, name: str
) -> None:
    distconv.convert(convert(name), tmp_path / "meta", to="meta", shards=2)
    assert (tmp_path / "meta" / "tokenizer.model").read_bytes() == tiktoken_file.read_bytes()
    said = SPECS[name].params()
    (tmp_path / "params.json").write_text(json.dumps(said))
    before, after = (
        read_params(LocalStorage(), str(folder / "params.json")) for folder in (tmp_path, tmp_path / "meta")
    )
    if isinstance(SPECS[name], VisionSpec) or len(SPECS[name].moe_layers) < SPECS[name].layers:
        assert after.ffn_dim == before.ffn_dim
    same = {"path": "", "md5": "", "multiple_of": None, "ffn_dim_multiplier": None}
    assert replace(after, **same) == replace(before, **same)
    written = json.loads((tmp_path / "meta/params.json").read_text())
    assert all(written.get(key) == said.get(key) for key in ("vision_args", "moe_args"))


@pytest.mark.parametrize("name", ["preprocessor_config.json", "processor_config.json"])
def test_a_processor_that_leads_elsewhere_is_told_without_a_receipt_too(
    convert: Convert, tmp_path: Path, name: str
) -> None:
    output = tmp_path / "hf"
    shutil.copytree(convert("scout"), output)
    (output / "distconv.json").unlink()
    settings = json.loads((output / name).read_text())
    (output / name).write_text(json.dumps(settings | {"auto_map": {"AutoProcessor": "other.Processor"}}))
    report = distconv.verify(output)
    assert report.ok
    assert any(
        f"{name}: has auto_map; the code that it names is never run here" in note for note in report.notes
    )
