"""checklist.chk: MD5s that the lanes compute as they compute all else, and only once."""

import json
import subprocess
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

import distconv
from distconv.errors import ConversionError, Interrupted
from distconv.layout.units import Checksum
from distconv.moving import worker
from distconv.moving.job import Job, Receipt
from distconv.storage.local import LocalStorage
from distconv.storage.local_files import LocalReader
from distconv.verbs import making
from tests.checkpoints import Spec
from tests.faults import digest_folder
from tests.moving.fakes import RecordingProgress
from tests.test_to_meta_resumed import SOURCE, convert, interrupt

BLOCK_BYTES = 4 << 20


@pytest.fixture
def source(checkpoint: Callable[[Spec], Path]) -> Path:
    """Give the model in one shard."""
    return checkpoint(SOURCE)


@pytest.fixture
def digested(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Give the names of the files whose MD5 is computed from now on."""
    names: list[str] = []
    digest = worker.digest_file

    def note(job: Job, unit: Checksum, *others: Callable[..., object]) -> Receipt:
        names.append(unit.file)
        return digest(job, unit, *others)  # type: ignore[arg-type]

    monkeypatch.setattr(worker, "digest_file", note)
    return names


def test_lanes_read_the_shards_that_md5sum_finds_as_listed_and_the_progress_counts_a_byte_once(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output, read_bytes = tmp_path / "out", Counter[str]()
    read = LocalReader.read_into

    def count(self: LocalReader, offset_bytes: int, buffer: memoryview) -> None:
        if Path(self.path).parent == output:
            read_bytes[threading.current_thread().name.split()[0]] += len(buffer)
        read(self, offset_bytes, buffer)

    monkeypatch.setattr(LocalReader, "read_into", count)
    progress = RecordingProgress()
    distconv.convert(source, output, to="meta", shards=2, progress=progress)
    size = sum(path.stat().st_size for path in output.glob("*.pth"))
    assert read_bytes.pop("lane") >= size
    assert sum(read_bytes.values()) < size / 2
    assert 0.9 * size < progress.moved_bytes == progress.total_bytes <= size
    assert "MD5 of consolidated.01.pth" in progress.units
    ended = subprocess.run(
        ["md5sum", "--strict", "-c", "checklist.chk"], cwd=output, capture_output=True, text=True, check=True
    )
    assert ended.stdout.count(": OK") == len(list(output.iterdir())) - 2  # itself, and the receipt


def test_an_md5_that_the_journal_has_is_not_computed_again(
    source: Path, tmp_path: Path, digested: list[str]
) -> None:
    output = tmp_path / "out"
    interrupt(source, output, making, "make_output_checklist")
    assert sorted(digested) == ["consolidated.00.pth", "consolidated.01.pth"]
    digested.clear()
    journal = output / ".distconv.journal"
    content = json.loads(journal.read_text())
    del content["chunks"][1]["md5"]
    journal.write_text(json.dumps(content))
    convert(source, output)
    assert digested == ["consolidated.01.pth"]
    convert(source, tmp_path / "undisturbed")
    assert digest_folder(output) == digest_folder(tmp_path / "undisturbed")


def test_where_one_shard_is_mended_the_md5s_of_the_others_stay(
    source: Path, tmp_path: Path, digested: list[str]
) -> None:
    output = tmp_path / "out"
    convert(source, output)
    expected = digest_folder(output)
    (output / "consolidated.01.pth").unlink()
    digested.clear()
    convert(source, output)
    assert digested == ["consolidated.01.pth"]
    assert digest_folder(output) == expected


def test_the_md5_of_what_the_journal_recorded_wrongly_is_not_taken_for_that_of_what_is_made_again(
    source: Path, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    interrupt(source, output, making, "make_output_checklist")
    journal = output / ".distconv.journal"
    content = json.loads(journal.read_text())
    tensors = content["chunks"][0]["tensors"]
    tensors[next(iter(tensors))] = "0" * 32
    journal.write_text(json.dumps(content))
    with pytest.raises(ConversionError, match=r"consolidated.00.pth: made again, and not as it was recorded"):
        convert(source, output)
    convert(source, output)
    convert(source, tmp_path / "undisturbed")
    assert digest_folder(output) == digest_folder(tmp_path / "undisturbed")


def test_an_md5_stops_between_blocks(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(bytes(3 * BLOCK_BYTES))
    job, told = Job(LocalStorage(), str(tmp_path), "cpu"), list[int]()
    with pytest.raises(Interrupted):
        worker.digest_file(job, Checksum("file", 3 * BLOCK_BYTES, ()), told.append, lambda: len(told) == 2)
    assert told == [BLOCK_BYTES] * 2
