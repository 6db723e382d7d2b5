"""Conversions whose INPUT or OUTPUT lies in a store keep every promise of those between local folders."""

import json
import os
import signal
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

pytest.importorskip("botocore", reason="needs the extra s3")

import distconv
from distconv.cli import main
from distconv.errors import OutputError
from tests.checkpoints import Spec
from tests.faults import digest_folder, looks_whole
from tests.object_store import Fault, ObjectStore, start
from tests.stored import AnyPath, StoredPath, use_store

Write = Callable[[Spec], Path]
SPEC = Spec("llama-2", heads=8, kv_heads=4, shards=2)
LIMIT = ("--max-shard-size", "200kB")
LARGE = Spec("llama-2", dim=512, heads=8, kv_heads=4, layers=6, multiple_of=256, shards=2)
"""Of about 50 MB: no part of an upload but its last one may be of less than 5 MiB."""
PARTS = ("--max-shard-size", "1MB")
JOURNAL, RECEIPT = ".distconv.journal", "distconv.json"


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ObjectStore]:
    """Give a store with a bucket ``models``, where this process and its children find it; each write has an ETag of its own."""
    with start("models", random_etags=True) as store, pytest.MonkeyPatch.context() as patch:
        use_store(patch, store, tmp_path_factory.mktemp("aws"))
        yield store


@pytest.fixture
def store(running: ObjectStore) -> Iterator[ObjectStore]:
    """Give the store as it is when nothing was changed."""
    running.clear_requests()
    yield running
    running.clear_faults()
    running.change(ignored_conditions=[], denied=[])


@pytest.fixture
def place(store: ObjectStore) -> StoredPath:
    """Give a folder that nobody else has."""
    return StoredPath(store, "models", uuid.uuid4().hex)


def share(folder: Path, place: StoredPath) -> StoredPath:
    """Put a folder's files into a store."""
    assert isinstance(place.store, ObjectStore)
    place.store.share(folder, place.bucket, f"{place.key}/")
    return place


def command(source: AnyPath | str, output: AnyPath | str, *options: str) -> list[str]:
    """Give the command line of a conversion."""
    return [sys.executable, "-m", "distconv", "convert", str(source), str(output), *LIMIT, *options]


def run(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the command line in a process of its own."""
    words = [str(argument) for argument in arguments]
    return subprocess.run(words, capture_output=True, text=True, check=False, env={**os.environ, **environment})


def convert(source: AnyPath, output: AnyPath, *options: str) -> None:
    """Convert in a process of its own, to the end."""
    ended = run(*command(source, output, *options))
    assert ended.returncode == 0, ended.stderr


def assert_equal(found: AnyPath, expected: AnyPath) -> None:
    """Two folders hold the same; their receipts differ in what tells INPUT's files from changed ones."""
    left, right = digest_folder(found), digest_folder(expected)
    receipts = [json.loads((folder / RECEIPT).read_text()) for folder in (found, expected)]
    for receipt in receipts:
        del receipt["sha256"]
        for entry in receipt["conversion"]["source"].values():
            entry.pop("version", None)
    assert receipts[0] == receipts[1]
    assert left | {RECEIPT: ""} == right | {RECEIPT: ""}


def assert_clean(place: StoredPath) -> None:
    """Nothing unfinished is left."""
    assert place.uploads() == []
    assert not [name for name in place.etags() if name.startswith(".")]


@pytest.mark.parametrize("ends", ["to a store", "from a store", "within a store"])
def test_the_same_bytes_are_made_wherever_the_ends_lie(
    checkpoint: Write, tmp_path: Path, place: StoredPath, ends: str
) -> None:
    source = checkpoint(SPEC)
    distconv.convert(source, tmp_path / "local", max_shard_size=200_000)
    stored = share(source, place / "in") if ends != "to a store" else source
    output = tmp_path / "out" if ends == "from a store" else place / "out"
    convert(stored, output)
    assert_equal(output, tmp_path / "local")
    if isinstance(output, StoredPath):
        assert_clean(output)
    # Again there is nothing to do, and nothing is written.
    before = digest_folder(output)
    assert distconv.convert(stored, output, max_shard_size=200_000).already_done
    assert digest_folder(output) == before


@pytest.mark.parametrize("shards", ["1", "4"])
@pytest.mark.parametrize("kind", ["transformers", "meta"])
def test_shards_are_written_in_parts_that_a_store_takes(
    checkpoint: Write, tmp_path: Path, place: StoredPath, kind: str, shards: str
) -> None:
    source = checkpoint(LARGE)
    if kind == "transformers":
        distconv.convert(source, tmp_path / "model")
        source = tmp_path / "model"
    options = {"to": "meta", "shards": int(shards), "max_shard_size": 1_000_000}
    distconv.convert(source, tmp_path / "local", **options)  # type: ignore[arg-type]
    convert(share(source, place / "in"), place / "out", "--to", "meta", "--shards", shards, *PARTS)
    assert_equal(place / "out", tmp_path / "local")
    assert_clean(place / "out")
    parts = [part for part in place.store.requests("UploadPart") if part.key.endswith(".pth")]  # type: ignore[union-attr]
    assert len(parts) > int(shards) + 1
    assert min(part.bytes_in for part in parts if part.parameters["partNumber"] == "1") >= 5 << 20
