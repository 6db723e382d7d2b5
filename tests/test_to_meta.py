"""Meta's layout at any model-parallel size, byte for byte what torch.save writes of the parts."""

import dataclasses
import json
import subprocess
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import distconv
from distconv.errors import DistconvError, OutputError, UsageError
from distconv.moving import shared, worker
from tests.checkpoints import Spec, write_checkpoint
from tests.extent import share
from tests.faults import InterruptedAtError, digest_folder, digest_shards, interrupted_at

LLAMA_2 = Spec("llama-2", dim=64, heads=8, kv_heads=4, layers=2, equal_norms=True)
LLAMA_31 = Spec("llama-3.1", dim=64, heads=8, kv_heads=4, layers=2, equal_norms=True)
PART_BYTES = 8_000
"""Of tensors in a part: each shard of these models has several."""

Tensors = dict[str, torch.Tensor]


def split(whole: Tensors, ranks: int, head_dim: int, *, by_columns: bool) -> list[Tensors]:
    """Cut whole tensors of Meta's names as its parallel layers do."""
    found: list[Tensors] = [{} for _ in range(ranks)]
    for name, tensor in whole.items():
        axis = (
            1 if name.endswith(("wo.weight", "w2.weight")) or (by_columns and name.startswith("tok_")) else 0
        )
        if "norm" in name:
            parts: Sequence[torch.Tensor] = [tensor] * ranks
        elif name.endswith(("wk.weight", "wv.weight")) and tensor.shape[0] // head_dim < ranks:
            heads = tensor.reshape(-1, head_dim, tensor.shape[1])
            parts = list(heads.repeat_interleave(ranks // len(heads), dim=0))
        else:
            parts = torch.chunk(tensor, ranks, axis)
        for rank, part in enumerate(parts):
            found[rank][name] = part.clone()
    return found


def load(folder: Path) -> list[Tensors]:
    """Load all shards with torch."""
    paths = sorted(folder.glob("consolidated.*.pth"))
    return [torch.load(path, mmap=True, weights_only=True) for path in paths]


def join(shards: list[Tensors], *, by_columns: bool) -> Tensors:
    """Concatenate shards to whole tensors."""
    found = {}
    for name, first in shards[0].items():
        axis = (
            1 if name.endswith(("wo.weight", "w2.weight")) or (by_columns and name.startswith("tok_")) else 0
        )
        found[name] = first if "norm" in name else torch.cat([shard[name] for shard in shards], axis)
    found.pop("rope.freqs", None)
    return found


def save(shards: list[Tensors], order: list[str], place: Path) -> list[bytes]:
    """Give what torch.save writes of each shard."""
    saved = []
    for rank, shard in enumerate(shards):
        path = place / f"consolidated.{rank:02d}.pth"
        torch.save({name: shard[name] for name in order}, path)
        saved.append(path.read_bytes())
        path.unlink()
    return saved


@pytest.fixture(scope="module")
def sources(
    tmp_path_factory: pytest.TempPathFactory, sentencepiece_file: Path, tiktoken_file: Path
) -> dict[tuple[str, int], Path]:
    """Checkpoints of both kinds in 1 to 4 shards."""
    found = {}
    for spec, tokenizer in ((LLAMA_2, sentencepiece_file), (LLAMA_31, tiktoken_file)):
        for shards in (1, 2, 4):
            folder = tmp_path_factory.mktemp(f"{spec.family}-{shards}")
            found[spec.family, shards] = write_checkpoint(
                folder, dataclasses.replace(spec, shards=shards), tokenizer
            )
    return found


@pytest.mark.product
@pytest.mark.parametrize("spec", [LLAMA_2, LLAMA_31], ids=lambda spec: spec.family)
@pytest.mark.parametrize("before", [1, 2, 4])
@pytest.mark.parametrize("after", [1, 2, 4, 8])
def test_shards_are_byte_for_byte_what_torch_saves_of_each_ranks_part(
    sources: dict[tuple[str, int], Path], tmp_path: Path, spec: Spec, before: int, after: int
) -> None:
    source, output = sources[spec.family, before], tmp_path / "out"
    distconv.convert(source, output, to="meta", shards=after, max_shard_size=PART_BYTES)
    whole = join(load(source), by_columns=spec.by_columns)
    found = load(output)
    assert len(found) == after
    expected = split(whole, after, spec.head_dim, by_columns=spec.by_columns)
    place = tmp_path / "saved"
    place.mkdir()
    order = list(found[0])
    for rank, content in enumerate(save(expected, order, place)):
        path = output / f"consolidated.{rank:02d}.pth"
        assert path.read_bytes() == content, path
        with zipfile.ZipFile(path) as archive:
            assert archive.testzip() is None
    params = json.loads((output / "params.json").read_text())
    assert params["n_kv_heads"] == max(4, after)
    listed = subprocess.run(
        ["md5sum", "--check", "--strict", "checklist.chk"], cwd=output, capture_output=True, check=True
    )
    assert len(listed.stdout.splitlines()) == after + 2
    assert (output / "tokenizer.model").read_bytes() == (source / "tokenizer.model").read_bytes()


@pytest.mark.product
@pytest.mark.parametrize("spec", [LLAMA_2, LLAMA_31], ids=lambda spec: spec.family)
@pytest.mark.parametrize("between", [1, 2, 4, 8])
def test_any_other_number_of_shards_and_back_gives_the_same_files(
    sources: dict[tuple[str, int], Path], tmp_path: Path, spec: Spec, between: int
) -> None:
    distconv.convert(sources[spec.family, 2], tmp_path / "first", to="meta", shards=2)
    distconv.convert(tmp_path / "first", tmp_path / "between", to="meta", shards=between)
    distconv.convert(tmp_path / "between", tmp_path / "again", to="meta", shards=2)
    first, again = digest_folder(tmp_path / "first"), digest_folder(tmp_path / "again")
    for name in ("consolidated.00.pth", "consolidated.01.pth", "tokenizer.model"):
        assert again[name] == first[name], name
    assert json.loads((tmp_path / "again/params.json").read_text()) == json.loads(
        (tmp_path / "first/params.json").read_text()
    )


@pytest.mark.first(2)
@pytest.mark.parametrize("shards", [1, 2, 4, 8])
def test_a_model_is_the_same_for_transformers_from_any_number_of_shards(
    sources: dict[tuple[str, int], Path], tmp_path: Path, shards: int
) -> None:
    distconv.convert(sources["llama-3.1", 2], tmp_path / "expected")
    distconv.convert(sources["llama-3.1", 2], tmp_path / "meta", to="meta", shards=shards)
    distconv.convert(tmp_path / "meta", tmp_path / "found")
    expected, found = digest_folder(tmp_path / "expected"), digest_folder(tmp_path / "found")
    expected.pop("distconv.json")
    found.pop("distconv.json")
    assert found == expected


def test_sixteen_shards_with_each_key_head_twice_become_eight_and_sixteen_again(
    tmp_path: Path, tiktoken_file: Path
) -> None:
    spec = Spec(
        "llama-3.1", dim=128, heads=16, kv_heads=16, layers=1, shards=16, doubled_kv=True, equal_norms=True
    )
    source = write_checkpoint(tmp_path / "source", spec, tiktoken_file)
    distconv.convert(source, tmp_path / "eight", to="meta", shards=8)
    assert json.loads((tmp_path / "eight/params.json").read_text())["n_kv_heads"] == 8
    eight = load(tmp_path / "eight")
    for rank, shard in enumerate(eight):
        original = torch.load(source / f"consolidated.{2 * rank:02d}.pth")
        assert torch.equal(shard["layers.0.attention.wk.weight"], original["layers.0.attention.wk.weight"])
    distconv.convert(tmp_path / "eight", tmp_path / "sixteen", to="meta", shards=16)
    for path, shard in zip(sorted(source.glob("*.pth")), load(tmp_path / "sixteen"), strict=True):
        original = torch.load(path)
        assert all(torch.equal(shard[name], original[name]) for name in shard)


@pytest.mark.slow
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=share(24))
@given(part_bytes=st.integers(300, 60_000), shards=st.sampled_from([1, 2, 4]))
def test_the_size_of_parts_changes_no_byte(
    sources: dict[tuple[str, int], Path],
    tmp_path_factory: pytest.TempPathFactory,
    part_bytes: int,
    shards: int,
) -> None:
    source, place = sources["llama-2", 2], tmp_path_factory.mktemp("parts")
    distconv.convert(source, place / "parts", to="meta", shards=shards, max_shard_size=part_bytes)
    whole = tmp_path_factory.getbasetemp() / f"whole-{shards}"
    if not whole.exists():
        distconv.convert(source, whole, to="meta", shards=shards, max_shard_size=1 << 30)
    assert digest_shards(place / "parts") == digest_shards(whole)


def test_a_number_of_shards_that_metas_code_cannot_divide_by_is_refused_with_every_reason(
    sources: dict[tuple[str, int], Path], tmp_path: Path
) -> None:
    with pytest.raises(UsageError) as raised:
        distconv.convert(sources["llama-2", 1], tmp_path / "out", to="meta", shards=3)
    words = str(raised.value)
    for part in ("attention.wq.weight has 8 query heads", "attention.wk.weight has 4 key heads"):
        assert f"3 shards: {part}, which Meta's code cannot divide among them" in words
    assert not (tmp_path / "out").exists()


def test_a_folder_with_one_number_of_shards_is_not_gone_on_with_for_another(
    sources: dict[tuple[str, int], Path], tmp_path: Path
) -> None:
    distconv.convert(sources["llama-2", 1], tmp_path / "out", to="meta", shards=2)
    with pytest.raises(OutputError, match="`shards=2` before, `shards=4` now"):
        distconv.convert(sources["llama-2", 1], tmp_path / "out", to="meta", shards=4)
    report = distconv.convert(sources["llama-2", 1], tmp_path / "out", to="meta", shards=2)
    assert report.already_done


def test_what_is_durable_of_an_unfinished_shard_is_gone_on_with(
    sources: dict[tuple[str, int], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, output = sources["llama-3.1", 2], tmp_path / "out"
    distconv.convert(source, tmp_path / "expected", to="meta", shards=1, max_shard_size=PART_BYTES)
    write, done = worker._write_stripe, []

    def stop_half_way(*arguments: object) -> object:
        if len(done) == 4:
            raise InterruptedAtError
        done.append(1)
        return write(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(worker, "_write_stripe", stop_half_way)
    with pytest.raises(DistconvError):
        distconv.convert(source, output, to="meta", shards=1, max_shard_size=PART_BYTES)
    monkeypatch.undo()
    assert not (output / "params.json").exists()
    (unfinished,) = json.loads((output / ".distconv.journal").read_text())["unfinished"].values()
    assert (output / unfinished["attempt"]).stat().st_size == (
        tmp_path / "expected/consolidated.00.pth"
    ).stat().st_size
    report = distconv.convert(source, output, to="meta", shards=1, max_shard_size=PART_BYTES)
    assert report.kept_parts == len(unfinished["parts"]) >= 1
    assert digest_folder(output) == digest_folder(tmp_path / "expected")


@pytest.mark.first(2)
@pytest.mark.parametrize("damage", ["data", "size", "name", "gone"])
def test_a_part_that_was_damaged_or_is_not_there_is_written_again(
    sources: dict[tuple[str, int], Path], tmp_path: Path, damage: str
) -> None:
    source, output = sources["llama-3.1", 2], tmp_path / "out"
    distconv.convert(source, tmp_path / "expected", to="meta", shards=1, max_shard_size=PART_BYTES)
    with interrupted_at(shared, "_seal"):
        distconv.convert(source, output, to="meta", shards=1, max_shard_size=PART_BYTES)
    journal = output / ".distconv.journal"
    content = json.loads(journal.read_text())
    (unfinished,) = content["unfinished"].values()
    partial = output / unfinished["attempt"]
    if damage == "data":
        with partial.open("r+b") as file:
            file.seek(partial.stat().st_size // 2)
            file.write(b"damage")
    elif damage == "size":
        with partial.open("r+b") as file:
            file.truncate(1000)
    elif damage == "gone":
        partial.unlink()
    else:
        unfinished["attempt"] = "params.json"
        (output / "params.json").write_text("{}")
        journal.write_text(json.dumps(content))
    report = distconv.convert(source, output, to="meta", shards=1, max_shard_size=PART_BYTES)
    assert (report.kept_parts > 0) == (damage == "data")
    assert digest_folder(output) == digest_folder(tmp_path / "expected")


@pytest.mark.parametrize(
    ("wrong", "right"),
    [
        ({"ffn_dim_multiplier": 1.3}, {"ffn_dim_multiplier": 1.0}),
        ({"multiple_of": 1024}, {"multiple_of": 16}),
        ({"vocab_size": 128256}, {"vocab_size": 576}),
        ({"model": {"vocab_size": 128256}, "steps": 7}, {"model": {"vocab_size": 576}, "steps": 7}),
    ],
    ids=str,
)
def test_sizes_that_params_have_wrong_are_written_as_the_tensors_have_them(
    tmp_path: Path, tiktoken_file: Path, wrong: dict[str, Any], right: dict[str, Any]
) -> None:
    source = write_checkpoint(tmp_path / "source", LLAMA_31, tiktoken_file)
    plain = json.loads((source / "params.json").read_text())

    def change(params: dict[str, Any]) -> dict[str, Any]:
        return params | {"model": plain | params["model"]} if "model" in params else plain | params

    (source / "params.json").write_text(json.dumps(change(wrong)))
    report = distconv.convert(source, tmp_path / "out", to="meta", shards=2, verify=True)
    assert any("rows" in note and "params.json" in note for note in report.notes)
    found = json.loads((tmp_path / "out/params.json").read_text())
    assert found == change(right)
    assert distconv.verify(tmp_path / "out").ok


@pytest.mark.parametrize("shards", [1, 2])
def test_a_trainers_checkpoint_without_its_tied_output_gets_one(
    tmp_path: Path, tiktoken_file: Path, shards: int
) -> None:
    source = write_checkpoint(tmp_path / "source", LLAMA_31, tiktoken_file)
    path = source / "consolidated.00.pth"
    state = torch.load(path)
    del state["output.weight"]
    torch.save(state, path)
    params = json.loads((source / "params.json").read_text())
    (source / "params.json").write_text(json.dumps(params | {"weight_tying": True}))
    (source / "checklist.chk").unlink(missing_ok=True)
    distconv.convert(source, tmp_path / "out", to="meta", shards=shards, verify=True)
    found = load(tmp_path / "out")
    whole = torch.cat([shard["output.weight"] for shard in found])
    assert torch.equal(whole, state["tok_embeddings.weight"])
    assert distconv.verify(tmp_path / "out", against=source).ok
