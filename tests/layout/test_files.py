"""Files of literals, tensors and a seal: what fills them, how they are split, what people are told of them."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distconv.errors import ConversionError
from distconv.layout.copies import Copy, Loop
from distconv.layout.dtypes import BFLOAT16, FLOAT32
from distconv.layout.files import File, Literal, OutputTensor, Part, describe_layers, split_file
from distconv.layout.regions import Region


@dataclass(frozen=True)
class Trailer:
    """A seal of some bytes at some places."""

    ranges: tuple[tuple[int, int], ...]

    def make(self, checksums: Sequence[int]) -> tuple[Literal, ...]:
        """Make it of nothing."""
        return ()


def tensor(name: str, elements: int) -> OutputTensor:
    region = Region("shard", 0, 2 * elements, 0, zipped=False)
    copies = (Copy(region, 0, (0,), (Loop(elements, 1, 0),)),) if elements else ()
    return OutputTensor(name, name, (elements,), BFLOAT16, FLOAT32, copies)


def file_of(sizes: Sequence[int], head: bytes = b"head", *, sealed: bool = True) -> File:
    """Lay tensors of so many elements one behind the other."""
    offsets, end = [], len(head)
    for size in sizes:
        offsets.append(end)
        end += 4 * size
    tensors = tuple(tensor(f"layers.{number}.weight", size) for number, size in enumerate(sizes))
    seal = Trailer(((end, 3), (end + 3, 5))) if sealed else None
    return File("shard.pth", (Literal(0, head),), tensors, tuple(offsets), seal)


SIZES = st.lists(st.integers(1, 6), min_size=1, max_size=9)
SIZES_AND_NONE = st.lists(st.integers(0, 3), min_size=1, max_size=9)


@given(SIZES, st.binary(min_size=1, max_size=9), st.booleans())
def test_a_file_is_as_large_as_all_that_fills_it(sizes: list[int], head: bytes, sealed: bool) -> None:
    file = file_of(sizes, head, sealed=sealed)
    filled = set(range(len(head)))
    for one, start in zip(file.tensors, file.offsets_bytes, strict=True):
        filled |= set(range(start, start + 4 * one.shape[0]))
    assert file.size_bytes == len(filled) + (8 if sealed else 0)
    assert file.head == head


@given(SIZES_AND_NONE, st.data())
def test_a_tensor_of_no_elements_may_be_anywhere_in_a_file(sizes: list[int], data: st.DataObject) -> None:
    file = file_of(sizes)
    offsets = [
        start if size else data.draw(st.integers(0, file.size_bytes))
        for size, start in zip(sizes, file.offsets_bytes, strict=True)
    ]
    moved = File(file.name, file.literals, file.tensors, tuple(offsets), file.seal)
    assert moved.size_bytes == file.size_bytes


@given(SIZES, st.integers(1, 40))
def test_parts_hold_all_tensors_in_their_order_and_as_many_as_fit(sizes: list[int], limit: int) -> None:
    file = file_of(sizes)
    parts = [part for part in split_file(file, limit) if isinstance(part, Part)]
    assert [one for part in parts for one in part.tensors] == list(file.tensors)
    assert [start for part in parts for start in part.offsets_bytes] == list(file.offsets_bytes)
    assert [(part.number, part.count) for part in parts] == [
        (n, len(parts)) for n in range(1, len(parts) + 1)
    ]
    for part in parts:
        assert file.tensors[part.first] is part.tensors[0]
        assert part.size_bytes == sum(4 * one.shape[0] for one in part.tensors)
        assert part.size_bytes <= limit or len(part.tensors) == 1
    for part, following in pairwise(parts):
        assert part.size_bytes + 4 * following.tensors[0].shape[0] > limit


def test_a_part_is_named_after_its_file_and_its_number_where_there_are_several() -> None:
    names = [part.name for part in split_file(file_of([2, 2, 2]), 8)]
    assert names == ["shard.pth, part 1 of 3", "shard.pth, part 2 of 3", "shard.pth, part 3 of 3"]
    assert [part.name for part in split_file(file_of([2, 2, 2]), 24)] == ["shard.pth"]


def test_a_file_without_a_seal_is_not_split() -> None:
    file = file_of([5, 5], sealed=False)
    assert split_file(file, 1) == (file,)


@pytest.mark.parametrize(
    ("offset", "message"),
    [
        (7, "chunk: a is planned at byte 7, expected 4"),
        (1_234_567, "chunk: a is planned at byte 1,234,567, expected 4"),
        (3, "chunk: a is planned at byte 3, expected 4"),
    ],
)
def test_a_tensor_that_is_not_where_the_one_before_ends_is_named(offset: int, message: str) -> None:
    with pytest.raises(ConversionError) as raised:
        File("chunk", (Literal(0, b"head"),), (tensor("a", 3),), (offset,))
    assert str(raised.value) == message


def test_literals_and_seals_that_are_misplaced_are_told_apart() -> None:
    with pytest.raises(ConversionError) as raised:
        File("chunk", (Literal(0, b"head"), Literal(5, b"more")), (), ())
    assert str(raised.value) == "chunk: what is no tensor's is planned at byte 5, expected 4"
    with pytest.raises(ConversionError) as raised:
        File("chunk", (Literal(0, b"head"),), (), (), Trailer(((6, 1),)))
    assert str(raised.value) == "chunk: the seal is planned at byte 6, expected 4"


def test_as_many_offsets_as_tensors_are_needed() -> None:
    for offsets in ((), (4, 16)):
        with pytest.raises(ValueError, match="zip"):
            File("chunk", (Literal(0, b"head"),), (tensor("a", 3),), offsets)


@pytest.mark.parametrize(
    ("names", "layers"),
    [
        (["model.layers.7.mlp.up_proj.weight"], "7"),
        (["layers.7.attention.wq.weight", "layers.7.attention.wk.weight"], "7"),
        (["model.layers.10.a", "model.layers.9.a", "model.layers.8.a"], "8-10"),
        (["model.embed_tokens.weight", "model.layers.0.a"], "0+"),
        (["model.layers.30.a", "model.layers.31.a", "model.norm.weight"], "30-31+"),
        (["model.embed_tokens.weight", "lm_head.weight"], "embed_tokens, lm_head"),
        (["tok_embeddings.weight"], "tok_embeddings"),
    ],
)
def test_the_layers_of_a_file_are_told_by_their_numbers(names: list[str], layers: str) -> None:
    assert describe_layers(iter(names)) == layers
    assert File("chunk", (), tuple(tensor(name, 0) for name in names), (0,) * len(names)).layers == layers
