"""Checkpoints as trainers and people leave them: the same bytes come out as of Meta's own files."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import distconv
from distconv.cli import main
from distconv.errors import InputError
from tests.checkpoints import Spec, Tensors, make_params
from tests.faults import read_data

Write = Callable[[Spec], Path]
SPEC = Spec("llama-3", heads=8, kv_heads=4, shards=2, checklist=False)
SINGLE = Spec("llama-3", heads=8, kv_heads=4, checklist=False)
TIED = Spec("llama-2", heads=8, kv_heads=4, tied=True, checklist=False)


def load(folder: Path, number: int = 0) -> Tensors:
    """Give what a shard holds."""
    return torch.load(folder / f"consolidated.{number:02d}.pth", weights_only=True)


def convert(source: Path, output: Path, **options: object) -> dict[str, bytes]:
    """Convert, verify, and give every file that does not name the source."""
    distconv.convert(source, output, **options)  # type: ignore[arg-type]
    params = options.get("params")
    assert distconv.verify(output, against=source, params=params).ok  # type: ignore[arg-type]
    return read_data(output)


def halves(state: Tensors) -> tuple[Tensors, Tensors]:
    """Cut a state dict in two."""
    names = list(state)
    return {name: state[name] for name in names[:7]}, {name: state[name] for name in names[7:]}


def as_safetensors(folder: Path) -> None:
    save_file(load(folder), folder / "consolidated.safetensors")
    (folder / "consolidated.00.pth").unlink()


def as_safetensors_under_another_name(folder: Path) -> None:
    save_file(load(folder), folder / "consolidated.00.pth")


def as_unaligned_safetensors(folder: Path) -> None:
    """Put one byte before all data, as torch's own consolidation aligns nothing either."""
    state = {"mask": torch.ones(1, dtype=torch.bool), **load(folder)}
    header: dict[str, object] = {}
    data = b""
    for name, tensor in state.items():
        content = tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
        dtype = {torch.bool: "BOOL", torch.bfloat16: "BF16"}[tensor.dtype]
        ends = [len(data), len(data) + len(content)]
        header[name] = {"dtype": dtype, "shape": list(tensor.shape), "data_offsets": ends}
        data += content
    text = json.dumps(header).encode()
    text += b" " * (1 - len(text) % 2)
    (folder / "consolidated.00.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + data)
    (folder / "consolidated.00.pth").unlink()


def as_a_pickle_called_safetensors(folder: Path) -> None:
    (folder / "consolidated.00.pth").rename(folder / "consolidated.00.safetensors")


def as_flat_parts(folder: Path) -> None:
    for number, part in enumerate(halves(load(folder)), 1):
        torch.save(part, folder / f"consolidated-{number:05d}-of-00002.pth")
    (folder / "consolidated.00.pth").unlink()


def as_parts_with_whole_tensors(folder: Path) -> None:
    for number, part in enumerate(halves(load(folder))):
        save_file(part, folder / f"consolidated.{number:02d}.safetensors")
    (folder / "consolidated.00.pth").unlink()


def as_a_run_of_torchtune(folder: Path) -> None:
    (folder / "epoch_0/original").mkdir(parents=True)
    (folder / "consolidated.00.pth").rename(folder / "epoch_0/model-00001-of-00001.bin")
    (folder / "params.json").rename(folder / "epoch_0/original/params.json")
    (folder / "epoch_0/adapter_config.json").write_text("{}")
    torch.save({"lora_a": torch.ones(2)}, folder / "epoch_0/adapter_0.pt")


def as_a_trainers_checkpoint(folder: Path) -> None:
    state = {f"_orig_mod.{name}": tensor for name, tensor in load(folder).items()}
    state |= {"_orig_mod.freqs_cis": torch.ones(8, 4, dtype=torch.complex64)}
    optimizer = {"state": {"exp_avg": torch.ones(5)}, "param_groups": [{"lr": 0.1}]}
    torch.save({"model": state, "optimizer": optimizer, "epoch": 3}, folder / "checkpoint.pt")
    (folder / "consolidated.00.pth").unlink()


def as_written_by_metas_lingua(folder: Path) -> None:
    (folder / "consolidated").mkdir()
    torch.save({"model": load(folder)}, folder / "consolidated/consolidated.pth")
    (folder / "consolidated.00.pth").unlink()
    model = make_params(SINGLE) | {"n_heads": None, "head_dim": 8, "sliding_window": None, "max_seqlen": 8192}
    (folder / "params.json").write_text(
        json.dumps({"name": "run", "grad_clip": float("inf"), "model": model})
    )


@pytest.mark.first(5)
@pytest.mark.parametrize(
    "change",
    [
        as_safetensors,
        as_safetensors_under_another_name,
        as_unaligned_safetensors,
        as_a_pickle_called_safetensors,
        as_flat_parts,
        as_parts_with_whole_tensors,
        as_a_run_of_torchtune,
        as_a_trainers_checkpoint,
        as_written_by_metas_lingua,
    ],
)
def test_one_shard_in_every_dress_gives_the_same_bytes(
    checkpoint: Write, tmp_path: Path, change: Callable[[Path], None]
) -> None:
    source = shutil.copytree(checkpoint(SINGLE), tmp_path / "in")
    expected = convert(source, tmp_path / "expected")
    change(source)
    tokenizer = tmp_path / "in/tokenizer.model"
    assert convert(source, tmp_path / "out", tokenizer=tokenizer) == expected


def as_numbered_safetensors(folder: Path, number: int) -> None:
    save_file(load(folder, number), folder / f"consolidated.{number:02d}.safetensors")


def as_ranks_called_parts(folder: Path, number: int) -> None:
    torch.save(load(folder, number), folder / f"consolidated-{number:05d}-of-00002.pth")


def as_ranks_with_prefixes_of_their_own(folder: Path, number: int) -> None:
    state = {f"{'module.' * number}{name}": tensor for name, tensor in load(folder, number).items()}
    torch.save(state, folder / f"consolidated.{number:02d}.pt")


@pytest.mark.parametrize(
    "change", [as_numbered_safetensors, as_ranks_called_parts, as_ranks_with_prefixes_of_their_own]
)
def test_two_shards_in_every_dress_give_the_same_bytes(
    checkpoint: Write, tmp_path: Path, change: Callable[[Path, int], None]
) -> None:
    source = shutil.copytree(checkpoint(SPEC), tmp_path / "in")
    expected = convert(source, tmp_path / "expected")
    for number in range(SPEC.shards):
        change(source, number)
        (source / f"consolidated.{number:02d}.pth").unlink()
    assert convert(source, tmp_path / "out") == expected


def test_a_shard_that_is_a_copy_of_another_is_named(checkpoint: Write, tmp_path: Path) -> None:
    source = shutil.copytree(checkpoint(SPEC), tmp_path / "in")
    words = f"{source}/consolidated.01.pth holds the same data as {source}/consolidated.00.pth, where each"
    assert words not in "\n".join(distconv.inspect(source).notes)
    torch.save(load(source, 0), source / "consolidated.01.pth")  # its records' names differ from the first's
    assert words in "\n".join(distconv.inspect(source).notes)


def test_a_file_and_its_params_may_lie_anywhere(checkpoint: Write, tmp_path: Path) -> None:
    source = checkpoint(SINGLE)
    expected = convert(source, tmp_path / "expected")
    (tmp_path / "weights").mkdir()
    (tmp_path / "params").mkdir()
    moved = shutil.copy(source / "consolidated.00.pth", tmp_path / "weights/my-model.bin")
    shutil.copy(source / "params.json", tmp_path / "params/params.json")
    shutil.copy(source / "tokenizer.model", tmp_path / "tokenizer.model")
    with pytest.raises(InputError, match=r"no params\.json .*give it by `params=`"):
        distconv.inspect(moved)
    params = tmp_path / "params"
    assert distconv.check(moved, params=params).ok
    assert distconv.inspect(moved, params=params).to_json()["layers"] == 2
    assert convert(Path(moved), tmp_path / "params/out", params=params / "params.json") == expected


def test_every_verb_takes_params(
    checkpoint: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = shutil.copytree(checkpoint(SINGLE), tmp_path / "in")
    params = (source / "params.json").rename(tmp_path / "elsewhere.json")
    output = str(tmp_path / "out")
    for verb in (
        ["inspect"],
        ["plan"],
        ["check"],
        ["convert", str(source), output],
        ["verify", output, "--against"],
    ):
        words = verb if verb[0] == "convert" else [*verb, str(source)]
        main([*words, "--params", str(params), "--json"])
        assert json.loads(capsys.readouterr().out), verb


def test_a_tied_model_without_an_output_layer_is_one_where_params_say_so(
    checkpoint: Write, tmp_path: Path
) -> None:
    source = shutil.copytree(checkpoint(TIED), tmp_path / "in")
    state = load(source)
    state.pop("output.weight")
    torch.save(state, source / "consolidated.00.pth")
    with pytest.raises(InputError, match=r'output\.weight: missing in .*"weight_tying": true'):
        distconv.plan(source)
    fields = make_params(TIED)
    (source / "params.json").write_text(json.dumps(fields | {"weight_tying": True}))
    found = convert(source, tmp_path / "out")
    assert json.loads(found["config.json"])["tie_word_embeddings"] is True
    # Both written out, and one storage: the same model.
    shutil.copy(checkpoint(TIED) / "consolidated.00.pth", source)
    assert convert(source, tmp_path / "both") == found
    # Said, but not so: what the tensors are counts.
    torch.save(
        load(source) | {"output.weight": torch.ones_like(state["tok_embeddings.weight"])},
        source / "consolidated.00.pth",
    )
    assert json.loads(convert(source, tmp_path / "untied")["config.json"])["tie_word_embeddings"] is False


def test_the_output_of_a_shared_safetensors_file_is_found(checkpoint: Write, tmp_path: Path) -> None:
    source = shutil.copytree(checkpoint(TIED), tmp_path / "in")
    expected = convert(source, tmp_path / "expected")
    state = load(source)
    state.pop("output.weight")
    (source / "consolidated.00.pth").unlink()
    save_file(state, source / "consolidated.safetensors", {"output.weight": "tok_embeddings.weight"})
    assert convert(source, tmp_path / "out") == expected


def test_a_factor_of_rope_scaling_goes_into_the_config(checkpoint: Write, tmp_path: Path) -> None:
    spec = Spec("llama-3.1", heads=8, kv_heads=4, checklist=False)
    source = shutil.copytree(checkpoint(spec), tmp_path / "in")
    plain = json.loads(convert(source, tmp_path / "plain")["config.json"])
    said = {"rope_scaling_factor": 16, "rope_high_freq_factor": 1, "max_seq_len": 4096}
    (source / "params.json").write_text(json.dumps(make_params(spec) | said))
    config = json.loads(convert(source, tmp_path / "out")["config.json"])
    changed = plain["rope_parameters"] | {"factor": 16.0, "high_freq_factor": 1.0}
    assert config == plain | {
        "rope_parameters": changed,
        "rope_scaling": {key: value for key, value in changed.items() if key != "rope_theta"},
    }
    notes = "\n".join(distconv.plan(source).notes)
    assert "was never published" not in notes
    assert "rope is scaled by 16, as it says" in notes
    assert "max_seq_len 4096 is what a run made room for; max_position_embeddings is 131072" in notes


@pytest.mark.parametrize(
    ("layers", "words"),
    [
        (99, "says 99 layers, the shards hold 2: there is no layers.2.*"),
        (1 << 18, "says 262144 layers, the shards hold 2: there is no layers.2.*"),
        (1, "says 1 layers, the shards hold 2: layers.1.* is beyond"),
    ],
)
def test_another_number_of_layers_is_one_line(
    checkpoint: Write, tmp_path: Path, layers: int, words: str
) -> None:
    source = shutil.copytree(checkpoint(SINGLE), tmp_path / "in")
    (source / "params.json").write_text(json.dumps(make_params(SINGLE) | {"n_layers": layers}))
    with pytest.raises(InputError) as raised:
        distconv.plan(source)
    (line,) = str(raised.value).splitlines()
    assert words in line


def test_a_feed_forward_size_that_is_written_out_must_be_that_of_the_tensors(
    checkpoint: Write, tmp_path: Path
) -> None:
    source = shutil.copytree(checkpoint(SINGLE), tmp_path / "in")
    (source / "params.json").write_text(json.dumps(make_params(SINGLE) | {"hidden_dim": SINGLE.ffn_dim}))
    assert distconv.inspect(source).to_json()["ffn_dim"] == SINGLE.ffn_dim
    (source / "params.json").write_text(json.dumps(make_params(SINGLE) | {"hidden_dim": 14336}))
    with pytest.raises(InputError, match=f"hidden_dim 14336, w1 has {SINGLE.ffn_dim} rows"):
        distconv.inspect(source)
