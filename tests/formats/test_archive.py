""".pth files: offsets that hold whatever wrote them, and every way in which a file can be bad."""

import argparse
import io
import os
import pickle
import random
import struct
import time
import tracemalloc
import zipfile
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from distconv.errors import InputError
from distconv.formats.meta.archive import (
    locate_data,
    read_archive,
)
from distconv.formats.meta.catalog import Catalog, read_catalog
from distconv.formats.meta.layouts import ShardFiles
from distconv.storage.base import opened
from distconv.storage.local import LocalStorage
from tests.checkpoints import Spec, rezip, write_checkpoint
from tests.extent import share
from tests.fuzz import MemoryReader
from tests.programs import PLACES, TENSOR, VALUES, every_file, make_good, make_legacy, make_zip, text

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
            start = locate_data(reader, view.region)
            content = path.read_bytes()[start : start + view.region.size_bytes]
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
    assert tensors["tok_embeddings.weight"].region == tensors["output.weight"].region


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
        (b"", "it is an empty file, expected a torch checkpoint"),
        (bytes(4096), "it is a file of zeros, as a broken download leaves, expected a torch checkpoint"),
        (
            b"<!DOCTYPE html><html><body>403 Forbidden</body></html>",
            "it is an HTML or XML page, as an expired download link gives, expected a torch checkpoint",
        ),
        (
            b"\r\n <HTML>",
            "it is an HTML or XML page, as an expired download link gives, expected a torch checkpoint",
        ),
        (
            b"<?xml version='1.0'?><Error><Code>AccessDenied</Code></Error>",
            "it is an HTML or XML page, as an expired download link gives, expected a torch checkpoint",
        ),
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n",
            "it is a git-LFS pointer; run `git lfs pull` to get the file, expected a torch checkpoint",
        ),
        (
            b"\x1f\x8b\x08\x00" + bytes(60),
            "it is a gzip archive; unpack it first, expected a torch checkpoint",
        ),
        (
            bytes(257).replace(b"\0", b"n") + b"ustar" + bytes(250),
            "it is a tar archive; unpack it first, expected a torch checkpoint",
        ),
        (
            struct.pack("<Q", 60) + b'{"a":{"dtype":"BF16"}}',
            "a safetensors file whose header ends at byte 68, the file at 30; the file is truncated or damaged: download it again",
        ),
        (b"GGUF\x03\0\0\0", "it is a GGUF file, expected a torch checkpoint"),
        (b'{"dim": 4096}', "it is JSON text, expected a torch checkpoint"),
        (
            b"\x00\x01\x02\x03hello",
            "it is unknown content (first bytes 00 01 02 03 68 65 6c 6c), expected a torch checkpoint",
        ),
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
    message = refused(good)
    assert message.startswith(f"{good}: the record s/")
    assert message.endswith(
        " is compressed or encrypted, expected stored data; save the checkpoint again with torch.save"
    )


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
    words = "expected a torch checkpoint"
    assert refused(path) == f"{path}: a zip archive without one data.pkl (it holds readme.txt), {words}"
    with zipfile.ZipFile(path, "w") as archive:
        for name in "abcde":
            archive.writestr(name, "")
    assert refused(path) == f"{path}: a zip archive without one data.pkl (it holds a, b, c, d), {words}"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a", "")
    path.write_bytes(path.read_bytes()[:31] + bytes(99))
    assert refused(path) == (
        f"{path}: not a readable torch checkpoint (BadZipFile: File is not a zip file); {DAMAGED}: download it again"
    )


def test_a_zip_with_two_descriptions_is_refused(good: Path) -> None:
    with zipfile.ZipFile(good, "a") as archive:
        archive.writestr("other/data.pkl", b"\x80\x02}.")
    assert "without one data.pkl" in refused(good)


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_record_that_is_there_twice_is_refused(good: Path) -> None:
    with zipfile.ZipFile(good, "a") as archive:
        archive.writestr("s/data/0", bytes(48))
    assert refused(good) == f"{good}: the record s/data/0 is there twice"


def test_a_missing_record_is_refused(good: Path) -> None:
    target = io.BytesIO()
    with zipfile.ZipFile(good) as old, zipfile.ZipFile(target, "w") as new:
        for name in old.namelist():
            if not name.endswith("data/1"):
                new.writestr(name, old.read(name))
    good.write_bytes(target.getvalue())
    assert "no record s/data/1, which its tensors need" in refused(good)


def test_a_record_of_another_size_is_refused(good: Path) -> None:
    message = refused(change_record(good, "data/0", lambda content: content[:-8]))
    assert message == f"{good}: a: its storage has 40 bytes, expected 48"


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
        locate_data(reader, view.region)


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
        (torch.nn.Linear(2, 2), "torch.nn.modules.linear.Linear"),
    ],
    ids=["system", "eval", "bytearray", "getattr", "torch.load", "module"],
)
def test_a_pickle_that_calls_anything_is_refused_and_named(good: Path, evil: object, words: str) -> None:
    message = refused(with_pickle(good, pickle.dumps({"a": evil}, protocol=2)))
    assert words in message
    assert message.endswith(
        ", which a state dict of tensors does not need; refused as unsafe: save model.state_dict() alone"
    )
    assert not Path("evil").exists()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"\x80\x02N.", "it holds None, expected a dict of tensors: save model.state_dict()"),
        (b"\x80\x02].", "it holds a list, expected a dict of tensors: save model.state_dict()"),
        (b"\x80\x02}X\x01\x00\x00\x00aK\x01s.", "no tensors in it; its keys are a"),
        (b"\x80\x02" + b"(" * 10, "its description is cut off at byte 12; not a readable torch checkpoint: the file is truncated or damaged: download it again"),
        (b"\x80\x02r\xff\xff\xff\x7fN.", "its description makes no sense at byte 7 (list index out of range); not a readable torch checkpoint: the file is truncated or damaged: download it again"),
        (b"\x80\x02Nr\xff\xff\xff\x0f.", "its description keeps something as 268,435,455; refused as unsafe"),
        (b"\x80\x02" + b"]" * 5000 + b"a" * 4999 + b".", "it holds a list, expected a dict of tensors: save model.state_dict()"),
        (b"\x80\x04\x8e\xff\xff\xff\xff\xff\xff\xff\x7f", "the pickle uses BINBYTES8, which no state dict needs; refused as unsafe"),
        (b"\x80\x02B\xff\xff\xff\x7f", "its description holds 2,147,483,647 bytes in one piece; refused as unsafe"),
        (b"\x80\x02cbuiltins\neval\n.", "the pickle names builtins.eval, which a state dict of tensors does not need; refused as unsafe: save model.state_dict() alone"),
        (b"\x80\x04\x8c\x02os\x8c\x06system\x93.", "the pickle names os.system, which a state dict of tensors does not need; refused as unsafe: save model.state_dict() alone"),
        (b"\x80\x02(ios\nsystem\n.", "the pickle uses INST, which no state dict needs; refused as unsafe"),
        (b"\x80\x02\x82\x01.", "the pickle uses EXT1, which no state dict needs; refused as unsafe"),
    ],
    ids=["none", "list", "no tensors", "marks", "empty stack", "memo", "deep", "huge bytes", "huge string", "global", "stack global", "inst", "extension"],
)  # fmt: skip
def test_a_strange_pickle_is_refused(good: Path, content: bytes, words: str) -> None:
    assert refused(with_pickle(good, content)) == f"{good}: {words}"


def outcome(content: bytes, path: Path) -> tuple[str, float]:
    """Read a file; gives the one line by which it was refused, or nothing, and the seconds it took."""
    path.write_bytes(content)
    started = time.process_time()
    try:
        read(path)
        message = ""
    except InputError as error:
        message = str(error)
    return message, time.process_time() - started


@pytest.mark.slow
def test_a_hostile_value_in_any_place_is_read_or_refused_at_once_and_changes_nothing(tmp_path: Path) -> None:
    good = save(tmp_path / "good.pth", make_state())
    before = read(good)
    # Others each time, where not all are tried.
    every = list(every_file(300))
    for name, content in random.sample(every, share(len(every))):
        message, seconds = outcome(content, tmp_path / "s.pth")
        assert seconds < 2, name
        assert message.isprintable(), name
        assert not message or message.startswith(str(tmp_path)), name
        assert read(good) == before, name


@pytest.mark.first(8)
@pytest.mark.parametrize("name", VALUES)
def test_a_pickle_of_any_size_takes_little_time_and_memory_and_never_ends_the_process(
    good: Path, name: str
) -> None:
    content = make_zip(b"\x80\x02" + PLACES["beside"](VALUES[name](share(100_000))) + b".", good.read_bytes())
    tracemalloc.start()
    _message, seconds = outcome(content, good)
    _now, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    # Following allocations takes longer than the reading itself.
    assert seconds < 10
    assert peak < 256 << 20


@dataclass
class Settings:
    """What trainers write of their own beside the tensors."""

    rate: float = 0.1


def test_what_trainers_keep_beside_the_tensors_is_let_go(tmp_path: Path) -> None:
    module = torch.nn.Linear(3, 4)
    optimizer = torch.optim.AdamW(module.parameters())
    module(torch.ones(3)).sum().backward()
    optimizer.step()
    state = module.state_dict() | {
        "optimizer": optimizer.state_dict(), "args": argparse.Namespace(rate=0.1, names=["a"]), "epoch": 3,
        "loss": np.float64(0.5), "rng": np.random.default_rng(0).random(3), "random": random.getstate(),
        "device": torch.device("cpu"), "folder": Path("x"), "counts": Counter("abc"), "seen": {1, 2},
        "by layer": defaultdict(int, {"a": 1}), (1, 2): "a tuple as key", 7: "a number", "text": "é" * 5000,
        "torch": torch.__version__,
    }  # fmt: skip
    for protocol in (2, 3):
        found = load_by_offset(save(tmp_path / "s.pth", state, pickle_protocol=protocol))
        assert set(found) == {"weight", "bias"}
        assert all(torch.equal(found[name], module.state_dict()[name]) for name in found)


def test_a_class_of_the_trainers_own_is_refused_by_name(tmp_path: Path) -> None:
    path = save(tmp_path / "s.pth", {"a": torch.ones(2), "settings": Settings()})
    assert f"names {__name__}.Settings, which" in refused(path)


DAMAGED = "the file is truncated or damaged"


def test_a_typed_tensor_needs_a_type(good: Path) -> None:
    plain = b"\x80\x02}" + text("a") + TENSOR.replace(b"_v2", b"_v3").removesuffix(b"tR")
    assert list(read(with_pickle(good, plain + b"ctorch\nfloat32\ntRs.")).shards[0].tensors) == ["a"]
    assert refused(with_pickle(good, plain + text("float32") + b"tRs.")) == (
        f"{good}: a tensor without a dtype"
    )


def test_a_legacy_description_of_any_length_is_read_or_refused(tmp_path: Path) -> None:
    for mebibytes in (0.9, 1.1, 4.5, 15):
        entries = b"".join(
            text(f"k{number}") + text("x" * 100_000) for number in range(int(mebibytes * 10.48))
        )
        path = tmp_path / "s.pth"
        path.write_bytes(make_legacy({3: b"}(" + entries + text("a") + TENSOR + b"u"}))
        assert list(read(path).shards[0].tensors) == ["a"]
    path.write_bytes(make_legacy({3: b"}(" + (text("k") + text("x" * 1_000_000)) * 17 + b"u"}))
    assert "its description is larger than" in refused(path)


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


def write_records(path: Path, names: Iterable[str], offset: int = 0) -> Path:
    """Write a zip file that is a table of records and little else; all begin at the same byte."""
    table = b"".join(
        struct.pack("<4s6H3L5H2L", b"PK\x01\x02", 20, 20, 0x800, 0, 0, 0, 0, 0, 0, len(name), 0, 0, 0, 0, 0, offset) + name
        for name in (name.encode() for name in names)
    )  # fmt: skip
    head = b"PK\x03\x04" + bytes(26)
    path.write_bytes(head + table + struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 0, 0, len(table), len(head), 0))
    return path


def test_a_table_of_a_million_records_is_refused_before_it_is_read(tmp_path: Path) -> None:
    path = write_records(tmp_path / "s.pth", (f"{number:07}" for number in range(1_000_000)))
    started = time.process_time()
    assert "table of records is larger than 4,194,304 bytes" in refused(path)
    assert time.process_time() - started < 2


def test_records_that_share_bytes_are_refused(good: Path, tmp_path: Path) -> None:
    assert "begins inside of another one" in refused(write_records(tmp_path / "t.pth", "ab"))
    content = bytearray(good.read_bytes())
    with zipfile.ZipFile(good) as archive:
        first, second = (archive.getinfo(f"s/data/{key}").header_offset for key in "01")
    at = content.rindex(struct.pack("<L", second))
    content[at : at + 4] = struct.pack("<L", first + 8)
    good.write_bytes(content)
    assert "s/data/1 begins inside of another one" in refused(good)


def test_names_of_records_are_shown_short_and_defused(tmp_path: Path) -> None:
    message = refused(write_records(tmp_path / "s.pth", ["\x1b[2J\n\u202e" + "x" * 60_000]))
    assert message.isprintable()
    assert "it holds \\x1b[2J\\n\\u202exxx" in message
    assert len(message) < 500


def test_a_damaged_description_is_told_by_its_checksum(good: Path) -> None:
    content = good.read_bytes()
    assert content.count(b"X\x01\0\0\0a") == 1
    good.write_bytes(content.replace(b"X\x01\0\0\0a", b"X\x01\0\0\0c"))
    assert "s/data.pkl differs from its CRC32" in refused(good)


def test_sizes_beyond_the_file_are_refused(good: Path) -> None:
    content = good.read_bytes()
    at = content.rindex(b"PK\x01\x02", 0, content.rindex(b"s/data/1"))
    for size in (2**31, 2**32 - 2):
        claimed = struct.pack("<LL", size, size)
        good.write_bytes(content[: at + 20] + claimed + content[at + 28 :])
        refused(good)


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


@settings(max_examples=share(400), deadline=None)
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


@pytest.mark.parametrize("more", [0, 1])
def test_a_file_holds_no_more_tensors_than_a_model_and_its_optimizer_may_have(more: int) -> None:
    entries = b"".join(text(str(number)) + b"h\xff" for number in range(2**15 + more))
    state = b"\x80\x02}(" + text("a") + b"}" + text("0") + TENSOR + b"q\xffs" + b"u}(" + entries + b"u."
    reader = MemoryReader(make_zip(state, make_good()))
    if more:
        with pytest.raises(InputError, match="more than 32,768 tensors in one file"):
            read_archive(reader)
    else:
        assert len(read_archive(reader)) == 2**15
