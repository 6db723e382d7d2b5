"""Distributed checkpoints that are not whole, not one model's, or not of a kind that can be read, are refused by name."""

import os
import pickle
import re
import shutil
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from safetensors.torch import load_file
from transformers import (
    DiaConfig,
    DiaForConditionalGeneration,
    HrmTextConfig,
    HrmTextForCausalLM,
    MarianConfig,
    MarianMTModel,
    ModernBertDecoderConfig,
    ModernBertDecoderForCausalLM,
    PreTrainedModel,
    XLNetConfig,
    XLNetLMHeadModel,
)

import distconv
from distconv.cli import main
from distconv.errors import InputError, UsageError
from tests.refusals import refuse
from tests.test_trained_checkpoints import change


def refused(source: Path, like: Path, **options: Any) -> str:
    """Convert and plan what must be refused, and give the message, which names the folder."""
    error = refuse(source, source.with_name("refused"), like=like, **options)
    assert isinstance(error, InputError | UsageError)
    message = str(error)
    assert str(source) in message
    return message


Folders = Path


@pytest.fixture
def damaged(folders: Folders, tmp_path: Path) -> Callable[..., str]:
    """Give a function that changes a copy of a checkpoint's metadata, and gives the message that refuses it."""

    def damage(work: Callable[[Any], None], name: str = "rows", **options: Any) -> str:
        return refused(change(folders / name, tmp_path / "in", work), folders / "llama-hf", **options)

    return damage


def test_a_missing_rank_is_named(folders: Folders, tmp_path: Path) -> None:
    source = shutil.copytree(folders / "rows", tmp_path / "in")
    (source / "__2_0.distcp").unlink()
    words = refused(source, folders / "llama-hf")
    assert "__2_0.distcp: missing" in words
    assert "copy the files of all ranks into one folder" in words
    with pytest.raises(InputError, match=r"__2_0\.distcp: missing"):
        distconv.convert(source, tmp_path / "out", like=folders / "llama-hf")


def test_a_checkpoint_without_its_hidden_file_is_named(folders: Folders, tmp_path: Path) -> None:
    source = shutil.copytree(folders / "rows", tmp_path / "in")
    (source / ".metadata").rename(source / ".metadata.tmp")
    words = "no .metadata, which is written last: the checkpoint was not saved to its end, or its hidden file was not copied"
    assert words in refused(source, folders / "llama-hf")
    for path in (source, shutil.copytree(source, tmp_path / "step/pytorch_model_fsdp_0").parent):
        with pytest.raises(InputError, match=words):
            distconv.inspect(path)


@pytest.mark.parametrize("dtype", [torch.int8, torch.int64, torch.bool, torch.complex64, torch.float8_e4m3fn])
@pytest.mark.parametrize("asked", ["auto", "bfloat16"])
def test_weights_of_whole_numbers_are_named(
    folders: Folders, tmp_path: Path, dtype: torch.dtype, asked: str
) -> None:
    from tests.dcp_folders import make_model

    tensors = {name: one.detach() for name, one in make_model("llama").state_dict().items()}
    name = "model.layers.1.mlp.up_proj.weight"
    _save(tmp_path / "in", tensors | {name: tensors[name].to(dtype)})
    words = refused(tmp_path / "in", folders / "llama-hf", dtype=asked)
    assert f"{name} is stored as {str(dtype).removeprefix('torch.')}, expected a floating-point type" in words


def test_a_truncated_rank_is_named(folders: Folders, tmp_path: Path) -> None:
    source = shutil.copytree(folders / "rows", tmp_path / "in")
    content = (source / "__1_0.distcp").read_bytes()
    (source / "__1_0.distcp").write_bytes(content[: len(content) // 2])
    assert "the file is truncated" in refused(source, folders / "llama-hf")


def test_a_rank_of_another_checkpoint_is_named(folders: Folders, tmp_path: Path) -> None:
    source = shutil.copytree(folders / "rows", tmp_path / "in")
    shutil.copy(folders / "rows-fused/__0_0.distcp", source / "__1_0.distcp")
    assert "__1_0.distcp" in refused(source, folders / "llama-hf")


def test_zeros_where_an_item_should_begin_are_named(folders: Folders, tmp_path: Path) -> None:
    source = shutil.copytree(folders / "rows", tmp_path / "in")
    path = source / "__3_0.distcp"
    path.write_bytes(bytes(path.stat().st_size))
    assert "__3_0.distcp" in refused(source, folders / "llama-hf")
    assert "file of zeros" in refused(source, folders / "llama-hf")


@pytest.mark.parametrize("end", [0, 1, 100, -1])
def test_a_cut_off_metadata_is_named(folders: Folders, tmp_path: Path, end: int) -> None:
    source = shutil.copytree(folders / "rows", tmp_path / "in")
    content = (source / ".metadata").read_bytes()
    (source / ".metadata").write_bytes(content[:end])
    assert ".metadata: its description is cut off" in refused(source, folders / "llama-hf")


def test_bytes_behind_the_metadata_are_named(folders: Folders, tmp_path: Path) -> None:
    source = shutil.copytree(folders / "rows", tmp_path / "in")
    with (source / ".metadata").open("ab") as file:
        file.write(b"x")
    assert "1 bytes behind the pickle" in refused(source, folders / "llama-hf")


def test_a_metadata_that_calls_anything_is_refused(folders: Folders, tmp_path: Path) -> None:
    source = shutil.copytree(folders / "rows", tmp_path / "in")
    (source / ".metadata").write_bytes(pickle.dumps(shutil.rmtree))
    assert "shutil.rmtree" in refused(source, folders / "llama-hf")


def test_a_box_that_is_stored_nowhere_is_named(damaged: Callable[..., str]) -> None:
    def work(metadata: Any) -> None:
        index = next(index for index in metadata.storage_data if index.fqn == "layers.1.attention.wq.weight")
        del metadata.storage_data[index]

    assert "layers.1.attention.wq.weight: the box at" in damaged(work)


def test_a_box_that_is_not_there_leaves_a_hole_that_is_named(damaged: Callable[..., str]) -> None:
    def work(metadata: Any) -> None:
        metadata.state_dict_metadata["layers.1.attention.wq.weight"].chunks.pop()

    words = damaged(work)
    assert "layers.1.attention.wq.weight" in words
    assert "do not fill" in words


def test_boxes_that_overlap_are_named(damaged: Callable[..., str]) -> None:
    def work(metadata: Any) -> None:
        chunks = metadata.state_dict_metadata["norm.weight"].chunks
        chunks.append(chunks[0])

    assert "filled 2 times" in damaged(work)


def test_boxes_of_two_tensors_in_one_place_are_named(damaged: Callable[..., str]) -> None:
    def work(metadata: Any) -> None:
        stored = metadata.storage_data
        first = {
            index.offset: place
            for index, place in stored.items()
            if index.fqn == "layers.0.attention.wq.weight"
        }
        for index in [index for index in stored if index.fqn == "layers.1.attention.wq.weight"]:
            stored[index] = first[index.offset]

    words = damaged(work)
    assert "layers.1.attention.wq.weight at byte" in words
    assert "within layers.0.attention.wq.weight" in words


@pytest.mark.parametrize("name", ["a\nb", "a\x1b[2J", "x" * 1025])
def test_a_tensor_of_no_plain_name_is_not_passed_over(folders: Folders, tmp_path: Path, name: str) -> None:
    from tests.dcp_folders import make_model

    tensors = {own: one.detach() for own, one in make_model("llama").state_dict().items()}
    _save(tmp_path / "in", tensors | {name: torch.ones(3)})
    assert "which is no plain name; refused as unsafe" in refused(tmp_path / "in", folders / "llama-hf")


@pytest.mark.parametrize("content", [b"version https://git-lfs.github.com/spec/v1", b"<html>", b"{}"])
def test_a_metadata_that_is_something_else_is_named(folders: Folders, tmp_path: Path, content: bytes) -> None:
    source = shutil.copytree(folders / "rows", tmp_path / "in")
    (source / ".metadata").write_bytes(content)
    words = refused(source, folders / "llama-hf")
    assert any(kind in words for kind in ("a git-LFS pointer", "an HTML", "JSON text"))
    assert "expected the pickle that torch writes" in words


@pytest.mark.parametrize("size", [0, 50])
def test_a_metadata_that_was_cut_off_is_to_be_copied_again(
    folders: Folders, tmp_path: Path, size: int
) -> None:
    source = shutil.copytree(folders / "rows", tmp_path / "in")
    os.truncate(source / ".metadata", size)
    words = refused(source, folders / "llama-hf")
    assert words.startswith(f"{source / '.metadata'}: its description is cut off at byte {size}; ")
    assert words.endswith("damaged: copy it again")


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"family": "llama-3"}, "`family=`"),
        ({"instruct": True}, "`instruct=`"),
        ({"tokenizer": "tokenizer.model"}, "`tokenizer=`"),
    ],
)
def test_what_only_metas_checkpoints_are_told_is_not_ignored(
    folders: Folders, options: dict[str, Any], named: str
) -> None:
    words = refused(folders / "rows", folders / "llama-hf", **options)
    assert f"{named} would change nothing" in words


def test_an_input_that_is_not_there_is_told_as_that(folders: Folders, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file or folder"):
        distconv.convert(tmp_path / "gone", tmp_path / "out", like=folders / "llama-hf")


@pytest.mark.parametrize("path", ["../rows/__0_0.distcp", "/etc/passwd", "", 3])
def test_a_path_that_leads_elsewhere_is_refused(damaged: Callable[..., str], path: object) -> None:
    def work(metadata: Any) -> None:
        next(iter(metadata.storage_data.values())).relative_path = path

    assert "expected a file in this folder" in damaged(work)


def test_an_item_that_was_transformed_is_refused(damaged: Callable[..., str]) -> None:
    def work(metadata: Any) -> None:
        for place in metadata.storage_data.values():
            place.transform_descriptors = ["zstd"]

    assert "compressed or otherwise transformed" in damaged(work)


def test_a_missing_tensor_is_named(damaged: Callable[..., str]) -> None:
    def work(metadata: Any) -> None:
        del metadata.state_dict_metadata["layers.0.feed_forward.w2.weight"]

    assert "model.layers.0.mlp.down_proj.weight is missing" in damaged(work)


def test_a_tensor_that_no_such_model_has_is_named(damaged: Callable[..., str]) -> None:
    def work(metadata: Any) -> None:
        entries, other = metadata.state_dict_metadata, "layers.0.attention.wq.bias"
        entries[other] = entries.pop("layers.0.attention_norm.weight")
        metadata.storage_data = {
            replace(index, fqn=other) if index.fqn == "layers.0.attention_norm.weight" else index: place
            for index, place in metadata.storage_data.items()
        }

    words = damaged(work)
    assert "model.layers.0.input_layernorm.weight is missing" in words
    assert "layers.0.attention.wq.bias is no tensor of the LlamaForCausalLM" in words


def refused_by(folders: Folders, place: Path, said: str, instead: str) -> str:
    """Give why a checkpoint is not like a model whose config says something else."""
    like = shutil.copytree(folders / "llama-hf", place / "like")
    config = (like / "config.json").read_text()
    (like / "config.json").write_text(config.replace(said, instead))
    return refused(folders / "rows", like)


def test_a_tensor_of_another_shape_is_named(folders: Folders, tmp_path: Path) -> None:
    words = refused_by(folders, tmp_path, '"vocab_size": 101', '"vocab_size": 100')
    assert "tok_embeddings.weight has shape (101, 60)" in words
    assert "gives (100, 60)" in words


def test_a_model_of_another_depth_is_named(folders: Folders, tmp_path: Path) -> None:
    words = refused_by(folders, tmp_path, '"num_hidden_layers": 2', '"num_hidden_layers": 3')
    assert "model.layers.2.self_attn.q_proj.weight is missing" in words


def test_metas_names_of_another_architecture_are_refused(folders: Folders) -> None:
    assert "of which distconv knows Llama's only" in _message(folders / "rows", folders / "qwen3-hf")


def _message(source: Path, like: Path) -> str:
    with pytest.raises(InputError) as raised:
        distconv.plan(source, like=like)
    return str(raised.value)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("_fsdp_wrapped_module._flat_param", "LOCAL_STATE_DICT"),
        ("model.decoder.layers.self_attention.linear_qkv.weight", "Megatron-Bridge"),
        ("model.layers.0.self_attn.q_proj.lora_A.default.weight", "LoRA adapter"),
        ("model.layers.0.self_attn.q_proj.qweight", "quantised"),
    ],
)
def test_what_no_model_can_be_made_of_is_named(
    folders: Folders, tmp_path: Path, name: str, words: str
) -> None:
    _save(tmp_path / "in", {name: torch.ones(4, 4)})
    assert words in refused(tmp_path / "in", folders / "llama-hf")


def test_a_checkpoint_of_megatrons_is_named(folders: Folders, tmp_path: Path) -> None:
    source = shutil.copytree(folders / "rows", tmp_path / "in")
    for name in ("common.pt", "metadata.json"):
        (source / name).write_text("{}")
    assert "Megatron-Bridge" in refused(source, folders / "llama-hf")


@pytest.mark.parametrize(
    ("state", "held"),
    [
        ({"optimizer": {"state": {"a": torch.ones(2)}}}, "optimizer.state.a"),
        ({"exp_avg": torch.ones(2), "exp_avg_sq": torch.ones(2)}, "exp_avg, exp_avg_sq"),
        ({f"m{number}": torch.ones(2) for number in range(10)}, "m0, m1, m2, m3, m4, m5, m6, m7 and 2 more"),
    ],
)
def test_an_optimizer_alone_is_no_model(
    folders: Folders, tmp_path: Path, capsys: pytest.CaptureFixture[str], state: dict[str, Any], held: str
) -> None:
    _save(tmp_path / "in", state)
    assert refused(tmp_path / "in", folders / "llama-hf") == (
        f"{tmp_path / 'in'}: no tensor of LlamaForCausalLM in it; it holds {held}, expected model.embed_tokens.weight and "
        "others; if that is an optimizer's alone, give the folder that holds the model, otherwise give by `like=` the model "
        "that was trained, by `dialect=` how its tensors are named, or save that model alone"
    )
    main(["inspect", str(tmp_path / "in")])
    rows = dict(re.split(r"  +", line, maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert rows["stored as"] == ("nothing" if "optimizer" in state else "float32")


def test_two_models_are_not_one(folders: Folders, tmp_path: Path) -> None:
    with torch.no_grad():
        from tests.dcp_folders import make_model

        tensors = {name: one.detach() for name, one in make_model("llama").state_dict().items()}
    _save(tmp_path / "in", {"actor": tensors, "reference": tensors})
    words = _message(tmp_path / "in", folders / "llama-hf")
    assert "two models are in it, below 'actor.' and 'reference.'" in words


def test_several_steps_are_named(folders: Folders, tmp_path: Path) -> None:
    run = tmp_path / "run"
    for step in ("step-100", "step-20"):
        shutil.copytree(folders / "rows", run / step)
    words = (
        f"below it ({run / 'step-20'}, {run / 'step-100'}); give the path of one, or convert all of them by"
    )
    assert f"{run}: several checkpoints {words} `distconv convert --each`" in refused(
        run, folders / "llama-hf"
    )


def test_an_output_that_differs_from_a_tied_embedding_is_refused(folders: Folders, tmp_path: Path) -> None:
    from tests.dcp_folders import make_model

    tensors = {name: one.detach().clone() for name, one in make_model("qwen3").state_dict().items()}
    tensors["lm_head.weight"][3, 4] += 1
    _save(tmp_path / "in", tensors)
    with pytest.raises(InputError, match="says that they are one"):
        distconv.convert(tmp_path / "in", tmp_path / "out", like=folders / "qwen3-hf")
    assert not (tmp_path / "out").exists()


def test_options_that_mean_nothing_for_other_input_are_refused(folders: Folders, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no checkpoint of a trainer's"):
        distconv.inspect(tmp_path, like=folders / "llama-hf")
    with pytest.raises(UsageError, match="only a Transformers folder is made"):
        distconv.plan(folders / "rows", to="meta", like=folders / "llama-hf")


def test_a_flipped_byte_is_found_by_its_checksum(folders: Folders, tmp_path: Path) -> None:
    assert distconv.check(folders / "rows").ok
    source = shutil.copytree(folders / "rows", tmp_path / "in")
    content = bytearray((source / "__2_0.distcp").read_bytes())
    content[content.index(b"archive/data/0") + 90] ^= 1
    (source / "__2_0.distcp").write_bytes(content)
    report = distconv.check(source)
    assert len(report.findings) == 1
    assert "__2_0.distcp: CRC32" in report.findings[0]


def _save(folder: Path, state: dict[str, Any]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dcp.save(state, checkpoint_id=str(folder), no_dist=True)


def _make_dia() -> PreTrainedModel:
    """Make a model with names that Megatron has too."""
    sizes = {
        "num_hidden_layers": 1,
        "hidden_size": 16,
        "intermediate_size": 24,
        "head_dim": 8,
        "vocab_size": 32,
    }
    heads = {
        f"{across}num_{kind}_heads": 2 for across in ("", "cross_") for kind in ("attention", "key_value")
    }
    decoder = {**sizes, **heads, "cross_hidden_size": 16, "cross_head_dim": 8, "num_channels": 2}
    config = DiaConfig(encoder_config={**sizes, **heads}, decoder_config=decoder, delay_pattern=[0, 1])
    return DiaForConditionalGeneration(config)


def _make_modernbert() -> PreTrainedModel:
    """Make a model with names that torchtune has too."""
    config = ModernBertDecoderConfig(
        hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2, vocab_size=32,
        pad_token_id=0, bos_token_id=1, eos_token_id=2, cls_token_id=1, sep_token_id=2,
    )  # fmt: skip
    return ModernBertDecoderForCausalLM(config)


def _make_xlnet() -> PreTrainedModel:
    """Make a model with a name such as trainers give to what they record."""
    return XLNetLMHeadModel(XLNetConfig(vocab_size=32, d_model=16, n_layer=1, n_head=2, d_inner=24))


def _make_marian() -> PreTrainedModel:
    """Make a model with tensors that are computed, and saved by nobody."""
    sizes = {f"{part}_{key}": 2 for part in ("encoder", "decoder") for key in ("layers", "attention_heads")}
    return MarianMTModel(
        MarianConfig(
            vocab_size=32, d_model=16, encoder_ffn_dim=24, decoder_ffn_dim=24, pad_token_id=0, **sizes
        )
    )


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (_make_dia, "model.decoder.layers.0.self_attention.q_proj.weight"),
        (_make_modernbert, "model.layers.0.attn.q_proj.weight"),
        (_make_xlnet, "lm_loss.bias"),
        (_make_marian, "model.decoder.embed_positions.weight"),
    ],
)
def test_names_that_others_have_too_are_a_models_own_where_it_takes_them(
    tmp_path: Path, make: Callable[[], PreTrainedModel], name: str
) -> None:
    model = make()
    assert name in model.state_dict()
    model.save_pretrained(tmp_path / "like")
    _save(tmp_path / "step", {"model": model.state_dict()})
    distconv.convert(tmp_path / "step", tmp_path / "out", like=tmp_path / "like")
    found, expected = (load_file(tmp_path / name / "model.safetensors") for name in ("out", "like"))
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_a_model_of_which_tensors_are_put_together_as_they_are_saved_is_refused(tmp_path: Path) -> None:
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 2, "head_dim": 8}
    config = HrmTextConfig(**sizes, num_hidden_layers=1, vocab_size=32, pad_token_id=0)
    model = HrmTextForCausalLM(config)
    model.save_pretrained(tmp_path / "like")
    assert not set(load_file(tmp_path / "like/model.safetensors")) <= set(model.state_dict())
    _save(tmp_path / "step", {"model": model.state_dict()})
    words = str(refuse(tmp_path / "step", tmp_path / "out", like=tmp_path / "like"))
    assert words.startswith(f"{tmp_path}/like/config.json: model.")
    assert words.endswith("let Transformers load what was trained, and save it by save_pretrained")
