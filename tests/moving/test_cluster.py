"""Which Ray is used: one of our own leaves nothing behind, and an address says where it came from."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import ray

from distconv.cli.options import ray_address
from distconv.errors import ClusterError, Terminated, UsageError
from distconv.moving.executor import Cluster
from distconv.moving.progress import SilentProgress
from distconv.moving.ray import driver
from distconv.moving.ray.cluster import connected
from distconv.moving.ray.driver import run_on_ray
from tests.checkpoints import Spec
from tests.extent import share
from tests.moving.fakes import RecordingProgress, make_chunks, make_job, write_slowly
from tests.torture import find_processes

Write = Callable[[Spec], Path]

AGAIN = """
import os, sys
import distconv
def tokens():
    return {name: value for name, value in os.environ.items() if name.startswith("RAY_AUTH")}
before = tokens()
source, output, times = sys.argv[1:]
for number in range(int(times)):
    distconv.convert(source, f"{output}{number}", workers=1)
    assert tokens() == before, tokens()
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings",
    [
        pytest.param({}, id="as Ray likes it"),
        pytest.param({"RAY_AUTH_MODE": "disabled"}, id="without tokens", marks=pytest.mark.slow),
        pytest.param(
            {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0" * 48}, id="another's", marks=pytest.mark.slow
        ),
    ],
)
def test_a_ray_of_our_own_leaves_nothing_in_the_home_or_the_environment(
    checkpoint: Write, tmp_path: Path, settings: dict[str, str]
) -> None:
    home = tmp_path / "home"
    home.mkdir()
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    done = subprocess.run(
        [sys.executable, "-c", AGAIN, str(checkpoint(Spec())), str(tmp_path / "out"), str(share(2))],
        env=kept | settings | {"HOME": str(home), "RAY_USAGE_STATS_ENABLED": "0"},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert not list(home.rglob("auth_token"))
    assert not list((home / ".ray").glob("*"))
    assert (tmp_path / f"out{share(2) - 1}" / "model.safetensors").exists()


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("127.0.0.1:1", r"Ray at 127\.0\.0\.1:1 cannot be reached"),
        ("ray://127.0.0.1:10001", "Ray Client is not supported"),
        ("http://127.0.0.1:8265", "the address of a job server is not supported"),
    ],
)
@pytest.mark.parametrize("given", [None, "auto"])
def test_an_address_of_the_environment_is_named_as_such(
    monkeypatch: pytest.MonkeyPatch, address: str, words: str, given: str | None
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises((ClusterError, UsageError), match=words) as caught:
        connect(given)
    assert "the environment variable RAY_ADDRESS chose this address: unset it" in str(caught.value)
    with pytest.raises((ClusterError, UsageError), match=words) as caught:
        connect(address)
    assert "RAY_ADDRESS" not in str(caught.value)


def test_a_ray_of_our_own_gets_no_more_slots_than_there_are_units_and_its_failure_is_one_message(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[object] = []
    progress = RecordingProgress()

    def fail(**options: object) -> None:
        asked.append(options["num_cpus"])
        # What Ray raises where its processes do not come up in time.
        raise Exception("The current node timed out during startup.")  # noqa: TRY002

    monkeypatch.setattr(ray, "init", fail)
    for workers, units in ((99_999_999, 3), (2, 3), (1, 0)):
        with (
            pytest.raises(ClusterError, match=r"^Ray at local cannot be used: .* timed out during startup"),
            connected(Cluster(workers=workers), "cpu", units, progress),
        ):
            pass
    assert asked == [3, 3, 3, 2, 2, 2, 1, 1, 1]
    assert progress.notes == ["starting a local Ray"] * 3


def test_a_stop_is_not_answered_by_another_start(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[object] = []

    def stop(**options: object) -> None:
        asked.append(options)
        raise Terminated("terminated")

    monkeypatch.setattr(ray, "init", stop)
    with pytest.raises(Terminated), connected(Cluster(workers=1), "cpu", 1, SilentProgress()):
        pass
    assert len(asked) == 1


SLOW_AGENT = """
import os, sys, time
if any(word.endswith("dashboard/agent.py") for word in sys.orig_argv):
    try:
        os.close(os.open({!r}, os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        pass
    else:
        time.sleep(1000)
"""


@pytest.mark.slow
def test_a_ray_of_our_own_whose_agent_is_slow_is_started_again(checkpoint: Write, tmp_path: Path) -> None:
    slept = tmp_path / "slept"
    (tmp_path / "path").mkdir()
    (tmp_path / "path/sitecustomize.py").write_text(SLOW_AGENT.format(str(slept)))
    path = os.pathsep.join((str(tmp_path / "path"), os.environ.get("PYTHONPATH", "")))
    command = [sys.executable, "-m", "distconv", "convert", checkpoint(Spec()), tmp_path / "out"]
    done = subprocess.run(
        [*command, "--workers", "1"], env=os.environ | {"PYTHONPATH": path},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert slept.exists()
    assert (tmp_path / "out/model.safetensors").exists()


def connect(given: str | None) -> None:
    """Use the Ray that an option and the environment name together."""
    with ray_address(given) as chosen, connected(Cluster(chosen), "cpu", 1, SilentProgress()):
        pass


@pytest.mark.slow
def test_a_ray_of_our_own_that_dies_before_a_worker_is_up_is_told_of_and_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Ray itself knows sooner then.
    for name, value in (
        ("initial_delay_ms", 0),
        ("period_ms", 500),
        ("timeout_ms", 500),
        ("failure_threshold", 3),
    ):
        monkeypatch.setenv(f"RAY_health_check_{name}", str(value))
    count = driver.count_workers

    def kill(*arguments: object) -> int:
        number = count(*arguments)  # type: ignore[arg-type]
        (raylet,) = find_processes(os.getpid(), "raylet/raylet")
        os.kill(raylet, signal.SIGKILL)
        return number

    monkeypatch.setattr(driver, "count_workers", kill)
    chunks = make_chunks(["one", "other"])
    with pytest.raises(ClusterError, match="has died"):
        run_on_ray(make_job(tmp_path), chunks, Cluster(workers=2), RecordingProgress(), write_slowly)
    assert not ray.is_initialized()
