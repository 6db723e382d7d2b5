"""OUTPUT is compared with what it was made from, whatever the formats of both, and all damage is named."""

import dataclasses
import json
import shutil
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

import distconv
from distconv.families import cuts
from distconv.families.operations import Rotary
from distconv.layout.tensors import Tensor
from distconv.moving.progress import SilentProgress
from distconv.output.structure import read_headers
from distconv.output.targets import META
from distconv.storage.base import Access
from distconv.storage.local import LocalStorage
from distconv.verbs import rows
from distconv.verbs.checkpoint import read_checkpoint
from distconv.verbs.compare_shards import compare_shards
from distconv.verbs.expected import expect_checkpoint
from distconv.verbs.plan import read_bytes
from tests.checkpoints import Layout, Spec, Tensors, write_checkpoint
from tests.extent import share
from tests.formats.shards import fresh
from tests.moving.test_ahead import Far, FarReader
from tests.moving.test_strided import CountedStorage
from tests.patience import HANG_SECONDS
from tests.test_cuts import specs

Write = Callable[[Spec], Path]
LLAMA_2 = Spec("llama-2", dim=64, heads=8, kv_heads=4, layers=2, equal_norms=True)
LLAMA_31 = Spec("llama-3.1", dim=64, heads=8, kv_heads=4, layers=2, equal_norms=True)
TIED = Spec("llama-3.2", dim=64, heads=8, kv_heads=4, layers=1, tied=True)
DOUBLED = Spec(
    "llama-3.1", dim=128, heads=16, kv_heads=16, layers=1, shards=16, doubled_kv=True, equal_norms=True
)
PLAIN = [LLAMA_2, LLAMA_31]


@pytest.fixture(scope="session")
def folder(checkpoint: Write, tmp_path_factory: pytest.TempPathFactory) -> Write:
    """Give a function that makes a spec's Transformers folder once, to be read only."""
    made: dict[Spec, Path] = {}

    def make(spec: Spec) -> Path:
        if spec not in made:
            made[spec] = tmp_path_factory.mktemp("transformers") / "model"
            distconv.convert(checkpoint(spec), made[spec], max_shard_size=50_000)
        return made[spec]

    return make


@pytest.fixture(scope="session")
def shards(
    checkpoint: Write, folder: Write, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[Spec, str, int], tuple[Path, Path]]:
    """Give a function that makes Meta's shards of one of the two formats once: INPUT and OUTPUT without a receipt.

    Nothing but the comparison can then find what is changed.
    """
    made: dict[tuple[Spec, str, int], Path] = {}

    def make(spec: Spec, source: str, count: int) -> tuple[Path, Path]:
        given = checkpoint(spec) if source == "meta" else folder(spec)
        key = (spec, source, count)
        if key not in made:
            made[key] = tmp_path_factory.mktemp("meta") / "model"
            distconv.convert(given, made[key], to="meta", shards=count)
            for name in ("distconv.json", "checklist.chk"):
                (made[key] / name).unlink()
        return given, made[key]

    return make


Shards = Callable[[Spec, str, int], tuple[Path, Path]]


def differences(output: Path, against: Path) -> tuple[str, ...]:
    """Give what is found; nothing is, or it is not right."""
    report = distconv.verify(output, against=against)
    assert report.ok is bool(report) is not bool(report.differences)
    return report.differences


def read(output: Path, rank: int) -> Tensors:
    """Load a shard, each tensor in a storage of its own unless two share one."""
    found: Tensors = torch.load(output / f"consolidated.{rank:02d}.pth", weights_only=True)
    return found


def write(output: Path, rank: int, shard: Tensors) -> None:
    """Save a shard as torch does, so that its archive is in the form that it should have."""
    torch.save({fresh(name): part for name, part in shard.items()}, output / f"consolidated.{rank:02d}.pth")


def flip(tensor: torch.Tensor, place: int) -> None:
    """Change the lowest bit of an element."""
    tensor.view(torch.int16).view(-1)[place] ^= 1


@pytest.mark.product
@pytest.mark.parametrize("spec", PLAIN, ids=lambda spec: spec.family)
@pytest.mark.parametrize("before", [1, 2, 4])
@pytest.mark.parametrize("after", [1, 2, 4, 8])
def test_metas_shards_are_found_equal_to_those_of_any_other_number(
    checkpoint: Write, tmp_path: Path, spec: Spec, before: int, after: int
) -> None:
    source, output = checkpoint(dataclasses.replace(spec, shards=before)), tmp_path / "out"
    assert distconv.convert(source, output, to="meta", shards=after, verify=True).verified
    assert_equal_with_a_receipt_and_without(output, source)


def assert_equal_with_a_receipt_and_without(output: Path, source: Path) -> None:
    """Compare twice; without a receipt the comparison alone proves the data."""
    assert differences(output, source) == ()
    for name in ("distconv.json", "checklist.chk"):
        (output / name).unlink(missing_ok=True)
    report = distconv.verify(output, against=source)
    assert report.differences == ()
    assert report.data_proved
    assert report.source == str(source)


@pytest.mark.product
@pytest.mark.parametrize("spec", [*PLAIN, TIED], ids=lambda spec: spec.family)
@pytest.mark.parametrize("count", [1, 2, 4, 8])
def test_metas_shards_are_found_equal_to_the_transformers_folder_that_they_were_made_from(
    folder: Write, tmp_path: Path, spec: Spec, count: int
) -> None:
    output = tmp_path / "out"
    assert distconv.convert(folder(spec), output, to="meta", shards=count, verify=True).verified
    assert_equal_with_a_receipt_and_without(output, folder(spec))


@pytest.mark.parametrize("spec", [*PLAIN, TIED, DOUBLED], ids=lambda spec: f"{spec.family}-{spec.shards}")
def test_a_transformers_folder_is_found_equal_to_the_checkpoint(
    checkpoint: Write, folder: Write, tmp_path: Path, spec: Spec
) -> None:
    output = shutil.copytree(folder(spec), tmp_path / "out")
    assert_equal_with_a_receipt_and_without(output, checkpoint(spec))


@pytest.mark.product
@pytest.mark.parametrize("spec", [*PLAIN, TIED], ids=lambda spec: spec.family)
@pytest.mark.parametrize("count", [1, 2])
def test_what_was_made_of_a_way_back_is_found_equal_to_it_and_to_the_origin(
    checkpoint: Write, folder: Write, tmp_path: Path, spec: Spec, count: int
) -> None:
    distconv.convert(folder(spec), tmp_path / "meta", to="meta", shards=count)
    distconv.convert(tmp_path / "meta", tmp_path / "again")
    assert differences(tmp_path / "again", tmp_path / "meta") == ()
    assert differences(tmp_path / "again", checkpoint(spec)) == ()
    assert differences(tmp_path / "meta", checkpoint(spec)) == ()


def test_tied_shards_are_found_equal_in_one_storage_and_in_two(checkpoint: Write, tmp_path: Path) -> None:
    for number, spec in enumerate((TIED, dataclasses.replace(TIED, tied=False, copied=True, shards=2))):
        for count in (1, 2, 4):
            output = tmp_path / f"{number}-{count}"
            distconv.convert(checkpoint(spec), output, to="meta", shards=count)
            assert_equal_with_a_receipt_and_without(output, checkpoint(spec))


@pytest.mark.first(2)
@pytest.mark.parametrize("count", [1, 2, 4, 8, 16])
def test_doubled_key_heads_are_found_equal_however_often_they_are_there(
    checkpoint: Write, folder: Write, tmp_path: Path, count: int
) -> None:
    for source in (checkpoint(DOUBLED), folder(DOUBLED)):
        output = tmp_path / source.parent.name
        distconv.convert(source, output, to="meta", shards=count, verify=True)
        assert_equal_with_a_receipt_and_without(output, source)


@pytest.mark.first(2)
@pytest.mark.parametrize("source", ["meta", "transformers"])
@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_cast_shards_are_found_equal(
    checkpoint: Write, folder: Write, tmp_path: Path, source: str, dtype: str
) -> None:
    given = checkpoint(LLAMA_31) if source == "meta" else folder(LLAMA_31)
    distconv.convert(given, tmp_path / "out", to="meta", shards=2, dtype=dtype, verify=True)
    assert_equal_with_a_receipt_and_without(tmp_path / "out", given)


def test_types_that_differ_between_tensors_are_found_equal(checkpoint: Write, tmp_path: Path) -> None:
    source = checkpoint(dataclasses.replace(LLAMA_31, norm_dtype=torch.float32))
    distconv.convert(source, tmp_path / "out", to="meta", shards=2, verify=True)
    assert_equal_with_a_receipt_and_without(tmp_path / "out", source)


WAYS = [
    (LLAMA_2, "meta", 4),
    (LLAMA_31, "meta", 2),
    (LLAMA_2, "transformers", 2),
    (LLAMA_31, "transformers", 8),
]
"""Spec, format of INPUT, shards of OUTPUT."""


@pytest.mark.first(2)
@pytest.mark.parametrize("way", WAYS, ids=lambda way: f"{way[0].family}-{way[1]}-{way[2]}")
@settings(max_examples=share(20), suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_one_flipped_bit_of_any_tensor_of_any_rank_is_found_and_named(
    shards: Shards, tmp_path_factory: pytest.TempPathFactory, way: tuple[Spec, str, int], data: st.DataObject
) -> None:
    source, good = shards(*way)
    output = shutil.copytree(good, tmp_path_factory.mktemp("flipped") / "out")
    rank = data.draw(st.integers(0, way[2] - 1))
    shard = read(output, rank)
    name = data.draw(st.sampled_from(sorted(shard)))
    place = data.draw(st.integers(0, shard[name].numel() - 1))
    flip(shard[name], place)
    write(output, rank, shard)
    (found,) = differences(output, source)
    row, column = divmod(place, shard[name].shape[1] if shard[name].dim() > 1 else 1)
    path = output / f"consolidated.{rank:02d}.pth"
    assert found.startswith(f"{name} in {path}: row {row}, column {column} differs from ")
    shutil.rmtree(output)


@pytest.mark.parametrize("way", WAYS, ids=lambda way: f"{way[0].family}-{way[1]}-{way[2]}")
def test_shards_that_were_swapped_are_found_by_every_tensor_that_is_cut(
    shards: Shards, tmp_path: Path, way: tuple[Spec, str, int]
) -> None:
    source, good = shards(*way)
    output = shutil.copytree(good, tmp_path / "out")
    first, last = read(output, 0), read(output, way[2] - 1)
    write(output, 0, last)
    write(output, way[2] - 1, first)
    found = differences(output, source)
    for rank in (0, way[2] - 1):
        path = output / f"consolidated.{rank:02d}.pth"
        for name in first:
            named = any(words.startswith(f"{name} in {path}: row ") for words in found)
            assert named is ("norm" not in name), name


@pytest.mark.product
@pytest.mark.parametrize("way", WAYS, ids=lambda way: f"{way[0].family}-{way[1]}-{way[2]}")
@pytest.mark.parametrize("kind", ["attention.wo.weight", "feed_forward.w2.weight", "attention.wk.weight"])
def test_columns_and_rows_that_moved_by_one_are_found(
    shards: Shards, tmp_path: Path, way: tuple[Spec, str, int], kind: str
) -> None:
    source, good = shards(*way)
    output, name = shutil.copytree(good, tmp_path / "out"), f"layers.1.{kind}"
    shard = read(output, way[2] - 1)
    for axis in (0, 1):
        write(output, way[2] - 1, shard | {name: shard[name].roll(1, axis)})
        (found,) = differences(output, source)
        assert found.startswith(
            f"{name} in {output / f'consolidated.{way[2] - 1:02d}.pth'}: row 0, column 0 "
        )


@pytest.mark.first(1)
@pytest.mark.parametrize("source", ["meta", "transformers"])
def test_a_key_head_that_differs_from_its_copy_is_found(shards: Shards, tmp_path: Path, source: str) -> None:
    given, good = shards(DOUBLED, source, 16)
    output, name = shutil.copytree(good, tmp_path / "out"), "layers.0.attention.wv.weight"
    shard = read(output, 5)
    flip(shard[name], 3 * DOUBLED.dim + 7)
    write(output, 5, shard)
    (found,) = differences(output, given)
    assert found.startswith(f"{name} in {output / 'consolidated.05.pth'}: row 3, column 7 differs from ")
    write(output, 5, read(output, 5) | {name: read(output, 6)[name]})
    (found,) = differences(output, given)
    assert found.startswith(f"{name} in {output / 'consolidated.05.pth'}: row 0, column 0 differs from ")


def test_a_key_head_that_was_left_out_though_its_copy_differs_is_found(
    checkpoint: Write, shards: Shards, tmp_path: Path
) -> None:
    _source, output = shards(DOUBLED, "meta", 8)
    source, name = shutil.copytree(checkpoint(DOUBLED), tmp_path / "in"), "layers.0.attention.wk.weight"
    shard = read(source, 7)
    flip(shard[name], 0)
    write(source, 7, shard)
    (found,) = differences(output, source)
    assert found.startswith(
        f"{name} in {output / 'consolidated.03.pth'}: row 0, column 0 differs from {name}"
    )


@pytest.mark.parametrize("way", WAYS[1:3], ids=lambda way: f"{way[0].family}-{way[1]}-{way[2]}")
@pytest.mark.parametrize("name", ["layers.0.attention.wq.weight", "layers.1.ffn_norm.weight"])
def test_a_tensor_of_another_type_is_found_though_its_values_are_the_same(
    shards: Shards, tmp_path: Path, way: tuple[Spec, str, int], name: str
) -> None:
    source, good = shards(*way)
    output = shutil.copytree(good, tmp_path / "out")
    shard = read(output, 1)
    write(output, 1, shard | {name: shard[name].float()})
    words = f"{name} in {output / 'consolidated.01.pth'}: stored as float32, expected bfloat16"
    assert words in differences(output, source)


@pytest.mark.parametrize("way", WAYS[1:3], ids=lambda way: f"{way[0].family}-{way[1]}-{way[2]}")
def test_tensors_that_are_missing_foreign_or_of_another_shape_are_found(
    shards: Shards, tmp_path: Path, way: tuple[Spec, str, int]
) -> None:
    source, good = shards(*way)
    output, path = shutil.copytree(good, tmp_path / "out"), tmp_path / "out/consolidated.01.pth"
    shard, name = read(output, 1), "layers.1.feed_forward.w3.weight"
    write(output, 1, {other: part for other, part in shard.items() if other != name})
    assert f"{name}: missing in consolidated.01.pth" in differences(output, source)
    write(output, 1, shard | {"layers.1.extra.weight": torch.ones(2)})
    assert f"layers.1.extra.weight in {path}: not a tensor of the source" in differences(output, source)
    write(output, 1, shard | {name: shard[name][:-1].clone()})
    height = shard[name].shape[0]
    words = f"{name} in {path}: shape ({height - 1}, 64), expected ({height}, 64)"
    assert words in differences(output, source)
    kept, wk = shard | {}, "layers.0.attention.wk.weight"
    kept[wk] = shard[wk][: LLAMA_2.head_dim // 2].clone()
    write(output, 1, kept)
    (found,) = (words for words in differences(output, source) if f"{wk} in {path}: shape" in words)
    assert found == f"{wk} in {path}: shape (4, 64), expected ({shard[wk].shape[0]}, 64)"


def test_a_shard_that_is_gone_or_no_archive_is_named_once(shards: Shards, tmp_path: Path) -> None:
    source, good = shards(LLAMA_2, "meta", 4)
    output = shutil.copytree(good, tmp_path / "out")
    (output / "consolidated.02.pth").write_bytes(b"nothing")
    (words,) = differences(output, source)
    assert words.startswith(f"{output / 'consolidated.02.pth'}: ")
    (output / "consolidated.02.pth").unlink()
    assert len([words for words in differences(output, source) if "consolidated.02.pth" in words]) == 1


def test_a_chunk_of_another_type_or_with_a_flipped_bit_is_found(
    checkpoint: Write, folder: Write, tmp_path: Path
) -> None:
    output, name = (
        shutil.copytree(folder(LLAMA_31), tmp_path / "out"),
        "model.layers.1.self_attn.k_proj.weight",
    )
    (output / "distconv.json").unlink()
    weight_map = json.loads((output / "model.safetensors.index.json").read_text())["weight_map"]
    path = output / weight_map[name]
    good = load_file(path)
    save_file(good | {name: good[name].float()}, path)
    words = f"{name} in {path}: stored as float32, expected bfloat16"
    assert words in differences(output, checkpoint(LLAMA_31))
    flip(good[name], 70)
    save_file(good, path)
    words = f"{name} in {path}: row 1, column 6 differs from layers.1.attention.wk.weight"
    assert words in differences(output, checkpoint(LLAMA_31))


Mistake = Callable[[pytest.MonkeyPatch], None]


def take_the_next_ranks_part(monkeypatch: pytest.MonkeyPatch) -> None:
    part = cuts.Cut.part

    def wrong(self: cuts.Cut, tensor: Tensor, rank: int, ranks: int, head_dim: int) -> Tensor:
        return part(self, tensor, (rank + 1) % ranks, ranks, head_dim)

    monkeypatch.setattr(cuts.Cut, "part", wrong)


def leave_heads_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Rotary, "invert", lambda _self, tensor, _head_dim: tensor)


def join_parts_backwards(monkeypatch: pytest.MonkeyPatch) -> None:
    join = cuts.Cut.join
    monkeypatch.setattr(
        cuts.Cut, "join", lambda self, views, replication=1: join(self, views[::-1], replication)
    )


@pytest.mark.first(2)
@pytest.mark.parametrize(
    ("mistake", "source"),
    [
        (take_the_next_ranks_part, "meta"),
        (take_the_next_ranks_part, "transformers"),
        (leave_heads_as_they_are, "transformers"),
        (join_parts_backwards, "meta"),
    ],
)
def test_a_mistake_of_the_plan_is_none_of_the_comparison(
    checkpoint: Write,
    folder: Write,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    mistake: Mistake,
    source: str,
) -> None:
    """They share neither cuts nor joins nor permutations: what is planned wrongly is found, even by --verify."""
    spec = dataclasses.replace(LLAMA_31, shards=2)
    given = checkpoint(spec) if source == "meta" else folder(spec)
    mistake(monkeypatch)
    distconv.convert(given, tmp_path / "out", to="meta", shards=2)
    assert any(" differs from " in words for words in differences(tmp_path / "out", given))


def test_two_folders_of_transformers_are_compared_by_digests(folder: Write) -> None:
    report = distconv.verify(folder(LLAMA_2), against=folder(LLAMA_2))
    assert report.ok
    assert report.data_proved


def test_a_folder_that_lacks_its_receipt_is_told_by_its_names(shards: Shards) -> None:
    source, output = shards(LLAMA_31, "transformers", 8)
    assert not (output / "distconv.json").exists()
    report = distconv.verify(output, against=source)
    assert report.tensors == 8 * (9 * LLAMA_31.layers + 3)
    assert report.lines() == (
        f"{output}: all {report.tensors} tensors of 8 shards are whole and equal to {source} (structure and values, and every tensor compared)",
    )


@settings(max_examples=share(40))
@given(spec=specs(), data=st.data())
def test_wherever_the_shards_of_input_cut_others_are_found_equal_and_a_flipped_bit_is_not(
    spec: Spec, data: st.DataObject
) -> None:
    """Through heads as well, each key head once or several times, whatever the strides."""
    with tempfile.TemporaryDirectory() as place:
        source, output = write_checkpoint(Path(place, "in"), spec), Path(place, "out")
        found = distconv.inspect(source).to_json()["for_meta"]
        assert isinstance(found, dict)
        count = data.draw(st.sampled_from([n for n in found["shards"] if n <= 16]))
        distconv.convert(source, output, to="meta", shards=count)
        (output / "distconv.json").unlink()
        (output / "checklist.chk").unlink()
        assert differences(output, source) == ()
        rank = data.draw(st.integers(0, count - 1))
        shard = read(output, rank)
        name = data.draw(st.sampled_from(sorted(name for name in shard if "attention.w" in name)))
        flip(shard[name], data.draw(st.integers(0, shard[name].numel() - 1)))
        write(output, rank, shard)
        (words,) = differences(output, source)
        assert words.startswith(f"{name} in {output / f'consolidated.{rank:02d}.pth'}: row ")


@pytest.mark.parametrize("layout", ["separate", "packed", "transposed"])
def test_shards_are_compared_in_bands_and_input_is_read_once(
    checkpoint: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, layout: Layout
) -> None:
    source, output = checkpoint(dataclasses.replace(LLAMA_31, shards=4, layout=layout)), tmp_path / "out"
    distconv.convert(source, output, to="meta", shards=2)
    monkeypatch.setattr(rows, "BAND_BYTES", 1 << 12)
    storage, names = CountedStorage(), ["consolidated.00.pth", "consolidated.01.pth"]
    expected = expect_checkpoint(read_checkpoint(LocalStorage(), str(source)))
    headers, findings = read_headers(LocalStorage(), str(output), META, names)
    assert findings + compare_shards(storage, expected, 2, headers, SilentProgress()) == []
    read_twice = read_bytes(distconv.plan(source, to="meta", shards=2).plan) * 2
    assert sum(storage.sizes_bytes) <= 1.1 * read_twice  # of INPUT and of OUTPUT
    assert max(storage.sizes_bytes) <= 1 << 13
    # Where opening is a request, each band would take one.
    assert max(storage.opened.values()) <= len(headers[names[0]])


@pytest.mark.parametrize("ahead_bytes", [1 << 20, 0])
def test_bands_of_a_file_whose_answers_take_time_are_read_together(ahead_bytes: int) -> None:
    together = threading.Barrier(4 if ahead_bytes else 1)

    def read(first: int, count: int) -> "rows.Rows":
        together.wait(HANG_SECONDS)
        return np.full((count, 1), first, np.uint8)

    far = FarReader(Far({}, Access(0, 1, ahead_bytes)), "file", 0, Access(0, 1, ahead_bytes))
    found = [(first, band.tolist()) for first, band in rows.read_ahead(read, 16, 2, far)]
    assert found == [(first, [[first]] * 2) for first in range(0, 16, 2)]


def test_a_comparison_tells_how_far_it_is(shards: Shards) -> None:
    source, output = shards(LLAMA_2, "transformers", 4)
    told = Told()
    assert distconv.verify(output, against=source, progress=told).ok
    assert told.totals[-1] == told.advanced[-1]
    assert told.done[-1] == told.units[-1]


class Told(SilentProgress):
    """Remembers what was begun, and how much of it was told of since."""

    def __init__(self) -> None:
        self.totals: list[int] = []
        self.units: list[int] = []
        self.advanced: list[int] = []
        self.done: list[int] = []

    def begin(self, total_bytes: int, units: int, kind: str = "chunks") -> None:
        self.totals.append(total_bytes)
        self.units.append(units)
        self.advanced.append(0)
        self.done.append(0)

    def advance(self, size_bytes: int, worker: str = "") -> None:
        self.advanced[-1] += size_bytes

    def unit_done(self, name: str) -> None:
        self.done[-1] += 1


def test_what_is_known_to_differ_is_not_read(
    checkpoint: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, output = checkpoint(LLAMA_31), tmp_path / "out"
    distconv.convert(source, output, to="meta", shards=2)
    monkeypatch.setattr(rows, "BAND_BYTES", 1 << 10)
    wide, flipped = "layers.0.feed_forward.w1.weight", "layers.1.feed_forward.w1.weight"
    for rank in range(2):
        shard = read(output, rank)
        shard[wide] = shard[wide].float()
        flip(shard[flipped], 0)
        write(output, rank, shard)
    storage, names = CountedStorage(), ["consolidated.00.pth", "consolidated.01.pth"]
    expected = expect_checkpoint(read_checkpoint(LocalStorage(), str(source)))
    headers, _findings = read_headers(LocalStorage(), str(output), META, names)
    found = [one.words for one in compare_shards(storage, expected, 2, headers, SilentProgress())]
    assert [words.partition(" ")[0] for words in found] == [wide, wide, flipped, flipped]
    (size,) = {one.shape[0] * one.shape[1] * 2 for one in expected if one.held_as in {wide, flipped}}
    assert (
        sum(storage.sizes_bytes) < read_bytes(distconv.plan(source, to="meta", shards=2).plan) * 2 - 2 * size
    )


def test_tensors_of_whole_numbers_are_found_to_be_of_another_type(
    checkpoint: Write, folder: Write, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    shutil.copytree(folder(LLAMA_2), output)
    (output / "distconv.json").unlink()
    names = []
    for path in output.glob("*.safetensors"):
        tensors = load_file(path)
        names += tensors
        save_file({name: tensor.to(torch.int16) for name, tensor in tensors.items()}, path, {"format": "pt"})
    found = [
        words
        for words in differences(output, checkpoint(LLAMA_2))
        if "stored as int16, expected bfloat16" in words
    ]
    assert len(found) == len(names)
