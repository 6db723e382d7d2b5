"""`ray job submit -- distconv convert`, against real heads with dashboard and job server on loopback."""

import json
import os
import shutil
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import distconv
from tests.checkpoints import Spec, write_checkpoint
from tests.clusters import RAY, Head, head
from tests.faults import digest_folder, looks_whole, read_recorded
from tests.patience import HANG_SECONDS

pytestmark = pytest.mark.slow
Write = Callable[[Spec], Path]
ROOT = Path(__file__).parents[1]
LARGE = Spec("llama-2", dim=512, heads=8, kv_heads=4, layers=24, multiple_of=256, shards=2)
"""Of 200 MB, to be written in hundreds of chunks: some seconds."""
SMALL = Spec("llama-2", heads=8, kv_heads=4, shards=2)
ENDED = {"SUCCEEDED", "FAILED", "STOPPED"}


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Head]:
    """Give a head that asks for no token."""
    with head(tmp_path_factory.mktemp("head"), "--num-cpus=2", RAY_metrics_report_interval_ms="1000") as up:
        yield up


def ray_cli(cluster: Head, *arguments: str, **more: str) -> "subprocess.CompletedProcess[str]":
    """Run ray's own command line as a person would."""
    environment = {**cluster.environment, "RAY_API_SERVER_ADDRESS": cluster.job_server, **more}
    return subprocess.run(
        [RAY, *arguments], env=environment, capture_output=True, text=True, timeout=HANG_SECONDS, check=False
    )


def job(cluster: Head, submission: str) -> dict[str, object]:
    """Ask the job server about a job."""
    with urllib.request.urlopen(
        f"{cluster.job_server}/api/jobs/{submission}", timeout=HANG_SECONDS
    ) as answer:
        found: dict[str, object] = json.load(answer)
        return found


def log_of(cluster: Head, submission: str) -> str:
    """Give what a job printed."""
    with urllib.request.urlopen(
        f"{cluster.job_server}/api/jobs/{submission}/logs", timeout=HANG_SECONDS
    ) as answer:
        return str(json.load(answer)["logs"])


def wait_for_end(cluster: Head, submission: str) -> dict[str, object]:
    """Wait until a job has ended, and give what is known of it."""
    deadline = time.monotonic() + HANG_SECONDS
    while (found := job(cluster, submission))["status"] not in ENDED:
        assert time.monotonic() < deadline, found
        time.sleep(0.2)
    return found


def submit(cluster: Head, submission: str, *entrypoint: str, **options: object) -> None:
    """Submit a job and do not wait for it."""
    named = [f"--{name.replace('_', '-')}={json.dumps(value)}" for name, value in options.items()]
    done = ray_cli(
        cluster, "job", "submit", "--no-wait", f"--submission-id={submission}", *named, "--", *entrypoint
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_job_converts_on_the_cluster_it_runs_in_to_the_bytes_of_inline(
    cluster: Head, checkpoint: Write, tmp_path: Path
) -> None:
    source, output, summary = checkpoint(SMALL), tmp_path / "out", tmp_path / "trace.json"
    distconv.convert(source, tmp_path / "inline", max_shard_size=30_000)
    done = ray_cli(
        cluster, "job", "submit", "--submission-id=whole", "--",
        "distconv", "convert", str(source), str(output), "--max-shard-size=30kB", f"--trace={summary}",
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert digest_folder(output) == digest_folder(tmp_path / "inline")
    assert job(cluster, "whole")["driver_exit_code"] == 0
    log = log_of(cluster, "whole")
    assert "\r" not in log
    assert "\x1b" not in log
    assert "100.0%, " in log
    workers = {
        event["args"]["name"]
        for event in json.loads(summary.read_text())["traceEvents"]
        if event["name"] == "thread_name"
    }
    # The second slot may come up when the first has done it all; both were asked for.
    whose = f"job_id={job(cluster, 'whole')['job_id']}"
    listed = ray_cli(
        cluster, "list", "actors", f"--address={cluster.job_server}", "--format=json",
        "--filter=class_name=Worker", f"--filter={whose}",
    )  # fmt: skip
    assert listed.returncode == 0, listed.stdout + listed.stderr
    assert len(json.loads(listed.stdout)) == 2, "it must use the cluster's two slots"
    assert workers, "it must have run"
    assert all(name.startswith("worker of process") for name in workers), "it must have run on the cluster"


def test_the_exit_code_of_bad_input_is_the_drivers(cluster: Head, tmp_path: Path) -> None:
    done = ray_cli(
        cluster, "job", "submit", "--submission-id=bad", "--",
        "distconv", "convert", str(tmp_path / "nothing"), str(tmp_path / "out"),
    )  # fmt: skip
    assert done.returncode == 1, "ray's command line tells no more than that it failed"
    found = job(cluster, "bad")
    assert (found["status"], found["driver_exit_code"]) == ("FAILED", 2)
    assert "error: " in log_of(cluster, "bad")
    assert "no such file or folder" in log_of(cluster, "bad")


def test_a_stopped_job_leaves_a_folder_that_the_next_one_finishes(
    cluster: Head, sentencepiece_file: Path, tmp_path: Path
) -> None:
    source, output = write_checkpoint(tmp_path / "in", LARGE, sentencepiece_file), tmp_path / "out"
    distconv.convert(source, tmp_path / "inline", max_shard_size=300_000)
    command = ("distconv", "convert", str(source), str(output), "--max-shard-size=300kB")
    grace = {"env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": "20"}}
    submit(cluster, "stopped", *command, runtime_env_json=grace)
    deadline = time.monotonic() + HANG_SECONDS
    while len(list(output.glob("*.safetensors"))) < 3:
        assert time.monotonic() < deadline, log_of(cluster, "stopped")
        time.sleep(0.01)
    # What `ray job stop` does, without the second that its command line takes to start.
    request = urllib.request.Request(f"{cluster.job_server}/api/jobs/stopped/stop", method="POST")
    urllib.request.urlopen(request, timeout=HANG_SECONDS).close()
    assert wait_for_end(cluster, "stopped")["status"] == "STOPPED"
    assert "error: terminated; run the same command again to go on" in log_of(cluster, "stopped")
    assert not looks_whole(output)
    assert not list(output.glob(".*.partial"))
    kept = {name: (output / name).stat().st_mtime_ns for name in read_recorded(output)}
    assert kept
    submit(cluster, "resumed", *command, runtime_env_json=grace)
    assert wait_for_end(cluster, "resumed")["status"] == "SUCCEEDED", log_of(cluster, "resumed")
    assert digest_folder(output) == digest_folder(tmp_path / "inline")
    assert {name: (output / name).stat().st_mtime_ns for name in kept} == kept


def test_prometheus_gets_the_bytes_that_were_moved(cluster: Head, checkpoint: Write, tmp_path: Path) -> None:
    output = tmp_path / "out"
    submit(cluster, "watched", "distconv", "convert", str(checkpoint(SMALL)), str(output))
    assert wait_for_end(cluster, "watched")["status"] == "SUCCEEDED", log_of(cluster, "watched")
    size_bytes = sum(path.stat().st_size for path in output.glob("*.safetensors"))
    deadline = time.monotonic() + HANG_SECONDS
    while (found := scrape(cluster)).get("ray_distconv_written_bytes_total", 0) < size_bytes:
        assert time.monotonic() < deadline, found
        time.sleep(0.5)
    assert found["ray_distconv_read_bytes_total"] > 0
    assert found["ray_distconv_units_total"] >= 1
    assert found["ray_distconv_stage_seconds_total"] > 0


def scrape(cluster: Head) -> dict[str, float]:
    """Read a node's metrics as Prometheus does; sums by name."""
    with urllib.request.urlopen(
        f"http://127.0.0.1:{cluster.metrics_port}/metrics", timeout=HANG_SECONDS
    ) as answer:
        lines = answer.read().decode().splitlines()
    found: dict[str, float] = {}
    for line in lines:
        if line.startswith("ray_distconv_"):
            name = line.partition("{")[0]
            found[name] = found.get(name, 0.0) + float(line.rpartition(" ")[2])
    return found


def test_a_package_in_the_runtime_environment_is_what_driver_and_workers_run(
    cluster: Head, checkpoint: Write, tmp_path: Path
) -> None:
    package = shutil.copytree(
        ROOT / "distconv", tmp_path / "distconv", ignore=shutil.ignore_patterns("__pycache__")
    )
    (package / "version.py").write_text('VERSION = "9.8.7"\n')
    # A worker with another package than the driver's could not even be told what to do.
    worker = package / "moving" / "job.py"
    worker.write_text(
        worker.read_text().replace("class Receipt:", "class Receipt:\n    of_this_package = True\n")
    )
    actors = package / "moving" / "ray" / "actors.py"
    actors.write_text(actors.read_text() + "\nassert Receipt.of_this_package\n")
    output = tmp_path / "out"
    submit(
        cluster, "package", "python", "-m", "distconv", "convert", str(checkpoint(SMALL)), str(output),
        runtime_env_json={"py_modules": [str(package)]},
    )  # fmt: skip
    assert wait_for_end(cluster, "package")["status"] == "SUCCEEDED", log_of(cluster, "package")
    assert json.loads((output / "distconv.json").read_text())["conversion"]["distconv"] == "9.8.7"


def test_the_example_of_the_client_reports_the_drivers_exit_code(
    cluster: Head, checkpoint: Write, tmp_path: Path
) -> None:
    command = [sys.executable, str(ROOT / "examples" / "submit.py"), cluster.job_server]
    for source, code in ((checkpoint(SMALL), 0), (tmp_path / "nothing", 2)):
        done = subprocess.run(
            [*command, str(source), str(tmp_path / "out")],
            env=dict(cluster.environment), capture_output=True, text=True, timeout=HANG_SECONDS, check=False,
        )  # fmt: skip
        assert done.returncode == code, done.stdout + done.stderr
    assert looks_whole(tmp_path / "out")


def test_a_cluster_with_a_token_takes_jobs_from_who_has_it(checkpoint: Write, tmp_path: Path) -> None:
    source, output = checkpoint(SMALL), tmp_path / "out"
    token = os.urandom(24).hex()
    with head(tmp_path, "--num-cpus=2", RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=token) as guarded:
        command = ("job", "submit", "--", "distconv", "convert", str(source), str(output))
        refused = ray_cli(guarded, *command, RAY_AUTH_TOKEN="0" * 48)
        assert refused.returncode != 0
        assert not output.exists()
        done = ray_cli(guarded, *command)
        assert done.returncode == 0, done.stdout + done.stderr
    assert looks_whole(output)
