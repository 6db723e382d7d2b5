"""A plan's files, sizes, type and units are those of the tensors that it was made for."""

import io
import json
import random
import zlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import pytest
import safetensors.torch
import torch
from huggingface_hub import split_torch_state_dict_into_shards
from hypothesis import given
from hypothesis import strategies as st

from distconv.families.translate import Decisions
from distconv.layout.copies import Copy, Loop
from distconv.layout.dtypes import BFLOAT16, FLOAT16, FLOAT32, DType
from distconv.layout.files import File, OutputTensor, list_around
from distconv.layout.regions import Region
from distconv.layout.stripes import list_sections
from distconv.layout.units import file_of
from distconv.planning.plan import Plan, describe_large_tensors, describe_plan, make_plan, make_shard_plan

DECISIONS = Decisions(tied=True, kv_replication=2)
KILOBYTE, MEGABYTE = 10**3, 10**6


def target(name: str, elements: int, dtype: DType = BFLOAT16) -> OutputTensor:
    """A vector that lies in a storage of its own."""
    region = Region(name, 0, elements * dtype.size_bytes, 0, zipped=False)
    copy = Copy(region, 0, (0,), (Loop(elements, 1, 0),))
    return OutputTensor(name, name, (elements,), dtype, dtype, (copy,))


def zeros(tensor: OutputTensor) -> torch.Tensor:
    """Give torch's tensor of its shape and type."""
    return torch.zeros(tensor.shape, dtype=getattr(torch, tensor.dtype.name))


targets = st.lists(
    st.tuples(st.integers(1, 40), st.sampled_from([BFLOAT16, FLOAT16, FLOAT32])), min_size=1, max_size=9
).map(
    lambda drawn: [
        target(f"layers.{number}.weight", elements, dtype) for number, (elements, dtype) in enumerate(drawn)
    ]
)


@given(targets, st.integers(1, 200))
def test_a_plan_of_chunks_is_what_huggingface_hub_groups_and_safetensors_writes(
    tensors: list[OutputTensor], limit: int
) -> None:
    plan = make_plan(tensors, DECISIONS, limit)
    state = {tensor.name: zeros(tensor) for tensor in tensors}
    split = split_torch_state_dict_into_shards(
        state, filename_pattern="model{suffix}.safetensors", max_shard_size=limit
    )
    assert {file.name: {tensor.name for tensor in file.tensors} for file in plan.files} == {
        name: set(names) for name, names in split.filename_to_tensors.items()
    }
    assert [file.name for file in plan.files] == sorted(split.filename_to_tensors)
    written = [
        safetensors.torch.save({name: state[name] for name in names}, {"format": "pt"})
        for names in split.filename_to_tensors.values()
    ]
    assert plan.size_bytes == sum(map(len, written))
    assert plan.tensors == tuple(tensor for file in plan.files for tensor in file.tensors)
    assert sorted(plan.tensors, key=tensors.index) == tensors
    assert (plan.decisions, plan.chunk_limit_bytes) == (DECISIONS, limit)


@given(targets, st.integers(1, 200))
def test_large_tensors_are_those_alone_above_the_limit_the_largest_first(
    tensors: list[OutputTensor], limit: int
) -> None:
    plan = make_plan(tensors, DECISIONS, limit)
    above = {tensor.name for tensor in tensors if zeros(tensor).nbytes > limit}
    alone = {file.tensors[0].name for file in plan.files if len(file.tensors) == 1}
    sizes = [zeros(tensor).nbytes for tensor in plan.large_tensors]
    assert {tensor.name for tensor in plan.large_tensors} == above <= alone
    assert len(sizes) == len(above)
    assert sizes == sorted(sizes, reverse=True)


@given(targets, st.randoms(use_true_random=False))
def test_the_type_is_that_of_most_elements_whatever_their_order(
    tensors: list[OutputTensor], order: random.Random
) -> None:
    counts = Counter(dtype for tensor in tensors for dtype in [tensor.dtype.name] * len(zeros(tensor)))
    found = make_plan(tensors, DECISIONS).dtype
    assert counts[found.name] == max(counts.values())
    assert make_plan(order.sample(tensors, len(tensors)), DECISIONS).dtype is found


def test_of_types_with_as_many_elements_the_one_that_stands_first_in_files_counts() -> None:
    tensors = [target("a", 3, FLOAT16), target("b", 3, FLOAT32), target("c", 3, BFLOAT16)]
    written = safetensors.torch.save({tensor.name: zeros(tensor) for tensor in tensors})
    header = json.loads(written[8 : 8 + int.from_bytes(written[:8], "little")])
    first = min(header, key=lambda name: header[name]["data_offsets"])
    plan = make_plan(tensors, DECISIONS)
    assert plan.files[0].tensors[0].name == first
    assert plan.dtype is plan.files[0].tensors[0].dtype


@pytest.mark.parametrize(
    ("sizes", "limit"),
    [([MEGABYTE, 2 * MEGABYTE], 256 * MEGABYTE), ([9_600 * MEGABYTE, 9_600 * MEGABYTE], 300 * MEGABYTE)],
)
def test_the_limit_of_chunks_follows_from_all_bytes_that_are_written_unless_it_is_given(
    sizes: list[int], limit: int
) -> None:
    tensors = [target(f"t{number}", size // 2) for number, size in enumerate(sizes)]
    assert make_plan(tensors, DECISIONS).chunk_limit_bytes == limit
    assert make_plan(tensors, DECISIONS, 7 * MEGABYTE).chunk_limit_bytes == 7 * MEGABYTE


@pytest.mark.parametrize(
    ("sizes", "limit"),
    [([MEGABYTE, 2 * MEGABYTE], 256 * MEGABYTE), ([38_400 * MEGABYTE, 38_400 * MEGABYTE], 300 * MEGABYTE)],
)
def test_the_limit_of_parts_follows_from_the_bytes_of_all_ranks_unless_it_is_given(
    sizes: list[int], limit: int
) -> None:
    ranks = [[target("t", size // 2)] for size in sizes]
    assert make_shard_plan(ranks, DECISIONS).chunk_limit_bytes == limit
    assert make_shard_plan(ranks, DECISIONS, 7 * MEGABYTE).chunk_limit_bytes == 7 * MEGABYTE


def write(file: File) -> bytes:
    """Fill a planned shard with zeros as data."""
    content = bytearray(file.size_bytes)
    checksums = [zlib.crc32(bytes(tensor.size_bytes)) for tensor in file.tensors]
    for literal in list_around(file, checksums):
        content[literal.offset_bytes : literal.offset_bytes + len(literal.content)] = literal.content
    return bytes(content)


@given(st.lists(targets, min_size=1, max_size=3))
def test_a_plan_of_shards_is_a_file_a_rank_that_torch_loads(ranks: list[list[OutputTensor]]) -> None:
    plan = make_shard_plan(ranks, DECISIONS, 100, {"other.weight": "layers.0.weight"})
    assert [file.name for file in plan.files] == [f"consolidated.{n:02}.pth" for n in range(len(ranks))]
    assert (plan.decisions, plan.chunk_limit_bytes) == (DECISIONS, 100)
    assert plan.tensors == tuple(tensor for rank in ranks for tensor in rank)
    for file, rank in zip(plan.files, ranks, strict=True):
        loaded = torch.load(io.BytesIO(write(file)), weights_only=True)
        assert loaded.pop("other.weight").data_ptr() == loaded["layers.0.weight"].data_ptr()
        assert list(loaded) == [tensor.name for tensor in rank]
        assert all(torch.equal(loaded[tensor.name], zeros(tensor)) for tensor in rank)
        assert all(loaded[tensor.name].dtype == zeros(tensor).dtype for tensor in rank)


def test_shards_without_further_names_hold_what_they_are_given() -> None:
    plan = make_shard_plan([[target("a", 2), target("b", 3)]], DECISIONS)
    assert list(torch.load(io.BytesIO(write(plan.files[0])), weights_only=True)) == ["a", "b"]


@given(targets, st.integers(1, 200), st.data())
def test_every_chunk_is_a_unit_of_work(tensors: list[OutputTensor], limit: int, data: st.DataObject) -> None:
    plan = make_plan(tensors, DECISIONS, limit)
    whole = data.draw(st.sets(st.sampled_from([file.name for file in plan.files])))
    assert plan.list_units() == plan.list_units(whole) == plan.files


@given(targets, st.integers(1, 4), st.integers(1, 600), st.integers(1, 4), st.data())
def test_shards_are_worked_on_together_in_parts_up_to_the_limit_unless_they_are_wanted_whole(
    tensors: list[OutputTensor], ranks: int, limit: int, most: int, data: st.DataObject
) -> None:
    plan = make_shard_plan([tensors] * ranks, DECISIONS, limit)
    whole = data.draw(st.sets(st.sampled_from([file.name for file in plan.files])))
    for wanted, units in ((set(), plan.list_units(most=most)), (whole, plan.list_units(whole, most=most))):
        assert {unit.name for unit in units if isinstance(unit, File)} >= wanted
        for file in plan.files:
            own = [one for unit in units for one in list_sections(unit) if file_of(one) == file.name]
            held = Counter[str]()
            for one in own:
                for tensor in one.tensors:
                    held[tensor.name] += tensor.size_bytes
            assert list(held.items()) == [(tensor.name, tensor.size_bytes) for tensor in file.tensors]
        for unit in units:
            # What would be tiny is in its neighbour.
            sections = list_sections(unit)
            sizes = sorted(
                sum(tensor.size_bytes for tensor in same)
                for same in zip(*(one.tensors for one in sections), strict=True)
            )
            assert unit.name in wanted or sum(sizes[:-1]) <= limit + limit // 16
            assert len(sections) <= most
    assert plan.list_units() == plan.list_units(most=100)


def test_a_plan_s_units_are_of_shards_with_tensors_as_large() -> None:
    plan = make_shard_plan([[target("a", 2)], [target("a", 2)], [target("a", 3)]], DECISIONS)
    assert [unit.name for unit in plan.list_units()] == [
        "consolidated.00.pth to consolidated.01.pth, part 1 of 1",
        "consolidated.02.pth",
    ]
    checksums = plan.list_checksums(plan.list_units(), {"consolidated.02.pth"}, md5s=True)
    assert [(unit.file, unit.after) for unit in checksums] == [
        (f"consolidated.0{rank}.pth", (plan.list_units()[0].name,)) for rank in (0, 1)
    ]


def say(sizes: Sequence[int]) -> tuple[str, ...]:
    """Say what of tensors of so many kilobytes is larger than 4."""
    tensors = [target(f"t{number}", size * KILOBYTE // 2) for number, size in enumerate(sizes)]
    return describe_large_tensors(make_plan(tensors, DECISIONS, 4 * KILOBYTE))


@pytest.mark.parametrize(
    ("sizes", "count", "named", "more"),
    [
        ([5, 4], "1 chunk is", "t0 (5.0 kB)", 0),
        ([5, 1, 6], "2 chunks are", "t2 (6.0 kB), t0 (5.0 kB)", 0),
        ([5, 6, 7], "3 chunks are", "t2 (7.0 kB), t1 (6.0 kB), t0 (5.0 kB)", 0),
        ([5, 6, 7, 8], "4 chunks are", "t3 (8.0 kB), t2 (7.0 kB), t1 (6.0 kB)", 1),
        ([5, 9, 6, 7, 8], "5 chunks are", "t1 (9.0 kB), t4 (8.0 kB), t3 (7.0 kB)", 2),
    ],
)
def test_large_tensors_are_counted_and_the_largest_named_with_their_sizes_and_the_limit(
    sizes: list[int], count: str, named: str, more: int
) -> None:
    (words,) = say(sizes)
    assert words.startswith(f"{count} larger than 4.0 kB, ")
    assert words.endswith(f": {named}" + (f" and {more} more" if more else ""))


def test_types_that_differ_between_layers_are_named_and_others_are_not() -> None:
    names = [f"layers.{layer}.{kind}" for layer in range(3) for kind in ("weight", "norm")]
    tensors = [replace(target(name, 1), name=name) for name in names]
    widened = [replace(one, dtype=FLOAT32) if one.name.endswith("norm") else one for one in tensors]
    assert describe_plan(make_plan(widened, DECISIONS)) == ()
    assert tensors[0].dtype != FLOAT32
    odd = [replace(one, dtype=FLOAT32) if one.name == "layers.1.weight" else one for one in tensors]
    assert describe_plan(make_plan(odd, DECISIONS)) == (
        f"types differ between layers: layers.1.weight (float32, of others {tensors[0].dtype}); `dtype=` makes them one",
    )


def test_nothing_is_said_where_no_tensor_is_above_the_limit() -> None:
    assert say([4, 4, 1]) == ()


def test_a_plan_of_nothing_has_nothing() -> None:
    plan = Plan((), DECISIONS, 1, 1)
    assert (plan.tensors, plan.size_bytes, plan.large_tensors, plan.list_units()) == ((), 0, (), ())


def test_where_nothing_of_a_file_can_be_read_before_it_is_committed_chunks_are_whole_and_no_tensor_is_cut() -> (
    None
):
    chunks = replace(
        make_plan([target("a", 40), target("b", 3)], DECISIONS), part_limit_bytes=8, whole_limit_bytes=85
    )
    assert len(chunks.list_units()) == 11
    assert [unit.tensors for unit in chunks.list_checksums(chunks.list_units(), md5s=False)] == [
        ((152, 232),)
    ]
    stored = chunks.list_units(find_least=lambda _file: 1)
    assert stored == chunks.files == replace(chunks, whole_limit_bytes=86).list_units()
    assert chunks.list_checksums(stored, md5s=False) == ()
    shards = make_shard_plan([[target("a", 40), target("b", 3)]], DECISIONS, 8)
    stored = shards.list_units(find_least=lambda _file: 1)
    held = [tensor for unit in stored for one in list_sections(unit) for tensor in one.tensors]
    assert tuple(held) == shards.files[0].tensors
    assert len(shards.list_units()) == 11
