"""A tensor whose copies miss an element, fill one twice or read what is not stored cannot be made."""

import dataclasses
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from distconv.errors import ConversionError, InputError
from distconv.families.rules import Match
from distconv.families.translate import Decisions, make_targets
from distconv.formats.views import TensorView
from distconv.layout.copies import Copy, Loop
from distconv.layout.dtypes import BFLOAT16
from distconv.layout.files import File, Literal, OutputTensor
from distconv.layout.regions import Region
from distconv.layout.tiling import find_untiled
from tests.views import ROTARY_KEY, Case, cases

RECORD = Region("shard", 0, 1 << 20, 0, zipped=False)


def count(shape: tuple[int, ...], copies: tuple[Copy, ...]) -> np.ndarray | None:
    """How often each element is filled, by going through all of them; None where one lies outside."""
    found = np.zeros(shape, dtype=int)
    for copy in copies:
        for place in np.ndindex(*(loop.extent for loop in copy.loops)):
            at = list(copy.start)
            for index, loop in zip(place, copy.loops, strict=True):
                at[loop.axis] += index * loop.step
            if not all(0 <= one < size for one, size in zip(at, shape, strict=True)):
                return None
            found[tuple(at)] += 1
    return found


@st.composite
def grids(draw: st.DrawFn) -> tuple[tuple[int, ...], tuple[Copy, ...]]:
    """A shape and boxes, dense and interleaved ones, which fill it or nearly so."""
    shape = tuple(draw(st.lists(st.integers(1, 6), min_size=1, max_size=3)))
    parts: list[list[tuple[int, tuple[Loop, ...]]]] = []
    for axis, size in enumerate(shape):
        step = draw(st.sampled_from([n for n in range(1, size + 1) if size % n == 0]))
        if draw(st.booleans()):  # every step-th, from each beginning
            parts.append([(first, (Loop(size // step, 1, axis, step),)) for first in range(step)])
        else:  # runs of step, some of them as two loops
            parts.append([(first, (Loop(step, 1, axis, 1),)) for first in range(0, size, step)])
            if draw(st.booleans()):
                parts[-1] = [(0, (Loop(size // step, 1, axis, step), Loop(step, 1, axis, 1)))]
    copies = []
    for place in np.ndindex(*map(len, parts)):
        chosen = [part[index] for part, index in zip(parts, place, strict=True)]
        loops = tuple(loop for _start, loops in chosen for loop in loops)
        copies.append(Copy(RECORD, 0, tuple(start for start, _loops in chosen), loops))
    for _ in range(draw(st.integers(0, 2))):
        number = draw(st.integers(0, len(copies) - 1))
        copies[number : number + 1] = draw(st.sampled_from([spoil, move, double, drop]))(copies[number], draw)
        if not copies:
            break
    return shape, tuple(copies)


def spoil(copy: Copy, draw: st.DrawFn) -> list[Copy]:
    """Change a loop's extent or step."""
    place = draw(st.integers(0, len(copy.loops) - 1))
    change = draw(st.sampled_from(["extent", "step"]))
    loop = copy.loops[place]._replace(**{change: draw(st.integers(1, 4))})
    return [copy._replace(loops=(*copy.loops[:place], loop, *copy.loops[place + 1 :]))]


def move(copy: Copy, draw: st.DrawFn) -> list[Copy]:
    """Let a copy land elsewhere."""
    axis = draw(st.integers(0, len(copy.start) - 1))
    start = list(copy.start)
    start[axis] += draw(st.sampled_from([-1, 1]))
    return [copy._replace(start=tuple(start))]


def double(copy: Copy, _draw: st.DrawFn) -> list[Copy]:
    """Have a copy twice."""
    return [copy, copy]


def drop(_copy: Copy, _draw: st.DrawFn) -> list[Copy]:
    """Lose a copy."""
    return []


@given(grids())
def test_what_is_proved_to_fill_a_shape_fills_each_element_once(
    drawn: tuple[tuple[int, ...], tuple[Copy, ...]],
) -> None:
    shape, copies = drawn
    found = count(shape, copies)
    if find_untiled(shape, copies, 2) is None:
        assert found is not None
        assert (found == 1).all()
    else:
        # Loops of one axis that do not step over one another are refused though they may fill it.
        nested = all(
            loop.step >= 1 + sum((later.extent - 1) * later.step for later in loops[place + 1 :])
            for copy in copies
            for axis in range(len(shape))
            for loops in [[loop for loop in copy.loops if loop.axis == axis and loop.extent > 1]]
            for place, loop in enumerate(loops)
        )
        assert found is None or (found != 1).any() or not nested


@given(cases(), st.data())
def test_a_tensor_with_a_copy_less_more_or_elsewhere_cannot_be_made(case: Case, data: st.DataObject) -> None:
    target = case.target
    number = data.draw(st.integers(0, len(target.copies) - 1))
    before, after = target.copies[:number], target.copies[number + 1 :]
    copy = target.copies[number]
    start = (copy.start[0] + data.draw(st.sampled_from([-1, 1])), *copy.start[1:])
    for wrong in ([], [copy, copy], [copy._replace(start=start)]):
        with pytest.raises(
            InputError, match=r"source: its parts in the shards do not fill target of shape \("
        ):
            dataclasses.replace(target, copies=(*before, *wrong, *after))


@given(cases())
def test_a_copy_that_reads_one_element_more_than_is_stored_cannot_be_made(case: Case) -> None:
    target = case.target
    last = max(target.copies, key=lambda copy: copy.last_source)
    enough = (last.last_source + 1) * target.stored.size_bytes
    for missing in (0, 1):
        record = last.region._replace(size_bytes=enough - missing)
        copies = tuple(copy._replace(region=record) for copy in target.copies)
        if missing:
            with pytest.raises(
                InputError, match=f"reads to byte {enough:,} of a storage of {enough - 1:,} bytes"
            ):
                dataclasses.replace(target, copies=copies)
        else:
            dataclasses.replace(target, copies=copies)


@pytest.mark.parametrize(
    "change",
    [
        {"source_offset": -1},
        {"start": (0,)},
        {"loops": (Loop(4, 6, 0), Loop(6, 1, 2))},
        {"loops": (Loop(4, 6, 0), Loop(6, 1, 1), Loop(1, 1, 2))},
        {"loops": (Loop(4, 6, 0), Loop(6, -1, 1))},
        {"loops": (Loop(4, 6, 0), Loop(6, 1, 1), Loop(0, 1, 1))},
        {"loops": (Loop(2, 6, 0, 1), Loop(2, 12, 0, 2), Loop(6, 1, 1))},
    ],
)
def test_a_copy_that_makes_no_sense_fills_nothing(change: dict[str, object]) -> None:
    copy = Copy(RECORD, 0, (0, 0), (Loop(4, 6, 0), Loop(6, 1, 1)))
    assert find_untiled((4, 6), (copy,), 2) is None
    assert find_untiled((4, 6), (copy._replace(**change),), 2)  # type: ignore[arg-type]


@given(st.integers(1, 8), st.integers(1, 40), st.sampled_from([2, 3, 4, 6, 8, 16]))
def test_parts_that_together_are_no_whole_heads_make_no_tensor(shards: int, rows: int, head_dim: int) -> None:
    record = Region("shard", 0, rows * 3 * 2, 0, zipped=False)
    views = [TensorView("tensor", record, BFLOAT16, 0, (rows, 3), (3, 1))] * shards
    if rows * shards % head_dim == 0 and head_dim % 2 == 0:
        shape, copies = ROTARY_KEY.join(views, head_dim)
        assert shape == (rows * shards, 3)
        assert find_untiled(shape, copies, 2) is None
    else:
        with pytest.raises(
            InputError, match=f"tensor: {rows * shards} rows in all shards, expected whole heads"
        ):
            ROTARY_KEY.join(views, head_dim)


def test_all_tensors_that_parts_do_not_fill_are_told_at_once() -> None:
    record = Region("shard", 0, 6 * 3 * 2, 0, zipped=False)
    views = [TensorView(name, record, BFLOAT16, 0, (6, 3), (3, 1)) for name in ("wq", "wk")]
    matches = [
        Match(view.name, f"{view.name} of ours", ROTARY_KEY.operation, ROTARY_KEY.cut, (view,))
        for view in views
    ]
    with pytest.raises(InputError) as raised:
        make_targets(matches, 4, Decisions(tied=False, kv_replication=1))
    assert [line.split(":")[0] for line in str(raised.value).splitlines()] == ["wq", "wk"]


def test_a_proof_takes_no_longer_for_larger_tensors() -> None:
    rows = 1 << 60
    halves = tuple(
        Copy(RECORD._replace(size_bytes=1 << 62), 0, (start, 0), (Loop(rows, 1, 0), Loop(1, 1, 1)))
        for start in (0, rows)
    )
    assert find_untiled((2 * rows, 1), halves, 2) is None
    assert "element [1152921504606846976, 0] is filled 0 times" in str(
        find_untiled((2 * rows, 1), halves[:1], 2)
    )


def test_an_empty_tensor_has_no_copies() -> None:
    copy = Copy(RECORD, 0, (0,), (Loop(1, 1, 0),))
    assert find_untiled((0,), (), 2) is None
    assert find_untiled((0,), (copy,), 2)


def test_a_chunk_with_a_hole_or_an_overlap_cannot_be_made() -> None:
    def tensor(name: str, elements: int) -> OutputTensor:
        copy = Copy(RECORD, 0, (0,), (Loop(elements, 1, 0),))
        return OutputTensor(name, name, (elements,), BFLOAT16, BFLOAT16, (copy,))

    tensors = (tensor("a", 3), tensor("b", 4))
    assert File("chunk", (Literal(0, b"head"),), tensors, (4, 10)).size_bytes == 4 + 2 * math.prod([7])
    for offsets in ((4, 9), (4, 12), (0, 6)):
        with pytest.raises(ConversionError, match=r"chunk: (a|b) is planned at byte \d+, expected (4|10)"):
            File("chunk", (Literal(0, b"head"),), tensors, offsets)


@pytest.mark.parametrize(
    ("shape", "copy", "message"),
    [
        ((4,), Copy(RECORD, 0, (1,), (Loop(3, 1, 0),)), "element [0] is filled 0 times"),
        ((4, 6), Copy(RECORD, 0, (1, 1), (Loop(3, 6, 0), Loop(5, 1, 1))), "element [0, 0] is filled 0 times"),
        (
            (4,), Copy(RECORD, 0, (-1,), (Loop(5, 1, 0),)),
            "axis 0 has 4 places, the parts reach from -1 to 4",
        ),
        (
            (1, 2_000), Copy(RECORD, 0, (0, 0), (Loop(1, 1, 0), Loop(2_001, 1, 1))),
            "axis 1 has 2,000 places, the parts reach from 0 to 2,001",
        ),
        ((0, 2), Copy(RECORD, 0, (0, 0), ()), "it has no elements, and yet there are copies"),
    ],
)  # fmt: skip
def test_where_a_shape_is_not_filled_is_said(shape: tuple[int, ...], copy: Copy, message: str) -> None:
    assert find_untiled(shape, (copy,), 2) == message


def test_a_loop_of_one_step_leads_nowhere_whatever_its_step() -> None:
    for loops in (
        (Loop(1, 9, 0), Loop(4, 6, 0), Loop(6, 1, 1)),
        (Loop(4, 6, 0), Loop(6, 1, 1), Loop(1, 9, 1, 7)),
    ):
        assert find_untiled((4, 6), (Copy(RECORD, 0, (0, 0), loops),), 2) is None
