"""What holds for every conversion holds for one of a distributed checkpoint: resumed, on Ray, from a store, unchanged INPUT."""

import json
import os
import shutil
from pathlib import Path

import pytest
from tokenizers import Tokenizer, models
from transformers import AutoTokenizer, PreTrainedTokenizerFast

import distconv
from distconv.errors import InputError, OutputError
from tests.faults import digest_folder
from tests.refusals import refuse

LIMIT = 20_000


def test_a_finished_conversion_is_not_done_again_and_a_lost_chunk_is(folders: Path, tmp_path: Path) -> None:
    def convert() -> distconv.ConversionReport:
        return distconv.convert(
            folders / "grid", tmp_path / "out", like=folders / "llama-hf", max_shard_size=LIMIT, verify=True
        )

    first = convert()
    before = digest_folder(tmp_path / "out")
    assert convert().already_done
    next(iter(sorted(tmp_path.glob("out/model-*.safetensors")))).unlink()
    again = convert()
    assert (again.kept_chunks, again.chunks) == (first.chunks - 1, first.chunks)
    assert digest_folder(tmp_path / "out") == before


def test_another_dialect_or_checkpoint_is_another_conversion(folders: Path, tmp_path: Path) -> None:
    source = shutil.copytree(folders / "rows", tmp_path / "in")
    distconv.convert(source, tmp_path / "out", like=folders / "llama-hf")
    os.utime(source / "__1_0.distcp", ns=(1, 1))
    with pytest.raises(OutputError, match=r"changed since: __1_0\.distcp"):
        distconv.convert(source, tmp_path / "out", like=folders / "llama-hf")


def test_output_beside_the_ranks_or_in_the_model_that_it_is_like_is_refused(folders: Path) -> None:
    for out in (folders / "rows/out", folders / "llama-hf"):
        with pytest.raises(OutputError):
            distconv.convert(folders / "rows", out, like=folders / "llama-hf")


@pytest.mark.slow
def test_workers_on_ray_write_the_same_bytes(folders: Path, tmp_path: Path) -> None:
    for out, workers in (("one", None), ("two", 2)):
        distconv.convert(
            folders / "rows", tmp_path / out, like=folders / "llama-hf", max_shard_size=LIMIT, workers=workers
        )
    assert digest_folder(tmp_path / "one") == digest_folder(tmp_path / "two")


def test_a_checkpoint_in_a_store_is_read_where_it_is(
    folders: Path, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    pytest.importorskip("botocore", reason="needs the extra s3")
    from tests.stored import run_store

    with run_store(tmp_path_factory.mktemp("aws")) as store:
        for name in ("grid", "llama-hf"):
            store.share(folders / name, "models", f"run/{name}/")
        distconv.convert(
            "s3://models/run/grid", tmp_path / "far", like="s3://models/run/llama-hf", verify=True
        )
    distconv.convert(folders / "grid", tmp_path / "near", like=folders / "llama-hf")
    assert (tmp_path / "far/model.safetensors").read_bytes() == (
        tmp_path / "near/model.safetensors"
    ).read_bytes()


def test_what_lies_beside_the_model_that_it_is_like_is_copied(folders: Path, tmp_path: Path) -> None:
    like = shutil.copytree(folders / "llama-hf", tmp_path / "like")
    copied = (
        "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json", "merges.txt",
        "chat_template.jinja", "chat_template.json", "preprocessor_config.json", "processor_config.json",
        "video_preprocessor_config.json", "LICENSE", "vocab.txt", "spiece.model", "sentencepiece.bpe.model", "source.spm",
        "tekken.json", "qwen.tiktoken", "normalizer.json",
    )  # fmt: skip
    for name in copied:
        (like / name).write_text(f'{{"{name}": 1}}\n')
    distconv.convert(folders / "rows", tmp_path / "out", like=like)
    assert all((tmp_path / "out" / name).read_bytes() == (like / name).read_bytes() for name in copied)
    assert distconv.verify(tmp_path / "out", against=folders / "rows").ok
    assert distconv.convert(folders / "rows", tmp_path / "out", like=like).already_done
    changed = ("vocab.json", "vocab.txt", "spiece.model", "video_preprocessor_config.json")
    for name in changed:
        (tmp_path / "out" / name).write_text("{}")
    found = "".join(distconv.verify(tmp_path / "out").differences)
    assert all(name in found for name in changed)


def test_what_would_lead_a_loader_elsewhere_is_left_out_and_said(folders: Path, tmp_path: Path) -> None:
    like = shutil.copytree(folders / "llama-hf", tmp_path / "like")
    config = json.loads((like / "config.json").read_text())
    leading = {
        "config.json": {
            "transformers_weights": "x",
            "auto_map": {"AutoModelForCausalLM": "modeling_llama.Llama"},
        },
        "tokenizer_config.json": {
            "fast_tokenizer_files": [],
            "auto_map": {"AutoTokenizer": ["mine.Mine", None]},
        },
        "processor_config.json": {"auto_map": {"AutoProcessor": "mine.Mine"}},
    }
    for name, keys in leading.items():
        (like / name).write_text(json.dumps({**(config if name == "config.json" else {"kept": 1}), **keys}))
    report = distconv.convert(folders / "rows", tmp_path / "out", like=like, verify=True)
    for name, keys in leading.items():
        found = json.loads((tmp_path / "out" / name).read_text())
        kept = config | {"torch_dtype": config["dtype"]} if name == "config.json" else {"kept": 1}
        assert found == kept
        assert f"{like}/{name}: {' and '.join(keys)} left out" in "".join(report.notes)
    assert distconv.verify(tmp_path / "out", against=folders / "rows").ok
    (like / "config.json").write_text(json.dumps(config | {"model_type": "mine", **leading["config.json"]}))
    with pytest.raises(
        InputError, match=r"'mine' is unknown to transformers .* code that lies beside weights is never run"
    ):
        distconv.convert(folders / "rows", tmp_path / "other", like=like)


@pytest.mark.parametrize("name", ["generation_config.json", "special_tokens_map.json"])
def test_a_small_file_that_is_no_json_is_refused_before_anything_is_written(
    folders: Path, tmp_path: Path, name: str
) -> None:
    like = shutil.copytree(folders / "llama-hf", tmp_path / "like")
    (like / name).write_text("{")
    words = str(refuse(folders / "rows", tmp_path / "out", like=like))
    assert words.startswith(f"{like}/{name}: not JSON (")


def test_a_model_without_a_tokenizer_is_said_to_have_none(folders: Path, tmp_path: Path) -> None:
    like = shutil.copytree(folders / "llama-hf", tmp_path / "like")
    words = f"{like}: no tokenizer in it"
    assert words in "".join(distconv.plan(folders / "rows", like=like).notes)
    (like / "source.spm").write_text("")
    assert words not in "".join(distconv.plan(folders / "rows", like=like).notes)


def test_several_chat_templates_are_loaded_as_from_the_model_that_it_is_like(
    folders: Path, tmp_path: Path
) -> None:
    like = shutil.copytree(folders / "llama-hf", tmp_path / "like")
    templates = {
        "default": "plain {{ messages }}",
        "rag": "{{ documents }}",
        "tool_use": "größer {{ tools }}",
    }
    words = Tokenizer(models.WordLevel({"a": 0, "?": 1}, unk_token="?"))
    made = PreTrainedTokenizerFast(tokenizer_object=words, model_max_length=77)
    made.chat_template = templates
    made.save_pretrained(like)
    assert (like / "additional_chat_templates/rag.jinja").exists()
    report = distconv.convert(folders / "rows", tmp_path / "out", like=like, verify=True)
    assert "2 chat templates, put into tokenizer_config.json" in "".join(report.notes)
    found = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert (found.chat_template, found.model_max_length) == (templates, 77)
    assert distconv.verify(tmp_path / "out").ok
    (like / "additional_chat_templates/rag.jinja").write_bytes(b"\xff")
    with pytest.raises(InputError, match=r"rag\.jinja: no text in UTF-8"):
        distconv.convert(folders / "rows", tmp_path / "other", like=like)


def test_chat_templates_that_a_processor_would_not_find_are_left_out_and_said(
    folders: Path, tmp_path: Path
) -> None:
    like = shutil.copytree(folders / "llama-hf", tmp_path / "like")
    (like / "processor_config.json").write_text("{}")
    (like / "chat_template.jinja").write_text("one")
    (like / "additional_chat_templates").mkdir()
    (like / "additional_chat_templates/rag.jinja").write_text("two")
    report = distconv.convert(folders / "rows", tmp_path / "out", like=like)
    assert "1 chat template, left out" in "".join(report.notes)
    assert (tmp_path / "out/chat_template.jinja").read_text() == "one"
