"""A conversion from the hub that is killed goes on with what it had; workers ask the hub themselves."""

import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

import distconv
from tests.faults import read_data
from tests.hub_files import REPO, HubFiles
from tests.storage.web.test_hub import sum_tensors

COMMAND = (sys.executable, "-m", "distconv", "convert", f"hf://{REPO}")


@pytest.mark.slow
def test_a_killed_conversion_goes_on(hub: HubFiles, repository: Path, tmp_path: Path) -> None:
    """Some of the chunks are there and recorded, others are being read, when the process is killed."""
    options = ("--max-shard-size", "8MB", "--quiet", "--json")
    distconv.convert(repository, tmp_path / "local", max_shard_size=8_000_000)
    reached, killed = threading.Event(), threading.Event()

    def hold() -> None:
        # A chunk is recorded two seconds after it is there: until then the rest is held back.
        if hub.served_bytes > 20_000_000 and not killed.is_set():
            reached.set()
            killed.wait(60)

    hub.on_bytes = hold
    with subprocess.Popen([*COMMAND, str(tmp_path / "out"), *options], stdout=subprocess.PIPE) as process:
        assert reached.wait(60)
        journal = tmp_path / "out" / ".distconv.journal"
        while not (journal.exists() and b"model-0" in journal.read_bytes()):
            assert process.poll() is None
        process.kill()
        killed.set()
    assert not list((tmp_path / "out").glob("*.index.json"))
    before = hub.served_bytes
    ended = subprocess.run([*COMMAND, str(tmp_path / "out"), *options], capture_output=True, check=True)
    report = json.loads(ended.stdout)
    assert report["kept_chunks"] >= 1
    assert read_data(tmp_path / "out") == read_data(tmp_path / "local")
    assert hub.served_bytes - before < sum_tensors(tmp_path / "out")


@pytest.mark.slow
def test_workers_ask_the_hub_with_their_own_token(hub: HubFiles, repository: Path, tmp_path: Path) -> None:
    hub.private = True
    distconv.convert(repository, tmp_path / "local", max_shard_size=8_000_000)
    command = [*COMMAND, str(tmp_path / "out"), "--workers", "2", "--max-shard-size", "8MB", "--quiet"]
    subprocess.run(command, check=True, env=os.environ)
    assert read_data(tmp_path / "out") == read_data(tmp_path / "local")
    assert {one.token for one in hub.asked if one.server == "bytes"} == {None}
