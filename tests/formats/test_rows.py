"""What is taken of a checkpoint's ``.metadata`` in rows is what each opcode gives, and what torch's own classes hold."""

import pickle
import pickletools
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import (
    BytesStorageMetadata,
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)

from distconv.errors import InputError
from distconv.formats.dcp import metadata as formats
from distconv.formats.dcp.metadata import LANGUAGE, read_metadata
from distconv.formats.meta import rows
from distconv.formats.meta.machine import Machine
from distconv.storage.local import LocalStorage

extents = st.integers(0, 300) | st.sampled_from([255, 256, 65_535, 65_536, (1 << 31) - 1, 1 << 31, 1 << 40])
names = st.text(
    st.characters(min_codepoint=32, max_codepoint=126), min_size=1, max_size=300
) | st.sampled_from(["größe", "a" * 255, "a" * 256])
places = st.integers(0, 1 << 50)
FILES = ("__0_0.distcp", "__1_0.distcp", "__2_0.distcp")
MANY = 40
"""Boxes of a tensor: the first row is taken opcode by opcode, and the second one teaches what the others look like."""


def make_metadata(shapes: dict[str, list[int]], offset: int, *, shared: bool) -> Metadata:
    """Make what ranks save of tensors, of each a row; a size is one object in several places, or none is."""
    held: dict[str, TensorStorageMetadata | BytesStorageMetadata] = {"step": BytesStorageMetadata()}
    stored = {MetadataIndex("step"): _StorageInfo("__0_0.distcp", 0, 9)}
    for name, shape in shapes.items():
        chunks = []
        for rank in range(MANY):
            first, sizes = torch.Size([rank, *[0] * len(shape)]), torch.Size([1, *shape])
            chunks.append(ChunkStorageMetadata(first, sizes))
            index = MetadataIndex("".join(list(name)), first if shared else torch.Size(list(first)), rank)
            stored[index] = _StorageInfo(FILES[rank % len(FILES)], offset + rank, offset + 1)
        held[name] = TensorStorageMetadata(
            TensorProperties(torch.bfloat16), torch.Size([MANY, *shape]), chunks
        )
    return Metadata(held, {}, stored)


def read(folder: Path, content: bytes) -> formats.Metadata:
    (folder / ".metadata").write_bytes(content)
    return read_metadata(LocalStorage(), str(folder / ".metadata"))


def read_or_refuse(folder: Path, content: bytes) -> formats.Metadata | None:
    try:
        return read(folder, content)
    except InputError:
        return None


def step_by_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(formats, "LANGUAGE", replace(LANGUAGE, rows={}))


@given(
    shapes=st.dictionaries(names, st.lists(extents.filter(bool), max_size=5), min_size=1, max_size=3),
    offset=places,
    shared=st.booleans(),
    protocol=st.integers(2, 5),
)
def test_metadata_says_what_torchs_own_classes_hold(
    tmp_path_factory: pytest.TempPathFactory,
    shapes: dict[str, list[int]],
    offset: int,
    shared: bool,
    protocol: int,
) -> None:
    made = make_metadata(shapes, offset, shared=shared)
    found = read(tmp_path_factory.getbasetemp(), pickle.dumps(made, protocol))
    assert list(found.tensors) == list(shapes)
    assert found.others == ("step",)
    for name, tensor in found.tensors.items():
        entry = made.state_dict_metadata[name]
        assert isinstance(entry, TensorStorageMetadata)
        assert tensor.shape == tuple(entry.size)
        for chunk, wanted in zip(tensor.chunks, entry.chunks, strict=True):
            place = made.storage_data[MetadataIndex(name, wanted.offsets)]
            assert (chunk.first, chunk.sizes) == (tuple(wanted.offsets), tuple(wanted.sizes))
            assert chunk[2:] == (place.relative_path, place.offset, place.length)


@pytest.mark.parametrize("shared", [False, True])
def test_most_objects_are_taken_in_a_step(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, shared: bool
) -> None:
    content = pickle.dumps(make_metadata({"a": [3], "b": [3, 70_000]}, 1 << 20, shared=shared), 4)
    saved: list[int] = []
    monkeypatch.setattr(Machine, "save_steps", lambda _machine, count: saved.append(count))
    assert len(read(tmp_path, content).tensors["b"].chunks) == MANY
    # Of each tensor a row for each box, and for each place of one, but for the first two or three; they count as 12 and 28.
    assert 2 * (12 + 28) * (MANY - 3) <= sum(saved) <= 2 * (12 + 28) * MANY


def test_too_many_objects_are_refused_in_rows_too(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    content = pickle.dumps(make_metadata({"a": [3]}, 300, shared=True), 4)
    for taken in (LANGUAGE.rows, {}):
        monkeypatch.setattr(formats, "LANGUAGE", replace(LANGUAGE, most_steps=500, rows=taken))
        with pytest.raises(InputError, match="more than 500 steps"):
            read(tmp_path, content)


def test_a_tuple_of_another_length_is_refused_in_rows_too(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    content = pickle.dumps(make_metadata({"a": [3]}, 300, shared=False), 4)
    ends = [match.start() for match in re.finditer(rb"\x86\x94\x85\x94R", content)][-5:]
    wrong = [content[:at] + code + content[at + 1 :] for at in ends for code in (b"\x85", b"\x87")]
    assert [read_or_refuse(tmp_path, one) for one in wrong] == [None] * 10
    step_by_step(monkeypatch)
    assert [read_or_refuse(tmp_path, one) for one in wrong] == [None] * 10


def test_whoever_changes_the_memo_again_and_again_teaches_no_more_than_a_few_rows(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    objects = pickle.dumps(make_metadata({"a": [3]}, 300, shared=False), 4).split(b"ub")
    kept = b"\x8c\x05other" + b"r" + (300).to_bytes(4, "little") + b"0"
    learned: list[object] = []
    learn = rows._learn
    monkeypatch.setattr(rows, "_learn", lambda *given: learned.append(learn(*given)) or learned[-1])
    counts = []
    for phase in range(4):
        # Behind every second place of a box, if that is where this phase begins.
        places = range(MANY + 4 + phase, len(objects) - 2, 4)
        changed = [(kept if at in places else b"") + one for at, one in enumerate(objects)]
        learned.clear()
        found = read_or_refuse(tmp_path, b"ub".join(changed))
        counts.append(sum(pattern is not None for pattern in learned))
        with pytest.MonkeyPatch.context() as patch:
            step_by_step(patch)
            assert read_or_refuse(tmp_path, b"ub".join(changed)) == found
    assert 10 < max(counts) <= 16, counts


@given(
    changes=st.lists(
        st.tuples(st.floats(0, 1, exclude_max=True), st.binary(max_size=3), st.integers(0, 3)), max_size=3
    ),
    shared=st.booleans(),
)
def test_what_is_damaged_is_read_or_refused_as_it_is_opcode_by_opcode(
    tmp_path_factory: pytest.TempPathFactory, changes: list[tuple[float, bytes, int]], shared: bool
) -> None:
    content = pickle.dumps(make_metadata({"a": [3], "b": []}, 300, shared=shared), 4)
    for place, inserted, removed in changes:
        at = int(place * len(content))
        content = content[:at] + inserted + content[at + removed :]
    folder = tmp_path_factory.getbasetemp()
    found = read_or_refuse(folder, content)
    with pytest.MonkeyPatch.context() as patch:
        step_by_step(patch)
        assert read_or_refuse(folder, content) == found


def test_what_is_kept_in_place_of_something_counts_from_there_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = pickle.dumps(make_metadata({"a": [3]}, 300, shared=False), 4)
    opcodes = [(opcode.name, argument) for opcode, argument, _at in pickletools.genops(content)]
    first = opcodes.index(("SHORT_BINUNICODE", "__1_0.distcp"))
    number = [name for name, _argument in opcodes[:first]].count("MEMOIZE")
    # Behind the place of a box another name is kept by the first one's number, and taken from the stack again.
    at = content.rindex(b"ub", 0, len(content) - len(content) // 6) + len(b"ub")
    other = b"\x8c\x05other" + b"r" + number.to_bytes(4, "little") + b"0"
    content = content[:at] + other + content[at:]
    found = read(tmp_path, content)
    files = [chunk.file for chunk in found.tensors["a"].chunks]
    assert files.count("other") > 2 < files.count("__1_0.distcp")
    step_by_step(monkeypatch)
    assert read(tmp_path, content) == found
