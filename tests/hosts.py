"""Several hosts on one machine: network namespaces on a bridge, each with its own processes, names and /dev/shm."""

import contextlib
import os
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.clusters import RAY, environment
from tests.patience import HANG_SECONDS

PORT = 6379
JOB_PORT = 8265
DETECTION = {
    # A host is lost after three probes, a second apart, that get no answer in two seconds.
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "2000",
    "RAY_health_check_failure_threshold": "3",
}


def can_make_hosts() -> bool:
    """Whether this user may make network namespaces."""
    name = f"dc{os.getpid()}try"
    if os.geteuid() != 0 or shutil.which("ip") is None or shutil.which("unshare") is None:
        return False
    if subprocess.run(["ip", "netns", "add", name], capture_output=True, check=False).returncode:
        return False
    return subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False).returncode == 0


@dataclass(frozen=True)
class Host:
    """One namespace: its address, its first process, and the name of its cable in the hub."""

    name: str
    address: str
    pid: int
    cable: str
    hub: str
    environment: dict[str, str]
    started: "list[subprocess.Popen[bytes]]" = field(default_factory=list)

    def popen(self, command: list[str], log: Path) -> "subprocess.Popen[bytes]":
        """Start a command on this host."""
        inside = ["nsenter", f"--target={self.pid}", "--mount", "--uts", "--net", "--pid", *command]
        with log.open("ab") as file:
            process = subprocess.Popen(inside, env=self.environment, stdout=file, stderr=subprocess.STDOUT)
        self.started.append(process)
        return process

    def run(self, *command: str) -> "subprocess.CompletedProcess[str]":
        """Run a command on this host and wait for it."""
        inside = ["nsenter", f"--target={self.pid}", "--mount", "--uts", "--net", "--pid", *command]
        return subprocess.run(
            inside, env=self.environment, capture_output=True, text=True, check=False, timeout=HANG_SECONDS
        )

    def cut(self) -> None:
        """Pull the cable."""
        _ip("-n", self.hub, "link", "set", self.cable, "down")


@contextlib.contextmanager
def joined(host: Host) -> Iterator[str]:
    """Let this machine itself be on the bridge of its hosts; gives its address there."""
    address, cable = "10.77.0.254", f"dc{os.getpid()}"
    _ip("-n", host.hub, "link", "add", "v0", "type", "veth", "peer", "name", cable, "netns", str(os.getpid()))
    try:
        _ip("-n", host.hub, "link", "set", "v0", "master", "br0", "up")
        _ip("addr", "add", f"{address}/24", "dev", cable)
        _ip("link", "set", cable, "up")
        yield address
    finally:
        _ip("-n", host.hub, "link", "del", "v0")


@contextlib.contextmanager
def hosts(place: Path, count: int) -> Iterator[list[Host]]:
    """Have hosts 10.77.0.1 and following, joined by a bridge; whatever runs on them ends with the block."""
    stem = f"dc{os.getpid()}"
    hub = f"{stem}hub"
    variables = environment(place, **DETECTION)
    found: list[Host] = []
    temporary = [tempfile.mkdtemp(prefix="ray-") for _ in range(count)]
    with contextlib.ExitStack() as stack:
        stack.callback(lambda: [shutil.rmtree(folder, ignore_errors=True) for folder in temporary])
        _ip("netns", "add", hub)
        stack.callback(_ip, "netns", "del", hub)
        _ip("-n", hub, "link", "add", "br0", "type", "bridge")
        _ip("-n", hub, "link", "set", "br0", "up")
        for number in range(1, count + 1):
            name, cable = f"{stem}h{number}", f"v{number}"
            _ip("netns", "add", name)
            stack.callback(_ip, "netns", "del", name)
            _ip("-n", hub, "link", "add", cable, "type", "veth", "peer", "name", "eth0", "netns", name)
            _ip("-n", hub, "link", "set", cable, "master", "br0", "up")
            _ip("-n", name, "addr", "add", f"10.77.0.{number}/24", "dev", "eth0")
            _ip("-n", name, "link", "set", "eth0", "up")
            _ip("-n", name, "link", "set", "lo", "up")
            folder = temporary[number - 1]
            setup = (
                f"hostname host{number} && mount -t tmpfs tmpfs /dev/shm && "
                f"mkdir -p /tmp/ray && mount --bind {folder} /tmp/ray && exec sleep infinity"
            )
            process = subprocess.Popen(
                ["ip", "netns", "exec", name, "unshare", "--pid", "--fork", "--mount", "--uts", "--mount-proc",
                 "--kill-child", "sh", "-c", setup],
            )  # fmt: skip
            stack.callback(_end, process)
            pid = _child(process.pid)
            found.append(Host(f"host{number}", f"10.77.0.{number}", pid, cable, hub, variables))
        yield found
    for host in found:
        for started in host.started:
            started.wait(30)


def start_ray(members: list[Host], logs: Path, slots: Sequence[int], *, takes_jobs: bool = False) -> None:
    """Join hosts into one cluster whose head is the first, with so many CPU slots each."""
    for number, host in enumerate(members):
        role = (
            ["--head", f"--port={PORT}", f"--include-dashboard={str(takes_jobs).lower()}",
             "--dashboard-host=0.0.0.0", f"--dashboard-port={JOB_PORT}"]
            if number == 0
            else [f"--address={members[0].address}:{PORT}"]
        )  # fmt: skip
        host.popen(
            [RAY, "start", "--block", "--disable-usage-stats", f"--node-ip-address={host.address}",
             "--object-store-memory=78643200", f"--num-cpus={slots[number]}", *role],
            logs / f"{host.name}.log",
        )  # fmt: skip
        if number == 0:
            wait_for(lambda: count_nodes(members[0]) >= 1, "the head")
    wait_for(lambda: count_nodes(members[0]) >= len(members), "all nodes")


def count_nodes(head: Host) -> int:
    """Count a cluster's living nodes."""
    script = (
        "import ray; ray.init(address='auto', log_to_driver=False, logging_level='ERROR'); "
        "print('nodes', sum(node['Alive'] for node in ray.nodes()))"
    )
    done = head.run(str(Path(RAY).with_name("python")), "-c", script)
    # Behind it Ray may write where a thread of its own was as it ended.
    found = re.search(r"^nodes ([0-9]+)$", done.stdout, re.MULTILINE)
    return int(found[1]) if found is not None else 0


def wait_for(reached: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + HANG_SECONDS
    while not reached():
        assert time.monotonic() < deadline, f"{what} did not come up"
        time.sleep(0.5)


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)


def _child(pid: int) -> int:
    """Give the process that unshare forked, which is the first of its namespace."""
    children = Path(f"/proc/{pid}/task/{pid}/children")
    deadline = time.monotonic() + HANG_SECONDS
    while not (found := children.read_text().split()):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    # The mounts of its set-up must be there before anything else is run beside it.
    while Path(f"/proc/{found[0]}/comm").read_text().strip() != "sleep":
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return int(found[0])


def _end(process: "subprocess.Popen[bytes]") -> None:
    process.kill()
    process.wait()
