"""Starts a store in a process of its own, and tells and asks it what the protocol has no words for."""

import contextlib
import http.client
import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tests.object_store.control import PREFIX
from tests.object_store.faults import Fault
from tests.object_store.records import Record
from tests.object_store.state import ACCESS_KEY, SECRET_KEY

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True, slots=True)
class ObjectStore:
    """A running store. ``url`` is the endpoint; buckets are named in paths."""

    url: str
    port: int
    access_key: str = ACCESS_KEY
    secret_key: str = SECRET_KEY

    def _tell(self, verb: str, **told: object) -> Any:
        connection = http.client.HTTPConnection("127.0.0.1", self.port)
        with contextlib.closing(connection):
            connection.request("POST", PREFIX + verb, json.dumps(told))
            answer = connection.getresponse()
            content = json.loads(answer.read())
        if answer.status != 200:
            raise ValueError(content)
        return content

    def make_bucket(self, name: str) -> None:
        """Make a bucket."""
        self._tell("bucket", name=name)

    def change(self, **settings: Any) -> None:
        """Change some of the fields of ``Settings`` from now on."""
        self._tell("change", **settings)

    def fault(self, fault: Fault) -> None:
        """Set a fault. It counts the requests that come from now on."""
        self._tell("fault", **asdict(fault))

    def clear_faults(self) -> None:
        """Take all faults away; requests that are held go on."""
        self._tell("clear_faults")

    def wait_held(self, gate: str, count: int = 1, limit_s: float = 60) -> None:
        """Wait until that many requests stand at a gate."""
        if not self._tell("wait_held", gate=gate, count=count, limit_s=limit_s):
            raise TimeoutError(f"fewer than {count} requests at the gate {gate} after {limit_s} s")

    def release(self, gate: str) -> None:
        """Open a gate."""
        self._tell("release", gate=gate)

    def requests(self, operation: str = "", *, clear: bool = False) -> list[Record]:
        """Give the requests since the list was cleared, all or those of one operation, in order of arrival."""
        records = [Record(**told) for told in self._tell("requests", clear=clear)]
        return [record for record in records if operation in {"", record.operation}]

    def clear_requests(self) -> None:
        """Forget the requests until now."""
        self._tell("requests", clear=True)

    def make_up(self, bucket: str, key: str, size_bytes: int) -> None:
        """Put an object of any size that takes no memory: ``made_up_bytes`` gives its bytes."""
        self._tell("make_up", bucket=bucket, key=key, size_bytes=size_bytes)

    def share(self, folder: Path, bucket: str, prefix: str = "") -> int:
        """Put a folder's files as objects, without copying them; they must not change. Give how many."""
        return int(self._tell("share", folder=str(folder), bucket=bucket, prefix=prefix))

    def cpu_s(self) -> float:
        """Give the seconds of CPU that the store's process has used."""
        return float(self._tell("cpu_s"))


@contextlib.contextmanager
def start(*buckets: str, host: str = "127.0.0.1", **settings: Any) -> Iterator[ObjectStore]:
    """Run a store with these buckets, which listens at ``host``: ``settings`` are fields of ``Settings``."""
    command = [sys.executable, "-m", "tests.object_store", "--until-input-ends", f"--host={host}"]
    # The process ends with its input, so with this one too, however this one ends.
    process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    with process:
        assert process.stdout is not None
        try:
            told = json.loads(process.stdout.readline())
            store = ObjectStore(told["url"], told["port"])
            store.change(**settings)
            for bucket in buckets:
                store.make_bucket(bucket)
            yield store
        finally:
            process.kill()
