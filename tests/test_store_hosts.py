"""Conversions from store to store on a Ray cluster of three hosts, one of which is cut off."""

import json
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("botocore", reason="needs the extra s3")

import distconv
from tests.checkpoints import write_checkpoint
from tests.clusters import RAY, wait_until_up
from tests.faults import digest_folder
from tests.hosts import JOB_PORT, PORT, Host, can_make_hosts, hosts, joined, start_ray
from tests.object_store import Fault, ObjectStore, start
from tests.patience import HANG_SECONDS
from tests.stored import StoredPath, use_store
from tests.test_stores import LARGE, assert_clean

pytestmark = [
    pytest.mark.netns,
    pytest.mark.timeout(400),
    pytest.mark.skipif(not can_make_hosts(), reason="network namespaces need root and iproute2"),
]
DISTCONV = str(Path(RAY).with_name("distconv"))
GATE = "zombie"


@pytest.fixture
def three(tmp_path: Path) -> Iterator[list[Host]]:
    """Give three hosts."""
    with hosts(tmp_path, 3) as found:
        yield found


@pytest.fixture
def store(three: list[Host], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ObjectStore]:
    """Give a store with a bucket ``models`` that the hosts see too."""
    with joined(three[0]) as address, start("models", host="0.0.0.0", random_etags=True) as found:
        use_store(monkeypatch, found, tmp_path)
        for host in three:
            host.environment.update(
                AWS_ACCESS_KEY_ID=found.access_key, AWS_SECRET_ACCESS_KEY=found.secret_key,
                AWS_EC2_METADATA_DISABLED="true", AWS_ENDPOINT_URL=f"http://{address}:{found.port}",
            )  # fmt: skip
        yield found


def begin(three: list[Host], place: Path, summary: Path, *, as_job: bool) -> "subprocess.Popen[bytes]":
    """Begin a conversion from store to store on a cluster, whose head has no slots: its driver would be cut off with it."""
    start_ray(three, place, (0, 1, 1), takes_jobs=as_job)
    command = [DISTCONV, "convert", "s3://models/in", "s3://models/out", "--max-shard-size=1MB", "--json"]
    if not as_job:
        return three[0].popen([*command, f"--address={three[0].address}:{PORT}"], summary)
    job_server = f"http://{three[0].address}:{JOB_PORT}"
    wait_until_up(job_server, three[0].started[0])
    # As a person would who may reach nothing but the head; credentials are the nodes' own.
    return three[0].popen([RAY, "job", "submit", f"--address={job_server}", "--", *command], summary)


@pytest.mark.parametrize(
    ("operation", "as_job"),
    [("UploadPart", False), ("CompleteMultipartUpload", False), ("CompleteMultipartUpload", True)],
    ids=["part", "completion", "completion, by ray job submit"],
)
def test_nothing_of_a_host_that_was_cut_off_lands_in_the_model_that_others_finish(
    three: list[Host],
    store: ObjectStore,
    sentencepiece_file: Path,
    tmp_path: Path,
    operation: str,
    *,
    as_job: bool,
) -> None:
    source = write_checkpoint(tmp_path / "in", LARGE, sentencepiece_file)
    distconv.convert(source, tmp_path / "inline", max_shard_size=1_000_000)
    store.share(source, "models", "in/")
    output = StoredPath(store, "models", "out")
    store.fault(Fault("hold", operation, "models/out/model-*", gate=GATE))
    summary = tmp_path / "summary"
    process = begin(three, tmp_path, summary, as_job=as_job)
    deadline = time.monotonic() + HANG_SECONDS
    while not (held := [record for record in store.requests(operation) if record.faults]):
        assert time.monotonic() < deadline, summary.read_text()
        assert process.poll() is None, summary.read_text()
        time.sleep(0.05)
    store.wait_held(GATE, limit_s=HANG_SECONDS)
    (lost,) = (host for host in three if host.address == held[0].client)
    lost.cut()
    process.wait(HANG_SECONDS)
    text = summary.read_text()
    assert process.returncode == 0, text
    assert f" on {lost.name} was lost (" in text, text
    # What a job printed stands between words of Ray's.
    report, _end = json.JSONDecoder().raw_decode(text[text.index("\n{") + 1 :])
    assert report["retries"] == 1, "one worker on the host that was lost: one unit"
    expected, etags = digest_folder(output), output.etags()
    assert {name: expected[name] for name in expected if name.startswith("model-")} == {
        name: digest
        for name, digest in digest_folder(tmp_path / "inline").items()
        if name.startswith("model-")
    }
    store.release(GATE)
    while not (
        late := next(one for one in store.requests(operation) if one.number == held[0].number)
    ).ended_s:
        time.sleep(0.01)
    assert late.status in {404, 412}, "what it had sent before it was cut off"
    assert output.etags() == etags
    assert_clean(output)
