"""SeaweedFS does what we need of a store, as botocore sees it."""

import os
from collections.abc import Iterator

import pytest
from botocore.client import BaseClient
from botocore.exceptions import ClientError

from tests.s3_clients import code_of, make_client
from tests.seaweed import Seaweed, start_seaweed


@pytest.fixture(scope="module")
def seaweed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Seaweed]:
    """Give a running SeaweedFS."""
    with start_seaweed(tmp_path_factory.mktemp("seaweed") / "data") as running:
        yield running


@pytest.fixture(scope="module")
def client(seaweed: Seaweed) -> Iterator[BaseClient]:
    """Give a client of it, and the bucket ``models``."""
    with make_client(seaweed.url, seaweed.access_key, seaweed.secret_key) as made:
        made.create_bucket(Bucket="models")
        yield made


@pytest.mark.slow
def test_an_upload_is_completed_only_where_nothing_is(client: BaseClient) -> None:
    parts = [os.urandom(5 << 20), os.urandom(9)]
    told = {"Bucket": "models", "Key": "folder/model.safetensors"}

    def complete() -> None:
        upload = told | {"UploadId": client.create_multipart_upload(**told)["UploadId"]}
        etags = [
            client.upload_part(**upload, PartNumber=n, Body=part)["ETag"] for n, part in enumerate(parts, 1)
        ]
        named = [{"PartNumber": number, "ETag": etag} for number, etag in enumerate(etags, 1)]
        client.complete_multipart_upload(**upload, MultipartUpload={"Parts": named}, IfNoneMatch="*")

    complete()
    with pytest.raises(ClientError) as caught:
        complete()
    assert code_of(caught.value) == "PreconditionFailed"
    got = client.get_object(**told, Range=f"bytes={(5 << 20) - 7}-{(5 << 20) + 2}")["Body"].read()
    assert got == parts[0][-7:] + parts[1][:3]
    listed = client.list_objects_v2(Bucket="models", Prefix="folder/")["Contents"]
    assert [(item["Key"], item["Size"]) for item in listed] == [(told["Key"], (5 << 20) + 9)]


def test_an_aborted_upload_takes_no_more_parts(client: BaseClient) -> None:
    told = {"Bucket": "models", "Key": "aborted"}
    upload = told | {"UploadId": client.create_multipart_upload(**told)["UploadId"]}
    client.upload_part(**upload, PartNumber=1, Body=b"part")
    assert [
        item["Key"] for item in client.list_multipart_uploads(Bucket="models", Prefix="abo")["Uploads"]
    ] == ["aborted"]
    client.abort_multipart_upload(**upload)
    with pytest.raises(ClientError) as caught:
        client.upload_part(**upload, PartNumber=2, Body=b"late")
    assert code_of(caught.value) == "NoSuchUpload"


def test_a_lock_is_swapped_by_its_etag_and_a_wrong_checksum_is_refused(client: BaseClient) -> None:
    told = {"Bucket": "models", "Key": "lock"}
    first = client.put_object(**told, Body=b"1", IfNoneMatch="*")["ETag"]
    second = client.put_object(**told, Body=b"2", IfMatch=first)["ETag"]
    for conditions in ({"IfNoneMatch": "*"}, {"IfMatch": first}):
        with pytest.raises(ClientError) as caught:
            client.put_object(**told, Body=b"3", **conditions)
        assert code_of(caught.value) == "PreconditionFailed"
    assert client.head_object(**told)["ETag"] == second
    with pytest.raises(ClientError) as caught:
        client.put_object(**told, Body=b"3", ChecksumCRC64NVME="AAAAAAAAAAA=")
    assert code_of(caught.value) in {"BadDigest", "InvalidRequest"}


def test_strangers_are_refused(seaweed: Seaweed, client: BaseClient) -> None:
    for keys in (("nobody", seaweed.secret_key), (seaweed.access_key, "guessed")):
        with make_client(seaweed.url, *keys) as stranger, pytest.raises(ClientError) as caught:
            stranger.get_object(Bucket="models", Key="lock")
        assert code_of(caught.value) in {"InvalidAccessKeyId", "SignatureDoesNotMatch"}
