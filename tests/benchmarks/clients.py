"""What clients of a store take of a processor: ``python -m tests.benchmarks.clients``, with ``--tls`` over TLS.

Ranges of 8 MiB of a made-up object, 16 at a time, each into memory that is used again. Each client runs by itself
in turn, against a server in another process; its CPU time is its own, threads and system calls included.
"""

import json
import multiprocessing
import os
import socket
import ssl
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path
from statistics import median

import click

from tests.object_store import start
from tests.tls import serve, write_certificate

SIZE_BYTES, RANGE_BYTES, AT_ONCE = 1 << 30, 8 << 20, 16
KEY = "object"
Read = Callable[[int, memoryview], object]


def open_ours() -> Read:
    """Read as a conversion does."""
    from distconv.storage.s3.storage import S3Storage

    return (
        S3Storage().pinned({f"s3://models/{KEY}": os.environ["STAMP"]}).open(f"s3://models/{KEY}").read_into
    )


def open_botocore() -> Read:
    """Read with boto3's own core, into memory by the raw answer."""
    from tests.s3_clients import open_client

    keys = (os.environ[f"AWS_{name}"] for name in ("ENDPOINT_URL", "ACCESS_KEY_ID", "SECRET_ACCESS_KEY"))
    client = open_client(*keys)

    def read(first: int, memory: memoryview) -> None:
        ranged = f"bytes={first}-{first + len(memory) - 1}"
        body = client.get_object(Bucket="models", Key=KEY, Range=ranged)["Body"]._raw_stream
        filled = 0
        while filled < len(memory):
            filled += body.readinto(memory[filled:])
        body.release_conn()

    return read


def open_obstore() -> Read:
    """Read with obstore, and copy what it gives."""
    import obstore
    from obstore.store import S3Store

    options = {"allow_http": True, "allow_invalid_certificates": True}
    store = S3Store("models", virtual_hosted_style_request=False, client_options=options)

    def read(first: int, memory: memoryview) -> None:
        memory[:] = memoryview(obstore.get_range(store, KEY, start=first, length=len(memory)))

    return read


CLIENTS = {"ours": open_ours, "botocore": open_botocore, "obstore": open_obstore}


def measure(name: str) -> None:
    """Read the whole object, and print seconds and CPU seconds as JSON."""
    read = CLIENTS[name]()
    free = [memoryview(bytearray(RANGE_BYTES)) for _ in range(AT_ONCE)]

    def take(first: int) -> None:
        memory = free.pop()
        read(first, memory)
        free.append(memory)

    with ThreadPoolExecutor(AT_ONCE) as pool:
        # Connections and credentials first.
        list(pool.map(take, range(0, AT_ONCE * RANGE_BYTES, RANGE_BYTES)))
        began, used = time.monotonic(), time.process_time()
        list(pool.map(take, range(0, SIZE_BYTES, RANGE_BYTES)))
        print(json.dumps([time.monotonic() - began, time.process_time() - used]))


@click.command()
@click.option("--rounds", default=5, show_default=True)
@click.option("--tls", is_flag=True, help="By a process that takes TLS off.")
def main(rounds: int, *, tls: bool) -> None:
    """Measure all clients that are installed, in turn."""
    names = [name for name in CLIENTS if name == "ours" or find_spec(name)]
    with start("models", verify_signatures=False) as store, tempfile.TemporaryDirectory() as folder:
        store.make_up("models", KEY, SIZE_BYTES)
        url = store.url
        told = os.environ | {"AWS_ACCESS_KEY_ID": store.access_key, "AWS_SECRET_ACCESS_KEY": store.secret_key}
        told |= {
            "AWS_EC2_METADATA_DISABLED": "true",
            "AWS_REGION": "us-east-1",
            "AWS_DEFAULT_REGION": "us-east-1",
        }
        if tls:
            certificate = write_certificate(Path(folder))
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(certificate)
            listener = socket.create_server(("127.0.0.1", 0), backlog=256)
            relay = multiprocessing.get_context("fork").Process(
                target=serve, args=(listener, context, store.port), daemon=True
            )
            relay.start()
            url = f"https://127.0.0.1:{listener.getsockname()[1]}"
            told |= {"AWS_CA_BUNDLE": str(certificate)}
        told |= {"AWS_ENDPOINT_URL": url, "STAMP": f"{SIZE_BYTES} {find_etag(store.url, told)}"}
        found: dict[str, list[list[float]]] = {name: [] for name in names}
        for _round in range(rounds):
            for name in names:
                command = [
                    sys.executable,
                    "-c",
                    f"from tests.benchmarks.clients import measure; measure({name!r})",
                ]
                found[name].append(json.loads(subprocess.check_output(command, env=told)))
        for name, runs in found.items():
            seconds, used = (median(run[place] for run in runs) for place in range(2))
            size = SIZE_BYTES / 1e9
            print(f"{name:9} {size / seconds:5.2f} GB/s {used / size:5.2f} core-s a GB")


def find_etag(url: str, told: dict[str, str]) -> str:
    """Ask for the object's ETag."""
    from tests.s3_clients import make_client

    with make_client(url, told["AWS_ACCESS_KEY_ID"], told["AWS_SECRET_ACCESS_KEY"]) as client:
        return str(client.head_object(Bucket="models", Key=KEY)["ETag"])


if __name__ == "__main__":
    main()
