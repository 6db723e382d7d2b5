"""What lies in Google's and Azure's stores is read as it was found, by obstore; here a store in memory stands for them."""

from pathlib import Path
from typing import Any

import pytest

import distconv
from distconv.errors import InputError, UsageError
from distconv.storage import clouds
from distconv.storage.base import opened, read_range, read_small
from distconv.storage.clouds import CloudStorage
from tests.checkpoints import Spec, write_checkpoint

obstore = pytest.importorskip("obstore", reason="needs the extra gs")
SPEC = Spec("llama-2", 64, 2, 4, 4, vocab=320, shards=2)


@pytest.fixture(params=["gs", "az"])
def bucket(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> tuple[str, Any]:
    """Give a bucket's URL, and obstore's own store of it."""
    store = obstore.store.MemoryStore()
    monkeypatch.setitem(clouds._opened, (request.param, "models"), store)
    return f"{request.param}://models", store


def test_a_checkpoint_there_is_converted_as_a_local_one(
    bucket: tuple[str, Any], tmp_path: Path, sentencepiece_file: Path
) -> None:
    url, store = bucket
    source = write_checkpoint(tmp_path / "in", SPEC, sentencepiece_file)
    for path in source.iterdir():
        obstore.put(store, f"llama/{path.name}", path.read_bytes())
    report = distconv.convert(f"{url}/llama", tmp_path / "far")
    distconv.convert(source, tmp_path / "near")
    assert report.requests["get"] > 0
    for path in (tmp_path / "near").glob("*"):
        if path.name != "distconv.json":
            assert (tmp_path / "far" / path.name).read_bytes() == path.read_bytes()
    assert distconv.verify(tmp_path / "far", against=f"{url}/llama").ok


def test_what_is_there_is_found_and_listed(bucket: tuple[str, Any]) -> None:
    url, store = bucket
    storage = CloudStorage(url[:2])
    for key in ("a/b/one", "a/two", "a.b"):
        obstore.put(store, key, key.encode())
    names = {entry.name: (entry.is_folder, entry.size_bytes) for entry in storage.list_folder(f"{url}/a")}
    assert names == {"b": (True, 0), "two": (False, 5)}
    assert storage.list_names(url) == ("a", "a.b")
    folder, file = storage.find(f"{url}/a"), storage.find(f"{url}/a/two")
    assert folder is not None
    assert folder.is_folder
    assert file is not None
    assert (file.name, file.size_bytes) == ("two", 5)
    assert storage.find(f"{url}/c") is None
    assert storage.list_folder(f"{url}/c") == ()
    assert read_small(storage, f"{url}/a/two", 5) == b"a/two"
    assert storage.real_path(f"{url}/a/./b/../two") == f"{url}/a/two"
    with pytest.raises(FileNotFoundError):
        storage.open(f"{url}/c")
    with pytest.raises(InputError, match="a folder"):
        storage.open(f"{url}/a")


def test_an_empty_object_of_a_folders_name_is_that_folder_and_another_one_a_file(
    bucket: tuple[str, Any],
) -> None:
    url, store = bucket
    storage = CloudStorage(url[:2])
    for key, content in {"a": b"", "a/x": b"x", "b": b"hello", "b/x": b"x", "c": b""}.items():
        obstore.put(store, key, content)
    kinds = {"a": (True, 0), "b": (False, 5), "c": (False, 0)}
    listed = {entry.name: (entry.is_folder, entry.size_bytes) for entry in storage.list_folder(url)}
    assert listed == kinds
    for name, kind in kinds.items():
        entry = storage.find(f"{url}/{name}")
        assert entry is not None
        assert (entry.is_folder, entry.size_bytes) == kind
    with pytest.raises(InputError, match="b: a file of 5 bytes, and a folder of the same name"):
        distconv.inspect(f"{url}/b")


def test_a_file_that_changes_is_not_read_on(bucket: tuple[str, Any]) -> None:
    url, store = bucket
    path = f"{url}/file"
    obstore.put(store, "file", b"before")
    storage = CloudStorage(url[:2])
    entry = storage.find(path)
    assert entry is not None
    pinned = storage.pinned({path: entry.stamp})
    with opened(pinned, path) as reader:
        assert read_range(reader, 1, 3) == b"efo"
        with pytest.raises(InputError, match="truncated"):
            read_range(reader, 3, 4)
        obstore.put(store, "file", b"behind")
        with pytest.raises(InputError, match="written, replaced or touched"):
            read_range(reader, 1, 3)
    again = storage.find(path)
    assert again is not None
    assert again.stamp != entry.stamp


def test_nothing_is_written_there(bucket: tuple[str, Any], tmp_path: Path) -> None:
    url, _store = bucket
    with pytest.raises(UsageError, match=f"{url}/out: is only read"):
        distconv.convert(tmp_path, f"{url}/out")


def test_of_what_a_store_answers_no_address_is_shown() -> None:
    secret = "Generic error: Error performing GET https://host/models?sig=SECRET in 2ms - SECRET: <?xml"
    assert "SECRET" not in clouds._show(RuntimeError(secret))
