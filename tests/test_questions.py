"""What only data can tell is compared by lanes and workers, once, and remembered by OUTPUT's records."""

import os
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import distconv
from distconv.errors import Interrupted, OutputError
from distconv.formats.views import TensorView
from distconv.layout.dtypes import DTYPES
from distconv.layout.regions import Region
from distconv.layout.units import Question, split_question
from distconv.moving import worker
from distconv.moving.compare import answer, target_of_view
from distconv.moving.devices import HostDevice
from distconv.moving.job import Job, Receipt
from distconv.output.folder import Folder
from distconv.storage.local import LocalStorage
from distconv.storage.local_files import LocalReader
from tests.checkpoints import Spec
from tests.faults import digest_folder, interrupted_at
from tests.moving.fakes import RecordingProgress

TIED = Spec("llama-3.2", heads=8, kv_heads=2, copied=True)
DOUBLED = Spec("llama-3.1", dim=128, heads=16, kv_heads=16, shards=16, doubled_kv=True)
ELEMENTS = 64
BLOCK_BYTES = HostDevice.block_bytes


def view(path: Path, offset: int, shape: tuple[int, ...], strides: tuple[int, ...]) -> TensorView:
    """View a file of 16-bit elements."""
    region = Region(str(path), 0, path.stat().st_size, 0, zipped=False)
    return TensorView("name", region, DTYPES["bfloat16"], offset, shape, strides)


def ask(*pairs: tuple[TensorView, TensorView], stopped: Callable[[], bool] = lambda: False) -> Receipt:
    """Compare pairs as a worker does."""
    targets = tuple((target_of_view(left), target_of_view(right)) for left, right in pairs)
    return answer(Job(LocalStorage(), "", "cpu"), Question("question", targets), lambda _size: None, stopped)


@given(
    numbers=st.lists(st.integers(0, 1), min_size=2 * ELEMENTS, max_size=2 * ELEMENTS),
    rows=st.sampled_from([1, 2, 4, 8]),
    turned=st.booleans(),
    flip=st.integers(0, 3 * ELEMENTS),
)
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_two_views_are_equal_where_torch_says_so(
    tmp_path: Path, numbers: list[int], rows: int, turned: bool, flip: int
) -> None:
    """One lies as it is read, the other perhaps by columns; the second file repeats the first but for one element."""
    columns = ELEMENTS // rows
    first = torch.tensor(numbers[:ELEMENTS], dtype=torch.int16).reshape(rows, columns)
    stored = (first.T if turned else first).contiguous().clone()
    if flip < ELEMENTS:
        stored.view(-1)[flip] ^= 1
    for name, content in (("left", first), ("right", stored)):
        (tmp_path / name).write_bytes(content.numpy().tobytes())
    second = stored.T if turned else stored
    found = ask((
        view(tmp_path / "left", 0, (rows, columns), (columns, 1)),
        view(tmp_path / "right", 0, (rows, columns), second.stride()),
    ))  # fmt: skip
    assert found.equal is torch.equal(first, second)


def test_tensors_of_other_shapes_differ_and_none_of_them_is_read(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(bytes(64))
    found = ask((view(tmp_path / "file", 0, (2, 4), (4, 1)), view(tmp_path / "file", 0, (4, 2), (2, 1))))
    assert (found.equal, found.bytes_read) == (False, 0)


def test_a_comparison_ends_at_the_first_difference_and_stops_between_blocks(tmp_path: Path) -> None:
    size = 8 * BLOCK_BYTES
    (tmp_path / "left").write_bytes(bytes(size))
    (tmp_path / "right").write_bytes(b"\1" + bytes(size - 1))
    left, right = (view(tmp_path / name, 0, (size // 2048, 1024), (1024, 1)) for name in ("left", "right"))
    differing = ask((left, right), (left, left))
    assert not differing.equal
    assert differing.bytes_read <= 2 * BLOCK_BYTES
    asked: list[int] = []

    def stopped() -> bool:
        asked.append(0)
        return len(asked) == 3

    with pytest.raises(Interrupted):
        ask((left, left), stopped=stopped)


@given(sizes=st.lists(st.integers(1, 50), min_size=1, max_size=20))
def test_a_large_question_is_split_into_all_its_pairs_with_names_of_their_own(sizes: list[int]) -> None:
    region = Region("", 0, 100, 0, zipped=False)
    views = [TensorView("name", region, DTYPES["bfloat16"], 0, (size,), (1,)) for size in sizes]
    pairs = tuple((target_of_view(one), target_of_view(one)) for one in views)
    parts = split_question(Question("heads", pairs), 100)
    assert tuple(pair for part in parts for pair in part.pairs) == pairs
    assert all(part.size_bytes <= 100 or len(part.pairs) == 1 for part in parts)
    assert len({part.name for part in parts}) == len(parts)
    assert sum(part.size_bytes for part in parts) == 4 * sum(sizes)


@pytest.fixture
def answered(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Give the names of the questions that are answered from now on."""
    names: list[str] = []

    def note(job: Job, question: Question, *others: Callable[..., object]) -> Receipt:
        names.append(question.name)
        return answer(job, question, *others)  # type: ignore[arg-type]

    monkeypatch.setattr(worker, "answer", note)
    return names


def count_reads(monkeypatch: pytest.MonkeyPatch, folder: Path) -> Counter[str]:
    """Count the bytes that each kind of thread reads of the weights in a folder."""
    counted: Counter[str] = Counter()
    read = LocalReader.read_into

    def count(self: LocalReader, offset_bytes: int, buffer: memoryview) -> None:
        if Path(self.path).parent == folder and self.path.endswith(".pth"):
            counted[threading.current_thread().name.split()[0]] += len(buffer)
        read(self, offset_bytes, buffer)

    monkeypatch.setattr(LocalReader, "read_into", count)
    return counted


@pytest.mark.parametrize(
    ("spec", "to"), [(TIED, "transformers"), (DOUBLED, "transformers"), (DOUBLED, "meta")]
)
def test_lanes_compare_and_the_driver_reads_headers(
    checkpoint: Callable[[Spec], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    spec: Spec,
    to: str,
) -> None:
    source, progress = checkpoint(spec), RecordingProgress()
    with monkeypatch.context() as patch:
        inspected = count_reads(patch, source)
        distconv.inspect(source)
    counted = count_reads(monkeypatch, source)
    distconv.convert(source, tmp_path / "out", to=to, family=spec.family, progress=progress)
    lanes = counted.pop("lane")
    assert lanes > 0
    # Headers are read at the beginning, and again at the end.
    assert sum(counted.values()) <= 2 * sum(inspected.values())
    assert any(name.startswith(("embedding and output", "key heads")) for name in progress.units)


@pytest.mark.first(1)
@pytest.mark.parametrize("spec", [TIED, DOUBLED])
def test_a_question_is_asked_once_for_all_runs_of_a_conversion(
    checkpoint: Callable[[Spec], Path], tmp_path: Path, answered: list[str], spec: Spec
) -> None:
    source, output = checkpoint(spec), tmp_path / "out"
    with interrupted_at(Folder, "keep"):
        distconv.convert(source, output, family=spec.family)
    asked = len(answered)
    assert asked
    assert not distconv.convert(source, output, family=spec.family).already_done
    assert distconv.convert(source, output, family=spec.family).already_done
    assert len(answered) == asked
    distconv.convert(source, tmp_path / "other", family=spec.family)
    assert len(answered) == 2 * asked
    assert digest_folder(output) == digest_folder(tmp_path / "other")
    distconv.convert(source, output, family=spec.family, overwrite=True)
    assert len(answered) == 3 * asked


def test_what_was_answered_of_another_input_is_not_taken(
    checkpoint: Callable[[Spec], Path], tmp_path: Path, answered: list[str]
) -> None:
    source, output = checkpoint(TIED), tmp_path / "out"
    distconv.convert(source, output, family=TIED.family)
    shard = next(source.glob("*.pth"))
    before = shard.stat()
    try:
        os.utime(shard, ns=(before.st_atime_ns, before.st_mtime_ns + 1))
        with pytest.raises(OutputError, match="another conversion"):
            distconv.convert(source, output, family=TIED.family)
    finally:
        os.utime(shard, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert len(answered) == 2
