"""The store for tests fails, waits, counts and is weak as it is told, as botocore sees it."""

import collections
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from botocore.client import BaseClient
from botocore.exceptions import (
    ClientError,
    ConnectionClosedError,
    IncompleteReadError,
    ReadTimeoutError,
    ResponseStreamingError,
)
from hypothesis import given
from hypothesis import strategies as st

from tests.object_store import Fault, ObjectStore, made_up_bytes, start
from tests.s3_clients import code_of, make_client

MIB = 1 << 20
BROKEN = (ConnectionClosedError, ReadTimeoutError)


@pytest.fixture(scope="module")
def running() -> Iterator[ObjectStore]:
    """Give a store."""
    with start("models") as store:
        yield store


@pytest.fixture(scope="module")
def client(running: ObjectStore) -> Iterator[BaseClient]:
    """Give a client of it."""
    with make_client(running.url, running.access_key, running.secret_key) as made:
        yield made


@pytest.fixture
def store(running: ObjectStore) -> Iterator[ObjectStore]:
    """Give the store without records; faults are taken away afterwards."""
    running.clear_requests()
    yield running
    running.clear_faults()


def outcome(client: BaseClient, operation: str, **told: object) -> str:
    """Call a verb of a client, and give S3's code, or what broke."""
    try:
        getattr(client, operation)(Bucket="models", **told)
    except ClientError as error:
        return code_of(error)
    except BROKEN:
        return "broken"
    return "done"


def begin(client: BaseClient, key: str, content: bytes) -> dict[str, object]:
    """Begin an upload of one part, and give what completes it."""
    name = client.create_multipart_upload(Bucket="models", Key=key)["UploadId"]
    part = client.upload_part(Bucket="models", Key=key, UploadId=name, PartNumber=1, Body=content)
    return {
        "Key": key,
        "UploadId": name,
        "MultipartUpload": {"Parts": [{"PartNumber": 1, "ETag": part["ETag"]}]},
    }


@pytest.mark.parametrize(
    ("code", "status"),
    [("InternalError", 500), ("ServiceUnavailable", 503), ("SlowDown", 503), ("PreconditionFailed", 412)],
)
def test_the_requests_that_are_named_fail_and_no_others(
    store: ObjectStore, client: BaseClient, code: str, status: int
) -> None:
    store.fault(Fault("error", "PutObject", "models/faulty*", first=2, times=2, code=code))
    ends = [
        outcome(client, "put_object", Key=key, Body=b"")
        for key in ("sound", "faulty", "faulty 1", "faulty 2", "faulty")
    ]
    assert ends == ["done", "done", code, code, "done"]
    assert [record.status for record in store.requests("PutObject")] == [200, 200, status, status, 200]


def test_faults_by_chance_are_the_same_with_the_same_seed(store: ObjectStore, client: BaseClient) -> None:
    def ends(seed: int) -> list[str]:
        store.fault(Fault("error", "HeadBucket", times=None, probability=0.5, seed=seed))
        found = [outcome(client, "head_bucket") for _request in range(20)]
        store.clear_faults()
        return found

    first = ends(1)
    assert {"500", "done"} == set(first)
    assert ends(1) == first
    assert ends(2) != first


@pytest.mark.parametrize("after_effect", [False, True])
@pytest.mark.parametrize(
    ("fault", "end"),
    [
        (Fault("reset"), "broken"),
        (Fault("error", code="InternalError"), "InternalError"),
        (Fault("error in 200", code="InternalError"), "InternalError"),
        (Fault("error", code="ConditionalRequestConflict"), "ConditionalRequestConflict"),
    ],
)
def test_an_answer_is_lost_before_or_after_the_effect(
    store: ObjectStore, client: BaseClient, fault: Fault, end: str, *, after_effect: bool
) -> None:
    key = f"model {os.urandom(4).hex()}"
    told = begin(client, key, b"content")
    store.fault(Fault(fault.action, "CompleteMultipartUpload", code=fault.code, after_effect=after_effect))
    assert outcome(client, "complete_multipart_upload", **told, IfNoneMatch="*") == end
    assert outcome(client, "head_object", Key=key) == ("done" if after_effect else "404")
    assert outcome(client, "complete_multipart_upload", **told, IfNoneMatch="*") == "done"


def test_a_put_whose_answer_is_lost_has_happened(store: ObjectStore, client: BaseClient) -> None:
    store.fault(Fault("reset", "PutObject", after_effect=True))
    assert outcome(client, "put_object", Key="lock", Body=b"mine", IfNoneMatch="*") == "broken"
    assert outcome(client, "put_object", Key="lock", Body=b"mine", IfNoneMatch="*") == "PreconditionFailed"
    assert client.get_object(Bucket="models", Key="lock")["Body"].read() == b"mine"
    assert [record.status for record in store.requests("PutObject")] == [0, 412]


@given(size=st.integers(0, 3 * MIB))
def test_a_body_is_cut_after_so_many_bytes(running: ObjectStore, client: BaseClient, size: int) -> None:
    running.clear_requests()
    running.make_up("models", "large", 3 * MIB + 1)
    running.fault(Fault("cut", "GetObject", bytes=size))
    body = client.get_object(Bucket="models", Key="large")["Body"]
    came = bytearray()
    with pytest.raises((IncompleteReadError, ResponseStreamingError, ConnectionClosedError)):
        collections.deque(map(came.extend, iter(lambda: body.read(1 << 16), b"")), 0)
    assert came == made_up_bytes(0, len(came))
    assert len(came) <= size
    # The connection is cut before its request counts as ended.
    while not (record := running.requests("GetObject")[0]).ended_s:
        time.sleep(0.001)
    assert record.bytes_out == size


def test_a_request_that_is_cut_leaves_nothing(store: ObjectStore, client: BaseClient) -> None:
    store.fault(Fault("cut request", "PutObject", bytes=MIB))
    assert outcome(client, "put_object", Key="cut", Body=bytes(8 * MIB)) == "broken"
    assert outcome(client, "head_object", Key="cut") == "404"


def test_a_completion_that_is_held_finds_its_upload_aborted(store: ObjectStore, client: BaseClient) -> None:
    told = begin(client, "held", b"content")
    store.fault(Fault("hold", "CompleteMultipartUpload", gate="before"))
    with ThreadPoolExecutor(1) as pool:
        end = pool.submit(outcome, client, "complete_multipart_upload", **told)
        store.wait_held("before")
        client.abort_multipart_upload(Bucket="models", Key="held", UploadId=told["UploadId"])
        assert not end.done()
        store.release("before")
        assert end.result() == "NoSuchUpload"


def test_a_completion_that_is_held_after_its_effect_is_seen_before_its_client_knows(
    store: ObjectStore, client: BaseClient
) -> None:
    told = begin(client, "seen", b"content")
    store.fault(Fault("hold", "CompleteMultipartUpload", gate="after", after_effect=True))
    with ThreadPoolExecutor(1) as pool:
        end = pool.submit(outcome, client, "complete_multipart_upload", **told)
        store.wait_held("after")
        assert outcome(client, "put_object", Key="seen", Body=b"", IfNoneMatch="*") == "PreconditionFailed"
        assert not end.done()
        store.release("after")
        assert end.result() == "done"


@pytest.mark.parametrize("kind", ["put", "complete", "delete"])
def test_a_weak_store_ignores_conditions_of_one_kind(
    store: ObjectStore, client: BaseClient, kind: str
) -> None:
    def ends() -> dict[str, str]:
        key = f"weak {os.urandom(4).hex()}"
        client.put_object(Bucket="models", Key=key, Body=b"present")
        return {
            "put": outcome(client, "put_object", Key=key, Body=b"", IfNoneMatch="*"),
            "complete": outcome(
                client, "complete_multipart_upload", **begin(client, key, b""), IfNoneMatch="*"
            ),
            "delete": outcome(client, "delete_object", Key=key, IfMatch='"other"'),
        }

    strict = dict.fromkeys(("put", "complete", "delete"), "PreconditionFailed")
    assert ends() == strict
    store.change(ignored_conditions=[kind])
    found = ends()
    store.change(ignored_conditions=[])
    assert found == strict | {kind: "done"}


def test_parts_of_unequal_sizes_are_refused_by_stores_that_want_equal_ones(
    store: ObjectStore, client: BaseClient
) -> None:
    def end(*sizes: int) -> str:
        told = {"Key": "parts"}
        told["UploadId"] = client.create_multipart_upload(Bucket="models", **told)["UploadId"]
        parts = [
            {
                "PartNumber": number,
                "ETag": client.upload_part(Bucket="models", **told, PartNumber=number, Body=bytes(size))[
                    "ETag"
                ],
            }
            for number, size in enumerate(sizes, 1)
        ]
        return outcome(client, "complete_multipart_upload", **told, MultipartUpload={"Parts": parts})

    assert end(9, 9, 3) == "EntityTooSmall"
    store.change(minimum_part_bytes=8, equal_parts=True)
    assert [end(9, 9, 3), end(9, 8, 3), end(9, 9, 10), end(3)] == [
        "done",
        "InvalidPart",
        "InvalidPart",
        "done",
    ]
    store.change(minimum_part_bytes=5 * MIB, equal_parts=False)


def test_every_request_is_recorded_without_secrets(store: ObjectStore, client: BaseClient) -> None:
    client.put_object(Bucket="models", Key="seen", Body=b"0123456789")
    client.get_object(Bucket="models", Key="seen", Range="bytes=2-4")["Body"].read()
    outcome(client, "get_object", Key="not there")
    put, got, missing = store.requests()
    assert (put.operation, put.verb, put.key, put.status, put.bytes_in) == (
        "PutObject",
        "PUT",
        "seen",
        200,
        10,
    )
    assert (got.operation, got.range, got.status, got.bytes_out) == ("GetObject", "bytes=2-4", 206, 3)
    assert (missing.status, missing.code) == (404, "NoSuchKey")
    assert put.began_s <= put.answered_s <= got.began_s <= got.answered_s <= missing.began_s
    assert put.access_key == store.access_key
    assert not any("Signature=" in str(record) for record in (put, got, missing))
    assert [record.operation for record in store.requests("GetObject", clear=True)] == ["GetObject"] * 2
    assert store.requests() == []


def test_latency_and_rate_take_their_time(store: ObjectStore, client: BaseClient) -> None:
    store.make_up("models", "paced", 4 * MIB)
    store.change(latency_s=0.05, rate=8 * MIB)
    began = time.monotonic()
    client.get_object(Bucket="models", Key="paced")["Body"].read()
    read = time.monotonic()
    client.put_object(Bucket="models", Key="paced", Body=bytes(2 * MIB))
    written = time.monotonic()
    store.change(latency_s=0, rate=0)
    # The kernel paces none of a connection's first ten packets, which on loopback are of 64 KiB.
    assert read - began >= 0.05 + 0.5 - 0.1
    assert written - read >= 0.05 + 0.25
    got = store.requests("GetObject")[0]
    assert got.answered_s - got.began_s >= 0.05


def test_a_made_up_object_has_its_bytes_anywhere(store: ObjectStore, client: BaseClient) -> None:
    size = 70 << 30
    store.make_up("models", "70B", size)
    assert client.head_object(Bucket="models", Key="70B")["ContentLength"] == size
    for offset in (0, 524_309 - 5, size // 3, size - 1000):
        last = min(size, offset + 9 * MIB) - 1
        got = client.get_object(Bucket="models", Key="70B", Range=f"bytes={offset}-{last}")["Body"].read()
        assert got == made_up_bytes(offset, last + 1 - offset)


def test_a_store_that_discards_still_knows_sizes_and_checksums(
    store: ObjectStore, client: BaseClient
) -> None:
    store.change(discard=True, random_etags=True)
    etags = {client.put_object(Bucket="models", Key="gone", Body=bytes(9 * MIB))["ETag"] for _put in range(2)}
    refusal = outcome(client, "put_object", Key="wrong", Body=b"content", ChecksumCRC32="AAAAAA==")
    got = client.get_object(Bucket="models", Key="gone")["Body"].read()
    store.change(discard=False, random_etags=False)
    assert (len(etags), refusal) == (2, "BadDigest")
    assert got == made_up_bytes(0, 9 * MIB)


def test_a_folder_is_shared_without_a_copy(store: ObjectStore, client: BaseClient, tmp_path: Path) -> None:
    (tmp_path / "below").mkdir()
    (tmp_path / "a").write_bytes(b"first")
    (tmp_path / "below" / "b").write_bytes(b"second")
    assert store.share(tmp_path, "models", "shared/") == 2
    listed = client.list_objects_v2(Bucket="models", Prefix="shared/")["Contents"]
    assert {item["Key"]: item["Size"] for item in listed} == {"shared/a": 5, "shared/below/b": 6}
    assert client.get_object(Bucket="models", Key="shared/below/b")["Body"].read() == b"second"


def test_a_store_that_is_started_by_hand_says_where_it_is() -> None:
    options = [
        "--bucket",
        "models",
        "--make-up",
        "models/large=10000000000",
        "--rate-mb",
        "80",
        "--latency-ms",
        "2",
    ]
    with subprocess.Popen(
        [sys.executable, "-m", "tests.object_store", "--discard", *options],
        cwd=Path(__file__).parents[1],
        stdout=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        told = json.loads(process.stdout.readline())
        with make_client(told["url"], told["access_key"], told["secret_key"]) as client:
            listed = client.list_objects_v2(Bucket="models")["Contents"]
        process.kill()
    assert told["pid"] == process.pid
    assert [(item["Key"], item["Size"]) for item in listed] == [("large", 10_000_000_000)]


def test_a_store_ends_with_who_started_it() -> None:
    with start() as store:
        assert store.cpu_s() > 0
    with pytest.raises(ConnectionRefusedError), socket.create_connection(("127.0.0.1", store.port)):
        pass
