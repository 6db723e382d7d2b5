"""A conversion in a store that is held up while a successor takes over: nothing of it lands, whenever the store does it."""

import os
import signal
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

pytest.importorskip("botocore", reason="needs the extra s3")

import distconv
from tests import contests
from tests.checkpoints import Spec
from tests.contests import LOST, end
from tests.faults import digest_folder
from tests.object_store import Fault, ObjectStore
from tests.patience import HANG_SECONDS
from tests.stored import StoredPath, run_store
from tests.test_stores import JOURNAL, LARGE, RECEIPT, SPEC, assert_clean

Write = Callable[[Spec], Path]
Capture = pytest.CaptureFixture[str]
PATIENCE_SECONDS = 1.0
PROBE = ".distconv.json.probe.*"


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ObjectStore]:
    """Give a store with a bucket ``models``."""
    with run_store(tmp_path_factory.mktemp("aws")) as store:
        yield store


@pytest.fixture
def output(running: ObjectStore) -> Iterator[StoredPath]:
    """Give a folder that nobody else has."""
    running.clear_requests()
    yield StoredPath(running, "models", uuid.uuid4().hex)
    running.clear_faults()


def hold_and_overtake(
    source: Path, output: StoredPath, fault: Fault, successor: dict[str, object], **options: object
) -> tuple[int, dict[str, str]]:
    """Hold a conversion's request, let another end, have the first one's done, let it go on.

    Gives its exit code, and what the other left.
    """
    store = output.store
    assert isinstance(store, ObjectStore)
    store.fault(fault)
    process = contests.start(source, output, patience=PATIENCE_SECONDS, **options)
    try:
        store.wait_held(fault.gate, limit_s=HANG_SECONDS)
        os.kill(process, signal.SIGSTOP)
        assert end(contests.start(source, output, patience=PATIENCE_SECONDS, **successor)) == 0
        expected = digest_folder(output)
        store.release(fault.gate)
        wait_until_done(store, fault)
        found = digest_folder(output)
        # One that was to own it may say so late, or try the store, and sees then that there is another model.
        of_model = {name: found[name] for name in found if "owner" not in name and "probe" not in name}
        assert of_model == expected, "once the store had done it"
    finally:
        store.release(fault.gate)
        os.kill(process, signal.SIGCONT)
        code = end(process)
    assert digest_folder(output) == expected, "once it had gone on"
    return code, expected


def wait_until_done(store: ObjectStore, fault: Fault) -> None:
    """Wait until the request that was held has been answered, or its connection broken."""
    while True:
        (struck,) = (record for record in store.requests(fault.operation) if record.faults)
        if struck.ended_s:
            return
        time.sleep(0.01)


STEPS = [
    ("CompleteMultipartUpload", "model-00001-*"),
    ("CompleteMultipartUpload", RECEIPT),
    ("PutObject", ".distconv.owner.*"),
    ("PutObject", PROBE),
    ("UploadPart", PROBE),
    ("CompleteMultipartUpload", PROBE),
    ("DeleteObject", PROBE),
    ("CreateMultipartUpload", "model-00001-*"),
    ("UploadPart", "model-00001-*"),
    ("CompleteMultipartUpload", JOURNAL),
    ("CompleteMultipartUpload", "model.safetensors.index.json"),
    ("DeleteObject", JOURNAL),
    ("CompleteMultipartUpload", ".distconv.owner.*"),
    ("DeleteObject", ".distconv.owner.*"),
]


@pytest.mark.first(2)
@pytest.mark.parametrize(("operation", "key"), STEPS)
@pytest.mark.parametrize(
    "after_effect", [pytest.param(False, id="before"), pytest.param(True, id="after", marks=pytest.mark.slow)]
)
def test_nothing_of_who_was_taken_for_dead_lands_in_a_successors_model(
    checkpoint: Write, output: StoredPath, operation: str, key: str, capfd: Capture, *, after_effect: bool
) -> None:
    fault = Fault("hold", operation, f"models/{output.key}/{key}", after_effect=after_effect, gate=output.key)
    successor: dict[str, object] = {"dtype": "float16", "overwrite": True, "max_shard_size": 200_000}
    code, _expected = hold_and_overtake(checkpoint(SPEC), output, fault, successor, max_shard_size=200_000)
    # Who had only begun, or whose model was whole by then, ends otherwise.
    has_only_begun = operation == "DeleteObject" or "owner" in key or key == PROBE
    assert code in ({0, 2, LOST} if has_only_begun else {LOST})
    # What was dropped under it tells nothing of the store.
    assert "ignores" not in capfd.readouterr().err
    assert_clean(output)


@pytest.mark.slow
@pytest.mark.parametrize("operation", ["UploadPart", "CompleteMultipartUpload"])
@pytest.mark.parametrize("after_effect", [False, True], ids=["before", "after"])
def test_a_successor_goes_on_with_the_same_upload_and_makes_the_same_bytes(
    checkpoint: Write, tmp_path: Path, output: StoredPath, operation: str, *, after_effect: bool
) -> None:
    options: dict[str, object] = {"to": "meta", "shards": 1, "max_shard_size": 1_000_000}
    key = f"models/{output.key}/*.pth"
    fault = Fault("hold", operation, key, after_effect=after_effect, gate=output.key)
    distconv.convert(checkpoint(LARGE), tmp_path / "local", **options)  # type: ignore[arg-type]
    _code, expected = hold_and_overtake(checkpoint(LARGE), output, fault, options, **options)
    assert expected == digest_folder(tmp_path / "local")
    assert_clean(output)
