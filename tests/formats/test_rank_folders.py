"""Files of ranks are put together as torch cut them; what is missing of them, or does not fit, is named."""

import json
import re
from collections.abc import Sequence
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.lib.stride_tricks import as_strided
from safetensors.torch import save_file

from distconv.errors import InputError
from distconv.formats.boxes import BoxedTensor
from distconv.formats.dcp.dtensors import PartMark, Runs
from distconv.formats.dcp.rank_files import _make_boxes, read_rank_files
from distconv.formats.marks import StorageMark
from distconv.formats.safetensors.ranks import read_weight_folder
from distconv.layout.dtypes import FLOAT32
from distconv.layout.regions import Region
from distconv.storage.local import LocalStorage

STORAGE = LocalStorage()
WHOLE = torch.arange(35, dtype=torch.float32).reshape(5, 7)


def write_rank(
    folder: Path, rank: int, ranks: int, parts: dict[str, tuple[Sequence[int], torch.Tensor]]
) -> Path:
    """Write a rank's file as ``torch.distributed.checkpoint`` does: parts, and where in their tensors they begin."""
    info = {name: {"saved_offsets": [*first]} for name, (first, _part) in parts.items()}
    path = folder / f"shard-00001-model-{rank:05d}-of-{ranks:05d}.safetensors"
    tensors = {name: part.contiguous() for name, (_first, part) in parts.items()}
    save_file(tensors, path, metadata={"DCP_SHARDING_INFO": json.dumps(info)})
    return path


def put_together(tensor: BoxedTensor) -> np.ndarray:
    """Read the boxes of float32s, each where it lies, into an array; what none covers is NaN."""
    found = np.full(tensor.shape, np.nan, np.float32)
    for box in tensor.boxes:
        view = box.view
        stored = np.fromfile(
            view.region.path, np.float32, view.region.size_bytes // 4, offset=view.region.offset_bytes
        )
        part = as_strided(stored[view.offset :], view.shape, [4 * stride for stride in view.strides])
        found[tuple(slice(at, at + size) for at, size in zip(box.first, view.shape, strict=True))] = part
    return found


def test_parts_of_four_ranks_are_one_tensor_and_empty_ones_are_none(tmp_path: Path) -> None:
    rows, columns = ((0, 3), (3, 5)), ((0, 1), (1, 7))
    for rank, ((top, bottom), (left, right)) in enumerate(product(rows, columns), 1):
        write_rank(tmp_path, rank, 4, {
            "whole": ((top, left), WHOLE[top:bottom, left:right]),
            "short": ((rank - 1,) if rank < 3 else (0,), WHOLE[0, rank - 1 : rank] if rank < 3 else WHOLE[0, :0]),
        })  # fmt: skip
    found = read_weight_folder(STORAGE, str(tmp_path))
    assert (found.form, found.others, found.notes) == ("safetensors of a trainer's ranks", (), ())
    assert found.weights == tuple(sorted(map(str, tmp_path.iterdir())))
    assert {name: one.shape for name, one in found.tensors.items()} == {"whole": (5, 7), "short": (2,)}
    tensors = found.read(STORAGE, ["whole", "short"])
    assert [tensor.name for tensor in tensors.values()] == ["whole", "short"]
    assert {box.view.name for tensor in tensors.values() for box in tensor.boxes} == {"whole", "short"}
    assert [len(tensor.boxes) for tensor in tensors.values()] == [4, 2]
    np.testing.assert_array_equal(put_together(tensors["whole"]), WHOLE.numpy())
    np.testing.assert_array_equal(put_together(tensors["short"]), WHOLE[0, :2].numpy())


def test_whole_tensors_in_files_of_two_kinds_are_taken_and_only_archives_have_checksums(
    tmp_path: Path,
) -> None:
    save_file({"a": WHOLE, "scalar": WHOLE[0, 1].clone()}, tmp_path / "one.safetensors")
    torch.save({"b": WHOLE}, tmp_path / "two.bin")
    found = read_weight_folder(STORAGE, str(tmp_path))
    assert (found.form, found.others, found.notes) == ("files of weights, by whatever index", (), ())
    tensors = found.read(STORAGE, [*found.tensors])
    assert {name: tensor.shape for name, tensor in tensors.items()} == {
        "a": (5, 7),
        "scalar": (),
        "b": (5, 7),
    }
    np.testing.assert_array_equal(put_together(tensors["a"]), WHOLE.numpy())
    regions = [tensors[name].boxes[0].view.region for name in ("a", "b")]
    assert found.read_checksums(STORAGE, regions) == regions[1:]
    assert regions[1].crc32


@pytest.mark.parametrize(("held", "lost"), [((2, 3), 1), ((1, 3), 2), ((1, 2), 3), ((3,), 1)])
def test_a_rank_that_is_not_there_is_named(tmp_path: Path, held: tuple[int, ...], lost: int) -> None:
    for rank in held:
        write_rank(tmp_path, rank, 3, {"a": ((rank,), WHOLE[0, :1])})
    words = f"{tmp_path}: no shard-*-model-{lost:05d}-of-00003.safetensors; copy the files of all ranks"
    with pytest.raises(InputError, match=f"^{re.escape(words)}$"):
        read_weight_folder(STORAGE, str(tmp_path))


def test_ranks_of_two_checkpoints_are_named(tmp_path: Path) -> None:
    for rank, ranks in ((1, 1), (1, 12), (1, 3)):
        write_rank(tmp_path, rank, ranks, {"a": ((0,), WHOLE[0])})
    words = f"{tmp_path}: files of 1 and of 3 and of 12 in all; keep those of one checkpoint"
    with pytest.raises(InputError, match=f"^{re.escape(words)}$"):
        read_weight_folder(STORAGE, str(tmp_path))


@pytest.mark.parametrize(
    ("held", "lost"),
    [((0, 1), None), ((1, 2), None), ((0,), "00001"), ((1,), "00002"), ((2,), "00001"), ((), None)],
)
def test_of_files_that_are_numbered_the_first_that_is_not_there_is_noted(
    tmp_path: Path, held: tuple[int, ...], lost: str | None
) -> None:
    """They may be numbered from 0 on, or from 1."""
    save_file({"other": WHOLE}, tmp_path / "other.safetensors")
    for number in held:
        save_file({f"a{number}": WHOLE}, tmp_path / f"model-{number:05d}-of-00002.safetensors")
    notes = read_weight_folder(STORAGE, str(tmp_path)).notes
    words = f"{tmp_path}: 1 files of 2 by their names, no model-{lost}-of-00002.safetensors"
    assert notes == (() if lost is None else (words,))


@pytest.mark.parametrize("info", ["[1", "[]", "7", '"words"', "null", "[" * 100_000])
def test_what_says_nothing_of_parts_is_named(tmp_path: Path, info: str) -> None:
    path = tmp_path / "shard-00001-model-00001-of-00001.safetensors"
    save_file({"a": WHOLE}, path, metadata={"DCP_SHARDING_INFO": info})
    words = f"{path}: DCP_SHARDING_INFO is no JSON object; the file is damaged"
    with pytest.raises(InputError, match=f"^{re.escape(words)}$"):
        read_weight_folder(STORAGE, str(tmp_path))


@pytest.mark.parametrize(
    "offsets",
    [None, 0, [], [0], [0, 0, 0], [0, -1], [0, 1.0], [True, 0], ["0", 0], [1 << 60, 0], {"0": 0, "1": 0}],
)
def test_a_place_that_is_none_is_named(tmp_path: Path, offsets: object) -> None:
    path = tmp_path / "shard-00001-model-00001-of-00001.safetensors"
    info = {"a": {"saved_offsets": offsets}}
    save_file({"a": WHOLE}, path, metadata={"DCP_SHARDING_INFO": json.dumps(info)})
    words = f"{path}: a: saved_offsets is {offsets!r:.60}, expected 2 numbers"
    with pytest.raises(InputError, match=f"^{re.escape(words)}$"):
        read_weight_folder(STORAGE, str(tmp_path))


@pytest.mark.parametrize(
    ("second", "said"),
    [
        (((3, 0), WHOLE[3:].bfloat16()), "a is a bfloat16 of 2 axes, in {first} a float32 of 2; keep the files of one model"),
        (((3,), WHOLE[3]), "a is a float32 of 1 axes, in {first} a float32 of 2; keep the files of one model only"),
        (((0, 0), WHOLE[:3]), "a also in {first}; keep the files of one model only"),
        (((0, 0), WHOLE[:1]), "a also in {first}; keep the files of one model only"),
    ],
)  # fmt: skip
def test_parts_that_are_not_of_one_tensor_are_named(
    tmp_path: Path, second: tuple[tuple[int, ...], torch.Tensor], said: str
) -> None:
    first = write_rank(tmp_path, 1, 2, {"a": ((0, 0), WHOLE[:3])})
    path = write_rank(tmp_path, 2, 2, {"a": second})
    with pytest.raises(InputError, match="^" + re.escape(f"{path}: {said.format(first=first)}")):
        read_weight_folder(STORAGE, str(tmp_path))


def test_names_that_nothing_has_are_refused(tmp_path: Path) -> None:
    path = write_rank(tmp_path, 1, 1, {"a" * 5_000: ((0, 0), WHOLE)})
    words = re.escape(f"{path}: ") + r".*characters"
    with pytest.raises(InputError, match=words):
        read_weight_folder(STORAGE, str(tmp_path))


def save_plain(folder: Path, rank: int, ranks: int, state: dict[str, torch.Tensor]) -> Path:
    path = folder / f"model_world_size_{ranks}_rank_{rank}.pt"
    torch.save(state, path)
    return path


def test_what_each_rank_has_whole_is_the_first_ones(tmp_path: Path) -> None:
    paths = [save_plain(tmp_path, rank, 3, {"a": WHOLE, "b": WHOLE[:, :0]}) for rank in range(3)]
    found = read_rank_files(STORAGE, str(tmp_path))
    assert (found.form, found.others, found.notes) == ("a file a rank, of DTensor parts", (), ())
    assert found.weights == tuple(map(str, paths))
    tensors = found.read(STORAGE, ["a", "b"])
    assert [(one.name, one.shape, len(one.boxes)) for one in tensors.values()] == [
        ("a", (5, 7), 1),
        ("b", (5, 0), 0),
    ]
    (box,) = tensors["a"].boxes
    assert (box.first, box.view.name, box.view.region.path) == ((0, 0), "a", str(paths[0]))


@pytest.mark.parametrize(("other", "words"), [
    (WHOLE.bfloat16(), "a is a bfloat16 of (5, 7), in another rank a float32 of (5, 7)"),
    (WHOLE[1:].clone(), "a is a float32 of (4, 7), in another rank a float32 of (5, 7)"),
])  # fmt: skip
def test_ranks_that_say_otherwise_are_named(tmp_path: Path, other: torch.Tensor, words: str) -> None:
    save_plain(tmp_path, 0, 2, {"a": WHOLE})
    path = save_plain(tmp_path, 1, 2, {"a": other})
    said = f"{path}: {words}: the files are of several steps or runs"
    with pytest.raises(InputError, match=f"^{re.escape(said)}$"):
        read_rank_files(STORAGE, str(tmp_path))


def test_other_data_of_a_later_rank_is_named_where_a_rank_between_has_none(tmp_path: Path) -> None:
    states: list[dict[str, torch.Tensor]] = [{"b": WHOLE}, {"a": WHOLE}, {"b": WHOLE}, {"a": WHOLE + 1}]
    paths = [save_plain(tmp_path, rank, 4, state) for rank, state in enumerate(states)]
    found = read_rank_files(STORAGE, str(tmp_path))
    found.read(STORAGE, ["b"])
    said = f"{paths[3]}: a is not what {paths[1]} holds, and both are the same part of it; the files are of several steps"
    with pytest.raises(InputError, match=f"^{re.escape(said)}"):
        found.read(STORAGE, ["a", "b"])


@pytest.mark.parametrize("offset", [0, 3])
def test_a_part_in_runs_is_a_box_for_each_of_them(offset: int) -> None:
    """Rows 1, 2 and 4, and columns 0, 3, 4 and 6: a rank of a mesh whose axes cut one axis one after the other has such."""
    runs: tuple[Runs, ...] = (((1, 2), (4, 1)), ((0, 1), (3, 2), (6, 1)))
    whole = WHOLE.numpy()
    part = whole[np.ix_([1, 2, 4], [0, 3, 4, 6])]
    stored = np.concatenate([np.zeros(offset, np.float32), part.ravel()])
    storage = StorageMark("0", FLOAT32, stored.size)
    mark = PartMark(storage, FLOAT32, offset, (3, 4), (4, 1), (5, 7), runs, is_copy=False)
    boxes = [*_make_boxes(0, "a", mark, Region("a.pt", 0, stored.nbytes, 0, zipped=True))]
    assert len(boxes) == 6
    for box in boxes:
        found = as_strided(
            stored[box.view.offset :], box.view.shape, [4 * stride for stride in box.view.strides]
        )
        expected = whole[
            tuple(slice(at, at + size) for at, size in zip(box.first, box.view.shape, strict=True))
        ]
        np.testing.assert_array_equal(found, expected)
    assert sum(box.view.shape[0] * box.view.shape[1] for box in boxes) == part.size
