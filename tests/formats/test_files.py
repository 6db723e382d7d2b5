"""Which files of a folder are what, in every layout that is found."""

import os
import re
from pathlib import Path

import pytest

from distconv.errors import InputError
from distconv.formats.meta.files import SourceFiles, find_files
from distconv.formats.meta.foreign import describe_folder
from distconv.formats.meta.small_files import find_tokenizer
from distconv.storage.local import LocalStorage


def make(folder: Path, *names: str) -> Path:
    """Make empty files; what they hold is not this module's business."""
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return folder


def find(folder: Path, tokenizer: Path | None = None, params: Path | None = None) -> SourceFiles:
    """Find the files of a folder."""
    given = [None if path is None else str(path) for path in (tokenizer, params)]
    return find_files(LocalStorage(), str(folder), *given)


def names(found: SourceFiles) -> list[str]:
    """Give the shards' first files, in order."""
    return [shard.name for shard in found.shards]


def test_the_tokenizer_and_the_licence_lie_beside_the_shards(tmp_path: Path) -> None:
    found = find(
        make(
            tmp_path / "m",
            "consolidated.00.pth",
            "params.json",
            "tokenizer.model",
            "LICENSE",
            "USE_POLICY.md",
        )
    )
    assert found.tokenizer == str(tmp_path / "m/tokenizer.model")
    assert [Path(path).name for path in found.legal] == ["LICENSE", "USE_POLICY.md"]


LICENCES = (
    "LLAMA 2 COMMUNITY LICENSE AGREEMENT\nLlama 2 Version Release Date: July 18, 2023\n... provided by Meta at ...",
    "META LLAMA 3 COMMUNITY LICENSE AGREEMENT\n",
    "# Llama 2 Acceptable Use Policy\n\nMeta is committed to promoting safe and fair use of its tools",
)
"""How Meta's own texts begin."""


@pytest.mark.parametrize("text", LICENCES)
def test_llama_1_and_2_have_the_tokenizer_and_the_licence_in_the_parent_folder(
    tmp_path: Path, text: str
) -> None:
    make(tmp_path, "tokenizer.model", "7B/consolidated.00.pth", "7B/params.json")
    (tmp_path / "LICENSE").write_text(text)
    found = find(tmp_path / "7B")
    assert found.tokenizer == str(tmp_path / "tokenizer.model")
    assert [Path(path).name for path in found.legal] == ["LICENSE"]
    assert not found.notes


@pytest.mark.parametrize(
    "text",
    [
        b"MIT License\n\nCopyright (c) 2026 Somebody\n",
        b"Apache License\nVersion 2.0, January 2004\n",
        b"llama.ccc, a project of nobody you know\n",
        b"\xff\xfe\x00meta",
        b"",
    ],
)
def test_a_project_that_holds_a_model_keeps_its_licence_to_itself(tmp_path: Path, text: bytes) -> None:
    make(tmp_path, "model/consolidated.00.pth", "model/params.json", "model/USE_POLICY.md")
    (tmp_path / "LICENSE").write_bytes(text)
    found = find(tmp_path / "model")
    assert [Path(path).name for path in found.legal] == ["USE_POLICY.md"]
    assert not found.notes


def test_what_cannot_be_read_in_the_parent_is_in_nobodys_way(tmp_path: Path) -> None:
    make(tmp_path, "model/consolidated.00.pth", "model/params.json")
    os.mkfifo(tmp_path / "LICENSE")
    (tmp_path / "USE_POLICY").symlink_to("nowhere")
    found = find(tmp_path / "model")
    assert not found.legal
    assert not found.notes


def test_the_hub_has_the_licence_beside_the_folder_of_the_original(tmp_path: Path) -> None:
    make(tmp_path, "LICENSE.txt", "original/consolidated.00.pth", "original/params.json")
    for folder in (tmp_path, tmp_path / "original"):
        assert find(folder).legal == (str(tmp_path / "LICENSE.txt"),)


def test_of_two_licences_the_one_beside_the_shards_counts(tmp_path: Path) -> None:
    make(tmp_path, "LICENSE", "7B/LICENSE", "7B/consolidated.00.pth", "7B/params.json")
    found = find(tmp_path / "7B")
    assert found.legal == (str(tmp_path / "7B/LICENSE"),)
    assert not found.notes


def test_a_relative_folder_has_a_parent_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(tmp_path, "tokenizer.model", "7B/consolidated.00.pth", "7B/params.json")
    monkeypatch.chdir(tmp_path / "7B")
    assert find(Path()).tokenizer == str(tmp_path / "tokenizer.model")


def test_the_hub_keeps_the_original_in_a_folder_of_its_own(tmp_path: Path) -> None:
    make(
        tmp_path,
        "model.safetensors",
        "original/consolidated.00.pth",
        "original/params.json",
        "original/tokenizer.model",
    )
    found = find(tmp_path)
    assert found.folder == str(tmp_path / "original")
    assert found.tokenizer == str(tmp_path / "original/tokenizer.model")


def test_the_only_model_below_a_folder_is_taken(tmp_path: Path) -> None:
    make(tmp_path, "tokenizer.model", "7B/consolidated.00.pth", "7B/params.json")
    assert find(tmp_path).folder == str(tmp_path / "7B")


def test_several_models_below_a_folder_are_named(tmp_path: Path) -> None:
    make(tmp_path, "7B/consolidated.00.pth", "13B/consolidated.00.pth")
    with pytest.raises(InputError, match=r"several checkpoints below it; give one of them: .*13B.*7B"):
        find(tmp_path)


@pytest.mark.parametrize(
    "shard",
    [
        "consolidated.00.pth",
        "consolidated.0.pth",
        "consolidated.pth",
        "consolidated.00.pt",
        "meta_model_0.pt",
        "meta_model_3.pt",
        "consolidated.safetensors",
        "consolidated.00.safetensors",
        "consolidated.00.bin",
        "model-00001-of-00001.bin",
        "ft-model-00001-of-00001.bin",
        "model-00001-of-00001.safetensors",
        "checkpoint.pt",
        "model.pth",
        "pytorch_model.bin",
        "model.safetensors",
    ],
)
def test_a_single_shard_has_many_names(tmp_path: Path, shard: str) -> None:
    assert names(find(make(tmp_path / "m", shard, "params.json"))) == [shard]


def test_shards_sort_by_number_and_not_by_name(tmp_path: Path) -> None:
    shards = [f"consolidated.{number}.pth" for number in range(12)]
    assert names(find(make(tmp_path / "m", "params.json", *reversed(shards)))) == shards


def test_the_hubs_405b_has_a_folder_a_rank(tmp_path: Path) -> None:
    parts = [f"consolidated.{rank:02d}/consolidated-{part}-of-2.pth" for rank in range(2) for part in (1, 2)]
    found = find(make(tmp_path / "m", "params.json", *parts))
    assert [[Path(path).name for path in shard.paths] for shard in found.shards] == [
        ["consolidated-1-of-2.pth", "consolidated-2-of-2.pth"]
    ] * 2


def test_a_missing_part_of_a_rank_is_an_error(tmp_path: Path) -> None:
    make(
        tmp_path / "m",
        "params.json",
        "consolidated.00/consolidated-1-of-3.pth",
        "consolidated.00/consolidated-3-of-3.pth",
    )
    with pytest.raises(InputError, match="parts 01, 03 of 03; expected"):
        find(tmp_path / "m")


def test_a_file_may_be_given_instead_of_its_folder(tmp_path: Path) -> None:
    make(
        tmp_path / "m",
        "params.json",
        "consolidated.00.pth",
        "consolidated.01.pth",
        "meta_model_0.pt",
        "meta_model_1.pt",
    )
    assert names(find(tmp_path / "m/consolidated.01.pth")) == ["consolidated.00.pth", "consolidated.01.pth"]
    assert names(find(tmp_path / "m/meta_model_1.pt")) == ["meta_model_1.pt"]


def test_a_tokenizer_given_by_path_wins_and_may_be_a_folder(tmp_path: Path) -> None:
    make(tmp_path, "m/params.json", "m/consolidated.00.pth", "m/tokenizer.model", "other/tokenizer.model")
    assert find(tmp_path / "m", tmp_path / "other").tokenizer == str(tmp_path / "other/tokenizer.model")
    assert find(tmp_path / "m", tmp_path / "other/tokenizer.model").tokenizer == str(
        tmp_path / "other/tokenizer.model"
    )


def test_a_tokenizer_is_found_for_itself(tmp_path: Path) -> None:
    make(tmp_path, "tokenizer.model", "7B/params.json", "hub/original/tokenizer.model", "none/below/x")
    storage = LocalStorage()
    for place, expected in (
        ("tokenizer.model", "tokenizer.model"),
        ("", "tokenizer.model"),
        ("7B", "tokenizer.model"),
    ):
        assert find_tokenizer(storage, str(tmp_path / place)) == str(tmp_path / expected)
    assert find_tokenizer(storage, str(tmp_path / "hub")) == str(tmp_path / "hub/original/tokenizer.model")
    with pytest.raises(InputError) as raised:
        find_tokenizer(storage, str(tmp_path / "none/below"))
    assert str(raised.value) == (
        f"{tmp_path / 'none/below'}: no tokenizer.model here, in original/ or in the parent folder"
    )


def test_a_tokenizer_that_is_given_may_have_any_name(tmp_path: Path) -> None:
    path = str(make(tmp_path, "tokenizer.model", "llama.spm") / "llama.spm")
    assert find_tokenizer(LocalStorage(), path) == path


def test_a_file_of_any_name_is_a_model_also_where_one_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(tmp_path, "step.pt", "tokenizer.model")
    (tmp_path / "step.pt").write_bytes(b"PK\x03\x04")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        InputError, match=r"^\.: no params\.json beside the shards \(step\.pt\), in original/"
    ):
        find(Path("step.pt"))
    make(tmp_path, "params.json")
    found = find(Path("step.pt"))
    assert (found.folder, names(found)) == (".", ["step.pt"])


def test_a_whole_model_in_a_folder_that_is_called_like_a_ranks_is_whole(tmp_path: Path) -> None:
    make(tmp_path, "consolidated.00/checkpoint.pt", "consolidated.00/params.json")
    assert names(find(tmp_path / "consolidated.00/checkpoint.pt")) == ["checkpoint.pt"]


@pytest.mark.parametrize(
    ("held", "words"),
    [
        (("latest", "zero_to_fp32.py", "global_step10/x.pt"), "DeepSpeed's (global_step10)"),
        (("zero_pp_rank_0_mp_rank_00_model_states.pt",), "DeepSpeed's (zero_pp"),
        (("bf16_zero_pp_rank_0_mp_rank_00_optim_states.pt", "mp_rank_00_model_states.pt"), "zero_to_fp32.py"),
        (("mp_rank_00/model_optim_rng.pt",), "Megatron-Bridge"),
        (("latest_checkpointed_iteration.txt", "iter_0000010/mp_rank_00/x.pt"), "Megatron-Bridge"),
        (("_CHECKPOINT_METADATA", "manifest.ocdbt"), "JAX's (Orbax, _CHECKPOINT_METADATA)"),
        (("step.nemo",), "NeMo's (step.nemo)"),
        (("blobs/ab", "refs/main", "snapshots/1/model.safetensors"), "the hub's cache of a repository"),
    ],
)
def test_what_other_trainers_leave_is_named_with_the_way_out(
    tmp_path: Path, held: tuple[str, ...], words: str
) -> None:
    make(tmp_path / "in", *held)
    assert words in describe_folder(LocalStorage(), str(tmp_path / "in"))
    with pytest.raises(InputError, match=re.escape(words)):
        find(tmp_path / "in")


def test_of_what_a_folder_holds_a_few_names_are_shown(tmp_path: Path) -> None:
    def describe(form: str, count: int) -> tuple[list[str], str]:
        held = [form.format(number) for number in range(count)]
        return held, describe_folder(LocalStorage(), str(make(tmp_path / f"{form}-{count}", *held)))

    held, shown = describe("{}.txt", 8)
    assert shown == f"it holds {', '.join(held)}"
    held, shown = describe("{}.txt", 9)
    assert shown == f"it holds {', '.join(held[:8])} and 1 more"
    held, shown = describe("{}.pt", 9)
    assert shown == (f"it holds {', '.join(held[:8])}; if one of these is the model, give the file's path")
    held, shown = describe("adapter_{}.pt", 5)
    assert shown == (
        f"it holds a LoRA adapter without its model ({', '.join(held[:4])}); merge it into the model first"
    )


@pytest.mark.parametrize(
    ("files", "words"),
    [
        (["consolidated.00.pth"], "m: no params.json beside the shards (consolidated.*.pth), in original/ or in the parent folder; copy it from Meta's or Mistral's download of this model, or give it by `params=`"),
        (["consolidated.safetensors"], "m: no params.json beside the shards (consolidated.safetensors), in original/ or in the parent folder; copy it from Meta's or Mistral's download of this model, or give it by `params=`"),
        (["model.safetensors"], "m: no config.json beside the weights (model.safetensors); copy it from the model that this one is, or was trained from; if its tensors are Meta's, copy params.json from Meta's download of this model, or give it by `params=`"),
        (["params.json"], "m: no checkpoint of Meta's, Transformers' or a trainer's here; it holds params.json"),
        (["llama.Q4_0.gguf", "llama.F16.GGUF", "README.md"], "m: no checkpoint of Meta's, Transformers' or a trainer's here; it holds llama.F16.GGUF, llama.Q4_0.gguf: a GGUF file is made of a model for llama.cpp, and none is made of it again; give the model that it was made of"),
        (["model.safetensors", "config.json"], "m: no consolidated.*.pth here or in original/; it holds model.safetensors and config.json: already in Transformers' format, which needs no conversion; a Llama for Meta's code is made by `to='meta'`, other chunks or a right index by `like=` and the folder itself; if its tensors are Meta's, give `params=`"),
        (["params.json", "consolidated.00.pth", "consolidated.02.pth"], "m: shards 00, 02 found, 01 missing; download the missing files"),
        (["params.json", "consolidated.01.pth"], "m: shards 01 found, 00 missing; download the missing files"),
        (["params.json", "consolidated.0.pth", "consolidated.00.pth"], "m: shard 0 is there twice: consolidated.0.pth and consolidated.00.pth"),
        (["params.json", "consolidated.pth", "consolidated.00.pth"], "m: both consolidated.pth and consolidated.00.pth: several whole models; give the path of the one to convert"),
        (["params.json", "meta_model_0.pt", "meta_model_1.pt"], "m: both meta_model_0.pt and meta_model_1.pt: several whole models; give the path of the one to convert"),
        (["params.json", "consolidated.00.pth", "int4_scales_0.pt"], "m/int4_scales_0.pt: an int4-quantized checkpoint; convert the bf16 model instead"),
        (["params.json", "consolidated.00.pth", "consolidated.01.pth", "fp8_scales_1.pt"], "m: fp8_scales_0.pt missing beside fp8_scales_1.pt; download the missing files"),
        (["params.json", "consolidated.00.pth", "fp8_scales_0.pt", "fp8_scales_00.pt"], "m: the scales of shard 0 are there twice: fp8_scales_0.pt and fp8_scales_00.pt"),
        (["params.json", "adapter_config.json", "adapter_model.safetensors"], "m: no checkpoint of Meta's, Transformers' or a trainer's here; it holds a LoRA adapter without its model (adapter_config.json, adapter_model.safetensors); merge it into the model first"),
        (["params.json", "consolidated.00.pth", "consolidated.00.safetensors"], "m: both consolidated.00.pth and consolidated.00.safetensors: several whole models; give the path of the one to convert"),
        (["params.json", "consolidated.00.pth", "checkpoint.pt"], "m: both consolidated.00.pth and checkpoint.pt: several whole models; give the path of the one to convert"),
        (["params.json", "checkpoint.pt", "original/consolidated.00.pth"], "m: both m/checkpoint.pt and m/original/consolidated.00.pth: several whole models; give the path of the one to convert"),
        (["params.json", "consolidated-00001-of-00003.pth", "consolidated-00003-of-00003.pth"], "m: parts 01, 03 of 03; expected all of consolidated-*-of-00003.pth; download the missing files"),
        (["params.json", "consolidated-1-of-2.pth", "consolidated-01-of-2.pth"], "m: a part is there twice: consolidated-01-of-2.pth and consolidated-1-of-2.pth"),
        (["params.json", "consolidated-2-of-2.pth", "consolidated-3-of-2.pth"], "m: parts 02, 03 of 02; expected all of consolidated-*-of-2.pth; download the missing files"),
        (["params.json", "consolidated.00/consolidated-1-of-2.pth", "consolidated.00/ft-model-1-of-2.bin"], "m/consolidated.00: parts consolidated-*-of-2.pth and ft-model-*-of-2.bin; expected consolidated-*-of-N.pth, all N of them"),
        (["params.json", "consolidated.00/consolidated.00.pth"], "m/consolidated.00: parts none; expected consolidated-*-of-N.pth, all N of them"),
        (["params.json", "consolidated.99999999999999999999.pth"], "m: shards 99999999999999999999 found, 00, 01, 02, 03, 04, 05, 06, 07, 08, 09, 10, 11, 12, 13, 14, 15 missing; download the missing files"),
        (["params.json", "llama-finetuned.pt", "optimizer.pt"], "m: no checkpoint of Meta's, Transformers' or a trainer's here; it holds llama-finetuned.pt, optimizer.pt; if one of these is the model, give the file's path"),
        (["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors", "config.json"], "m: no consolidated.*.pth here or in original/; it holds model-*-of-00002.safetensors and config.json: already in Transformers' format, which needs no conversion; a Llama for Meta's code is made by `to='meta'`, other chunks or a right index by `like=` and the folder itself; if its tensors are Meta's, give `params=`"),
        (["model.safetensors", "pytorch_model.bin", "config.json"], "m: no consolidated.*.pth here or in original/; it holds model.safetensors and config.json: already in Transformers' format, which needs no conversion; a Llama for Meta's code is made by `to='meta'`, other chunks or a right index by `like=` and the folder itself; if its tensors are Meta's, give `params=`"),
        (["model.safetensors", "config.json", "run/checkpoint.pt"], "m: both m/model.safetensors and m/run/checkpoint.pt: several whole models; give the path of the one to convert"),
        (["params.json", "model.safetensors", "pytorch_model.bin", "config.json"], "m: both model.safetensors and pytorch_model.bin: several whole models; give the path of the one to convert"),
        (["params.json", "original/model.safetensors", "run/checkpoint.pt"], "m: both m/original/model.safetensors and m/run/checkpoint.pt: several whole models; give the path of the one to convert"),
        (["params.json", "run/checkpoint.pt", "run/model.pth"], "m: both m/run/checkpoint.pt and m/run/model.pth: several whole models; give the path of the one to convert"),
        (["epoch_0/model-00001-of-00001.bin", "epoch_1/model-00001-of-00001.bin", "params.json"], "m: several checkpoints below it; give one of them: m/epoch_0, m/epoch_1"),
    ],
)  # fmt: skip
def test_what_is_no_whole_checkpoint_is_refused(tmp_path: Path, files: list[str], words: str) -> None:
    with pytest.raises(InputError) as raised:
        find(make(tmp_path / "m", *files))
    assert str(raised.value).replace(str(tmp_path / "m"), "m") == words


def test_an_empty_and_a_missing_folder_are_told_apart(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"; the folder is empty$"):
        find(tmp_path / "empty")
    with pytest.raises(InputError, match=r"no such file or folder$"):
        find(tmp_path / "none")
    with pytest.raises(InputError, match=r"no such file \(given as the tokenizer\)"):
        find(make(tmp_path / "m", "params.json", "consolidated.00.pth"), tmp_path / "none")


def test_the_checkpoint_that_is_found_below_is_named(tmp_path: Path) -> None:
    files = ("consolidated.00.pth", "params.json", "tokenizer.model")
    make(tmp_path / "models" / "Llama-2-7b", *files)
    make(tmp_path / "hub" / "original", *files)
    assert find(tmp_path / "models").notes == (f"the checkpoint is {tmp_path / 'models/Llama-2-7b'}",)
    for path in ("models/Llama-2-7b", "models/Llama-2-7b/consolidated.00.pth", "hub", "hub/original"):
        assert find(tmp_path / path).notes == ()


def test_where_nothing_is_a_name_of_the_hub_or_one_that_is_near_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(tmp_path, "runs/step-1/model.pt", "Llama-2-7b/LICENSE")
    monkeypatch.chdir(tmp_path)
    for path, end in {
        "meta-llama/Llama-2-7b-hf": "; a repository of the hub is given as hf://meta-llama/Llama-2-7b-hf",
        "runs/step-2": "",
        "none": "",
        "./meta-llama/Llama-2-7b-hf": "",
        "a/b/c": "",
        "runs/steep-1": "; did you mean runs/step-1?",
        "./Runs/": "",
        "rums": "",
        "Llama-2-7B": "; did you mean Llama-2-7b?",
        "./Lama-2-7b/": "; did you mean ./Llama-2-7b?",
    }.items():
        with pytest.raises(InputError) as raised:
            find_files(LocalStorage(), path)
        assert str(raised.value) == f"{path}: no such file or folder{end}"


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (b"Llama 2 is a collection", "text"),
        ("\u00fc".encode() * 300, "text"),
        (b'{"a": 1}', "JSON text"),
        (b"a\0\0\0\0\0\0\0", "unknown content (first bytes 61 00 00 00 00 00 00 00)"),
        (b"abc\xff\xfe\xfd\xfc", "unknown content (first bytes 61 62 63 ff fe fd fc)"),
    ],
)
def test_a_file_that_is_no_checkpoint_is_called_what_it_is_before_its_params_are_missed(
    tmp_path: Path, content: bytes, kind: str
) -> None:
    path = tmp_path / "notes"
    path.write_bytes(content)
    with pytest.raises(InputError) as raised:
        find(path)
    assert str(raised.value) == f"{path}: it is {kind}, expected a torch checkpoint"


@pytest.mark.parametrize(
    ("present", "given", "folder"),
    [
        (["m/epoch_0/model-00001-of-00001.bin", "m/params.json"], "m/epoch_0", "m"),
        (["m/epoch_0/model-00001-of-00001.bin", "m/params.json"], "m", "m"),
        (
            ["m/epoch_0/model-00001-of-00001.bin", "m/epoch_0/original/params.json"],
            "m/epoch_0",
            "m/epoch_0/original",
        ),
        (["m/epoch_0/checkpoint.pt", "m/original/params.json"], "m/epoch_0", "m/original"),
        (["m/consolidated/consolidated.pth", "m/params.json"], "m", "m"),
        (["m/step.pt", "m/original/params.json"], "m/step.pt", "m/original"),
    ],
)
def test_params_lie_above_the_shards_or_in_original(
    tmp_path: Path, present: list[str], given: str, folder: str
) -> None:
    found = find(make(tmp_path, *present) / given)
    assert found.params == str(tmp_path / folder / "params.json")
    assert found.notes == (f"{found.params} is taken as the model's: there is none beside the shards",)


def test_params_that_differ_are_not_chosen_from(tmp_path: Path) -> None:
    make(tmp_path, "m/epoch_0/checkpoint.pt", "m/params.json", "m/original/params.json")
    assert find(tmp_path / "m/epoch_0").params == str(tmp_path / "m/params.json")
    (tmp_path / "m/params.json").write_text("{}")
    with pytest.raises(InputError, match=r"m/params\.json and .*original/params\.json differ; .*`params=`"):
        find(tmp_path / "m/epoch_0")
    assert find(tmp_path / "m/epoch_0", params=tmp_path / "m").params == str(tmp_path / "m/params.json")


def test_params_given_by_path_win_and_may_be_a_folder(tmp_path: Path) -> None:
    make(tmp_path, "m/params.json", "m/consolidated.00.pth", "other/params.json")
    for given in ("other", "other/params.json"):
        assert find(tmp_path / "m", params=tmp_path / given).params == str(tmp_path / "other/params.json")
    with pytest.raises(InputError, match=r"none: no such file \(given as params\.json\)"):
        find(tmp_path / "m", params=tmp_path / "none")


@pytest.mark.parametrize("name", ["consolidated.00.safetensors", "consolidated.01.safetensors"])
def test_the_file_that_is_given_says_which_of_two_sets_is_meant(tmp_path: Path, name: str) -> None:
    sets = [f"consolidated.{rank:02d}.{kind}" for rank in (0, 1) for kind in ("pth", "safetensors")]
    make(tmp_path / "m", "params.json", "consolidated.pth", *sets)
    assert names(find(tmp_path / "m" / name)) == [
        "consolidated.00.safetensors",
        "consolidated.01.safetensors",
    ]
    assert names(find(tmp_path / "m/consolidated.pth")) == ["consolidated.pth"]


def test_parts_of_a_flat_model_are_found_in_order(tmp_path: Path) -> None:
    parts = [f"consolidated-{part:05d}-of-00012.pth" for part in range(1, 13)]
    assert names(find(make(tmp_path / "m", "params.json", *reversed(parts)))) == parts
    assert names(find(tmp_path / "m" / parts[3])) == parts


def test_the_folder_of_one_rank_is_not_the_model(tmp_path: Path) -> None:
    parts = [f"consolidated.{rank:02d}/consolidated-{part}-of-2.pth" for rank in range(2) for part in (1, 2)]
    make(tmp_path / "m", "params.json", *parts)
    with pytest.raises(InputError, match="the folder of one rank of several; give the folder above it"):
        find(tmp_path / "m/consolidated.01")
    assert len(find(tmp_path / "m" / parts[0]).shards) == 2


def test_an_adapter_beside_a_model_is_not_used_and_that_is_said(tmp_path: Path) -> None:
    adapters = ["adapter_0.pt", "adapter_config.json", "adapter_model.safetensors"]
    found = find(make(tmp_path / "m", "params.json", "model-00001-of-00001.bin", *adapters))
    assert names(found) == ["model-00001-of-00001.bin"]
    assert (
        "adapter_0.pt, adapter_config.json, adapter_model.safetensors: an adapter lies here and is not used"
        in found.notes[0]
    )


def test_what_transformers_writes_counts_only_where_nothing_else_does(tmp_path: Path) -> None:
    make(
        tmp_path / "m",
        "params.json",
        "consolidated.00.pth",
        "model-00001-of-00001.safetensors",
        "config.json",
    )
    assert names(find(tmp_path / "m")) == ["consolidated.00.pth"]
