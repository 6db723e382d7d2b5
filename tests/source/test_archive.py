""".pth files: offsets that hold whatever wrote them, and every way in which a file can be bad."""

import io
import os
import pickle
import struct
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from distconv.errors import InputError
from distconv.source.archive import locate_data
from distconv.source.catalog import Catalog, read_catalog
from distconv.source.layouts import ShardFiles
from distconv.storage import LocalStorage, opened
from tests.checkpoints import Spec, rezip, write_checkpoint

Tensors = dict[str, torch.Tensor]
STORAGE = LocalStorage()


def read(path: Path) -> Catalog:
    """Read one file's catalog."""
    return read_catalog(STORAGE, (ShardFiles(0, (str(path),)),))


def load_by_offset(path: Path) -> Tensors:
    """Read all tensors at the offsets that the catalog gives."""
    found = {}
    with opened(STORAGE, str(path)) as reader:
        for name, view in read(path).shards[0].tensors.items():
            start = locate_data(reader, view.record)
            content = path.read_bytes()[start : start + view.record.size_bytes]
            # A little more than there is, for torch takes no empty buffer.
            storage = torch.frombuffer(bytearray(content + b"\0" * 8), dtype=getattr(torch, view.dtype.name))
            found[name] = storage.as_strided(view.shape, view.strides, view.offset)
    return found


def save(path: Path, state: object, **options: object) -> Path:
    """Write a file with torch."""
    torch.save(state, path, **options)
    return path


def make_state() -> Tensors:
    """Give a few small tensors: plain, a view into a storage, transposed, empty, a scalar."""
    base = torch.arange(60, dtype=torch.float32)
    return {
        "plain": torch.randn(4, 6).to(torch.bfloat16),
        "half": torch.randn(3, 3).to(torch.float16),
        "view": base[7:31].view(4, 6),
        "strided": base.view(6, 10)[1:4, 2:8:2],
        "transposed": torch.randn(5, 7).t(),
        "empty": torch.empty(0, 3),
        "scalar": torch.tensor(3.5),
    }


@pytest.mark.parametrize(
    "spec",
    [
        Spec(), Spec(layout="packed"), Spec(layout="transposed"), Spec(nested_state=True), Spec(tied=True),
        Spec(legacy=True), Spec(legacy=True, layout="packed"), Spec(dtype=torch.float16), Spec(dtype=torch.float32),
    ],
    ids=lambda spec: f"{spec.layout}-{spec.legacy}-{spec.dtype}",
)  # fmt: skip
def test_offsets_lead_to_what_torch_loads(tmp_path: Path, spec: Spec) -> None:
    path = write_checkpoint(tmp_path / "m", spec) / "consolidated.00.pth"
    expected = torch.load(path, weights_only=True)
    expected = expected["model"] if spec.nested_state else expected
    found = load_by_offset(path)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("protocol", [2, 3, 4])
def test_views_parameters_and_every_pickle_protocol_are_read(
    tmp_path: Path, zipped: bool, protocol: int
) -> None:
    state = make_state()
    state["parameter"] = torch.nn.Parameter(torch.randn(2, 2))
    path = save(tmp_path / "s.pth", state, _use_new_zipfile_serialization=zipped, pickle_protocol=protocol)
    found = load_by_offset(path)
    assert all(torch.equal(found[name], tensor) for name, tensor in state.items() if tensor.numel())
    assert found["empty"].shape == (0, 3)


def test_a_file_that_was_zipped_again_is_read_although_nothing_is_aligned(tmp_path: Path) -> None:
    path = save(tmp_path / "s.pth", make_state())
    rezip(path)
    found = load_by_offset(path)
    assert all(torch.equal(found[name], tensor) for name, tensor in make_plain(path).items())


def make_plain(path: Path) -> Tensors:
    """Give what torch loads, less what has no elements."""
    return {name: tensor for name, tensor in torch.load(path, weights_only=True).items() if tensor.numel()}


def test_two_names_of_one_storage_share_its_record(tmp_path: Path) -> None:
    path = write_checkpoint(tmp_path / "m", Spec("llama-3.2", tied=True)) / "consolidated.00.pth"
    tensors = read(path).shards[0].tensors
    assert tensors["tok_embeddings.weight"].record == tensors["output.weight"].record


def test_no_data_is_read(tmp_path: Path) -> None:
    path = save(tmp_path / "s.pth", {"a": torch.zeros(1 << 22)})
    tracemalloc.start()
    read(path)
    _now, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 4 << 20


# --- malformed files -------------------------------------------------------------------------


def refused(path: Path) -> str:
    """Read a file that must be refused, without much memory, by one message that names it."""
    tracemalloc.start()
    try:
        with pytest.raises(InputError) as raised:
            read(path)
        _now, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 64 << 20
    message = str(raised.value)
    assert str(path) in message
    assert len(message.splitlines()) == 1
    return message


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "an empty file"),
        (bytes(4096), "a file of zeros"),
        (b"<!DOCTYPE html><html><body>403 Forbidden</body></html>", "an HTML or XML page"),
        (b"<?xml version='1.0'?><Error><Code>AccessDenied</Code></Error>", "an HTML or XML page"),
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n",
            "a git-LFS pointer; run `git lfs pull`",
        ),
        (b"\x1f\x8b\x08\x00" + bytes(60), "a gzip archive"),
        (bytes(257).replace(b"\0", b"n") + b"ustar" + bytes(250), "a tar archive"),
        (struct.pack("<Q", 60) + b'{"a":{"dtype":"BF16"}}', "a safetensors file"),
        (b"GGUF\x03\0\0\0", "a GGUF file"),
        (b'{"dim": 4096}', "JSON text"),
        (b"\x00\x01\x02\x03hello", "unknown content (first bytes 00 01 02 03"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_no_checkpoint_is_told_by_its_content(tmp_path: Path, content: bytes, words: str) -> None:
    path = tmp_path / "consolidated.00.pth"
    path.write_bytes(content)
    assert words in refused(path)


def test_a_file_that_ends_early_is_refused_wherever_it_ends(tmp_path: Path) -> None:
    for zipped in (True, False):
        whole = save(tmp_path / "s.pth", make_state(), _use_new_zipfile_serialization=zipped).read_bytes()
        for size in (*range(1, 64, 7), *range(64, len(whole) - 1, 211), len(whole) - 1):
            path = tmp_path / "cut.pth"
            path.write_bytes(whole[:size])
            refused(path)


def change_record(path: Path, ending: str, change: Callable[[bytes], bytes]) -> Path:
    """Change one record's content."""
    rezip(path, change=lambda name, content: change(content) if name.endswith(ending) else content)
    return path


@pytest.fixture
def good(tmp_path: Path) -> Path:
    """Give a good file, to be damaged."""
    return save(tmp_path / "s.pth", {"a": torch.arange(12.0).view(3, 4), "b": torch.ones(4)})


def test_a_deflated_record_is_refused(good: Path) -> None:
    rezip(good, compression=zipfile.ZIP_DEFLATED)
    assert "is compressed or encrypted, expected stored data" in refused(good)


def test_an_encrypted_record_is_refused(good: Path) -> None:
    content = bytearray(good.read_bytes())
    at = content.find(b"PK\x01\x02")
    while at >= 0:
        content[at + 8] |= 1
        at = content.find(b"PK\x01\x02", at + 4)
    good.write_bytes(content)
    refused(good)


def test_a_zip_without_a_description_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "s.pth"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme.txt", "hello")
    assert "without one data.pkl (it holds readme.txt)" in refused(path)


def test_a_zip_with_two_descriptions_is_refused(good: Path) -> None:
    with zipfile.ZipFile(good, "a") as archive:
        archive.writestr("other/data.pkl", b"\x80\x02}.")
    assert "without one data.pkl" in refused(good)


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_record_that_is_there_twice_is_refused(good: Path) -> None:
    with zipfile.ZipFile(good, "a") as archive:
        archive.writestr("s/data/0", bytes(48))
    assert "the record s/data/0 is there twice" in refused(good)


def test_a_missing_record_is_refused(good: Path) -> None:
    target = io.BytesIO()
    with zipfile.ZipFile(good) as old, zipfile.ZipFile(target, "w") as new:
        for name in old.namelist():
            if not name.endswith("data/1"):
                new.writestr(name, old.read(name))
    good.write_bytes(target.getvalue())
    assert "no record s/data/1, which its tensors need" in refused(good)


def test_a_record_of_another_size_is_refused(good: Path) -> None:
    assert "storage has 40 bytes, expected 48" in refused(
        change_record(good, "data/0", lambda content: content[:-8])
    )


def test_a_big_endian_file_is_refused(good: Path) -> None:
    assert "byte order b'big', expected b'little'" in refused(
        change_record(good, "byteorder", lambda _: b"big")
    )


def test_a_big_endian_legacy_file_is_refused(tmp_path: Path) -> None:
    path = save(tmp_path / "s.pth", {"a": torch.ones(4)}, _use_new_zipfile_serialization=False)
    path.write_bytes(path.read_bytes().replace(b"little_endianq\x02\x88", b"little_endianq\x02\x89"))
    assert "big-endian machine" in refused(path)


def test_a_record_header_that_is_not_where_the_directory_says_is_found_with_the_data(good: Path) -> None:
    content = bytearray(good.read_bytes())
    with zipfile.ZipFile(good) as archive:
        at = archive.getinfo("s/data/0").header_offset
    content[at : at + 4] = bytes(4)
    good.write_bytes(content)
    view = read(good).shards[0].tensors["a"]
    with (
        opened(STORAGE, str(good)) as reader,
        pytest.raises(InputError, match="no record header of stored data"),
    ):
        locate_data(reader, view.record)


class Call:
    """Pickles as a call of any function."""

    def __init__(self, function: object, *arguments: object) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> object:
        return self.call


def with_pickle(path: Path, content: bytes) -> Path:
    """Put another pickle into a checkpoint."""
    return change_record(path, "data.pkl", lambda _: content)


@pytest.mark.parametrize(
    ("evil", "words"),
    [
        (Call(os.system, "touch evil"), "posix.system"),
        (Call(eval, "1+1"), "builtin"),
        (Call(bytearray, 2**31), "builtin"),
        (Call(getattr, "a", "b"), "builtin"),
        (Call(torch.load, "x"), "torch.serialization"),
        (torch.nn.Linear(2, 2), "NEWOBJ"),
    ],
    ids=["system", "eval", "bytearray", "getattr", "torch.load", "module"],
)
def test_a_pickle_that_calls_anything_is_refused_and_named(good: Path, evil: object, words: str) -> None:
    message = refused(with_pickle(good, pickle.dumps({"a": evil}, protocol=2)))
    assert words in message
    assert "refused as unsafe" in message
    assert not Path("evil").exists()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"\x80\x02N.", "NoneType, expected a dict of tensors"),
        (b"\x80\x02].", "list, expected a dict of tensors"),
        (b"\x80\x02}X\x01\x00\x00\x00aK\x01s.", "no tensors in it"),
        (b"\x80\x02" + b"(" * 10, "not a readable torch checkpoint"),
        (b"\x80\x02r\xff\xff\xff\x7fN.", "memo jumps to"),
        (b"\x80\x02Nr\xff\xff\xff\x0f.", "memo jumps to"),
        (b"\x80\x02" + b"]" * 5000 + b"a" * 4999 + b".", ""),
        (b"\x80\x04\x8e\xff\xff\xff\xff\xff\xff\xff\x7f", ""),
        (b"\x80\x02B\xff\xff\xff\x7f", ""),
        (b"\x80\x02cbuiltins\neval\n.", "builtins.eval"),
        (b"\x80\x04\x8c\x02os\x8c\x06system\x93.", "os.system"),
        (b"\x80\x02(ios\nsystem\n.", "INST"),
        (b"\x80\x02\x82\x01.", "EXT1"),
    ],
    ids=["none", "list", "no tensors", "marks", "empty stack", "memo", "deep", "huge bytes", "huge string", "global", "stack global", "inst", "extension"],
)  # fmt: skip
def test_a_strange_pickle_is_refused(good: Path, content: bytes, words: str) -> None:
    assert words in refused(with_pickle(good, content))


def pickle_tensor(offset: int, shape: tuple[int, ...], strides: tuple[int, ...], elements: int = 12) -> bytes:
    """Pickle a state of one tensor with any numbers."""

    class Rebuilt:
        def __reduce__(self) -> object:
            storage = Stored(elements)
            return torch._utils._rebuild_tensor_v2, (storage, offset, shape, strides, False, {})

    class Stored:
        def __init__(self, elements: int) -> None:
            self.elements = elements

    class Pickler(pickle.Pickler):
        def persistent_id(self, value: object) -> object:
            if isinstance(value, Stored):
                return ("storage", torch.FloatStorage, "0", "cpu", value.elements)
            return None

    target = io.BytesIO()
    Pickler(target, protocol=2).dump({"a": Rebuilt()})
    return target.getvalue()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (pickle_tensor(0, (3, 5), (5, 1)), "reaches to byte 60 of a storage of 48 bytes"),
        (pickle_tensor(1, (3, 4), (4, 1)), "reaches to byte 52"),
        (pickle_tensor(0, (3, 4), (2**40, 1)), "reaches to byte"),
        (pickle_tensor(-1, (3, 4), (4, 1)), "is not a count"),
        (pickle_tensor(0, (3, 4), (-4, 1)), "is not a count"),
        (pickle_tensor(0, (-3, 4), (4, 1)), "is not a count"),
        (pickle_tensor(0, (2**70,), (1,)), "is not a count"),
        (pickle_tensor(0, (3, 4), (1,)), "shape (3, 4) and strides (1,)"),
        (pickle_tensor(0, (3, 4), (4, 1), elements=2**60), "expected 4,611,686,018,427,387,904"),
        (pickle_tensor(0, (3, 4), (4, 1), elements=-12), "is not a count"),
        (pickle_tensor(2**62, (0,), (1,)), "reaches to byte"),
    ],
)
def test_impossible_views_are_refused(good: Path, content: bytes, words: str) -> None:
    assert words in refused(with_pickle(good, content))


def test_a_possible_view_is_read(good: Path) -> None:
    view = read(with_pickle(good, pickle_tensor(2, (2, 5), (5, 1)))).shards[0].tensors["a"]
    assert (view.offset, view.shape, view.strides) == (2, (2, 5), (5, 1))


def test_all_shards_findings_come_at_once(tmp_path: Path, good: Path) -> None:
    for name in ("one.pth", "two.pth"):
        (tmp_path / name).write_bytes(b"<html>")
    shards = tuple(
        ShardFiles(number, (str(path),))
        for number, path in enumerate((tmp_path / "one.pth", good, tmp_path / "two.pth"))
    )
    with pytest.raises(InputError) as raised:
        read_catalog(STORAGE, shards)
    assert [line.split(":")[0] for line in str(raised.value).splitlines()] == [
        str(tmp_path / "one.pth"),
        str(tmp_path / "two.pth"),
    ]


def test_a_tensor_in_two_parts_of_a_rank_is_refused(tmp_path: Path, good: Path) -> None:
    again = tmp_path / "again.pth"
    again.write_bytes(good.read_bytes())
    with pytest.raises(InputError, match=r"again\.pth: a is also in .*s\.pth"):
        read_catalog(STORAGE, (ShardFiles(0, (str(good), str(again))),))


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> list[bytes]:
    """Give a small good file of each kind."""
    folder = tmp_path_factory.mktemp("samples")
    state = {"a": torch.arange(12.0).view(3, 4), "b": torch.ones(2, dtype=torch.bfloat16)}
    return [
        save(folder / "s.pth", state, _use_new_zipfile_serialization=zipped).read_bytes()
        for zipped in (True, False)
    ]


@settings(max_examples=400, deadline=None)
@given(data=st.data())
def test_mutated_files_are_read_or_refused_and_nothing_else(
    samples: list[bytes], tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    content = bytearray(data.draw(st.sampled_from(samples)))
    for _ in range(data.draw(st.integers(1, 6))):
        at = data.draw(st.integers(0, len(content) - 1))
        match data.draw(st.sampled_from(["flip", "set", "cut", "insert", "remove"])):
            case "flip":
                content[at] ^= 1 << data.draw(st.integers(0, 7))
            case "set":
                content[at] = data.draw(
                    st.sampled_from([0, 1, 0x7F, 0x80, 0xFF, ord("."), ord("("), ord("c")])
                )
            case "cut":
                del content[max(1, at) :]
            case "insert":
                content[at:at] = data.draw(st.binary(max_size=8))
            case _:
                del content[at : at + data.draw(st.integers(1, 8))]
        content = content or bytearray(1)
    path = tmp_path_factory.getbasetemp() / "mutated.pth"
    path.write_bytes(content)
    try:
        read(path)
    except InputError as error:
        assert str(path) in str(error)  # noqa: PT017  either way is right
