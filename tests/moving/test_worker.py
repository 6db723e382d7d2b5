"""Making one chunk from a checkpoint."""

import errno
import itertools
import json
import mmap
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
import xxhash

from distconv.errors import InputError, Interrupted, OutputError
from distconv.layout.dtypes import DType
from distconv.layout.files import File
from distconv.moving import sections
from distconv.moving.devices import Finish, HostDevice, Scales
from distconv.moving.job import Job, Preconditions, Receipt
from distconv.moving.pieces import Piece
from distconv.moving.worker import write_file
from distconv.output.acquisition import owned
from distconv.planning.plan import Plan
from distconv.storage.base import Buffer
from distconv.storage.local import LocalStorage
from distconv.storage.local_files import LocalReader, LocalWriter
from distconv.storage.memory import HUGE_PAGE_BYTES
from distconv.verbs.checkpoint import decide, plan_conversion, read_checkpoint
from distconv.verbs.plan import read_bytes
from tests import reference
from tests.checkpoints import Spec
from tests.moving.fakes import find_partials

Write = Callable[[Spec], Path]

SPEC = Spec(family="llama-2", dim=128, heads=8, kv_heads=4, shards=2, layers=2)
LIMIT = 200_000
BLOCK_SIZES = [1 << 10, 5000, 1 << 16, (1 << 20) + 1, 4 << 20, 64 << 20]


def plan_folder(source: Path, dtype: str = "auto") -> Plan:
    """Plan the conversion of a checkpoint."""
    checkpoint = read_checkpoint(LocalStorage(), str(source))
    decisions, _notes = decide(checkpoint)
    return plan_conversion(checkpoint, decisions, dtype, LIMIT)


@pytest.fixture
def copied(checkpoint: Write, tmp_path: Path) -> Path:
    """Give a checkpoint that may be damaged."""
    return shutil.copytree(checkpoint(SPEC), tmp_path / "source")


@pytest.fixture
def output(tmp_path: Path) -> Path:
    """Give an empty folder."""
    folder = tmp_path / "output"
    folder.mkdir()
    return folder


def run_chunk(
    output: Path,
    chunk: File,
    advance: Callable[[int], None] = lambda _size_bytes: None,
    stopped: Callable[[], bool] = lambda: False,
    block_bytes: int = 4096,
    recorded: Receipt | None = None,
) -> Receipt:
    """Make one chunk with the CPU."""
    digests = {} if recorded is None else {recorded.chunk: recorded.digests}
    return write_file(Job(LocalStorage(), str(output), "cpu", block_bytes, digests), chunk, advance, stopped)


def run_plan(output: Path, plan: Plan, block_bytes: int) -> tuple[list[Receipt], dict[str, bytes]]:
    """Make all chunks; gives the files' bytes as well."""
    output.mkdir(exist_ok=True)
    receipts = [run_chunk(output, chunk, block_bytes=block_bytes) for chunk in plan.files]
    return receipts, {path.name: path.read_bytes() for path in sorted(output.iterdir())}


@pytest.mark.product
@pytest.mark.parametrize("dtype", ["auto", "float16", "float32"])
@pytest.mark.parametrize("layout", ["separate", "packed", "transposed"])
def test_blocks_from_1_kb_to_64_mb_give_the_tensors_of_the_reference(
    checkpoint: Write, tmp_path: Path, layout: str, dtype: str
) -> None:
    spec = replace(SPEC, layout=layout)
    source = checkpoint(spec)
    plan = plan_folder(source, dtype)
    assert len(plan.files) > 3
    _receipts, first = run_plan(tmp_path / "first", plan, BLOCK_SIZES[0])
    found = {
        name: tensor for content in first.values() for name, tensor in safetensors.torch.load(content).items()
    }
    expected = reference.convert(source, spec)
    assert sorted(found) == sorted(expected)
    for name, tensor in expected.items():
        wanted = tensor if dtype == "auto" else tensor.to(getattr(torch, dtype))
        assert found[name].dtype == wanted.dtype
        assert torch.equal(found[name], wanted), name
    for block_bytes in BLOCK_SIZES[1:]:
        _receipts, again = run_plan(tmp_path / str(block_bytes), plan, block_bytes)
        assert again == first


@pytest.mark.parametrize("block_bytes", BLOCK_SIZES)
def test_each_byte_of_a_plain_checkpoint_is_read_and_written_once(
    checkpoint: Write, tmp_path: Path, block_bytes: int
) -> None:
    plan = plan_folder(checkpoint(SPEC))
    receipts, files = run_plan(tmp_path / "out", plan, block_bytes)
    assert sum(receipt.bytes_read for receipt in receipts) == read_bytes(plan)
    assert [receipt.bytes_written for receipt in receipts] == [len(content) for content in files.values()]
    assert [receipt.chunk for receipt in receipts] == list(files)


@pytest.mark.parametrize("block_bytes", [1 << 10, 64 << 20])
def test_digests_are_those_of_the_file_and_of_each_tensors_bytes_in_it(
    checkpoint: Write, output: Path, block_bytes: int
) -> None:
    chunk = max(plan_folder(checkpoint(SPEC)).files, key=lambda chunk: len(chunk.tensors))
    made = run_chunk(output, chunk, block_bytes=block_bytes)
    content = (output / chunk.name).read_bytes()
    assert made.digests.file == xxhash.xxh3_128_hexdigest(content)
    start = 8 + int.from_bytes(content[:8], "little")
    table = json.loads(content[8:start])
    extents = sorted(entry["data_offsets"] for name, entry in table.items() if name != "__metadata__")
    assert len(extents) > 1
    assert made.digests.tensors == tuple(
        xxhash.xxh3_128_hexdigest(content[start + first : start + end]) for first, end in extents
    )
    # What is there is read to the same digests.
    assert run_chunk(output, chunk, recorded=made).kept


def test_all_bytes_of_a_chunk_are_told(checkpoint: Write, output: Path) -> None:
    for chunk in plan_folder(checkpoint(SPEC)).files:
        told: list[int] = []
        receipt = run_chunk(output, chunk, told.append)
        assert sum(told) == chunk.size_bytes == receipt.bytes_written
        assert min(told) > 0
        assert max(told) <= max(4096, len(chunk.head))


def test_a_finished_chunk_is_kept_and_its_bytes_are_told(checkpoint: Write, output: Path) -> None:
    chunk = plan_folder(checkpoint(SPEC)).files[0]
    made = run_chunk(output, chunk)
    before = (output / chunk.name).stat()
    told: list[int] = []
    kept = run_chunk(output, chunk, told.append, recorded=made)
    assert kept == Receipt(chunk.name, made.digests, 0, 0, kept=True)
    assert kept.became_infinite == 0
    after = (output / chunk.name).stat()
    assert (before.st_ino, before.st_mtime_ns) == (after.st_ino, after.st_mtime_ns)
    assert sum(told) == chunk.size_bytes
    assert [path.name for path in output.iterdir()] == [chunk.name]


def test_a_stop_while_a_finished_chunk_is_read_leaves_it_as_it_is(checkpoint: Write, output: Path) -> None:
    chunk = plan_folder(checkpoint(SPEC)).files[0]
    made = run_chunk(output, chunk)
    before = (output / chunk.name).stat()
    told: list[int] = []
    with pytest.raises(Interrupted):
        run_chunk(output, chunk, told.append, lambda: len(told) > 1, recorded=made)
    assert sum(told) < chunk.size_bytes
    after = (output / chunk.name).stat()
    assert (before.st_ino, before.st_mtime_ns) == (after.st_ino, after.st_mtime_ns)
    assert [path.name for path in output.iterdir()] == [chunk.name]


@dataclass(frozen=True, slots=True)
class LateStorage(LocalStorage):
    """Local files of which one goes away between being found and being opened."""

    gone: Path

    def open(self, path: str) -> LocalReader:
        """Open a file."""
        if path == str(self.gone):
            self.gone.unlink(missing_ok=True)
        return LocalStorage.open(self, path)


@pytest.mark.parametrize("late", [False, True])
def test_a_recorded_chunk_that_is_gone_is_made_again(checkpoint: Write, output: Path, late: bool) -> None:
    chunk = plan_folder(checkpoint(SPEC)).files[0]
    made = run_chunk(output, chunk)
    path = output / chunk.name
    whole = path.read_bytes()
    if not late:
        path.unlink()
    storage = LateStorage(path) if late else LocalStorage()
    job = Job(storage, str(output), "cpu", recorded={chunk.name: made.digests})
    assert not write_file(job, chunk, lambda _size_bytes: None, lambda: False).kept
    assert path.read_bytes() == whole


class RingDevice:
    """The host, with memory for several blocks on their way, each used again in its turn."""

    block_bytes = largest_block_bytes = 4096

    def __init__(self, depth: int) -> None:
        self.depth = depth
        self._hosts = itertools.cycle([HostDevice() for _ in range(depth)])

    def begin(self, size_bytes: int, place_bytes: int) -> memoryview:
        """Give the memory of the next one."""
        self._host = next(self._hosts)
        return self._host.begin(size_bytes, place_bytes)

    def submit(
        self,
        content: memoryview,
        pieces: Sequence[Piece],
        elements: int,
        stored: DType,
        dtype: DType,
        scales: Scales | None = None,
    ) -> Finish:
        """Put the pieces together."""
        return self._host.submit(content, pieces, elements, stored, dtype, scales)


@pytest.mark.product
@pytest.mark.parametrize("dtype", ["auto", "float32"])
@pytest.mark.parametrize("depth", [1, 2, 3, 100])
def test_however_many_blocks_are_on_their_way_each_is_written_once_and_in_order(
    checkpoint: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, depth: int, dtype: str
) -> None:
    plan = plan_folder(checkpoint(replace(SPEC, layout="packed")), dtype)
    expected = run_plan(tmp_path / "host", plan, 4096)
    monkeypatch.setattr(sections, "lane_device", lambda _name: nullcontext(RingDevice(depth)))
    assert run_plan(tmp_path / "ring", plan, 4096) == expected


def test_a_chunk_that_nobody_recorded_is_not_read_before_it_is_made_again(
    checkpoint: Write, output: Path
) -> None:
    chunk = plan_folder(checkpoint(SPEC)).files[0]
    run_chunk(output, chunk)
    told: list[int] = []
    assert not run_chunk(output, chunk, told.append).kept
    assert sum(told) == chunk.size_bytes
    assert min(told) > 0, "nothing is taken back"


def cut_short(content: bytes) -> bytes:
    """Drop the last byte."""
    return content[:-1]


def make_long(content: bytes) -> bytes:
    """Add a byte."""
    return content + b"\0"


def drop_all(_content: bytes) -> bytes:
    """Leave an empty file."""
    return b""


def change_header(content: bytes) -> bytes:
    """Name another type in the header, which has the same length."""
    return content.replace(b'"BF16"', b'"F16" ', 1)


@pytest.mark.parametrize("damage", [cut_short, make_long, change_header, drop_all])
def test_a_chunk_of_another_size_or_header_is_made_again(
    checkpoint: Write, output: Path, damage: Callable[[bytes], bytes]
) -> None:
    chunk = plan_folder(checkpoint(SPEC)).files[0]
    made = run_chunk(output, chunk)
    path = output / chunk.name
    whole = path.read_bytes()
    path.write_bytes(damage(whole))
    assert path.read_bytes() != whole
    receipt = run_chunk(output, chunk, recorded=made)
    assert not receipt.kept
    assert path.read_bytes() == whole
    assert find_partials(output) == []


def test_of_two_attempts_at_one_chunk_the_first_to_end_is_committed_once(
    checkpoint: Write, output: Path
) -> None:
    chunk = plan_folder(checkpoint(SPEC)).files[0]
    committed: list[int] = []
    made: list[Receipt] = []

    def overtake(_size_bytes: int) -> None:
        if not committed:
            committed.append(0)
            made.append(run_chunk(output, chunk))
            committed[0] = (output / chunk.name).stat().st_ino

    run_chunk(output, chunk, overtake)
    assert [path.name for path in output.iterdir()] == [chunk.name]
    assert [(output / chunk.name).stat().st_ino] == committed
    assert run_chunk(output, chunk, recorded=made[0]).kept


def flip_last_bit(content: bytes) -> bytes:
    """Change data, not size or header."""
    return content[:-1] + bytes([content[-1] ^ 1])


@pytest.mark.parametrize("is_recorded", [False, True])
def test_a_chunk_whose_data_is_not_what_was_recorded_is_made_again(
    checkpoint: Write, output: Path, is_recorded: bool
) -> None:
    chunk = plan_folder(checkpoint(SPEC)).files[0]
    made = run_chunk(output, chunk)
    path = output / chunk.name
    whole = path.read_bytes()
    path.write_bytes(flip_last_bit(whole))
    told: list[int] = []
    receipt = run_chunk(output, chunk, told.append, recorded=made if is_recorded else None)
    assert (receipt.kept, receipt.digests) == (False, made.digests)
    assert sum(told) == chunk.size_bytes, "what was read in vain is taken back"
    assert path.read_bytes() == whole
    assert find_partials(output) == []


@pytest.mark.parametrize("change", [bytes, flip_last_bit, cut_short, drop_all])
def test_a_receipt_vouches_for_what_stands_there_whoever_was_first(
    checkpoint: Write, output: Path, change: Callable[[bytes], bytes]
) -> None:
    """As where an attempt that was taken for dead, or anybody else, has published meanwhile."""
    chunk = plan_folder(checkpoint(SPEC)).files[0]
    whole = run_chunk(output, chunk)
    path = output / chunk.name
    content = path.read_bytes()
    path.unlink()
    placed: list[os.stat_result] = []

    def overtake(_size_bytes: int) -> None:
        if not placed:
            path.write_bytes(change(content))
            placed.append(path.stat())

    receipt = run_chunk(output, chunk, overtake)
    assert (receipt.kept, receipt.digests) == (False, whole.digests)
    assert path.read_bytes() == content
    assert (path.stat().st_ino == placed[0].st_ino) == (change is bytes), (
        "committed once where it is the same"
    )
    assert find_partials(output) == []


def test_an_attempt_that_was_overtaken_and_then_stops_leaves_the_whole_file(
    checkpoint: Write, output: Path
) -> None:
    """As of a worker that was taken for dead, and wakes up when its chunk has been made by another."""
    chunk = plan_folder(checkpoint(SPEC)).files[0]
    made: list[Receipt] = []
    with pytest.raises(Interrupted):
        run_chunk(
            output, chunk, lambda _size_bytes: None, lambda: made.append(run_chunk(output, chunk)) is None
        )
    assert [path.name for path in output.iterdir()] == [chunk.name]
    assert run_chunk(output, chunk, recorded=made[0]).kept


def test_a_source_that_is_cut_short_before_it_is_opened_is_bad_input(copied: Path, output: Path) -> None:
    plan = plan_folder(copied)
    for path in copied.glob("*.pth"):
        os.truncate(path, 5000)
    with pytest.raises(InputError, match=r"consolidated\.\d\d\.pth: .*the file is truncated"):
        run_plan(output, plan, 4096)
    assert find_partials(output) == []


def test_a_source_that_shrinks_while_it_is_read_is_bad_input(copied: Path, output: Path) -> None:
    chunk = plan_folder(copied).files[0]
    told: list[int] = []

    def shrink(size_bytes: int) -> None:
        told.append(size_bytes)
        if len(told) == 2:
            for path in copied.glob("*.pth"):
                os.truncate(path, 5000)

    with pytest.raises(InputError, match=r"consolidated\.\d\d\.pth: written, replaced or touched"):
        run_chunk(output, chunk, shrink)
    assert len(told) == 2
    assert list(output.iterdir()) == []


def test_a_source_that_is_gone_is_an_error_of_its_own(copied: Path, output: Path) -> None:
    chunk = plan_folder(copied).files[0]
    for path in copied.glob("*.pth"):
        path.unlink()
    with pytest.raises(FileNotFoundError):
        run_chunk(output, chunk)
    assert list(output.iterdir()) == []


def damage_header(path: Path, offset_bytes: int, content: bytes) -> None:
    """Overwrite bytes of a file."""
    with path.open("r+b") as file:
        file.seek(offset_bytes)
        file.write(content)


@pytest.mark.parametrize(
    ("place", "content"),
    [(0, b"PKxx"), (8, b"\x08\x00"), (6, b"\x01\x00"), (26, b"\xff\xff\xff\xff")],
    ids=["signature", "compression", "encryption", "length of the name"],
)
def test_a_damaged_local_header_in_the_zip_is_found(
    copied: Path, output: Path, place: int, content: bytes
) -> None:
    plan = plan_folder(copied)
    # The last of the file, so that a longer name leads beyond its end.
    record = max(
        (copy.region for tensor in plan.tensors for copy in tensor.copies),
        key=lambda record: (record.path, record.offset_bytes),
    )
    assert record.zipped
    damage_header(Path(record.path), record.offset_bytes + place, content)
    with pytest.raises(InputError, match=r"consolidated\.01\.pth: .*the file is (damaged|truncated)"):
        run_plan(output, plan, 4096)
    assert find_partials(output) == []


@pytest.mark.parametrize("blocks", [0, 1, 7])
def test_a_stop_mid_way_leaves_no_file(checkpoint: Write, output: Path, blocks: int) -> None:
    chunk = plan_folder(checkpoint(SPEC)).files[0]
    answers: Iterator[bool] = iter([False] * blocks + [True])
    told: list[int] = []
    with pytest.raises(Interrupted):
        run_chunk(output, chunk, told.append, lambda: next(answers))
    assert len(told) == 1 + blocks
    assert list(output.iterdir()) == []


def test_what_telling_raises_leaves_no_file(checkpoint: Write, output: Path) -> None:
    chunk = plan_folder(checkpoint(SPEC)).files[0]

    def interrupt(_size_bytes: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_chunk(output, chunk, interrupt)
    assert list(output.iterdir()) == []


class FullWriter(LocalWriter):
    """A disk that is full after the header."""

    def write_at(self, offset_bytes: int, buffer: Buffer) -> None:
        """Write at the beginning only."""
        if offset_bytes:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        super().write_at(offset_bytes, buffer)


@dataclass(frozen=True, slots=True)
class WritingStorage(LocalStorage):
    """Local files that are written in another way."""

    writer: type[LocalWriter]

    def begin(self, path: str, size_bytes: int) -> LocalWriter:
        """Begin a file that is written so."""
        return self.writer(path, size_bytes)


@dataclass(frozen=True, slots=True)
class CountingStorage(LocalStorage):
    """Local files of which each opening is remembered."""

    opened: list[LocalReader]

    def open(self, path: str) -> LocalReader:
        """Open a file."""
        self.opened.append(LocalStorage.open(self, path))
        return self.opened[-1]


@pytest.mark.parametrize(
    ("damage", "commits"), [(None, [False]), (bytes, [False]), (cut_short, [False, True])]
)
def test_a_chunk_takes_a_name_that_is_free_and_replaces_only_what_is_not_the_same(
    checkpoint: Write, output: Path, damage: Callable[[bytes], bytes] | None, commits: list[bool]
) -> None:
    chunk = plan_folder(checkpoint(SPEC)).files[0]
    path = output / chunk.name
    if damage is not None:
        run_chunk(output, chunk)
        path.write_bytes(damage(path.read_bytes()))
    found: list[bool] = []

    class CommitWriter(LocalWriter):
        """Notes how it is committed: who replaces may destroy what another attempt has just committed."""

        def commit(self, *, replace: bool = False) -> bool:
            """Note, and commit."""
            found.append(replace)
            return super().commit(replace=replace)

    job = Job(WritingStorage(CommitWriter), str(output), "cpu")
    write_file(job, chunk, lambda _size_bytes: None, lambda: False)
    assert found == commits


def test_a_source_is_opened_once_for_a_chunk_and_closed(checkpoint: Write, output: Path) -> None:
    plan = plan_folder(checkpoint(replace(SPEC, layout="transposed")))
    chunk = max(plan.files, key=lambda chunk: len(chunk.tensors))
    assert len(chunk.tensors) > 1
    before = os.listdir("/proc/self/fd")
    opened: list[LocalReader] = []
    job = Job(CountingStorage(opened), str(output), "cpu", 4096)
    write_file(job, chunk, lambda _size_bytes: None, lambda: False)
    sources = {copy.region.path for tensor in chunk.tensors for copy in tensor.copies}
    assert sorted(reader.path for reader in opened) == sorted(sources)
    assert os.listdir("/proc/self/fd") == before


@pytest.mark.parametrize("layout", ["separate", "packed", "transposed"])
def test_no_more_is_read_than_is_counted_but_for_where_each_record_begins(
    checkpoint: Write, output: Path, monkeypatch: pytest.MonkeyPatch, layout: str
) -> None:
    plan = plan_folder(checkpoint(replace(SPEC, layout=layout)))
    read: list[int] = []
    read_into = LocalReader.read_into

    def count(reader: LocalReader, offset_bytes: int, buffer: memoryview) -> None:
        read.append(len(buffer))
        read_into(reader, offset_bytes, buffer)

    monkeypatch.setattr(LocalReader, "read_into", count)
    counted = sum(run_chunk(output, chunk).bytes_read for chunk in plan.files)
    records = [{c.region for tensor in chunk.tensors for c in tensor.copies} for chunk in plan.files]
    assert counted <= sum(read) <= counted + 100 * sum(map(len, records))


def test_a_worker_names_the_source_that_it_does_not_see(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    first.write_bytes(b"abc")
    second.write_bytes(b"")
    sizes = {str(first): 3, str(second): 0}
    assert Preconditions(sizes).find_missing_source(LocalStorage()) is None
    assert Preconditions().find_missing_source(LocalStorage()) is None
    for size_bytes in (2, 4):
        missing = Preconditions(sizes | {str(first): size_bytes}).find_missing_source(LocalStorage())
        assert missing == f"{first} has 3 bytes, expected {size_bytes}"
    second.unlink()
    assert Preconditions(sizes).find_missing_source(LocalStorage()) == f"{second} is not there"
    second.symlink_to(second)
    assert "Too many levels of symbolic links" in (
        Preconditions(sizes).find_missing_source(LocalStorage()) or ""
    )


def test_a_worker_tells_output_from_a_folder_of_the_same_name(tmp_path: Path) -> None:
    storage = LocalStorage()
    assert Preconditions().find_other_output(storage) is None
    with owned(storage, str(tmp_path), print) as mine:
        assert Preconditions(owner=mine).find_other_output(storage) is None
        other = replace(mine, token="another's")
        words = f"{mine.path} is not there, or another conversion's"
        assert Preconditions(owner=other).find_other_output(storage) == words
    assert Preconditions(owner=mine).find_other_output(storage) == words


def test_a_chunk_is_committed_by_who_owns_the_folder_alone(checkpoint: Write, output: Path) -> None:
    chunk = plan_folder(checkpoint(SPEC)).files[0]
    storage = LocalStorage()
    with owned(storage, str(output), print) as mine:
        job = Job(
            storage, str(output), "cpu", preconditions=Preconditions(owner=replace(mine, token="another's"))
        )
        with pytest.raises(OutputError, match="took it over"):
            write_file(job, chunk, lambda _size_bytes: None, lambda: False)
        assert [path.name for path in output.iterdir()] == [Path(mine.path).name]
        mended = replace(job, preconditions=Preconditions(owner=mine))
        assert not write_file(mended, chunk, lambda _size_bytes: None, lambda: False).kept
    assert [path.name for path in output.iterdir()] == [chunk.name]


def test_a_disk_that_fills_up_leaves_no_file(checkpoint: Write, output: Path) -> None:
    chunk = plan_folder(checkpoint(SPEC)).files[0]
    job = Job(WritingStorage(FullWriter), str(output), "cpu")
    with pytest.raises(OSError, match="No space left on device"):
        write_file(job, chunk, lambda _size_bytes: None, lambda: False)
    assert list(output.iterdir()) == []


def test_large_blocks_lie_in_their_page_as_in_the_file(checkpoint: Write, output: Path) -> None:
    plan = plan_folder(checkpoint(replace(SPEC, dim=1024, multiple_of=256, layers=1)))
    places = []

    class PlaceWriter(LocalWriter):
        """Notes where in its page a large block lies, in memory and in the file."""

        def write_at(self, offset_bytes: int, buffer: Buffer) -> None:
            """Note the places, and write."""
            if len(buffer) >= HUGE_PAGE_BYTES:
                address = np.frombuffer(buffer, dtype=np.uint8).__array_interface__["data"][0]
                places.append((address % mmap.PAGESIZE, offset_bytes % mmap.PAGESIZE))
            super().write_at(offset_bytes, buffer)

    job = Job(WritingStorage(PlaceWriter), str(output), "cpu")
    for chunk in plan.files:
        write_file(job, chunk, lambda _size_bytes: None, lambda: False)
    # Straight, permuted and joined tensors, none of which a header lets begin at a page.
    assert len(places) > 5
    assert all(in_memory == in_file for in_memory, in_file in places)
    assert {in_file for _in_memory, in_file in places} - {0}


def test_values_that_became_infinite_are_counted_for_each_chunk(copied: Path, output: Path) -> None:
    shard = copied / "consolidated.00.pth"
    state = torch.load(shard, weights_only=True)
    state["layers.0.attention.wq.weight"][3, 5] = 1e5
    state["norm.weight"][7] = float("inf")
    torch.save(state, shard)
    plan = plan_folder(copied, "float16")
    infinite = {chunk.name: run_chunk(output, chunk).became_infinite for chunk in plan.files}
    holder = next(c.name for c in plan.files for t in c.tensors if t.source == "layers.0.attention.wq.weight")
    assert {name: count for name, count in infinite.items() if count} == {holder: 1}
