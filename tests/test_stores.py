"""Conversions whose INPUT or OUTPUT lies in a store keep every promise of those between local folders."""

import contextlib
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
from distconv.errors import OutputError
from tests.checkpoints import Spec
from tests.faults import digest_folder, looks_whole, read_recorded
from tests.object_store import Fault, ObjectStore, start
from tests.patience import HANG_SECONDS
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
    return subprocess.run(
        words, capture_output=True, text=True, check=False, env={**os.environ, **environment}
    )


def convert(source: AnyPath, output: AnyPath, *options: str) -> None:
    """Convert in a process of its own, to the end."""
    ended = run(*command(source, output, *options))
    assert ended.returncode == 0, ended.stderr


@contextlib.contextmanager
def started(source: AnyPath, output: AnyPath, *options: str) -> Iterator["subprocess.Popen[str]"]:
    """Convert in a process of its own, which has ended after the block."""
    words = command(source, output, *options)
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


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


@pytest.mark.parametrize(
    ("operation", "key"),
    [
        ("PutObject", ".distconv.owner.*"),
        ("UploadPart", "model-*"),
        ("CompleteMultipartUpload", "model-00002-*"),
        ("CompleteMultipartUpload", "distconv.json"),
        ("CompleteMultipartUpload", "model.safetensors.index.json"),
        ("DeleteObject", JOURNAL),
        ("DeleteObject", ".distconv.owner.*"),
    ],
)
@pytest.mark.parametrize("after_effect", [False, True], ids=["before", "after"])
def test_who_is_killed_at_any_step_is_gone_on_with(
    checkpoint: Write, tmp_path: Path, place: StoredPath, operation: str, key: str, *, after_effect: bool
) -> None:
    store, source, output = place.store, checkpoint(SPEC), place / "out"
    assert isinstance(store, ObjectStore)
    store.fault(
        Fault("hold", operation, f"models/{output.key}/{key}", after_effect=after_effect, gate=place.key)
    )
    with started(source, output) as process:
        store.wait_held(place.key, limit_s=HANG_SECONDS)
        process.kill()
    store.release(place.key)
    before = output.etags()
    recorded = read_recorded(output)
    distconv.convert(source, tmp_path / "local", max_shard_size=200_000)
    report = distconv.convert(source, output, max_shard_size=200_000)
    assert_equal(output, tmp_path / "local")
    assert_clean(output)
    after = output.etags()
    assert {name: after[name] for name in recorded} == {name: before[name] for name in recorded}
    assert report.already_done or report.kept_chunks >= len(recorded)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_who_is_stopped_leaves_what_the_next_run_goes_on_with(
    checkpoint: Write, tmp_path: Path, place: StoredPath, number: int, code: int
) -> None:
    store, source, output = place.store, checkpoint(SPEC), place / "out"
    assert isinstance(store, ObjectStore)
    store.fault(Fault("hold", "UploadPart", f"models/{output.key}/model-00002-*", gate=place.key))
    with started(source, output) as process:
        store.wait_held(place.key, limit_s=HANG_SECONDS)
        process.send_signal(number)
        store.release(place.key)
        _said, told = process.communicate()
    assert (process.returncode, told.count("run the same command again to go on")) == (code, 1), told
    assert output.uploads() == []
    assert not [name for name in output.etags() if "owner" in name]
    assert not looks_whole(output)
    recorded, before = read_recorded(output), output.etags()
    distconv.convert(source, tmp_path / "local", max_shard_size=200_000)
    assert distconv.convert(source, output, max_shard_size=200_000).kept_chunks >= len(recorded)
    assert_equal(output, tmp_path / "local")
    after = output.etags()
    assert {name: after[name] for name in recorded} == {name: before[name] for name in recorded}


def test_of_two_who_begin_one_is_refused(checkpoint: Write, tmp_path: Path, place: StoredPath) -> None:
    store, source, output = place.store, checkpoint(SPEC), place / "out"
    assert isinstance(store, ObjectStore)
    # Both stand before the creation of the owner's file, which one alone can make.
    owner = f"models/{output.key}/.distconv.owner.*"
    store.fault(Fault("hold", "PutObject", owner, times=2, gate="both"))
    store.fault(Fault("hold", "UploadPart", f"models/{output.key}/model-*", gate="winner"))
    with started(source, output) as one, started(source, output) as other:
        store.wait_held("both", 2, HANG_SECONDS)
        store.release("both")
        store.wait_held("winner", limit_s=HANG_SECONDS)
        # The winner stands before its first part, so who ends is the other.
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOWAIT)
        loser, winner = (one, other) if one.poll() is not None else (other, one)
        _said, told = loser.communicate()
        assert loser.returncode == 2
        assert f"{output}: distconv already writes into it" in told
        store.release("winner")
        _said, told = winner.communicate()
        assert winner.returncode == 0, told
    distconv.convert(source, tmp_path / "local", max_shard_size=200_000)
    assert_equal(output, tmp_path / "local")
    assert_clean(output)


def test_another_model_is_replaced_only_where_that_is_asked_for_and_what_is_foreign_stays(
    checkpoint: Write, tmp_path: Path, place: StoredPath
) -> None:
    source, output = checkpoint(SPEC), place / "out"
    foreign = [
        output / "notes.txt",
        output / "sub/model.safetensors",
        place / "out2/model.safetensors",
        place / "outs",
    ]
    for path in foreign:
        path.write_bytes(str(path).encode())
    refused = run(*command(source, output))
    assert refused.returncode == 2
    assert "notes.txt" in refused.stderr
    assert sorted(output.etags()) == ["notes.txt"]
    convert(source, output, "--overwrite", "--dtype", "float16")
    whole = digest_folder(output)
    refused = run(*command(source, output))
    assert refused.returncode == 2
    assert "dtype was float16, is bfloat16" in refused.stderr
    assert digest_folder(output) == whole
    convert(source, output, "--overwrite")
    assert [path.read_bytes() for path in foreign] == [str(path).encode() for path in foreign]
    foreign[0].unlink()
    distconv.convert(source, tmp_path / "local", max_shard_size=200_000)
    assert_equal(output, tmp_path / "local")
    assert_clean(output)


@pytest.mark.parametrize("inside", ["in", "in/out", "in//out", "./in/", "other/../in/out", "."])
def test_an_output_that_overlaps_with_input_is_refused(
    checkpoint: Write, place: StoredPath, inside: str
) -> None:
    source = share(checkpoint(SPEC), place / "in")
    before = source.etags()
    with pytest.raises(OutputError, match="equal to, inside or above INPUT's folder"):
        distconv.convert(source, f"s3://models/{place.key}/{inside}", overwrite=True)
    assert source.etags() == before


def test_an_output_in_another_bucket_or_of_a_longer_name_overlaps_with_nothing(
    checkpoint: Write, place: StoredPath
) -> None:
    assert isinstance(place.store, ObjectStore)
    place.store.make_bucket("others")
    source = share(checkpoint(SPEC), place / "in")
    for output in (StoredPath(place.store, "others", source.key), place / "in2"):
        distconv.convert(source, output)
        assert looks_whole(output)
