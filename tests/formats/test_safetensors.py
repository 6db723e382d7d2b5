"""A safetensors file as a shard: read as the safetensors package reads it, and refused where that refuses."""

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file, save_model

from distconv.errors import InputError
from distconv.formats.safetensors import header
from distconv.formats.safetensors.header import is_safetensors, read_safetensors
from distconv.storage.base import opened, read_range
from distconv.storage.local import LocalStorage
from tests.extent import share

DTYPES = [
    "float16",
    "bfloat16",
    "float32",
    "float64",
    "bool",
    "uint8",
    "int8",
    "int64",
    "complex64",
    "uint16",
]


def read(path: Path) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    """Give each tensor's type, shape and data, as this package reads them."""
    with opened(LocalStorage(), str(path)) as reader:
        assert is_safetensors(bytes(read_range(reader, 0, 16)))
        found = read_safetensors(reader)
        for mark, record in found.values():
            assert mark.storage.size_bytes() == record.size_bytes
            assert (record.crc32, record.zipped) == (0, False)
        return {
            name: (
                mark.dtype.name,
                mark.shape,
                bytes(read_range(reader, record.offset_bytes, record.size_bytes)),
            )
            for name, (mark, record) in found.items()
        }


@settings(max_examples=share(40), deadline=None)
@given(data=st.data())
def test_every_tensor_is_where_the_package_finds_it(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    tensors = {}
    for name in data.draw(st.lists(st.text(min_size=1, max_size=6), min_size=1, max_size=5, unique=True)):
        shape = data.draw(st.lists(st.integers(0, 5), max_size=4))
        dtype = getattr(torch, data.draw(st.sampled_from(DTYPES)))
        tensors[name] = torch.randint(0, 2, shape).to(dtype)
    path = tmp_path_factory.mktemp("safetensors") / "model"
    save_file(tensors, path)
    expected = {
        name: (
            str(tensor.dtype).removeprefix("torch."),
            tuple(tensor.shape),
            tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes() if tensor.numel() else b"",
        )
        for name, tensor in tensors.items()
    }
    assert read(path) == expected


@pytest.mark.parametrize("size", [ord("P"), ord("{"), 0x80, 0x1F, ord("<") + 256])
def test_a_length_that_looks_like_another_format_is_a_length(size: int) -> None:
    assert is_safetensors(size.to_bytes(8, "little") + b'{"a":')


@pytest.mark.parametrize("head", [b"PK\x03\x04\0\0\0\0\0\0", b"\x80\x02}q\0", b'{"dim":{{{{', b"", b"{"])
def test_what_another_format_begins_with_is_none(head: bytes) -> None:
    assert not is_safetensors(head)


def test_a_shared_tensor_is_there_under_both_names(tmp_path: Path) -> None:
    model = torch.nn.Module()
    model.tok_embeddings = torch.nn.Embedding(5, 3)
    model.output = torch.nn.Linear(3, 5, bias=False)
    model.output.weight = model.tok_embeddings.weight
    save_model(model, str(tmp_path / "model.safetensors"))
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        assert len(list(file.keys())) == 1
    found = read(tmp_path / "model.safetensors")
    assert found["output.weight"] == found["tok_embeddings.weight"]


def entry(dtype: object = "F32", shape: object = (2,), offsets: object = (0, 8)) -> dict[str, object]:
    """Make a header's entry."""
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


def make(content: object, data: bytes = bytes(8)) -> bytes:
    """Make a file of a header and its data."""
    text = content if isinstance(content, bytes) else json.dumps(content).encode()
    return len(text).to_bytes(8, "little") + text + data


def test_a_header_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "consolidated.safetensors"
    path.write_bytes(make({name: entry(shape=[0], offsets=[0, 0]) for name in "ab"}, b""))
    size = path.stat().st_size - 8
    for name, limit, words in (
        (
            "LIMIT_BYTES",
            size,
            f"a safetensors file whose header has {size} bytes, expected at most {size - 1}",
        ),
        ("LIMIT_TENSORS", 2, "more than 1 tensors in one file; refused as unsafe"),
    ):
        monkeypatch.setattr(header, name, limit)
        assert set(read(path)) == {"a", "b"}
        monkeypatch.setattr(header, name, limit - 1)
        with pytest.raises(InputError) as raised:
            read(path)
        assert str(raised.value) == f"{path}: {words}"
        monkeypatch.undo()


def test_a_tensor_has_at_most_eight_axes(tmp_path: Path) -> None:
    path = tmp_path / "consolidated.safetensors"
    path.write_bytes(make({"a": entry(shape=[1] * 8, offsets=[0, 4])}, bytes(4)))
    assert read(path) == {"a": ("float32", (1,) * 8, bytes(4))}
    path.write_bytes(make({"a": entry(shape=[1] * 9, offsets=[0, 4])}, bytes(4)))
    with pytest.raises(InputError, match=r"shape .* at bytes"):
        read(path)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (make({"a": entry()}, bytes(7)), "its tensors end at byte 77, the file at 76; the file is truncated or damaged: download it again"),
        (make({"a": entry()}, bytes(9)), "its tensors end at byte 77, the file at 78; the file is truncated or damaged: download it again"),
        (make({"a": entry()})[:20], "a safetensors file whose header ends at byte 69, the file at 20; the file is truncated or damaged: download it again"),
        ((1 << 60).to_bytes(8, "little") + b"{}", "a safetensors file whose header ends at byte 1,152,921,504,606,846,984, the file at 10; the file is truncated or damaged: download it again"),
        (make(b'{"a": '), "a safetensors file whose header is not JSON (Expecting value: line 1 column 7 (char 6)); the file is damaged: download it again"),
        (make(b'{"a": 1, "a": 2}'), "a safetensors file whose header is not JSON ('a' is there twice, with different values); the file is damaged: download it again"),
        (make(b'{"a":' * 100_000), "a safetensors file whose header is not JSON (nested too deeply); the file is damaged: download it again"),
        (make({}), "a safetensors file without a tensor, expected a torch checkpoint or the tensors of a model"),
        (make({"__metadata__": {"format": "pt"}}, b""), "a safetensors file without a tensor, expected a torch checkpoint or the tensors of a model"),
        (make([1]), "a safetensors file whose header is no JSON object; the file is damaged: download it again"),
        (make({"a": 1}), "a: no object in its header; the file is damaged"),
        (make({"a": entry(dtype="F4")}), "a: stored as 'F4', which distconv does not read"),
        (make({"a": entry(dtype=["F32"])}), "a: stored as ['F32'], which distconv does not read"),
        (make({"a": entry(shape=[3])}), "a: 8 bytes of data, its shape needs 12; the file is damaged"),
        (make({"a": entry(shape=[-2])}), "a: shape [-2] at bytes [0, 8]; the file is damaged"),
        (make({"a": entry(shape=[2.0])}), "a: shape [2.0] at bytes [0, 8]; the file is damaged"),
        (make({"a": entry(shape=[True, 2])}), "a: shape [True, 2] at bytes [0, 8]; the file is damaged"),
        (make({"a": entry(shape=[1 << 62, 1 << 62])}), "a: shape [4611686018427387904, 4611686018427387904] at bytes [0, 8]; the file is damaged"),
        (make({"a": entry(shape=[1 << 60])}), "a: shape [1152921504606846976] at bytes [0, 8]; the file is damaged"),
        (make({"a": entry(shape=[1] * 99)}), "a: shape [1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1 at bytes [0, 8]; the file is damaged"),
        (make({"a": entry(offsets=[8, 0])}), "a: -8 bytes of data, its shape needs 8; the file is damaged"),
        (make({"a": entry(offsets=[4, 8])}), "a: 4 bytes of data, its shape needs 8; the file is damaged"),
        (make({"a": entry(offsets=[0])}), "a: shape [2] at bytes [0]; the file is damaged"),
        (make({"a": entry(offsets=None)}), "a: shape [2] at bytes None; the file is damaged"),
        (make({"a": entry(), "b": entry()}), "data at byte 130, expected at 138; the file is damaged: download it again"),
        (make({"a": entry(), "b": entry(offsets=[12, 20])}, bytes(20)), "data at byte 144, expected at 140; the file is damaged: download it again"),
        (make({"a": entry(offsets=[4, 12])}, bytes(12)), "data at byte 74, expected at 70; the file is damaged: download it again"),
    ],
)  # fmt: skip
def test_a_damaged_file_is_refused_as_the_package_refuses_it(
    tmp_path: Path, content: bytes, words: str
) -> None:
    path = tmp_path / "consolidated.safetensors"
    path.write_bytes(content)
    with pytest.raises(InputError) as raised, opened(LocalStorage(), str(path)) as reader:
        read_safetensors(reader)
    assert str(raised.value) == f"{path}: {words}"
    # The package takes a file without tensors, an F4 type, and more axes than anybody has.
    if not any(
        known in words for known in ("without a tensor", "F4", "shape [1, 1", "shape [11529", "shape [4611")
    ):
        with pytest.raises(SafetensorError):
            safe_open(path, "pt").__enter__()
