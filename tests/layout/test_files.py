"""Files of literals, tensors and a seal: what fills them, how they are split, what people are told of them."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distconv.errors import ConversionError
from distconv.layout.copies import Copy, Loop
from distconv.layout.dtypes import BFLOAT16, FLOAT32
from distconv.layout.files import (
    File,
    Literal,
    OutputTensor,
    Part,
    describe_layers,
    list_around,
    list_in_order,
    list_trailers,
)
from distconv.layout.regions import Region
from distconv.layout.stripes import list_sections, split_files


@dataclass(frozen=True)
class Checksum:
    """A tensor's CRC32, as a trailer."""

    size_bytes: int = 4

    def make(self, checksum: int) -> bytes:
        """Make it of the checksum."""
        return checksum.to_bytes(4, "little")


@dataclass(frozen=True)
class Checksums:
    """A seal of all CRC32s."""

    offset_bytes: int
    size_bytes: int

    def make(self, checksums: Sequence[int]) -> bytes:
        """Make it of the checksums."""
        return b"".join(checksum.to_bytes(4, "little") for checksum in checksums)


def tensor(name: str, elements: int) -> OutputTensor:
    region = Region("shard", 0, 2 * elements, 0, zipped=False)
    copies = (Copy(region, 0, (0,), (Loop(elements, 1, 0),)),) if elements else ()
    return OutputTensor(name, name, (elements,), BFLOAT16, FLOAT32, copies)


def file_of(
    sizes: Sequence[int], head: bytes = b"head", *, sealed: bool = True, between: bytes = b"next"
) -> File:
    """Lay tensors of so many elements one behind the other, each but the first behind some bytes."""
    offsets, literals, end = [], [Literal(0, head)], len(head)
    for number, size in enumerate(sizes):
        if sealed and number and between:
            literals.append(Literal(end, between))
            end += len(between)
        offsets.append(end)
        end += 4 * size + (4 if sealed else 0)
    tensors = tuple(tensor(f"layers.{number}.weight", size) for number, size in enumerate(sizes))
    trailers = (Checksum(),) * len(sizes) if sealed else ()
    seal = Checksums(end, 4 * len(sizes)) if sealed else None
    return File("shard.pth", tuple(literals), tensors, tuple(offsets), trailers, seal)


def bytes_of(unit: File | Part) -> dict[int, int]:
    """Write a unit in order: each byte by its offset, tensors' as their numbers."""
    found: dict[int, int] = {}
    trailers = dict(list_trailers(unit))
    ends = (start + one.size_bytes for start, one in zip(unit.offsets_bytes, unit.tensors, strict=True))
    late = {end for end, trailer in zip(ends, unit.trailers, strict=False) if trailer is None}
    for piece in list_in_order(unit):
        if isinstance(piece, Literal):
            start, content = piece.offset_bytes, piece.content
        else:
            start, size = unit.offsets_bytes[piece], unit.tensors[piece].size_bytes
            content = bytes(size)
            if start + size in trailers:
                content += trailers[start + size].make(0xFFFFFFFF)
        if found:
            # What is made of several parts is none's.
            end = max(found) + 1
            assert start == end or (end in late and start == end + Checksum().size_bytes), "not in order"
        found |= {start + place: value for place, value in enumerate(content)}
    return found


SIZES = st.lists(st.integers(1, 6), min_size=1, max_size=9)
SIZES_AND_NONE = st.lists(st.integers(0, 3), min_size=1, max_size=9)


@given(SIZES, st.binary(min_size=1, max_size=9), st.booleans())
def test_a_file_is_as_large_as_all_that_fills_it(sizes: list[int], head: bytes, sealed: bool) -> None:
    file = file_of(sizes, head, sealed=sealed)
    filled = set(range(len(head)))
    for one, start in zip(file.tensors, file.offsets_bytes, strict=True):
        filled |= set(range(start, start + 4 * one.shape[0]))
    around = 4 * len(sizes) + 4 * (len(sizes) - 1) + 4 * len(sizes)
    assert file.size_bytes == len(filled) + (around if sealed else 0)
    assert file.head == head


@given(SIZES_AND_NONE, st.data())
def test_a_tensor_of_no_elements_may_be_anywhere_in_a_file(sizes: list[int], data: st.DataObject) -> None:
    file = file_of(sizes, sealed=False)
    offsets = [
        start if size else data.draw(st.integers(0, file.size_bytes))
        for size, start in zip(sizes, file.offsets_bytes, strict=True)
    ]
    moved = File(file.name, file.literals, file.tensors, tuple(offsets))
    assert moved.size_bytes == file.size_bytes


@given(SIZES, st.integers(1, 40))
def test_parts_hold_all_tensors_in_their_order_and_as_many_as_fit(sizes: list[int], limit: int) -> None:
    file = file_of(sizes)
    parts = split_file(file, limit)
    if len(parts) == 1:
        assert parts == (file,)
        assert sum(one.size_bytes for one in file.tensors) <= limit or len(sizes) == 1
        return
    parts = [part for part in parts if isinstance(part, Part)]
    assert [one for part in parts for one in part.tensors] == list(file.tensors)
    assert [start for part in parts for start in part.offsets_bytes] == list(file.offsets_bytes)
    assert [(part.number, part.count) for part in parts] == [
        (n, len(parts)) for n in range(1, len(parts) + 1)
    ]
    for part in parts:
        assert [file.tensors[place] for place in part.places] == list(part.tensors)
        assert held(part) <= limit or len(part.tensors) == 1
    for part, following in pairwise(parts):
        assert held(part) + 4 * following.tensors[0].shape[0] > limit


def split_file(file: File, limit_bytes: int, least_bytes: int = 0) -> tuple[File | Part, ...]:
    """Split a file by itself."""
    return tuple(
        section for unit in split_files((file,), limit_bytes, least_bytes) for section in list_sections(unit)
    )


def held(part: Part) -> int:
    return sum(one.size_bytes for one in part.tensors)


@given(SIZES, st.integers(1, 40), st.integers(0, 40), st.sampled_from([b"", b"next"]))
def test_parts_and_seal_fill_their_file_one_behind_the_other_and_none_is_too_small(
    sizes: list[int], limit: int, least: int, between: bytes
) -> None:
    file = file_of(sizes, between=between)
    parts = [part for part in split_file(file, limit, least) if isinstance(part, Part)]
    if not parts:
        return
    written: dict[int, int] = {}
    for part in parts:
        run = bytes_of(part)
        assert len(run) == part.size_bytes
        assert min(run) == len(written)
        written |= run
    assert written == bytes_of(file)
    assert file.seal is not None
    assert len(written) == file.seal.offset_bytes
    assert all(held(part) >= least for part in parts)


@given(SIZES, st.booleans())
def test_all_around_the_tensors_and_their_data_is_the_file(sizes: list[int], sealed: bool) -> None:
    file = file_of(sizes, sealed=sealed)
    around = list(list_around(file, range(len(sizes)) if sealed else ()))
    covered = [(literal.offset_bytes, len(literal.content)) for literal in around]
    covered += [(start, one.size_bytes) for start, one in zip(file.offsets_bytes, file.tensors, strict=True)]
    end = 0
    for start, size in sorted(covered):
        assert start == end
        end += size
    assert end == file.size_bytes


def test_a_part_is_named_after_its_file_and_its_number_where_there_are_several() -> None:
    names = [part.name for part in split_file(file_of([2, 2, 2]), 8)]
    assert names == ["shard.pth, part 1 of 3", "shard.pth, part 2 of 3", "shard.pth, part 3 of 3"]
    assert [part.name for part in split_file(file_of([2, 2, 2]), 24)] == ["shard.pth"]


@given(SIZES, st.booleans(), st.integers(1, 40), st.integers(0, 40))
def test_parts_fill_their_file_but_for_what_is_made_of_several_also_where_tensors_are_cut(
    sizes: list[int], sealed: bool, limit: int, least: int
) -> None:
    file = file_of(sizes, sealed=sealed)
    units = split_files((file,), limit, least, cuts_tensors=True)
    parts = [part for unit in units for part in list_sections(unit) if isinstance(part, Part)]
    if not parts:
        assert units == (file,)
        return
    written: dict[int, int] = {}
    for part in parts:
        run = bytes_of(part)
        assert (len(run), min(run)) == (part.size_bytes, part.first_byte)
        assert held(part) <= max(4, limit) + 2 * least
        assert not written.keys() & run.keys()
        written |= run
    rows = Counter(place for part in parts for place in part.places)
    late = {
        file.offsets_bytes[place] + 4 * sizes[place] for place, count in rows.items() if count > 1 and sealed
    }
    missing = {start + place for start in late for place in range(4)}
    if file.seal is not None:
        missing |= set(range(file.seal.offset_bytes, file.size_bytes))
    whole = bytes_of(file)
    assert written == {place: value for place, value in whole.items() if place not in missing}
    assert sorted({*written, *missing}) == list(range(file.size_bytes))
    for place, tensor in enumerate(file.tensors):
        own = [
            one for part in parts for at, one in zip(part.places, part.tensors, strict=True) if at == place
        ]
        assert sum(one.size_bytes for one in own) == tensor.size_bytes
        assert {one.name for one in own} == {tensor.name}


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
        File("chunk", (Literal(0, b"head"),), (), (), (), Checksums(6, 1))
    assert str(raised.value) == "chunk: the seal is planned at byte 6, expected 4"
    with pytest.raises(ConversionError) as raised:
        File("chunk", (Literal(0, b"head"), Literal(17, b"x")), (tensor("a", 3),), (4,), (Checksum(),))
    assert str(raised.value) == "chunk: what is no tensor's is planned at byte 17, expected 20"


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
