"""Join, cut and regroup against numpy, on elements that know where they lie."""

import math
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from distconv.families.cuts import COLUMNS, KEY_HEADS, QUERY_HEADS, ROWS, Cut
from distconv.families.operations import ROTARY, SAME
from distconv.layout.dtypes import FLOAT32, contiguous_strides
from distconv.layout.regions import Region
from distconv.layout.reshape import merge_axes, split_axis, transpose
from distconv.layout.tensors import Digit, Tensor, cut, join, regroup, view_tensor
from distconv.layout.tiling import find_untiled

Contents = dict[Region, np.ndarray]


def store(contents: Contents, array: np.ndarray) -> Tensor:
    """Lay an array down as a storage of its own, in row-major order."""
    region = Region(f"part {len(contents)}", 0, 4 * array.size, 0, zipped=False)
    contents[region] = array.reshape(-1)
    return view_tensor("tensor", FLOAT32, region, 0, array.shape, contiguous_strides(array.shape))


def fill(tensor: Tensor, contents: Contents) -> np.ndarray:
    """Carry out the copies element by element; the tensor must have been proved."""
    assert find_untiled(tensor.shape, tensor.copies, 4) is None
    found = np.full(tensor.shape, -1)
    for copy in tensor.copies:
        for place in np.ndindex(*(loop.extent for loop in copy.loops)):
            at, source = list(copy.start), copy.source_offset
            for index, loop in zip(place, copy.loops, strict=True):
                at[loop.axis] += index * loop.step
                source += index * loop.source_step
            found[tuple(at)] = contents[copy.region][source]
    return found


def numbered(shape: tuple[int, ...]) -> np.ndarray:
    return np.arange(math.prod(shape)).reshape(shape)


@st.composite
def edges(draw: st.DrawFn, size: int) -> list[int]:
    """Where an axis is cut: anywhere, unequally too."""
    inner = draw(st.lists(st.integers(1, size - 1), max_size=5, unique=True)) if size > 1 else []
    return [0, *sorted(inner), size]


@st.composite
def boxes(draw: st.DrawFn, whole: np.ndarray) -> tuple[Contents, Tensor]:
    """A matrix in boxes of a grid, each in a storage of its own, as trainers save them."""
    contents: Contents = {}
    rows, columns = draw(edges(whole.shape[0])), draw(edges(whole.shape[1]))
    bands = [
        join([store(contents, whole[top:end, left:right]) for left, right in pairwise(columns)], 1)
        for top, end in pairwise(rows)
    ]
    return contents, join(bands, 0)


@st.composite
def matrices(draw: st.DrawFn) -> tuple[np.ndarray, int]:
    """A matrix of whole heads, and their size."""
    head_dim = draw(st.sampled_from([2, 4, 6, 8]))
    return numbered((head_dim * draw(st.integers(1, 5)), draw(st.integers(1, 6)))), head_dim


@given(st.data(), matrices())
def test_boxes_joined_and_cut_anywhere_are_what_numpy_slices(
    data: st.DataObject, drawn: tuple[np.ndarray, int]
) -> None:
    whole, _head_dim = drawn
    contents, tensor = data.draw(boxes(whole))
    np.testing.assert_array_equal(fill(tensor, contents), whole)
    axis = data.draw(st.sampled_from([0, 1]))
    for first, end in pairwise(data.draw(edges(whole.shape[axis]))):
        part = cut(tensor, axis, first, end)
        np.testing.assert_array_equal(fill(part, contents), np.take(whole, range(first, end), axis))


@given(st.data(), matrices())
def test_the_rotary_permutation_is_that_of_transformers_and_its_inverse_gives_the_same_back(
    data: st.DataObject, drawn: tuple[np.ndarray, int]
) -> None:
    whole, head_dim = drawn
    contents, tensor = data.draw(boxes(whole))
    halves = whole.reshape(-1, head_dim // 2, 2, whole.shape[1]).swapaxes(1, 2).reshape(whole.shape)
    there = ROTARY.apply(tensor, head_dim)
    np.testing.assert_array_equal(fill(there, contents), halves)
    np.testing.assert_array_equal(fill(ROTARY.invert(there, head_dim), contents), whole)
    pairs = whole.reshape(-1, 2, head_dim // 2, whole.shape[1]).swapaxes(1, 2).reshape(whole.shape)
    np.testing.assert_array_equal(fill(ROTARY.invert(tensor, head_dim), contents), pairs)


@given(st.data(), matrices())
def test_cut_after_a_permutation_is_the_slice_of_what_was_permuted(
    data: st.DataObject, drawn: tuple[np.ndarray, int]
) -> None:
    whole, head_dim = drawn
    contents, tensor = data.draw(boxes(whole))
    pairs = whole.reshape(-1, 2, head_dim // 2, whole.shape[1]).swapaxes(1, 2).reshape(whole.shape)
    back = ROTARY.invert(tensor, head_dim)
    for first, end in pairwise(data.draw(edges(whole.shape[0]))):
        np.testing.assert_array_equal(fill(cut(back, 0, first, end), contents), pairs[first:end])


@given(st.data(), st.lists(st.integers(1, 4), min_size=1, max_size=3), st.integers(1, 4))
def test_digits_put_anywhere_are_what_numpy_transposes(
    data: st.DataObject, radices: list[int], columns: int
) -> None:
    whole = numbered((math.prod(radices), columns))
    contents, tensor = data.draw(boxes(whole))
    order = data.draw(st.permutations(range(len(radices) + 1)))
    sizes = [*radices, columns]
    shape = tuple(sizes[place] for place in order)
    digits = tuple(Digit(radix, order.index(place), 1) for place, radix in enumerate(radices))
    found = regroup(tensor, 0, digits, (0, order.index(len(radices))), shape)
    np.testing.assert_array_equal(fill(found, contents), whole.reshape(sizes).transpose(order))


@given(
    st.sampled_from([ROWS, COLUMNS, QUERY_HEADS, KEY_HEADS]),
    st.sampled_from([1, 2, 3, 4, 8]),
    st.sampled_from([1, 2, 3, 4, 8]),
)
def test_any_number_of_ranks_becomes_any_other_and_the_same_again(how: Cut, before: int, after: int) -> None:
    head_dim = 4
    whole = numbered((head_dim * before * after, 2 * before * after))
    contents: Contents = {}
    parts = [store(contents, part) for part in np.split(whole, before, how.axis)]
    tensor = join(parts, how.axis or 0)
    for rank, expected in enumerate(np.split(whole, after, how.axis)):
        np.testing.assert_array_equal(fill(how.part(tensor, rank, after, head_dim), contents), expected)
    again = join([how.part(tensor, rank, after, head_dim) for rank in range(after)], how.axis or 0)
    np.testing.assert_array_equal(fill(again, contents), whole)


def store_scaled(contents: Contents, shape: tuple[int, int], *, by_rows: bool) -> tuple[Tensor, np.ndarray]:
    """Lay a matrix down with a scale a row, or one a column; gives it with the scale of each element."""
    matrix = store(contents, numbered(shape))
    numbers = 1000 * len(contents) + numbered((shape[0] if by_rows else shape[1],))
    region = store(contents, numbers).copies[0].region
    scale = view_tensor("scale", FLOAT32, region, 0, shape, (1, 0) if by_rows else (0, 1))
    spread = np.broadcast_to(numbers[:, None] if by_rows else numbers, shape)
    return replace(matrix, scale=scale), spread


@given(st.data(), st.booleans(), st.lists(st.integers(1, 4), min_size=1, max_size=3))
def test_whatever_is_done_to_a_tensor_is_done_to_the_scale_of_each_element(
    data: st.DataObject, by_rows: bool, widths: list[int]
) -> None:
    contents: Contents = {}
    heads, head_dim = data.draw(st.integers(1, 3)), data.draw(st.sampled_from([2, 4, 6]))
    rows = heads * head_dim
    parts = [store_scaled(contents, (rows, width), by_rows=by_rows) for width in widths]
    tensor = join([part for part, _spread in parts], 1)
    expected = np.concatenate([spread for _part, spread in parts], 1)
    for operation in data.draw(
        st.lists(st.sampled_from(["rotary", "transpose", "cut", "split"]), max_size=4)
    ):
        if operation == "rotary" and tensor.shape[0] % head_dim == 0:
            tensor = ROTARY.apply(tensor, head_dim)
            halves = expected.reshape(-1, head_dim // 2, 2, expected.shape[1])
            expected = halves.swapaxes(1, 2).reshape(expected.shape)
        elif operation == "transpose":
            tensor, expected = transpose(tensor), expected.T
        elif operation == "cut":
            axis = data.draw(st.sampled_from([0, 1]))
            first = data.draw(st.integers(0, expected.shape[axis] - 1))
            end = data.draw(st.integers(first + 1, expected.shape[axis]))
            tensor, expected = cut(tensor, axis, first, end), np.take(expected, range(first, end), axis)
        elif operation == "split" and tensor.shape[0] % 2 == 0:
            tensor = merge_axes(split_axis(tensor, 0, (2, tensor.shape[0] // 2)), 0)
    assert tensor.scale is not None
    assert tensor.scale.shape == tensor.shape
    np.testing.assert_array_equal(fill(tensor.scale, contents), expected)


def test_parts_with_and_without_a_scale_are_no_tensor() -> None:
    contents: Contents = {}
    scaled, _spread = store_scaled(contents, (2, 3), by_rows=True)
    with pytest.raises(ValueError, match="1 of 2 parts have scales"):
        join([scaled, store(contents, numbered((2, 3)))], 0)


@pytest.mark.parametrize(("heads", "ranks"), [(1, 2), (2, 4), (4, 8), (8, 16), (2, 16)])
def test_key_heads_that_are_fewer_than_ranks_are_each_repeated_in_a_row(heads: int, ranks: int) -> None:
    contents: Contents = {}
    whole = numbered((heads * 6, 3))
    tensor = store(contents, whole)
    expected = np.repeat(whole.reshape(heads, 6, 3), ranks // heads, axis=0)
    for rank in range(ranks):
        np.testing.assert_array_equal(fill(KEY_HEADS.part(tensor, rank, ranks, 6), contents), expected[rank])


@pytest.mark.parametrize("ranks", [1, 2, 8, 16])
def test_whole_heads_take_a_copy_a_rank_each_way(ranks: int) -> None:
    contents: Contents = {}
    whole = numbered((32 * 8, 4))
    parts = join([store(contents, part) for part in np.split(whole, ranks)], 0)
    assert len(ROTARY.apply(parts, 8).copies) == ranks
    back = ROTARY.invert(store(contents, whole), 8)
    assert [len(QUERY_HEADS.part(back, rank, ranks, 8).copies) for rank in range(ranks)] == [1] * ranks


@given(st.integers(1, 60), st.integers(1, 60))
def test_rows_cut_anywhere_take_at_most_five_copies(first: int, rows: int) -> None:
    head_dim, total = 8, 128
    end = min(total, first + rows)
    contents: Contents = {}
    whole = numbered((total, 2))
    pieces = [whole[:first], whole[first:end], whole[end:]]
    tensor = join([store(contents, piece) for piece in pieces if len(piece)], 0)
    for found in (ROTARY.apply(tensor, head_dim), ROTARY.invert(tensor, head_dim)):
        np.testing.assert_array_equal(np.sort(fill(found, contents), axis=None), whole.reshape(-1))
        of_it = [copy for copy in found.copies if copy.region.path == "part 1"]
        assert len(of_it) <= 5


def test_the_same_is_the_same_both_ways() -> None:
    tensor = store({}, numbered((3, 4)))
    assert SAME.apply(tensor, 2) is tensor
    assert SAME.invert(tensor, 2) is tensor


def loops_that_go_on(tensor: Tensor) -> int:
    """Count the loops that do nothing, or only what the loop after them along their axis could do as well."""
    return sum(
        outer.axis == inner.axis
        and (
            1 in (outer.extent, inner.extent)
            or (outer.step, outer.source_step)
            == (inner.extent * inner.step, inner.extent * inner.source_step)
        )
        for copy in tensor.copies
        for outer, inner in pairwise(copy.loops)
    )


SIZE = st.integers(1, 4)


@given(SIZE, SIZE, SIZE, st.integers(0, 2))
def test_rows_laid_behind_each_other_take_no_more_loops_than_are_needed(
    wide: int, narrow: int, columns: int, more: int
) -> None:
    contents: Contents = {}
    stored = numbered((wide * narrow, columns + more))
    whole = stored[:, :columns]
    tensor = cut(store(contents, stored), 1, 0, columns)
    digits = (Digit(wide, 1, columns), Digit(narrow, 0, 1))
    found = regroup(tensor, 0, digits, (0, 1), (narrow, wide * columns))
    expected = whole.reshape(wide, narrow, columns).transpose(1, 0, 2).reshape(narrow, -1)
    np.testing.assert_array_equal(fill(found, contents), expected)
    assert loops_that_go_on(found) == 0
    digits = (Digit(wide, 1, narrow * columns), Digit(narrow, 1, columns))
    found = regroup(tensor, 0, digits, (0, 1), (1, wide * narrow * columns))
    np.testing.assert_array_equal(fill(found, contents), whole.reshape(1, -1))
    assert loops_that_go_on(found) == 0


@given(SIZE, SIZE, SIZE)
def test_columns_laid_below_each_other_take_no_more_loops_than_are_needed(
    rows: int, wide: int, narrow: int
) -> None:
    contents: Contents = {}
    whole = numbered((rows, wide * narrow))
    digits = (Digit(wide, 0, rows), Digit(narrow, 1, 1))
    found = regroup(store(contents, whole), 1, digits, (0, 1), (wide * rows, narrow))
    expected = whole.reshape(rows, wide, narrow).transpose(1, 0, 2).reshape(-1, narrow)
    np.testing.assert_array_equal(fill(found, contents), expected)
    assert loops_that_go_on(found) == 0


@given(SIZE, st.sampled_from([2, 4, 6]), SIZE)
def test_a_permutation_and_its_inverse_leave_the_loops_that_were_there(
    heads: int, head_dim: int, columns: int
) -> None:
    tensor = store({}, numbered((heads * head_dim, columns)))
    found = ROTARY.invert(ROTARY.apply(tensor, head_dim), head_dim)
    (loops,) = (
        [(loop.extent, loop.source_step, loop.axis, loop.step) for loop in copy.loops]
        for copy in found.copies
    )
    assert loops == [(heads * head_dim, columns, 0, 1), (columns, 1, 1, 1)]


@st.composite
def permutations(draw: st.DrawFn, size: int) -> tuple[list[int], list[int]]:
    """Digits of the numbers below a size, by their radices, and their order afterwards."""
    radices = []
    while size > 1:
        radices.append(draw(st.sampled_from([n for n in range(2, size + 1) if size % n == 0])))
        size //= radices[-1]
    return radices, list(draw(st.permutations(range(len(radices)))))


@given(st.sampled_from([4, 6, 8, 12, 24]), st.integers(1, 2), st.data())
def test_permutations_of_other_digits_after_each_other_are_what_numpy_transposes(
    rows: int, columns: int, data: st.DataObject
) -> None:
    whole = numbered((rows, columns))
    contents, tensor = data.draw(boxes(whole))
    for _ in range(2):
        radices, order = data.draw(permutations(rows))
        steps = {
            place: math.prod(radices[after] for after in order[at + 1 :]) for at, place in enumerate(order)
        }
        digits = tuple(Digit(radix, 0, steps[place]) for place, radix in enumerate(radices))
        tensor = regroup(tensor, 0, digits, (0, 1), tensor.shape)
        turned = whole.reshape(*radices, columns).transpose(*order, len(radices))
        whole = turned.reshape(rows, columns)
        np.testing.assert_array_equal(fill(tensor, contents), whole)


@pytest.mark.parametrize("shape", [(0,), (0, 3), (3, 0), (2, 0, 3)])
def test_a_view_without_elements_is_a_tensor_that_nothing_fills(shape: tuple[int, ...]) -> None:
    found = view_tensor("empty", FLOAT32, Region("part", 0, 0, 0, zipped=False), 0, shape, (1,) * len(shape))
    assert found == Tensor("empty", FLOAT32, shape, ())


def test_what_is_made_of_a_tensor_has_its_name_and_type() -> None:
    contents: Contents = {}
    first, second = store(contents, numbered((4, 2))), store(contents, numbered((4, 2)))
    for found in (first, join([first, second], 0), cut(first, 0, 1, 2), ROTARY.apply(first, 4)):
        assert (found.name, found.dtype) == ("tensor", FLOAT32)
