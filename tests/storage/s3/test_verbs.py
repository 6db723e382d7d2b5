"""What an object store answers is what local files would: written, read, listed, changed, removed."""

import pickle
import posixpath
import random
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from distconv.errors import ConversionError, InputError, UsageError
from distconv.storage.base import join, opened, read_range, read_small, write_small
from distconv.storage.fencing import is_attempt
from distconv.storage.requests import count_requests
from distconv.storage.s3.client import connect
from distconv.storage.s3.place import Place, split_folder, split_path
from distconv.storage.s3.storage import S3Storage
from distconv.storage.s3.stream import part_size
from distconv.storage.s3.uploads import begin_upload, list_parts, parse_name
from distconv.storage.s3.writer import S3Writer
from tests.object_store import ObjectStore

PART = part_size(0)


def begun(storage: S3Storage, path: str, content: bytes) -> S3Writer:
    """Give a writer that has written all."""
    writer = storage.begin(path, len(content))
    writer.write_at(0, content)
    return writer


def test_the_first_of_two_writers_gives_the_file_its_content(storage: S3Storage, folder: str) -> None:
    path = join(folder, "file")
    first, second = begun(storage, path, b"first"), begun(storage, path, b"second")
    assert sum(map(is_attempt, storage.list_names(folder))) == 2
    assert first.commit() is True
    assert second.commit() is False
    assert storage.read_now(path, 99) == b"first"
    assert second.commit(replace=True) is True
    assert storage.read_now(path, 99) == b"second"
    second.abort()
    assert storage.list_names(folder) == ("file",)


def test_nothing_is_seen_before_the_commit_and_nothing_is_left_by_an_abort(
    storage: S3Storage, folder: str
) -> None:
    writer = begun(storage, join(folder, "file"), b"content")
    assert storage.find(join(folder, "file")) is None
    (name,) = storage.list_names(folder)
    assert join(folder, name) == writer.attempt
    writer.abort()
    writer.abort()
    assert storage.list_names(folder) == ()
    with pytest.raises(FileNotFoundError):
        storage.open_attempt(join(folder, "file"), writer.attempt, 7)
    assert storage.take_attempt(join(folder, "file"), writer.attempt, 7) is None


@pytest.mark.parametrize("size", [0, 1, PART - 1, PART, PART + 1, 2 * PART, 3 * PART + 5])
def test_files_of_all_sizes_are_whole(storage: S3Storage, folder: str, size: int) -> None:
    content, path, offset = random.Random(size).randbytes(size), join(folder, "file"), 0
    writer = storage.begin(path, size)
    while offset < size:
        block = content[offset : offset + (3 << 20) + 1]
        writer.write_at(offset, block)
        offset += len(block)
    assert writer.commit()
    with opened(storage, path) as reader:
        assert reader.size_bytes == size
        assert read_range(reader, 0, size) == content


def test_a_store_that_wants_parts_of_one_size_gets_them(
    held: S3Storage, stand: ObjectStore, folder: str
) -> None:
    stand.change(equal_parts=True)
    for size in (PART, 2 * PART, 3 * PART + 5):
        assert begun(held, join(folder, str(size)), bytes(size)).commit()
    stand.change(equal_parts=False)


def test_runs_of_several_writers_make_one_file(storage: S3Storage, folder: str) -> None:
    content = random.Random(0).randbytes(4 * PART + 77)
    path, cut, end = join(folder, "file"), PART + 12345, 3 * PART + 1
    writer = storage.begin(path, len(content))
    for first, last in ((cut, end), (0, cut)):
        part = storage.open_attempt(path, writer.attempt, len(content))
        part.write_at(first, content[first:last])
        part.finish()
        part.close()
    taken = storage.take_attempt(path, writer.attempt, len(content))
    assert taken is not None
    with pytest.raises(ConversionError, match="bytes written, expected"):
        taken.commit()
    taken = storage.take_attempt(path, writer.attempt, len(content))
    assert taken is not None
    taken.write_at(end, content[end:])
    assert taken.commit() is True
    with opened(storage, path) as reader:
        assert read_range(reader, 0, len(content)) == content


def test_what_is_written_out_of_order_is_refused(storage: S3Storage, folder: str) -> None:
    writer = storage.begin(join(folder, "file"), 10)
    writer.write_at(0, b"01")
    with pytest.raises(ConversionError, match="written at byte 5 after byte 2"):
        writer.write_at(5, b"5")
    writer.abort()


def test_the_last_part_of_a_file_is_numbered_after_all_others(held: S3Storage, folder: str) -> None:
    path, size = join(folder, "file"), 100 << 30
    writer = held.begin(path, size)
    told = held.open_attempt(path, writer.attempt, size)
    told.write_at(size - 1, b"0")
    told.finish()
    (part,) = list_parts(
        connect(held.place), *split_path(path), parse_name(posixpath.basename(writer.attempt))[1]
    )  # type: ignore[misc]
    assert part.number == 2 + size // part_size(size)
    writer.abort()


def test_the_memory_that_was_written_from_may_be_used_again_at_once(storage: S3Storage, folder: str) -> None:
    block, written = bytearray(PART // 2), bytearray()
    writer = storage.begin(join(folder, "file"), 5 * PART)
    for number in range(10):
        block[:] = bytes([number]) * len(block)
        writer.write_at(len(written), block)
        written += block
    assert writer.commit()
    with opened(storage, join(folder, "file")) as reader:
        assert read_range(reader, 0, len(written)) == written


def test_ranges_are_read_into_several_memories_by_one_request(storage: S3Storage, folder: str) -> None:
    path = join(folder, "file")
    write_small(storage, path, bytes(range(100)))
    memories = [bytearray(n) for n in (3, 0, 20, 7)]
    with opened(storage, path) as reader:
        before = count_requests()["GetObject"]
        reader.read_vector(5, [memoryview(memory) for memory in memories])  # type: ignore[attr-defined]
        assert count_requests()["GetObject"] == before + 1
        assert b"".join(memories) == bytes(range(5, 35))
        assert read_range(reader, 100, 0) == b""
        with pytest.raises(InputError, match=r"file: ends at byte 100, expected data up to byte 101"):
            read_range(reader, 90, 11)


def test_an_object_that_was_changed_is_not_read_on(storage: S3Storage, folder: str) -> None:
    path = join(folder, "file")
    write_small(storage, path, b"before")
    stamp = storage.find(path).stamp  # type: ignore[union-attr]
    pinned = pickle.loads(pickle.dumps(storage.pinned({path: stamp})))
    before = count_requests()
    with opened(pinned, path) as reader:
        assert read_range(reader, 1, 3) == b"efo"
        assert count_requests() == before | {"GetObject": before["GetObject"] + 1}
        write_small(storage, path, b"after!")
        with pytest.raises(InputError, match="written, replaced or touched while it was converted"):
            read_range(reader, 0, 6)
    storage.remove(path)
    with opened(pinned, path) as reader, pytest.raises(FileNotFoundError):
        read_range(reader, 0, 6)


def test_folders_are_what_keys_begin_with(storage: S3Storage, folder: str) -> None:
    names = ("b", "sub/deep/er", "ä +&%41<>'", "sub.txt")
    for name in names:
        write_small(storage, join(folder, name), name.encode())
    unfinished = storage.begin(join(folder, "sub/other"), 5)
    listed = storage.list_folder(folder)
    found = {(entry.name, entry.is_folder, entry.size_bytes) for entry in listed}
    assert found == {(name, False, len(name.encode())) for name in names if "/" not in name} | {
        ("sub", True, 0)
    }
    assert [entry.name for entry in listed] == sorted(entry.name for entry in listed)
    assert listed == tuple(storage.find(join(folder, entry.name)) for entry in listed)
    assert [storage.find(join(folder, entry.name)).stamp for entry in listed] == [  # type: ignore[union-attr]
        entry.stamp for entry in listed
    ]
    assert read_small(storage, join(folder, names[2]), 99) == names[2].encode()
    assert storage.find(join(folder, "su")) is None
    assert storage.list_folder(join(folder, "none")) == ()
    with pytest.raises(InputError, match="a folder, expected a file"):
        storage.open(join(folder, "sub"))
    unfinished.abort()


def test_what_lies_behind_two_slashes_is_not_in_a_folder(held: S3Storage, folder: str) -> None:
    write_small(held, f"{folder}//file", b"")
    assert held.list_folder(folder) == ()


def test_small_files_are_made_once_and_changed_only_where_they_are_ones_own(
    storage: S3Storage, folder: str
) -> None:
    path = join(folder, "owner")
    assert storage.refresh(path, b"one", b"one 1") is False
    assert storage.find(path) is None
    assert storage.create(path, b"one 0") is True
    assert storage.create(path, b"two 0") is False
    assert storage.refresh(path, b"two", b"two 1") is False
    assert storage.refresh(path, b"one", b"one 1") is True
    assert storage.read_now(path, 3) == b"one"
    assert storage.read_now(path, 99) == b"one 1"
    storage.remove(path)
    storage.remove(path)
    with pytest.raises(FileNotFoundError):
        storage.read_now(path, 99)


def test_one_place_has_one_spelling(storage: S3Storage) -> None:
    spellings = ("s3://models/a/b", "s3://models/a/b/", "s3://models//a/./b", "s3://models/a/c/../b")
    assert {storage.real_path(path) for path in spellings} == {"s3://models/a/b"}
    assert storage.real_path("s3://models/") == storage.real_path("s3://models") == "s3://models"
    assert storage.find("s3://models").is_folder  # type: ignore[union-attr]
    assert storage.free_bytes("s3://models") is None


@pytest.mark.parametrize(
    "path", ["s3://", "s3:///key", "s3://b/key", "s3://a b/c", "/local", "gs://bucket/key"]
)
def test_what_is_no_path_is_refused(held: S3Storage, path: str) -> None:
    with pytest.raises(UsageError, match="expected s3://BUCKET/KEY, a bucket's name being of 2 letters"):
        held.open(path)


@pytest.mark.parametrize(
    "url",
    [
        "localhost:9000",
        "ftp://host",
        "https://user:word@host",
        "https://host?a=b",
        "http://host:port",
        "http://host:99999",
        "http://[::1",
    ],
)
def test_an_endpoint_with_a_password_or_that_is_none_is_refused_and_not_shown(url: str) -> None:
    with pytest.raises(UsageError) as caught:
        Place(url)
    assert url not in str(caught.value)


def test_an_empty_object_of_a_folders_name_is_that_folder_and_another_one_a_file(
    storage: S3Storage, folder: str
) -> None:
    for name, content in (("marked", b""), ("both", b"hello"), ("empty", b"")):
        write_small(storage, join(folder, name), content)
    for name in ("marked", "both"):
        write_small(storage, join(folder, name, "file"), b"")
    kinds = {"marked": (True, 0), "both": (False, 5), "empty": (False, 0)}
    listed = {entry.name: (entry.is_folder, entry.size_bytes) for entry in storage.list_folder(folder)}
    assert listed == kinds
    for name, kind in kinds.items():
        entry = storage.find(join(folder, name))
        assert entry is not None
        assert (entry.is_folder, entry.size_bytes) == kind


def test_a_bucket_that_is_not_there_is_named(held: S3Storage) -> None:
    assert held.find("s3://nowhere/file") is None
    assert held.list_names("s3://nowhere/folder") == ()
    with pytest.raises(FileNotFoundError) as caught:
        held.begin("s3://nowhere/file", 3)
    assert (caught.value.filename, caught.value.strerror) == ("s3://nowhere/file", "no such bucket")


def test_folders_of_more_names_than_one_answer_has_are_listed_whole(
    held: S3Storage, stand: ObjectStore, folder: str, tmp_path: Path
) -> None:
    bucket, prefix = split_folder(folder)
    names = {f"{number:04}" for number in range(1003)}
    for name in names:
        (tmp_path / name).touch()
    stand.share(tmp_path, bucket, prefix)
    client = connect(held.place)
    with ThreadPoolExecutor(8) as pool:
        uploads = set(pool.map(lambda name: begin_upload(client, bucket, f"{prefix}{name}", {}), names))
    listed = held.list_names(folder)
    assert {name for name in listed if not is_attempt(name)} == names
    assert {parse_name(name)[1] for name in listed if is_attempt(name)} == uploads  # type: ignore[index]
    assert len(stand.requests("ListObjectsV2")) == len(stand.requests("ListMultipartUploads")) == 2
