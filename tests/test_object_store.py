"""The store for tests does what S3 does, as botocore sees it."""

import base64
import contextlib
import hashlib
import http.client
import os
import threading
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import awscrt.checksums
import pytest
from botocore.client import BaseClient
from botocore.exceptions import ClientError
from hypothesis import given
from hypothesis import strategies as st

from tests.object_store import (
    SECOND_ACCESS_KEY,
    SECOND_SECRET_KEY,
    ObjectStore,
    checksums,
    made_up_bytes,
    start,
)
from tests.s3_clients import code_of, make_client

MIB = 1 << 20


@pytest.fixture(scope="module")
def store() -> Iterator[ObjectStore]:
    """Give a store that is as S3 is."""
    with start("models") as running:
        yield running


@pytest.fixture(scope="module")
def client(store: ObjectStore) -> Iterator[BaseClient]:
    """Give a client of it."""
    with make_client(store.url, store.access_key, store.secret_key) as made:
        yield made


@pytest.fixture
def bucket(client: BaseClient, request: pytest.FixtureRequest) -> str:
    """Give an empty bucket."""
    name = hashlib.md5(request.node.nodeid.encode(), usedforsecurity=False).hexdigest()
    client.create_bucket(Bucket=name)
    return name


def refused(code: str, verb: Callable[..., object], **told: object) -> None:
    """Expect an error of S3's."""
    with pytest.raises(ClientError) as caught:
        verb(**told)
    assert code_of(caught.value) == code


def nvme(content: bytes) -> str:
    """Give a CRC64NVME as a header has it."""
    value = awscrt.checksums.crc64nvme(content)
    return base64.b64encode(value.to_bytes(8, "big")).decode()


def test_an_object_comes_back_with_its_headers(client: BaseClient, bucket: str) -> None:
    content = os.urandom(3 * MIB + 17)
    key = "a folder/ü + %20?&#=~.bin"
    put = client.put_object(
        Bucket=bucket, Key=key, Body=content, Metadata={"attempt": "one"}, ContentType="text/x"
    )
    got = client.get_object(Bucket=bucket, Key=key)
    assert got["Body"].read() == content
    assert (got["Metadata"], got["ContentType"], got["ContentLength"]) == (
        {"attempt": "one"},
        "text/x",
        len(content),
    )
    assert got["ETag"] == put["ETag"] == f'"{hashlib.md5(content, usedforsecurity=False).hexdigest()}"'
    head = client.head_object(Bucket=bucket, Key=key)
    assert (head["ETag"], head["ContentLength"], head["Metadata"]) == (
        put["ETag"],
        len(content),
        {"attempt": "one"},
    )
    assert client.get_object(Bucket=bucket, Key=key, IfMatch=put["ETag"])["Body"].read() == content
    refused("PreconditionFailed", client.get_object, Bucket=bucket, Key=key, IfMatch='"other"')
    refused("304", client.get_object, Bucket=bucket, Key=key, IfNoneMatch=put["ETag"])
    refused("NoSuchKey", client.get_object, Bucket=bucket, Key="other")
    refused("404", client.head_object, Bucket=bucket, Key="other")
    refused("NoSuchBucket", client.get_object, Bucket="nobodys", Key=key)


@given(size=st.integers(1, 300), first=st.integers(0, 320), last=st.integers(0, 320), kind=st.integers(0, 2))
def test_a_range_is_a_slice(client: BaseClient, size: int, first: int, last: int, kind: int) -> None:
    content = made_up_bytes(11, size)
    client.put_object(Bucket="models", Key="ranges", Body=content)
    asked, expected = (
        (f"bytes={first}-{first + last}", content[first : first + last + 1]),
        (f"bytes={first}-", content[first:]),
        (f"bytes=-{last}", content[-last:] if last else b""),
    )[kind]
    if not expected:
        refused("InvalidRange", client.get_object, Bucket="models", Key="ranges", Range=asked)
        return
    got = client.get_object(Bucket="models", Key="ranges", Range=asked)
    assert got["Body"].read() == expected
    start_byte = size - len(expected) if kind == 2 else first
    assert got["ContentRange"] == f"bytes {start_byte}-{start_byte + len(expected) - 1}/{size}"


def test_conditions_decide_puts_and_deletes(client: BaseClient, bucket: str) -> None:
    told = {"Bucket": bucket, "Key": "lock"}
    refused("NoSuchKey", client.put_object, **told, Body=b"0", IfMatch='"any"')
    first = client.put_object(**told, Body=b"1", IfNoneMatch="*")["ETag"]
    refused("PreconditionFailed", client.put_object, **told, Body=b"2", IfNoneMatch="*")
    second = client.put_object(**told, Body=b"3", IfMatch=first)["ETag"]
    refused("PreconditionFailed", client.put_object, **told, Body=b"4", IfMatch=first)
    refused("PreconditionFailed", client.delete_object, **told, IfMatch=first)
    assert client.get_object(**told)["Body"].read() == b"3"
    client.delete_object(**told, IfMatch=second)
    refused("NoSuchKey", client.get_object, **told)
    client.delete_object(**told)


keys = st.text(st.sampled_from("ab/é~ +"), min_size=1, max_size=6)


@given(
    names=st.sets(keys, max_size=12),
    prefix=st.sampled_from(["", "a", "a/", "b/a", "é"]),
    delimiter=st.sampled_from(["", "/"]),
    limit=st.integers(1, 5),
)
def test_a_listing_has_all_keys_in_order_page_by_page(
    store: ObjectStore, client: BaseClient, names: set[str], prefix: str, delimiter: str, limit: int
) -> None:
    bucket = os.urandom(8).hex()
    store.make_bucket(bucket)
    for name in names:
        store.make_up(bucket, name, 7)
    found, token, pages = [], {}, 0
    while True:
        page = client.list_objects_v2(
            Bucket=bucket, Prefix=prefix, Delimiter=delimiter, MaxKeys=limit, **token
        )
        found += [item["Key"] for item in page.get("Contents", [])]
        found += [item["Prefix"] for item in page.get("CommonPrefixes", [])]
        pages += 1
        if not page["IsTruncated"]:
            break
        assert page["KeyCount"] == limit
        token = {"ContinuationToken": page["NextContinuationToken"]}
    matching = [name for name in names if name.startswith(prefix)]
    ends = [name.find(delimiter, len(prefix)) if delimiter else -1 for name in matching]
    expected = {name[: end + 1] if end >= 0 else name for name, end in zip(matching, ends, strict=True)}
    assert sorted(found) == sorted(expected)
    assert pages == max(1, -(-len(expected) // limit))


def begin(client: BaseClient, bucket: str, key: str, **told: object) -> dict[str, str]:
    """Begin an upload, and give what names it."""
    name = client.create_multipart_upload(Bucket=bucket, Key=key, **told)["UploadId"]
    return {"Bucket": bucket, "Key": key, "UploadId": name}


def put_parts(client: BaseClient, upload: dict[str, str], parts: dict[int, bytes]) -> list[dict[str, object]]:
    """Put parts in the order given, and name them in that of their numbers."""
    etags = {
        number: client.upload_part(**upload, PartNumber=number, Body=content)["ETag"]
        for number, content in parts.items()
    }
    return [{"PartNumber": number, "ETag": etags[number]} for number in sorted(etags)]


def test_an_upload_is_its_parts_in_order_of_number(client: BaseClient, bucket: str) -> None:
    parts = {3: os.urandom(77), 1: os.urandom(5 * MIB), 2: os.urandom(5 * MIB + 3)}
    upload = begin(client, bucket, "model", Metadata={"attempt": "2"}, ChecksumAlgorithm="CRC64NVME")
    put_parts(client, upload, {2: b"an older part of the same number"})
    named = put_parts(client, upload, parts)
    refused("404", client.head_object, Bucket=bucket, Key="model")
    whole = b"".join(parts[number] for number in sorted(parts))
    done = client.complete_multipart_upload(
        **upload,
        MultipartUpload={"Parts": named},
        ChecksumCRC64NVME=nvme(whole),
        ChecksumType="FULL_OBJECT",
        MpuObjectSize=len(whole),
    )
    digests = b"".join(hashlib.md5(parts[number], usedforsecurity=False).digest() for number in sorted(parts))
    assert done["ETag"] == f'"{hashlib.md5(digests, usedforsecurity=False).hexdigest()}-3"'
    got = client.get_object(Bucket=bucket, Key="model")
    assert (got["Body"].read(), got["Metadata"]) == (whole, {"attempt": "2"})
    middle = client.get_object(Bucket=bucket, Key="model", Range=f"bytes={5 * MIB - 9}-{10 * MIB + 9}")
    assert middle["Body"].read() == whole[5 * MIB - 9 : 10 * MIB + 10]
    head = client.head_object(Bucket=bucket, Key="model", ChecksumMode="ENABLED")
    assert (head["ChecksumCRC64NVME"], head["ChecksumType"]) == (nvme(whole), "FULL_OBJECT")
    assert client.list_objects_v2(Bucket=bucket)["Contents"][0]["ChecksumType"] == "FULL_OBJECT"


def test_a_completion_that_is_not_right_is_refused_and_may_be_mended(client: BaseClient, bucket: str) -> None:
    upload = begin(client, bucket, "model", ChecksumAlgorithm="CRC64NVME")
    small, large = put_parts(client, upload, {1: b"small", 2: os.urandom(5 * MIB)})
    complete = client.complete_multipart_upload

    def expect(code: str, *parts: dict[str, object], **told: object) -> None:
        refused(code, complete, **upload, MultipartUpload={"Parts": list(parts)}, **told)

    expect("EntityTooSmall", small, large)
    expect("InvalidPartOrder", large, small)
    expect("InvalidPart", large | {"ETag": small["ETag"]})
    expect("InvalidPart", large | {"PartNumber": 3})
    expect("MalformedXML")
    expect("BadDigest", large, ChecksumCRC64NVME=nvme(b"other"), ChecksumType="FULL_OBJECT")
    expect("InvalidRequest", large, MpuObjectSize=5)
    refused("404", client.head_object, Bucket=bucket, Key="model")
    complete(**upload, MultipartUpload={"Parts": [large]})
    assert client.head_object(Bucket=bucket, Key="model")["ContentLength"] == 5 * MIB


@pytest.mark.first(1)
@pytest.mark.parametrize("algorithm", ["CRC32", "CRC32C", "CRC64NVME", "SHA1", "SHA256"])
def test_botocores_own_checksums_are_accepted_and_others_refused(
    store: ObjectStore, bucket: str, algorithm: str
) -> None:
    with make_client(
        store.url, store.access_key, store.secret_key, request_checksum_calculation="when_supported"
    ) as client:
        check_checksums(client, bucket, algorithm)


def check_checksums(client: BaseClient, bucket: str, algorithm: str) -> None:
    """Put an object and an upload with a checksum, and one with another's."""
    put = client.put_object(Bucket=bucket, Key="one", Body=b"content", ChecksumAlgorithm=algorithm)
    got = client.get_object(Bucket=bucket, Key="one", ChecksumMode="ENABLED")
    assert got["Body"].read() == b"content"
    assert got[f"Checksum{algorithm}"] == put[f"Checksum{algorithm}"]
    upload = begin(client, bucket, "many", ChecksumAlgorithm=algorithm)
    part = client.upload_part(**upload, PartNumber=1, Body=b"content", ChecksumAlgorithm=algorithm)
    assert part[f"Checksum{algorithm}"] == put[f"Checksum{algorithm}"]
    named = {"PartNumber": 1, "ETag": part["ETag"], f"Checksum{algorithm}": part[f"Checksum{algorithm}"]}
    done = client.complete_multipart_upload(**upload, MultipartUpload={"Parts": [named]})
    assert done["ChecksumType"] == ("FULL_OBJECT" if algorithm == "CRC64NVME" else "COMPOSITE")
    wrong = {
        f"Checksum{algorithm}": base64.b64encode(
            b"\0" * len(base64.b64decode(part[f"Checksum{algorithm}"]))
        ).decode()
    }
    refused("BadDigest", client.put_object, Bucket=bucket, Key="two", Body=b"content", **wrong)
    refused("404", client.head_object, Bucket=bucket, Key="two")


@given(
    left=st.binary(max_size=200), right=st.binary(max_size=200), name=st.sampled_from(sorted(checksums.CRCS))
)
def test_checksums_of_parts_combine_to_that_of_the_whole(left: bytes, right: bytes, name: str) -> None:
    slow, fast = checksums.IN_PYTHON[name], checksums.CRCS[name]
    assert slow(left + right, 0) == fast(left + right, 0) == slow(right, slow(left, 0))
    assert checksums.combine(name, slow(left, 0), slow(right, 0), len(right)) == slow(left + right, 0)
    assert checksums.IN_PYTHON["CRC32"](left, 0) == zlib.crc32(left)


def test_uploads_and_parts_are_listed_page_by_page(client: BaseClient, bucket: str) -> None:
    names = [begin(client, bucket, key)["UploadId"] for key in ("a/1", "a/2", "a/2", "a/2", "b ü")]
    found, marker = [], {}
    while True:
        page = client.list_multipart_uploads(Bucket=bucket, MaxUploads=2, **marker)
        found += [(item["Key"], item["UploadId"]) for item in page.get("Uploads", [])]
        if not page["IsTruncated"]:
            break
        marker = {"KeyMarker": page["NextKeyMarker"], "UploadIdMarker": page["NextUploadIdMarker"]}
    assert sorted(found) == sorted(zip(("a/1", "a/2", "a/2", "a/2", "b ü"), names, strict=True))
    under = client.list_multipart_uploads(Bucket=bucket, Prefix="a/2")["Uploads"]
    assert [item["UploadId"] for item in under] == names[1:4]

    upload = {"Bucket": bucket, "Key": "a/1", "UploadId": names[0]}
    put_parts(client, upload, {number: b"part" * number for number in (9, 2, 5, 1, 7)})
    sizes, after = {}, 0
    while True:
        page = client.list_parts(**upload, MaxParts=2, PartNumberMarker=after)
        sizes |= {item["PartNumber"]: item["Size"] for item in page["Parts"]}
        if not page["IsTruncated"]:
            break
        after = page["NextPartNumberMarker"]
    assert sizes == {number: 4 * number for number in (1, 2, 5, 7, 9)}
    for name, key in zip(names, ("a/1", "a/2", "a/2", "a/2", "b ü"), strict=True):
        client.abort_multipart_upload(Bucket=bucket, Key=key, UploadId=name)
    assert "Uploads" not in client.list_multipart_uploads(Bucket=bucket)
    refused("NoSuchUpload", client.upload_part, **upload, PartNumber=1, Body=b"late")
    refused("NoSuchUpload", client.list_parts, **upload)
    refused("NoSuchUpload", client.abort_multipart_upload, **upload)


def at_once(count: int, verb: Callable[[int], object]) -> list[str]:
    """Let threads call a verb at the same time; give what became of each."""
    ready = threading.Barrier(count)

    def call(number: int) -> str:
        ready.wait()
        try:
            verb(number)
        except ClientError as error:
            return code_of(error)
        return "done"

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(call, range(count)))


RIVALS = 12


@pytest.mark.parametrize("round_", range(5))
def test_of_rivals_that_create_one_object_one_wins(client: BaseClient, bucket: str, round_: int) -> None:
    told = {"Bucket": bucket, "Key": f"lock {round_}"}
    ends = at_once(
        RIVALS, lambda number: client.put_object(**told, Body=str(number).encode(), IfNoneMatch="*")
    )
    assert sorted(ends) == ["PreconditionFailed"] * (RIVALS - 1) + ["done"]
    assert client.get_object(**told)["Body"].read() == str(ends.index("done")).encode()


@pytest.mark.parametrize("round_", range(5))
def test_of_rivals_that_complete_one_object_one_wins(client: BaseClient, bucket: str, round_: int) -> None:
    uploads = [begin(client, bucket, f"model {round_}") for _rival in range(RIVALS)]
    named = [put_parts(client, upload, {1: str(number).encode()}) for number, upload in enumerate(uploads)]

    def complete(number: int) -> None:
        client.complete_multipart_upload(
            **uploads[number], MultipartUpload={"Parts": named[number]}, IfNoneMatch="*"
        )

    ends = at_once(RIVALS, complete)
    assert sorted(ends) == ["PreconditionFailed"] * (RIVALS - 1) + ["done"]
    got = client.get_object(Bucket=bucket, Key=f"model {round_}")
    assert got["Body"].read() == str(ends.index("done")).encode()


def test_a_counter_that_rivals_swap_loses_nothing(client: BaseClient, bucket: str) -> None:
    told = {"Bucket": bucket, "Key": "counter"}
    client.put_object(**told, Body=b"0")

    def count(_number: int) -> None:
        done = 0
        while done < 5:
            got = client.get_object(**told)
            following = str(int(got["Body"].read()) + 1).encode()
            with contextlib.suppress(client.exceptions.ClientError):
                client.put_object(**told, Body=following, IfMatch=got["ETag"])
                done += 1

    assert at_once(6, count) == ["done"] * 6
    assert client.get_object(**told)["Body"].read() == b"30"


def test_of_rivals_that_delete_one_version_one_finds_it(client: BaseClient, bucket: str) -> None:
    told = {"Bucket": bucket, "Key": "lock"}
    etag = client.put_object(**told, Body=b"held")["ETag"]
    ends = at_once(RIVALS, lambda _number: client.delete_object(**told, IfMatch=etag))
    assert sorted(ends) == ["NoSuchKey"] * (RIVALS - 1) + ["done"]


def test_a_completion_again_answers_as_the_first_one_did(
    store: ObjectStore, client: BaseClient, bucket: str
) -> None:
    upload = begin(client, bucket, "model")
    told = upload | {"MultipartUpload": {"Parts": put_parts(client, upload, {1: b"content"})}}
    done = client.complete_multipart_upload(**told, IfNoneMatch="*")
    assert client.complete_multipart_upload(**told, IfNoneMatch="*")["ETag"] == done["ETag"]
    store.change(forget_completed=True)
    refused("NoSuchUpload", client.complete_multipart_upload, **told, IfNoneMatch="*")
    store.change(forget_completed=False)
    client.put_object(Bucket=bucket, Key="model", Body=b"another's")
    refused("NoSuchUpload", client.complete_multipart_upload, **told, IfNoneMatch="*")


def test_strangers_and_forgers_are_refused(store: ObjectStore, client: BaseClient, bucket: str) -> None:
    client.put_object(Bucket=bucket, Key="open/a", Body=b"a")
    client.put_object(Bucket=bucket, Key="closed/b", Body=b"b")
    with make_client(store.url, "nobody", "secret") as stranger:
        refused("InvalidAccessKeyId", stranger.get_object, Bucket=bucket, Key="open/a")
    with make_client(store.url, store.access_key, "guessed") as forger:
        refused("SignatureDoesNotMatch", forger.get_object, Bucket=bucket, Key="open/a")
    store.change(denied=[(SECOND_ACCESS_KEY, "*", f"{bucket}/closed/")])
    with make_client(store.url, SECOND_ACCESS_KEY, SECOND_SECRET_KEY) as second:
        assert second.get_object(Bucket=bucket, Key="open/a")["Body"].read() == b"a"
        refused("AccessDenied", second.get_object, Bucket=bucket, Key="closed/b")
        refused("AccessDenied", second.list_objects_v2, Bucket=bucket, Prefix="closed/")
        refused("AccessDenied", second.put_object, Bucket=bucket, Key="closed/c", Body=b"c")
    assert client.get_object(Bucket=bucket, Key="closed/b")["Body"].read() == b"b"
    store.change(clock_ahead_s=3600)
    refused("RequestTimeTooSkewed", client.get_object, Bucket=bucket, Key="open/a")
    store.change(clock_ahead_s=0, denied=[])


def test_a_signed_url_serves_without_headers_until_it_is_changed(
    store: ObjectStore, client: BaseClient, bucket: str
) -> None:
    client.put_object(Bucket=bucket, Key="a b", Body=b"content")
    with make_client(store.url, store.access_key, store.secret_key, signature_version="s3v4") as signer:
        url = signer.generate_presigned_url(
            "get_object", Params={"Bucket": bucket, "Key": "a b"}, ExpiresIn=60
        )
    target = url.removeprefix(store.url)
    connection = http.client.HTTPConnection("127.0.0.1", store.port)
    for asked, status in ((target, 206), (target.replace("a%20b", "a%20c"), 403)):
        connection.request("GET", asked, headers={"Range": "bytes=0-6"})
        answer = connection.getresponse()
        content = answer.read()
        assert answer.status == status, content
    connection.close()
