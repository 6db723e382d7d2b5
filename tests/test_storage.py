"""Local files: what is committed, what is aborted, what is read."""

import errno
import os
import stat
from pathlib import Path

import pytest

from distconv.errors import ConversionError, InputError, OutputError
from distconv.storage.base import Entry, opened, read_range, read_small, write_small
from distconv.storage.local import LocalStorage
from distconv.storage.local_files import LocalWriter

HERE = LocalStorage()


@pytest.fixture(params=[True, False], ids=["hard links", "no hard links"])
def folder(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Give an empty folder, also one of a file system that knows no hard links."""

    def refuse(old: str, new: str) -> None:
        # As exFAT and some in user space do, whatever stands under the new name.
        raise OSError(errno.EPERM, os.strerror(errno.EPERM), old, None, new)

    if not request.param:
        monkeypatch.setattr(os, "link", refuse)
    return tmp_path


def begun(path: Path, content: bytes) -> LocalWriter:
    """Give a writer that has written all."""
    writer = HERE.begin(str(path), len(content))
    writer.write_at(0, content)
    return writer


def test_the_first_of_two_writers_gives_the_file_its_content(folder: Path) -> None:
    path = folder / "file"
    first, second = begun(path, b"first"), begun(path, b"second")
    assert len(os.listdir(folder)) == 2
    assert first.commit() is True
    committed = path.stat().st_ino
    assert second.commit() is False
    assert (path.read_bytes(), path.stat().st_ino) == (b"first", committed)
    assert second.commit(replace=True) is True
    assert path.read_bytes() == b"second"
    assert os.listdir(folder) == ["file"]


def test_a_writer_that_came_second_leaves_nothing_when_it_is_aborted(folder: Path) -> None:
    path = folder / "file"
    first, second = begun(path, b"first"), begun(path, b"second")
    assert first.commit() is True
    assert second.commit() is False
    second.abort()
    assert path.read_bytes() == b"first"
    assert os.listdir(folder) == ["file"]


def test_a_writer_that_is_to_replace_takes_the_place_of_what_is_there(folder: Path) -> None:
    path = folder / "file"
    path.write_bytes(b"before")
    assert begun(path, b"after").commit(replace=True) is True
    assert path.read_bytes() == b"after"
    assert os.listdir(folder) == ["file"]


def test_nothing_is_seen_under_the_name_before_the_commit_or_after_an_abort(tmp_path: Path) -> None:
    path = tmp_path / "file"
    writer = begun(path, b"content")
    assert HERE.find(str(path)) is None
    (entry,) = HERE.list_folder(str(tmp_path))
    assert entry.name.startswith(".file.")
    assert entry.name.endswith(".partial")
    writer.abort()
    writer.abort()
    assert os.listdir(tmp_path) == []


def test_a_signal_that_comes_while_a_file_is_made_leaves_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make = os.open

    def make_and_stop(path: str, flags: int, mode: int = 0o777) -> int:
        os.close(make(path, flags, mode))
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "open", make_and_stop)
    with pytest.raises(KeyboardInterrupt):
        write_small(HERE, str(tmp_path / "file"), b"content")
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("change", [-1, 1])
def test_a_file_of_another_size_than_was_said_is_not_committed(tmp_path: Path, change: int) -> None:
    path = tmp_path / "file"
    writer = begun(path, b"content")
    (partial,) = tmp_path.iterdir()
    os.truncate(partial, 7 + change)
    with pytest.raises(ConversionError, match=rf"file: {7 + change} bytes written, expected 7"):
        writer.commit()
    assert not path.exists()


def test_what_is_written_can_be_read_by_those_whom_the_user_allows(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        begun(tmp_path / "file", b"content").commit()
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == 0o640


def test_a_small_file_up_to_the_limit_is_read_and_a_larger_one_refused(tmp_path: Path) -> None:
    path = str(tmp_path / "file")
    descriptors = len(os.listdir("/proc/self/fd"))
    write_small(HERE, path, b"12345")
    assert read_small(HERE, path, 5) == b"12345"
    with pytest.raises(InputError, match="5 bytes, expected at most 4"):
        read_small(HERE, path, 4)
    assert len(os.listdir("/proc/self/fd")) == descriptors


def test_a_range_is_read_up_to_the_last_byte_and_not_beyond(tmp_path: Path) -> None:
    path = str(tmp_path / "file")
    write_small(HERE, path, b"0123456789")
    with opened(HERE, path) as reader:
        assert reader.size_bytes == 10
        assert read_range(reader, 3, 7) == b"3456789"
        assert read_range(reader, 10, 0) == b""
        with pytest.raises(InputError, match=r"file: ends at byte 10, expected data up to byte 11"):
            read_range(reader, 3, 8)


@pytest.mark.parametrize("make", [os.mkdir, os.mkfifo], ids=["folder", "pipe"])
def test_what_is_no_regular_file_is_not_opened(tmp_path: Path, make: object) -> None:
    path = str(tmp_path / "thing")
    make(path)  # type: ignore[operator]
    descriptors = len(os.listdir("/proc/self/fd"))
    with pytest.raises(InputError, match="a folder, pipe or device, expected a regular file"):
        HERE.open(path)
    assert len(os.listdir("/proc/self/fd")) == descriptors


def test_folders_are_listed_with_what_is_in_them(tmp_path: Path) -> None:
    (tmp_path / "b").write_bytes(b"123")
    (tmp_path / "a").mkdir()
    (tmp_path / "to nowhere").symlink_to("nowhere")
    listed = HERE.list_folder(str(tmp_path))
    assert [(entry.name, entry.is_folder) for entry in listed] == [("a", True), ("b", False)]
    assert listed[1] == Entry("b", False, 3, str((tmp_path / "b").stat().st_mtime_ns))
    assert HERE.list_folder(str(tmp_path / "none")) == HERE.list_folder(str(tmp_path / "b")) == ()
    assert HERE.find(str(tmp_path / "b" / "below")) is None


@pytest.mark.parametrize("name", ["a\0b", "a" * 300, "a/" * 3000, "file/below"])
def test_there_is_nothing_where_no_file_can_have_the_name(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").write_bytes(b"")
    assert HERE.find(str(tmp_path / name)) is None


def test_a_file_in_the_way_of_a_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(OutputError, match="file: a file or a link to nowhere is in the way"):
        HERE.make_folder(str(tmp_path / "file"))
    with pytest.raises(OutputError, match="file/below/it: a file or a link to nowhere is in the way"):
        HERE.make_folder(str(tmp_path / "file" / "below" / "it"))
    (tmp_path / "link").symlink_to("nowhere")
    with pytest.raises(OutputError, match="link: a file or a link to nowhere is in the way"):
        HERE.make_folder(str(tmp_path / "link"))


def test_a_file_that_is_not_there_is_removed_already(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    HERE.remove(str(tmp_path / "file"))
    HERE.remove(str(tmp_path / "file"))
    assert os.listdir(tmp_path) == []


def test_free_space_is_that_of_the_nearest_folder_that_is_there(tmp_path: Path) -> None:
    here = os.statvfs(tmp_path)
    found = HERE.free_bytes(str(tmp_path / "not" / "yet"))
    # Other processes write too.
    assert abs(found - here.f_bavail * here.f_frsize) < 8 << 30
    assert HERE.real_path(str(tmp_path / "x" / ".." / "y")) == os.path.realpath(tmp_path / "y")


def test_a_small_file_that_cannot_be_made_safe_is_not_written_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_descriptor: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    (tmp_path / "file").write_bytes(b"before")
    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="Input/output error") as error:
        write_small(HERE, str(tmp_path / "file"), b"after")
    assert error.value.filename == str(tmp_path / "file")
    assert os.listdir(tmp_path) == ["file"]
    assert (tmp_path / "file").read_bytes() == b"before"
