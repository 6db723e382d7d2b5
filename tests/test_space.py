"""Space for a file before it is written, on real file systems."""

import errno
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from distconv.storage.local import LocalStorage
from tests.benchmarks.full import find_differences, write_model
from tests.checkpoints import Spec

SIZE_BYTES = 8 << 20
MORE_THAN_THE_DISK_BYTES = 1 << 30


def kind_of(folder: Path) -> str:
    """Ask coreutils for the kind of file system."""
    return subprocess.run(
        ["stat", "--file-system", "--format=%T", str(folder)], capture_output=True, text=True, check=True
    ).stdout.strip()


def reserve_by_command(path: Path, size_bytes: int) -> "subprocess.CompletedProcess[str]":
    """Reserve space as util-linux does, without a fallback."""
    return subprocess.run(
        ["fallocate", "--length", str(size_bytes), str(path)],
        capture_output=True, text=True, check=False, env={**os.environ, "LC_ALL": "C"},
    )  # fmt: skip


def begun_file(folder: Path) -> os.stat_result:
    """Look at a file that was just begun."""
    (partial,) = folder.glob(".*.partial")
    return partial.stat()


def test_a_disk_reserves_what_the_system_command_reserves(tmp_path: Path) -> None:
    if kind_of(tmp_path) == "tmpfs":
        pytest.skip("temporary files are on a RAM disk here")
    reserve_by_command(tmp_path / "expected", SIZE_BYTES)
    folder = tmp_path / "output"
    folder.mkdir()
    writer = LocalStorage().begin(str(folder / "file"), SIZE_BYTES)
    found = begun_file(folder)
    writer.abort()
    assert found.st_size == SIZE_BYTES
    # A disk in pieces says which they are in blocks of its own: of 12 bytes for each 4 KiB there are 24 KiB at most.
    assert abs(found.st_blocks - (tmp_path / "expected").stat().st_blocks) * 512 <= 32 << 10


def test_a_file_that_is_larger_than_the_disk_is_refused_when_it_is_begun(disk: Callable[..., Path]) -> None:
    # To reserve in vain takes, for a moment, all that there is.
    small_disk = disk("ext4", 16 << 20)
    before = sorted(small_disk.iterdir())
    with pytest.raises(OSError, match="No space left on device") as error:
        LocalStorage().begin(str(small_disk / "file"), MORE_THAN_THE_DISK_BYTES)
    assert error.value.errno == errno.ENOSPC
    assert error.value.filename == str(small_disk / "file")
    assert sorted(small_disk.iterdir()) == before


@pytest.mark.parametrize("kind", ["tmpfs", "ramfs"])
def test_nothing_is_written_before_the_content_where_reserving_is_of_no_use(
    mount: Callable[..., Path], kind: str
) -> None:
    folder = mount(kind)
    if kind == "ramfs":
        assert "not supported" in reserve_by_command(folder / "expected", SIZE_BYTES).stderr
    writer = LocalStorage().begin(str(folder / "file"), SIZE_BYTES)
    found = begun_file(folder)
    assert (found.st_size, found.st_blocks) == (SIZE_BYTES, 0)
    content = os.urandom(SIZE_BYTES)
    writer.write_at(0, content)
    assert writer.commit()
    assert (folder / "file").read_bytes() == content


FITS_COMPRESSED = Spec("llama-2", 1024, 4, 16, multiple_of=256, vocab=32000, shards=2)
"""Of 240 MB, most of them zeros."""


@pytest.mark.slow
def test_a_model_that_fits_only_compressed_is_refused_with_the_option_that_goes_on_with_which_it_lands_whole(
    disk: Callable[..., Path], tmp_path: Path, sentencepiece_file: Path
) -> None:
    source = write_model(tmp_path / "in", FITS_COMPRESSED, sentencepiece_file)
    output = disk("btrfs", 160 << 20, "compress=zstd") / "out"
    command = [sys.executable, "-m", "distconv", "convert", source, output, "--max-shard-size", "50MB"]
    refused = subprocess.run(command, capture_output=True, text=True, check=False)
    assert refused.returncode == 2
    said = r"needed \(33.6 MB of it for small files\), [0-9.]+ MB free; free [0-9.]+ MB or give a folder elsewhere; .* add --ignore-free-space"
    assert re.search(said, refused.stderr)
    assert not output.exists()
    subprocess.run([*command, "--ignore-free-space"], check=True, capture_output=True)
    assert not find_differences(source, output, FITS_COMPRESSED)
    assert sum(path.stat().st_size for path in output.iterdir()) > 160 << 20
