"""The shard that is planned of a rank's tensors is the file that torch saves of them."""

import io
import zlib

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from distconv.formats.meta.shards import default_part_bytes, lay_out_shard, shard_name
from distconv.layout.copies import Copy, Loop
from distconv.layout.dtypes import DType
from distconv.layout.files import OutputTensor, list_around
from distconv.layout.regions import Region
from tests.formats.shards import DTYPES, State, same_bytes, storages_of

NAME = "archive.pth"
"""What torch calls a shard that it saves into no file."""
MB = 1_000_000
described = st.lists(st.tuples(st.integers(1, 40), st.sampled_from(tuple(DTYPES))), max_size=8)


def flat(name: str, elements: int, dtype: DType) -> OutputTensor:
    """Plan a tensor of one axis, which is read from one place."""
    region = Region("source", 0, elements * dtype.size_bytes, 0, zipped=False)
    return OutputTensor(
        name, name, (elements,), dtype, dtype, (Copy(region, 0, (0,), (Loop(elements, 1, 0),)),)
    )


@same_bytes
@given(described, st.data())
def test_literals_data_and_seal_of_a_shard_are_what_torch_saves(
    found: list[tuple[int, torch.dtype]], data: st.DataObject
) -> None:
    state: State = {
        f"layers.{number}.weight": torch.randn(elements).to(dtype)
        for number, (elements, dtype) in enumerate(found)
    }
    planned = [flat(name, len(tensor), DTYPES[tensor.dtype]) for name, tensor in state.items()]
    kept = data.draw(st.lists(st.sampled_from(list(state)), max_size=3)) if state else []
    shared = {f"alias.{number}": name for number, name in enumerate(kept)}
    contents = storages_of(state)
    file = lay_out_shard(NAME, planned, shared)
    found_bytes = bytearray(file.size_bytes)
    for literal in list_around(file, [zlib.crc32(content) for content in contents]):
        found_bytes[literal.offset_bytes : literal.offset_bytes + len(literal.content)] = literal.content
    for start, content in zip(file.offsets_bytes, contents, strict=True):
        found_bytes[start : start + len(content)] = content
    aliases = {alias: state[name].detach() for alias, name in shared.items()}
    assert bytes(found_bytes) == saved(state | aliases)
    assert (file.name, file.tensors) == (NAME, tuple(planned))


def saved(state: State) -> bytes:
    """Let torch save it."""
    stream = io.BytesIO()
    torch.save(state, stream)
    return stream.getvalue()


def test_ranks_have_two_digits_as_in_metas_downloads() -> None:
    assert [shard_name(rank) for rank in (0, 7, 15)] == [
        "consolidated.00.pth",
        "consolidated.07.pth",
        "consolidated.15.pth",
    ]


@pytest.mark.parametrize(
    ("total_bytes", "parts"),
    [(0, 0), (1, 1), (13_000 * MB, 51), (140_000 * MB, 256), (256_000 * MB, 256), (810_000 * MB, 810)],
)
def test_a_model_has_256_parts_of_which_none_is_tiny_and_none_is_large(total_bytes: int, parts: int) -> None:
    assert -(-total_bytes // default_part_bytes(total_bytes)) == parts


@given(st.integers(0, 1 << 42))
def test_parts_have_at_least_256_mb_and_at_most_a_gb(total_bytes: int) -> None:
    part_bytes = default_part_bytes(total_bytes)
    assert isinstance(part_bytes, int)
    assert 256 * MB <= part_bytes <= 1000 * MB
