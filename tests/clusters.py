"""Real Ray heads of the tests' own, on loopback, with a dashboard and its job server."""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from tests.patience import HANG_SECONDS

RAY = str(Path(sys.executable).with_name("ray"))


@dataclass(frozen=True)
class Head:
    """A head with its addresses and the environment that its clients need."""

    address: str
    job_server: str
    metrics_port: int
    environment: Mapping[str, str]


def free_port() -> int:
    """Give a port that nobody uses now."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


def environment(place: Path, **more: str) -> dict[str, str]:
    """Give an environment in which neither another Ray nor a token of somebody's is found."""
    home = place / "home"
    home.mkdir(exist_ok=True)
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    path = f"{Path(sys.executable).parent}{os.pathsep}{kept['PATH']}"
    settings = {
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_AUTH_MODE": "disabled",
        "RAY_worker_niceness": "0",
        "NO_COLOR": "1",
    }
    return kept | settings | {"HOME": str(home), "PATH": path} | more


@contextlib.contextmanager
def head(place: Path, *options: str, **more: str) -> Iterator[Head]:
    """Have a head for the block; what it leaves behind is ended by process group."""
    variables = environment(place, **more)
    port, dashboard, metrics = free_port(), free_port(), free_port()
    # The names of Ray's sockets must be short.
    temporary = tempfile.mkdtemp(prefix="ray-")
    command = [
        RAY, "start", "--head", "--block", "--disable-usage-stats", "--include-dashboard=true",
        "--node-ip-address=127.0.0.1", f"--port={port}", "--dashboard-host=127.0.0.1",
        f"--dashboard-port={dashboard}", f"--metrics-export-port={metrics}",
        # A raylet waits 15 s for its agents to name ports of their own, which is little on a busy machine.
        f"--dashboard-agent-listen-port={free_port()}", f"--dashboard-agent-grpc-port={free_port()}",
        f"--runtime-env-agent-port={free_port()}",
        "--object-store-memory=78643200", f"--temp-dir={temporary}", *options,
    ]  # fmt: skip
    with (place / "head.log").open("wb") as log:
        process = subprocess.Popen(
            command, cwd=place, env=variables, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )
    found = Head(f"127.0.0.1:{port}", f"http://127.0.0.1:{dashboard}", metrics, variables)
    try:
        wait_until_up(found.job_server, process, found.environment.get("RAY_AUTH_TOKEN"))
        yield found
    finally:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(20)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        shutil.rmtree(temporary, ignore_errors=True)


def wait_until_up(job_server: str, process: "subprocess.Popen[bytes]", token: str | None = None) -> None:
    """Wait until a job can be submitted: the agent that runs jobs comes up after the job server."""
    headers = {"Content-Type": "application/json"}
    if token:
        headers["Authorization"] = f"Bearer {token}"
    request = urllib.request.Request(
        f"{job_server}/api/jobs/", b'{"entrypoint": "true"}', headers=headers, method="POST"
    )
    deadline = time.monotonic() + HANG_SECONDS
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise AssertionError(f"ray start ended with {process.returncode}")
        try:
            urllib.request.urlopen(request, timeout=HANG_SECONDS).close()
        except OSError:
            time.sleep(0.2)
        else:
            return
    raise AssertionError("the job server did not come up")
