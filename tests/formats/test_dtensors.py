"""Which part of a tensor a rank has is where torch's own placements put it."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.distributed.tensor.placement_types import Shard, _StridedShard

from distconv.errors import InputError
from distconv.formats.dcp.dtensors import Runs, _place
from distconv.formats.marks import Class, Record

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
