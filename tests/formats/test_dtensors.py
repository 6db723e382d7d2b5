"""Which part of a tensor a rank has is where torch's own placements put it."""

import itertools
import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.distributed.tensor.placement_types import Shard, _StridedShard

from distconv.errors import InputError
from distconv.formats.dcp.dtensors import PartMark, Runs, _place, _rebuild
from distconv.formats.marks import Class, Record, StorageMark, TensorMark
from distconv.layout.dtypes import FLOAT32

Cut = tuple[str, int, int]
"""Class, axis of the tensor, and split factor."""


def make_record(kind: str, state: dict[object, object], *arguments: object) -> Record:
    found = Record(Class(kind), arguments)
    found.state = state
    return found


def make_spec(
    mesh: tuple[int, ...],
    at: tuple[int, ...],
    cuts: list[Cut],
    order: tuple[tuple[int, tuple[int, ...]], ...],
) -> dict[object, object]:
    """Give what the pickle of a DTensor says of it."""
    layout = make_record("_MeshLayout", {"shape": mesh})
    placements = [
        make_record(kind, {"dim": axis} | ({"split_factor": factor} if kind == "_StridedShard" else {}))
        for kind, axis, factor in cuts
    ]
    return {
        "mesh": make_record("DeviceMesh", {"_layout": layout, "_coordinate_on_dim": list(at)}),
        "placements": tuple(placements),
        "shard_order": tuple(make_record("ShardOrderEntry", {}, *entry) for entry in order),
    }


def cut_by_torch(whole: torch.Tensor, mesh: int, at: int, cut: Cut) -> torch.Tensor:
    kind, axis, factor = cut
    placement = _StridedShard(axis, split_factor=factor) if kind == "_StridedShard" else Shard(axis)
    return placement._split_tensor(whole, mesh, with_padding=False)[0][at]


def take(whole: torch.Tensor, runs: tuple[Runs, ...]) -> torch.Tensor:
    for axis, along in enumerate(runs):
        places = [place for first, size in along for place in range(first, first + size)]
        whole = whole.index_select(axis, torch.tensor(places, dtype=torch.int64))
    return whole


@st.composite
def placed(
    draw: st.DrawFn,
) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...], list[Cut]]:
    shape = tuple(draw(st.lists(st.integers(1, 13), min_size=1, max_size=2)))
    mesh = tuple(draw(st.lists(st.integers(1, 4), min_size=1, max_size=3)))
    at = tuple(draw(st.integers(0, extent - 1)) for extent in mesh)
    cut = st.tuples(
        st.sampled_from(["Shard", "_StridedShard"]), st.integers(0, len(shape) - 1), st.integers(1, 5)
    )
    return shape, mesh, at, [draw(cut) for _ in mesh]


@given(case=placed(), data=st.data())
def test_a_rank_has_what_torch_gives_it(
    case: tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...], list[Cut]], data: st.DataObject
) -> None:
    """In whatever order the axes of the mesh cut, and however unevenly."""
    shape, mesh, at, cuts = case
    turns = data.draw(st.permutations(range(len(mesh))))
    order = tuple(
        (axis, tuple(turn for turn in turns if cuts[turn][1] == axis))
        for axis in range(len(shape))
        if any(cut[1] == axis for cut in cuts)
    )
    whole = torch.arange(math.prod(shape)).reshape(shape)
    expected = whole
    for turn in turns:
        expected = cut_by_torch(expected, mesh[turn], at[turn], cuts[turn])
    runs, is_copy = _place(shape, make_spec(mesh, at, cuts, order))
    assert torch.equal(take(whole, runs), expected)
    assert not is_copy


@pytest.mark.parametrize(
    ("factor", "order", "said"),
    [
        (10**9, (), "placement _StridedShard"),
        (0, (), "placement _StridedShard"),
        (512, ((0, (0,)), (1, (0,))), "names axes that its mesh has not"),
        (2, ((0, (7,)),), "names axes that its mesh has not"),
        (512, (), "more than 512 boxes"),
    ],
)
def test_placements_that_nobody_has_are_refused(
    factor: int, order: tuple[tuple[int, tuple[int, ...]], ...], said: str
) -> None:
    cuts = [("_StridedShard", 0, factor), ("_StridedShard", 1, factor)]
    with pytest.raises(InputError, match=said):
        _place((4096, 4096), make_spec((2, 2), (0, 0), cuts, order))


@pytest.mark.parametrize("factor", [1, 2, 3])
@pytest.mark.parametrize("first", ["_StridedShard", "Shard"])
def test_each_rank_has_what_torch_gives_it_of_pieces_of_pieces(first: str, factor: int) -> None:
    whole = torch.arange(25)
    for place, inner in itertools.product(range(2), range(3)):
        cuts = [(first, 0, factor), ("_StridedShard", 0, 2)]
        expected = cut_by_torch(cut_by_torch(whole, 2, place, cuts[0]), 3, inner, cuts[1])
        runs, _is_copy = _place((25,), make_spec((2, 3), (place, inner), cuts, ()))
        assert torch.equal(take(whole, runs), expected)
        assert all(size for _first, size in runs[0])


@pytest.mark.parametrize("at", [*itertools.product(range(3), range(2), range(3))])
def test_of_ranks_that_hold_the_same_the_first_is_read(at: tuple[int, int, int]) -> None:
    cuts = [("Replicate", 0, 1), ("Shard", 0, 1), ("Replicate", 0, 1)]
    runs, is_copy = _place((4,), make_spec((3, 2, 3), at, cuts, ()))
    assert (runs, is_copy) == ((((2 * at[1], 2),),), (at[0], at[2]) != (0, 0))


def entries(*found: object) -> dict[str, object]:
    return {"shard_order": found}


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"placements": None}, r"^placements are None; not a DTensor that is known$"),
        ({"placements": make_record("Shard", {})}, r"^placements are an object; not a DTensor that is known$"),
        ({"placements": (None, None)}, r"^place 1 of 2 on a mesh$"),
        ({"at": [1]}, r"^a mesh of \(2, 2\) at a list for 2 placements$"),
        ({"at": [1, 0, 0]}, r"^a mesh of \(2, 2\) at a list for 2 placements$"),
        ({"at": None}, r"^a mesh of \(2, 2\) at None for 2 placements$"),
        ({"at": "10"}, r"^a mesh of \(2, 2\) at '10' for 2 placements$"),
        ({"at": [2, 0]}, r"^place 2 of 2 on a mesh$"),
        ({"at": [-1, 0]}, r"^place -1 of 2 on a mesh$"),
        ({"at": [1.0, 0]}, r"^place a float of 2 on a mesh$"),
        ({"axis": 2}, r"^placement Shard, expected Shard or Replicate; save it by torch\.distributed\.checkpoint$"),
        ({"axis": -1}, r"^placement Shard, expected Shard or Replicate"),
        ({"axis": None}, r"^placement Shard, expected Shard or Replicate"),
        ({"kind": "Partial"}, r"^placement Partial, expected Shard or Replicate"),
        (entries(None), r"^the order of its shards holds None; not a DTensor that is known$"),
        (entries(make_record("ShardOrderEntry", {})), r"^the order of its shards holds an object; not a DTensor"),
        (entries(make_record("ShardOrderEntry", {}, 0)), r"^the order of its shards holds an object; not a DTensor"),
        (entries(make_record("ShardOrderEntry", {}, 0, 1)), r"^the order of its shards holds an object; not a DTen"),
        (entries(make_record("", {}, 0, (2,))), r"^the order of its shards names axes that its mesh has not; not a D"),
        ({"layout": {}}, r"^a mesh whose shape is not to be found; save it by torch\.distributed\.checkpoint$"),
        ({"layout": {"shape": (2, "x")}}, r"^'x' is no number of ranks$"),
        ({"layout": {"shape": (2, (1, 2.0))}}, r"^a tuple is no number of ranks$"),
    ],
)  # fmt: skip
def test_what_no_dtensor_says_is_refused_by_name(changed: dict[str, Any], said: str) -> None:
    parts = {"layout": {"shape": (2, 2)}, "at": [1, 0], "axis": 0, "kind": "Shard"} | changed
    layout = make_record("_MeshLayout", parts["layout"])
    mesh = make_record("DeviceMesh", {"_layout": layout, "_coordinate_on_dim": parts["at"]})
    shard = make_record(parts["kind"], {"dim": parts["axis"]})
    spec: dict[object, object] = {"mesh": mesh, "placements": (shard, shard), **changed}
    with pytest.raises(InputError, match=said):
        _place((8, 8), spec)


PART = TensorMark(StorageMark("0", FLOAT32, 4), FLOAT32, 0, (4,), (1,))
SPEC = make_record("DTensorSpec", make_spec((2,), (1,), [("Shard", 0, 1)], ()))


def rebuild(local: object, *given: object) -> object:
    return _rebuild((None, None, given, {"_local_tensor": local, "_spec": SPEC}))


def test_a_part_is_what_the_rank_holds_of_the_tensor() -> None:
    assert rebuild(PART, None, None, (8,)) == PartMark(
        PART.storage, FLOAT32, 0, (4,), (1,), (8,), (((4, 4),),), is_copy=False
    )
    with pytest.raises(
        InputError, match=r"^a part of shape \(5,\) of a tensor of \(9,\), its placements give \(4,\)$"
    ):
        rebuild(replace(PART, shape=(5,)), None, None, (9,))


@pytest.mark.parametrize(
    "given",
    [
        (),
        (None, None),
        (None, None, [8]),
        (None, None, (8, -1)),
        (None, None, (8.0,)),
        (None, None, (1 << 60,)),
    ],
)
def test_a_tensor_of_another_class_is_refused(given: tuple[object, ...]) -> None:
    words = r"^a tensor of a class of its own, which is no DTensor; save the state dict of plain tensors$"
    with pytest.raises(InputError, match=words):
        rebuild(PART, *given)
    with pytest.raises(InputError, match=words):
        rebuild(None, None, None, (8,))
    with pytest.raises(InputError, match=words):
        _rebuild((None, None, given, None))
