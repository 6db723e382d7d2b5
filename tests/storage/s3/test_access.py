"""Who asks a store, where it is, and what of that is never shown."""

import logging
import subprocess
import sys
import traceback
from pathlib import Path

import pytest

from distconv.errors import ConversionError, DistconvError, UsageError
from distconv.storage import extras
from distconv.storage.base import join, write_small
from distconv.storage.s3.access import find_access
from distconv.storage.s3.client import Call, Client, connect
from distconv.storage.s3.place import Place
from distconv.storage.s3.storage import S3Storage
from tests.object_store import SECOND_ACCESS_KEY, SECOND_SECRET_KEY, Fault, ObjectStore
from tests.storage.s3.conftest import add_profile

SECRET = "kEepThis0ut/ofEverything"
TOKEN = "token+that/nobody/sees"


@pytest.fixture
def secret_profile(profiles: Path) -> Place:
    """Give a place with credentials that no store knows."""
    add_profile(profiles, "secret", "AKIDNOBODY", SECRET)
    return Place("http://127.0.0.1:9", profile="secret")


def test_nothing_secret_is_shown_or_logged(
    profiles: Path, stand: ObjectStore, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIDNOBODY")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    monkeypatch.setenv("AWS_SESSION_TOKEN", TOKEN)
    storage = S3Storage(Place(stand.url))
    with pytest.raises(DistconvError) as caught:
        storage.find("s3://models/file")
    client = connect(storage.place)
    shown = f"{caught.value} {caught.value!r} {storage!r} {client!r} {client.access!r} {vars(client)!r} {caplog.text}"
    for secret in (SECRET, TOKEN, "AKIDNOBODY", "Signature="):
        assert secret not in shown
    assert client.access.identity == "the credentials of the environment"


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("InvalidAccessKeyId", "the profile stand are not known there"),
        ("SignatureDoesNotMatch", "have a secret that is not theirs there"),
        ("RequestTimeTooSkewed", "whose clock is wrong"),
    ],
)
@pytest.mark.parametrize("operation", ["HeadObject", "ListObjectsV2"])
def test_credentials_that_do_not_do_are_told_by_their_profile(
    held: S3Storage, stand: ObjectStore, code: str, said: str, operation: str
) -> None:
    stand.fault(Fault("error", "*Object*", code=code, times=None))
    with pytest.raises(ConversionError, match=said):
        held.find("s3://models/file") if operation == "HeadObject" else held.list_folder("s3://models")


def test_what_is_not_allowed_is_told_with_who_is_not(
    held: S3Storage, profiles: Path, stand: ObjectStore, folder: str
) -> None:
    add_profile(profiles, "reader", SECOND_ACCESS_KEY, SECOND_SECRET_KEY)
    reader = S3Storage(Place(stand.url, profile="reader"))
    path = join(folder, "file")
    write_small(held, path, b"content")
    unfinished = held.begin(path, 5)
    stand.change(
        denied=[
            (SECOND_ACCESS_KEY, "ListMultipartUploads", "models"),
            (SECOND_ACCESS_KEY, "PutObject", "models"),
        ]
    )
    assert reader.list_names(folder) == ("file",)
    with pytest.raises(PermissionError) as caught:
        reader.create(path, b"other")
    assert caught.value.filename == path
    assert caught.value.strerror == "PutObject is not allowed to the profile reader (AccessDenied)"
    with pytest.raises(PermissionError, match="ListMultipartUploads is not allowed"):
        reader.probe(folder)
    unfinished.abort()


def test_without_credentials_it_is_said_where_they_could_come_from(
    profiles: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(
        ConversionError, match="s3: no credentials found; set AWS_PROFILE, or AWS_ACCESS_KEY_ID"
    ):
        find_access(Place("http://127.0.0.1:9"))
    with pytest.raises(ConversionError, match=r"s3: The config profile \(nobody\) could not be found"):
        find_access(Place(profile="nobody"))


@pytest.mark.parametrize("variable", ["AWS_ACCESS_KEY_ID", "AWS_SESSION_TOKEN", "AWS_REGION"])
def test_what_no_header_can_hold_is_told_and_not_shown(
    profiles: Path, monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIDNOBODY")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    # As a file that was read into a variable ends.
    monkeypatch.setenv(variable, f"{TOKEN}\n")
    with pytest.raises(ConversionError, match=f"the credentials of the environment .*{variable}") as caught:
        S3Storage(Place("http://127.0.0.1:9")).find("s3://models/file")
    assert TOKEN not in "".join(traceback.format_exception(caught.value))


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ("credential_process = echo secret", r"not of the form that is expected \(JSONDecodeError\)"),
        ("credential_process = /nowhere/program", "s3: /nowhere/program: No such file or directory"),
        ("services = mine\n[services mine]\ns3 = rubbish", r"expected \(AttributeError\)"),
        (
            "role_arn = arn:aws:iam::1:role/mine\nweb_identity_token_file = /nowhere/token",
            "could not be had: /nowhere/token: No such file or directory",
        ),
    ],
)
def test_settings_that_botocore_cannot_take_are_one_message(
    profiles: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: str, said: str
) -> None:
    (tmp_path / "config").write_text(f"[profile odd]\n{settings}\n")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    if "services" in settings:
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIDNOBODY")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    with pytest.raises(ConversionError, match=said):
        S3Storage(Place(profile="odd")).find("s3://models/file")


def test_endpoints_are_found_where_the_tools_of_aws_find_them(
    secret_profile: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = Place(profile="secret")
    assert find_access(place).endpoint == "https://s3.us-east-1.amazonaws.com"
    monkeypatch.setenv("AWS_DEFAULT_REGION", "cn-north-1")
    assert find_access(place).endpoint == "https://s3.cn-north-1.amazonaws.com.cn"
    monkeypatch.setenv("AWS_REGION", "eu-central-1")
    assert find_access(place).endpoint == "https://s3.eu-central-1.amazonaws.com"
    monkeypatch.setenv("AWS_ENDPOINT_URL", "https://one.example/prefix/")
    assert find_access(place).endpoint == "https://one.example/prefix"
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "https://two.example")
    assert find_access(place).endpoint == "https://two.example"
    assert find_access(secret_profile).endpoint == "http://127.0.0.1:9"


@pytest.mark.parametrize(
    ("place", "bucket", "url"),
    [
        (Place(region="eu-west-1"), "models", "https://models.s3.eu-west-1.amazonaws.com/a%20b/%C3%A4"),
        (Place(region="eu-west-1"), "my.models", "https://s3.eu-west-1.amazonaws.com/my.models/a%20b/%C3%A4"),
        (Place("http://h:1"), "models", "http://h:1/models/a%20b/%C3%A4"),
        (Place("http://h:1/p", addressing="virtual"), "models", "http://models.h:1/p/a%20b/%C3%A4"),
    ],
)
def test_the_bucket_stands_where_the_endpoint_wants_it(
    profiles: Path, monkeypatch: pytest.MonkeyPatch, place: Place, bucket: str, url: str
) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "A")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "B")
    client = Client(place)
    assert client._make_url(Call("", "GET", bucket, "a b/ä"), client.access.region) == url


def test_what_is_missing_is_named_with_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "botocore.session", None)
    with pytest.raises(UsageError, match=r"s3://: botocore is not installed: .*'\.\[s3\]'`"):
        extras.need("botocore.session", "s3")


def test_the_storage_can_be_imported_and_sent_without_what_only_it_needs() -> None:
    code = (
        "import sys; sys.modules.update(botocore=None, awscrt=None); import pickle\n"
        "from distconv.storage.s3.storage import S3Storage\n"
        "print(pickle.loads(pickle.dumps(S3Storage())) == S3Storage())"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (ended.stdout, ended.stderr) == ("True\n", "")
