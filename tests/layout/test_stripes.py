"""Stripes: files that are cut alike, and tensors that are made together because they take turns in their storage."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from distconv.layout.dtypes import FLOAT16, FLOAT32
from distconv.layout.files import File, OutputTensor
from distconv.layout.stripes import (
    Stripe,
    group_alike,
    list_sections,
    list_steps,
    split_files,
    stack,
)
from distconv.layout.tensors import Tensor, cut, join
from tests.layout.test_algebra import Contents, boxes, fill, numbered, store
from tests.layout.test_files import file_of


def output(tensor: Tensor) -> OutputTensor:
    return OutputTensor("tensor", "tensor", tensor.shape, FLOAT32, FLOAT32, tensor.copies)


def columns(tensor: Tensor, count: int) -> list[OutputTensor]:
    """Cut a matrix into so many parts with as many columns."""
    each = tensor.shape[1] // count
    return [output(cut(tensor, 1, rank * each, (rank + 1) * each)) for rank in range(count)]


@given(st.data(), st.integers(1, 6), st.integers(2, 4), st.integers(1, 3))
def test_parts_of_columns_are_stacked_as_numpy_stacks_them_wherever_they_lie(
    data: st.DataObject, rows: int, count: int, each: int
) -> None:
    whole = numbered((rows, count * each))
    contents, tensor = data.draw(boxes(whole))
    found = stack(columns(tensor, count))
    if found is not None:
        assert (found.shape, found.stacked) == ((rows, count, each), count)
        filled = fill(Tensor("tensor", FLOAT32, found.shape, found.copies), contents)
        np.testing.assert_array_equal(filled, np.stack(np.split(whole, count, 1), 1))


@given(st.integers(2, 6), st.integers(1, 4), st.integers(1, 3), st.integers(2, 4))
def test_parts_of_columns_of_each_source_are_one_copy_that_has_whole_rows(
    rows: int, each: int, sources: int, count: int
) -> None:
    contents: Contents = {}
    wholes = [store(contents, numbered((rows, each * count))) for _ in range(sources)]
    tensor = join(wholes, 1)
    found = stack(columns(tensor, sources * count))
    assert found is not None
    assert len(found.copies) == sources
    assert all(copy.last_source + 1 - copy.source_offset == rows * each * count for copy in found.copies)
    assert not any(loop.gap for copy in found.copies for loop in copy.loops)
    # As many sources as parts, or more: each part has whole rows of its sources already.
    assert stack(columns(tensor, sources)) is None or sources == 1
    (step,) = list_steps([part_of([one]) for one in columns(tensor, sources * count)])
    assert (step.tensor, step.place, step.sections) == (found, 0, range(sources * count))


def part_of(tensors: Sequence[OutputTensor]) -> File:
    """Lay tensors one behind the other."""
    offsets = [sum(one.size_bytes for one in tensors[:place]) for place in range(len(tensors))]
    return File("part", (), tuple(tensors), tuple(offsets))


@given(st.integers(1, 4), st.integers(2, 4), st.integers(1, 5))
def test_rows_replicas_vectors_and_what_is_alone_or_of_other_types_is_made_by_itself(
    each: int, count: int, width: int
) -> None:
    contents: Contents = {}
    whole = store(contents, numbered((each * count, width)))
    rows = [output(cut(whole, 0, rank * each, (rank + 1) * each)) for rank in range(count)]
    vector = output(store(contents, numbered((each * count,))))
    wide = columns(store(contents, numbered((2, width * count))), count)
    for tensors in (rows, [output(whole)] * count, [vector] * count, wide[:1]):
        assert stack(tensors) is None
    assert stack(wide) is not None
    assert stack([*wide[1:], replace(wide[0], dtype=FLOAT16)]) is None
    # Some that are not neighbours take turns too, but with what nobody here has.
    assert count < 3 or stack([wide[0], wide[2], wide[1]]) is None
    steps = [(step.place, step.sections) for step in list_steps([part_of([row, row]) for row in rows])]
    assert steps == [(place, range(n, n + 1)) for place in (0, 1) for n in range(count)]


SIZES = st.lists(st.integers(1, 6), min_size=1, max_size=9)


@given(SIZES, st.integers(1, 5), st.integers(1, 100), st.integers(0, 12), st.data())
def test_files_that_are_alike_are_cut_alike_and_a_stripe_is_as_large_as_wanted(
    sizes: list[int], count: int, limit: int, least: int, data: st.DataObject
) -> None:
    files = [replace(file_of(sizes), name=f"shard{number}") for number in range(count)]
    units = split_files(files, limit, least)
    for file in files:
        own = [one for unit in units for one in list_sections(unit) if file.name in one.name]
        assert [tensor for one in own for tensor in one.tensors] == list(file.tensors)
        end = sum(one.size_bytes for one in own) + (0 if own == [file] else 4 * len(sizes))
        assert end == file.size_bytes
    for unit in units:
        sections = list_sections(unit)
        assert len(sections) == count
        held = [sum(tensor.size_bytes for tensor in one.tensors) for one in sections]
        assert all(size >= least for size in held) or len(units) == 1
        largest = max(tensor.size_bytes for tensor in sections[0].tensors)
        assert sum(held) <= max(limit, count * largest) + count * (largest + least)
    assert len({unit.name for unit in units}) == len(units)
    # What is there already changes nothing about the cut of the others.
    whole = data.draw(st.sets(st.sampled_from([file.name for file in files])))
    again = split_files(files, limit, least, whole)
    parts = {one for unit in again for one in list_sections(unit)}
    wanted = {one for unit in units if isinstance(unit, Stripe) for one in unit.parts}
    assert {one for one in parts if not isinstance(one, File)} == {
        one for one in wanted if one.file not in whole
    }
    assert {one.name for one in parts if isinstance(one, File)} >= whole


@given(st.lists(st.sampled_from([1, 2]), max_size=9), st.integers(1, 4))
def test_neighbours_with_tensors_as_large_are_grouped_up_to_as_many_as_may_be(
    sizes: list[int], most: int
) -> None:
    files = [replace(file_of([size]), name=f"{number}") for number, size in enumerate(sizes)]
    groups = list(group_alike(files, most))
    assert [file for group in groups for file in group] == files
    for group in groups:
        assert len({file.size_bytes for file in group}) == 1
        assert len(group) <= most
    for one, following in pairwise(groups):
        assert len(one) == most or one[0].size_bytes != following[0].size_bytes
    chunks = [replace(file_of([1], sealed=False), name=f"{number}") for number in range(3)]
    assert [len(group) for group in group_alike(chunks, most)] == [1, 1, 1]


def test_a_stripe_is_named_after_its_first_and_last_file() -> None:
    files = [replace(file_of([2, 2]), name=f"shard{number}") for number in range(3)]
    assert [unit.name for unit in split_files(files, 24)] == [
        "shard0 to shard2, part 1 of 2",
        "shard0 to shard2, part 2 of 2",
    ]
    assert [unit.name for unit in split_files(files, 24, whole=("shard1", "shard2"))] == [
        "shard1",
        "shard2",
        "shard0, part 1 of 2",
        "shard0, part 2 of 2",
    ]
    assert [unit.name for unit in split_files(files, 1 << 10)] == ["shard0 to shard2, part 1 of 1"]
