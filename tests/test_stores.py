"""Conversions whose INPUT or OUTPUT lies in a store keep every promise of those between local folders."""

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

pytest.importorskip("botocore", reason="needs the extra s3")

import distconv
from distconv.cli import main
from distconv.errors import InputError, OutputError, describe_os_error
from distconv.output.identity import Source
from distconv.storage.given import find_given
from tests.called import call
from tests.checkpoints import Spec
from tests.faults import digest_folder, looks_whole, read_recorded
from tests.object_store import Fault, ObjectStore
from tests.patience import HANG_SECONDS
from tests.stored import AnyPath, StoredPath, run_store

Write = Callable[[Spec], Path]
SPEC = Spec("llama-2", heads=8, kv_heads=4, shards=2)
LIMIT = ("--max-shard-size", "200kB")
LARGE = Spec("llama-2", dim=512, heads=8, kv_heads=4, layers=6, multiple_of=256, shards=2)
"""Of about 50 MB: no part of an upload but its last one may be of less than 5 MiB."""
PARTS = ("--max-shard-size", "1MB")
JOURNAL, RECEIPT = ".distconv.journal", "distconv.json"


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ObjectStore]:
    """Give a store with a bucket ``models``."""
    with run_store(tmp_path_factory.mktemp("aws")) as store:
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
    """Convert from the command line, to the end."""
    ended = call(command(source, output, *options)[3:])
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


@pytest.mark.first(1)
@pytest.mark.parametrize(
    ("kind", "shards"),
    [
        ("transformers", "4"),
        ("meta", "1"),
        pytest.param("transformers", "1", marks=pytest.mark.slow),
        pytest.param("meta", "4", marks=pytest.mark.slow),
    ],
)
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


@pytest.mark.first(2)
@pytest.mark.parametrize(
    ("operation", "key"),
    [
        ("CompleteMultipartUpload", "model-00002-*"),
        ("CompleteMultipartUpload", "distconv.json"),
        ("PutObject", ".distconv.owner.*"),
        ("UploadPart", "model-*"),
        ("CompleteMultipartUpload", "model.safetensors.index.json"),
        ("CompleteMultipartUpload", JOURNAL),
        ("DeleteObject", JOURNAL),
        ("CompleteMultipartUpload", ".distconv.owner.*"),
        ("DeleteObject", ".distconv.owner.*"),
    ],
)
@pytest.mark.parametrize(
    "after_effect", [pytest.param(False, id="before", marks=pytest.mark.slow), pytest.param(True, id="after")]
)
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


@pytest.mark.first(1)
@pytest.mark.parametrize(
    "keys", [(JOURNAL,), pytest.param((JOURNAL, ".distconv.owner.*"), marks=pytest.mark.slow)]
)
def test_what_could_not_be_removed_at_the_end_goes_with_the_next_run(
    checkpoint: Write, place: StoredPath, keys: tuple[str, ...]
) -> None:
    store, source, output = place.store, checkpoint(SPEC), place / "out"
    assert isinstance(store, ObjectStore)
    for key in keys:
        store.fault(
            Fault("error", "DeleteObject", f"models/{output.key}/{key}", code="AccessDenied", times=100)
        )
    with pytest.raises(PermissionError, match="AccessDenied"):
        distconv.convert(source, output, max_shard_size=200_000)
    assert looks_whole(output)
    store.clear_faults()
    before = read_chunks(output)
    distconv.convert(source, output, max_shard_size=200_000)
    assert read_chunks(output) == before
    assert_clean(output)


def read_chunks(folder: StoredPath) -> dict[str, str]:
    return {name: etag for name, etag in folder.etags().items() if name.endswith(".safetensors")}


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
    refused = call(command(source, output)[3:])
    assert refused.returncode == 2
    assert "notes.txt" in refused.stderr
    assert sorted(output.etags()) == ["notes.txt"]
    convert(source, output, "--overwrite", "--dtype", "float16")
    whole = digest_folder(output)
    refused = call(command(source, output)[3:])
    assert refused.returncode == 2
    assert "--dtype float16 before, --dtype bfloat16 now" in refused.stderr
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
    with pytest.raises(OutputError, match=r"(equal to|inside|above) INPUT's folder"):
        distconv.convert(source, f"s3://models/{place.key}/{inside}", overwrite=True)
    assert source.etags() == before


@pytest.mark.parametrize("inside", ["a//out", "/out", "./out", "a/../out"])
def test_an_output_of_which_stores_differ_where_it_is_is_refused_and_nothing_is_written(
    checkpoint: Write, place: StoredPath, inside: str
) -> None:
    meant = f"s3://models/{place.key}/{'a/out' if inside == 'a//out' else 'out'}"
    with pytest.raises(OutputError, match=f"an empty name, . or .. among its folders, .*; give {meant}$"):
        distconv.convert(checkpoint(SPEC), f"s3://models/{place.key}/{inside}", overwrite=True)
    assert place.etags() == {}


def test_an_output_in_another_bucket_or_of_a_longer_name_overlaps_with_nothing(
    checkpoint: Write, place: StoredPath
) -> None:
    assert isinstance(place.store, ObjectStore)
    place.store.make_bucket("others")
    source = share(checkpoint(SPEC), place / "in")
    for output in (StoredPath(place.store, "others", source.key), place / "in2"):
        distconv.convert(source, output)
        assert looks_whole(output)


def test_parts_that_are_stored_are_gone_on_with(checkpoint: Write, tmp_path: Path, place: StoredPath) -> None:
    store, source, output = place.store, checkpoint(LARGE), place / "out"
    assert isinstance(store, ObjectStore)
    options = ("--to", "meta", "--shards", "1", *PARTS)
    distconv.convert(source, tmp_path / "local", to="meta", shards=1, max_shard_size=1_000_000)
    store.fault(
        Fault("hold", "UploadPart", f"models/{output.key}/*.pth", first=4, times=None, gate=place.key)
    )
    with started(source, output, *options) as process:
        store.wait_held(place.key, limit_s=HANG_SECONDS)
        while not (recorded := read_parts(output)):
            time.sleep(0.05)
        process.kill()
    store.clear_faults()
    store.clear_requests()
    report = distconv.convert(source, output, to="meta", shards=1, max_shard_size=1_000_000)
    assert_equal(output, tmp_path / "local")
    assert_clean(output)
    assert report.kept_parts >= len(recorded) > 0
    sent = [part.bytes_in for part in store.requests("UploadPart") if part.key.endswith(".pth")]
    assert sum(sent) <= (tmp_path / "local/consolidated.00.pth").stat().st_size - len(recorded) * (5 << 20)


def read_parts(output: StoredPath) -> list[str]:
    """Give the parts that the journal has, by number."""
    if JOURNAL not in output.etags():
        return []
    files = json.loads((output / JOURNAL).read_text()).get("unfinished", {})
    return [number for file in files.values() for number in file["parts"]]


READS = {
    "plan": ["plan", "{}", *LIMIT],
    "inspect": ["inspect", "{}"],
    "check": ["check", "{}", "--quiet"],
    "inspect OUTPUT": ["inspect", "{}/out"],
    "verify": ["verify", "{}/out", "--quiet"],
    "verify against": ["verify", "{0}/out", "--against", "{0}", "--quiet"],
}


@pytest.fixture(scope="module")
def pair(
    checkpoint: Write, running: ObjectStore, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, StoredPath]:
    """Give a checkpoint with a model that was made of it in a folder beside it, and the same in a store."""
    folder = tmp_path_factory.mktemp("pair") / "in"
    shutil.copytree(checkpoint(SPEC), folder)
    stored = share(folder, StoredPath(running, "models", "pair/in"))
    distconv.convert(folder, folder.parent / "made", max_shard_size=200_000)
    (folder.parent / "made").rename(folder / "out")
    share(folder / "out", stored / "out")
    return folder, stored


@pytest.mark.parametrize("verb", READS)
def test_what_only_reads_says_the_same_of_a_store(
    pair: tuple[Path, StoredPath], capsys: pytest.CaptureFixture[str], verb: str
) -> None:
    told = []
    for place in pair:
        main([word.format(place) for word in READS[verb]])
        said = capsys.readouterr()
        told.append((drop_requests(said.out.replace(str(place), "IN")), said.err.replace(str(place), "IN")))
    assert told[0] == told[1]
    assert told[0][0]


def drop_requests(said: str) -> str:
    """Leave out what plan says of requests, and of memory for what they bring."""
    return re.sub(r"(?m)^requests .*\n|^workers  .*\n", "", said)


def test_requests_are_counted_as_the_store_has_them_and_foretold(
    checkpoint: Write, store: ObjectStore, place: StoredPath, capsys: pytest.CaptureFixture[str]
) -> None:
    source = share(checkpoint(SPEC), place / "in")
    planned = distconv.plan(source).to_json()
    store.clear_requests()
    report = distconv.convert(source, place / "out")
    sent = Counter(record.operation for record in store.requests())
    assert dict(report.requests) == dict(sent)
    # All but those for headers and small files.
    assert 0 < int(str(planned["requests"])) < sent["GetObject"]
    assert f"{sum(sent.values())} requests to other hosts" in "\n".join(report.lines())


@pytest.mark.first(1)
@pytest.mark.parametrize(
    "name", ["consolidated.01.pth", "params.json", pytest.param("tokenizer.model", marks=pytest.mark.slow)]
)
def test_input_that_is_another_at_the_end_is_named_and_the_mark_is_not_set(
    checkpoint: Write, place: StoredPath, name: str
) -> None:
    source = checkpoint(SPEC)
    stored = place / "in"
    for path in (*source.iterdir(), source.parent / "tokenizer.model"):
        if path.is_file():
            (stored / path.name).write_bytes(path.read_bytes())
    # By then all weights are read.
    receipt = f"models/{place.key}/out/{RECEIPT}"
    assert isinstance(place.store, ObjectStore)
    place.store.fault(Fault("hold", "CompleteMultipartUpload", receipt, gate=place.key))
    with started(stored, place / "out") as process:
        place.store.wait_held(place.key, limit_s=HANG_SECONDS)
        (stored / name).write_bytes((stored / name).read_bytes())
        place.store.release(place.key)
        _said, told = process.communicate()
    assert process.returncode == 2, told
    assert f"{stored / name}: written, replaced or touched while it was converted" in told
    assert not looks_whole(place / "out")


def test_damage_in_a_store_is_found(checkpoint: Write, place: StoredPath) -> None:
    distconv.convert(checkpoint(SPEC), place / "out", max_shard_size=200_000)
    path = place / "out/model-00001-of-00002.safetensors"
    content = bytearray(path.read_bytes())
    content[-5] ^= 4
    path.write_bytes(bytes(content))
    report = distconv.verify(place / "out")
    assert not report.ok
    assert "model-00001-of-00002.safetensors" in str(report)


@pytest.mark.parametrize("ignored", ["put", "complete", "delete"])
def test_a_bucket_that_ignores_conditions_is_refused_with_nothing_left_in_it(
    checkpoint: Write, store: ObjectStore, place: StoredPath, ignored: str
) -> None:
    store.change(ignored_conditions=[ignored])
    with pytest.raises(OutputError, match="this store ignores If-"):
        distconv.convert(checkpoint(SPEC), place / "out")
    assert list(place.etags()) == []
    assert (place / "out").etags() == {}
    assert (place / "out").uploads() == []


WITHOUT_BOTOCORE = (
    "import sys; sys.modules['botocore'] = sys.modules['botocore.session'] = None\n"
    "from distconv.cli import main; main(sys.argv[1:])"
)
OF_NOBODY = {"AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": ""}


@pytest.mark.first(2)
@pytest.mark.parametrize(
    ("end", "environment", "code", "words"),
    [
        ("nobucket", {}, 2, "there is no bucket nobucket"),
        (
            "models",
            {"AWS_SECRET_ACCESS_KEY": "wrong"},
            1,
            "the credentials of the environment have a secret that is not",
        ),
        (
            "models",
            {"AWS_ACCESS_KEY_ID": "AKIDNOBODY"},
            1,
            "the credentials of the environment are not known there",
        ),
        ("models", OF_NOBODY, 1, "no credentials found; set AWS_PROFILE"),
        ("models", {"AWS_ENDPOINT_URL": "http://127.0.0.1:9"}, 1, "the connection to 127.0.0.1:9 failed"),
        (
            "models",
            {"AWS_ENDPOINT_URL": "ftp://somewhere"},
            2,
            "error: AWS_ENDPOINT_URL: expected http(s)://HOST",
        ),
        (
            "models",
            {"AWS_ENDPOINT_URL_S3": "http://somewhere/#x"},
            2,
            "error: AWS_ENDPOINT_URL_S3: expected http(s)://HOST",
        ),
    ],
    ids=["bucket", "secret", "key", "none", "nobody listens", "no endpoint", "a fragment"],
)
@pytest.mark.parametrize("side", [pytest.param("in", marks=pytest.mark.slow), "out"])
def test_what_keeps_one_from_a_store_is_said_once_and_nothing_is_written(
    checkpoint: Write, place: StoredPath, tmp_path: Path, side: str, end: str,
    environment: dict[str, str], code: int, words: str,
) -> None:  # fmt: skip
    stored = f"s3://{end}/{place.key}"
    source, output = (stored, tmp_path / "out") if side == "in" else (checkpoint(SPEC), stored)
    ended = run(*command(source, output), **environment)
    assert ended.returncode == code, ended.stderr
    (told,) = [line for line in ended.stderr.splitlines() if not line.startswith("note: ")]
    assert words in told
    assert not (tmp_path / "out").exists()
    assert place.etags() == {}


@pytest.mark.parametrize(
    "asked",
    [
        ("convert", "{}", "out"), ("inspect", "{}"), ("plan", "{}"), ("check", "{}"), ("verify", "{}"),
        ("verify", "hf", "--against", "{}"), ("manifest", "{}", "manifest.json"),
        ("convert", "in", "out", "--tokenizer", "{}"), ("convert", "in", "out", "--params", "{}"),
        ("manifest", "hf", "{}/manifest.json"), ("verify", "hf", "--card", "{}/card.md"),
    ],
    ids=" ".join,
)  # fmt: skip
@pytest.mark.parametrize("given", ["s3://nobucket/models/llama", "s3://nobucket"])
def test_a_bucket_that_is_not_there_is_named_before_anything_is_read(
    checkpoint: Write, store: ObjectStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: str,
    asked: tuple[str, ...],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    (tmp_path / "in").symlink_to(checkpoint(SPEC))
    if "hf" in asked:
        distconv.convert("in", "hf")
    ended = call([word.format(given) for word in asked])
    assert ended.returncode == 2
    assert re.fullmatch(
        r"error: s3://nobucket\S*: there is no bucket nobucket; (make it, or )?correct its name( \(given as .*\))?\n",
        ended.stderr,
    )
    assert not Path("out").exists()


def test_an_empty_object_of_a_folders_name_is_taken_as_the_folder_that_some_tools_make_by_it(
    checkpoint: Write, place: StoredPath, tmp_path: Path
) -> None:
    source = checkpoint(SPEC)
    distconv.convert(source, tmp_path / "hf")
    for folder, name in ((source, "meta"), (tmp_path / "hf", "hf")):
        share(folder, place / name).write_bytes(b"")
    distconv.convert(place / "meta", tmp_path / "out")
    assert_equal(tmp_path / "out", tmp_path / "hf")
    assert distconv.verify(place / "hf", against=place / "meta").ok


@pytest.mark.parametrize(
    "asked", [("convert", "{}", "out"), ("inspect", "{}"), ("verify", "{}")], ids=" ".join
)
def test_an_object_of_a_folders_name_is_told_of_as_well_as_the_folder(
    checkpoint: Write,
    place: StoredPath,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    asked: tuple[str, ...],
) -> None:
    monkeypatch.chdir(tmp_path)
    share(checkpoint(SPEC), place)
    place.write_bytes(b"hello")
    for given in (str(place), f"{place}/"):
        ended = call([word.format(given) for word in asked])
        assert ended.returncode == 2
        assert ended.stderr == (
            f"error: {place}: a file of 5 bytes, and a folder of the same name, expected one of them; remove the other, "
            "or give it another name\n"
        )


def test_of_a_bucket_that_one_may_not_list_it_is_not_said_that_it_is_not_there() -> None:
    class Guarded:
        def find(self, path: str) -> None:
            if path == "s3://models":
                raise PermissionError(path)

    with pytest.raises(InputError, match=r"^s3://models/mine/none: no such file or folder$"):
        find_given(Guarded(), "s3://models/mine/none")  # type: ignore[arg-type]


def test_without_botocore_it_is_said_how_to_get_it(checkpoint: Write, tmp_path: Path) -> None:
    for ends in (["s3://models/in", str(tmp_path / "out")], [str(checkpoint(SPEC)), "s3://models/out"]):
        ended = run(sys.executable, "-c", WITHOUT_BOTOCORE, "convert", *ends)
        assert ended.returncode == 2
        assert ended.stderr.splitlines()[-1] == (
            "error: s3://: botocore is not installed: in a clone of distconv, "
            "`pip install --constraint constraints.txt '.[s3]'`"
        )


OPERATIONS = {
    "ListObjectsV2": True, "GetObject": True, "PutObject": False, "DeleteObject": False,
    "CreateMultipartUpload": False, "UploadPart": False, "CompleteMultipartUpload": False,
    "AbortMultipartUpload": False, "ListMultipartUploads": False, "ListParts": False,
}  # fmt: skip
"""What a conversion asks a store for, and whether it does so of INPUT."""


@pytest.mark.parametrize("operation", OPERATIONS)
def test_what_is_not_allowed_is_said_with_who_is_not(
    checkpoint: Write, tmp_path: Path, store: ObjectStore, place: StoredPath, operation: str
) -> None:
    source = share(checkpoint(SPEC), place / "in")
    # Who may not get an object may not ask for its headers either.
    names = {operation, operation.replace("Get", "Head")}
    store.change(denied=[(store.access_key, name, f"models/{place.key}") for name in names])
    ends: list[tuple[AnyPath, AnyPath]] = [(checkpoint(SPEC), place / "out")]
    ends += [(source, tmp_path / "out")] if OPERATIONS[operation] else []
    for one, other in ends:
        with pytest.raises(PermissionError) as caught:
            distconv.convert(one, other)
        assert "is not allowed to the credentials of the environment (AccessDenied)" in str(caught.value)
        assert any(name in str(caught.value) for name in names)
        assert describe_os_error(caught.value).endswith(
            "(AccessDenied); have it allowed there, or use other credentials"
        )
    store.change(denied=[])
    assert not (tmp_path / "out").exists()
    assert not [name for name in (place / "out").etags() if not name.startswith((".", ".."))]


def test_a_tokenizer_that_lies_in_a_store_is_opened_for_a_comparison_too(
    checkpoint: Write, place: StoredPath, tmp_path: Path
) -> None:
    source = shutil.copytree(checkpoint(SPEC), tmp_path / "in")
    name = next(path.name for path in source.iterdir() if "tokenizer" in path.name)
    (place / name).write_bytes((source / name).read_bytes())
    (source / name).unlink()
    distconv.convert(source, tmp_path / "out", tokenizer=str(place / name))
    assert distconv.verify(tmp_path / "out", against=source, tokenizer=str(place / name)).ok


def save_in_order(path: Path, tensors: dict[str, torch.Tensor]) -> None:
    """Write a safetensors file whose tensors lie one behind the other in this order."""
    header, content = {}, b""
    for name, tensor in tensors.items():
        data = tensor.contiguous().view(torch.uint8).numpy().tobytes()
        offsets = [len(content), len(content) + len(data)]
        header[name] = {"dtype": "BF16", "shape": list(tensor.shape), "data_offsets": offsets}
        content += data
    said = json.dumps(header).encode().ljust(16 << 10)
    path.write_bytes(len(said).to_bytes(8, "little") + said + content)


def test_a_next_step_that_comes_while_headers_are_read_is_refused(
    store: ObjectStore, place: StoredPath, checkpoint: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has the same tensors, in another order."""
    distconv.convert(checkpoint(SPEC), tmp_path / "like")
    tensors = load_file(tmp_path / "like/model.safetensors")
    for step, names in (("first", sorted(tensors)), ("next", sorted(tensors, reverse=True))):
        (tmp_path / step).mkdir()
        save_in_order(tmp_path / step / "weights.safetensors", {name: tensors[name] for name in names})
    source, look = share(tmp_path / "first", place), Source.__init__

    def save_next_and_look(*arguments: Any) -> None:
        share(tmp_path / "next", place)
        look(*arguments)

    monkeypatch.setattr(Source, "__init__", save_next_and_look)
    with pytest.raises(InputError, match="written, replaced or touched"):
        distconv.convert(str(source), tmp_path / "out", like=tmp_path / "like")
    assert not looks_whole(tmp_path / "out")
