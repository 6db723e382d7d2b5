"""Space for a file before it is written, on real file systems."""

import errno
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from distconv.storage.local import LocalStorage

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
    assert found.st_blocks == (tmp_path / "expected").stat().st_blocks


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Give a disk of 16 MB: to reserve in vain takes, for a moment, all that there is."""
    folder, image = tmp_path / "disk", tmp_path / "image"
    folder.mkdir()
    image.write_bytes(b"")
    os.truncate(image, 16 << 20)
    commands: list[list[str | Path]] = [["mkfs.ext4", "-q", image], ["mount", "-o", "loop", image, folder]]
    if shutil.which("mkfs.ext4") is None or any(
        subprocess.run(command, capture_output=True, check=False).returncode for command in commands
    ):
        pytest.skip("a disk in a file cannot be made here")
    yield folder
    subprocess.run(["umount", folder], check=True)


def test_a_file_that_is_larger_than_the_disk_is_refused_when_it_is_begun(small_disk: Path) -> None:
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
