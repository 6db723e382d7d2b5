"""Conversions on a Ray cluster of three hosts with addresses of their own."""

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import distconv
from tests.checkpoints import Spec, write_checkpoint
from tests.clusters import RAY
from tests.faults import digest_folder
from tests.hosts import PORT, Host, can_make_hosts, hosts, start_ray
from tests.patience import HANG_SECONDS

pytestmark = [
    pytest.mark.netns,
    pytest.mark.timeout(400),
    pytest.mark.skipif(not can_make_hosts(), reason="network namespaces need root and iproute2"),
]
DISTCONV = str(Path(RAY).with_name("distconv"))
SPEC = Spec("llama-2", heads=8, kv_heads=4, shards=2)
LARGE = Spec("llama-2", dim=1024, heads=8, kv_heads=4, layers=30, multiple_of=256, shards=4)
"""Of about 0.9 GB, to be written in a thousand chunks: some ten seconds."""
Write = Callable[[Spec], Path]


@pytest.fixture
def three(tmp_path: Path) -> Iterator[list[Host]]:
    """Give three hosts."""
    with hosts(tmp_path, 3) as found:
        yield found


def command(source: Path, output: Path, *options: str) -> list[str]:
    """Give the command line on the head."""
    return [DISTCONV, "convert", str(source), str(output), f"--address=10.77.0.1:{PORT}", *options]


def is_converting(host: Host) -> bool:
    """Tell whether a worker there has begun a unit, by the title that Ray gives to its process."""
    return host.run("pgrep", "--full", r"ray::Worker\.convert").returncode == 0


def test_a_host_that_is_cut_off_costs_its_own_units(
    three: list[Host], sentencepiece_file: Path, tmp_path: Path
) -> None:
    source = write_checkpoint(tmp_path / "in", LARGE, sentencepiece_file)
    distconv.convert(source, tmp_path / "inline", max_shard_size=1_000_000)
    start_ray(three, tmp_path, (1, 1, 1))
    output, summary = tmp_path / "out", tmp_path / "summary"
    process = three[0].popen(command(source, output, "--max-shard-size=1MB", "--json"), summary)
    deadline = time.monotonic() + HANG_SECONDS
    # Which of the two is first to work is theirs. Before chunks are written, other workers compare tensors.
    while not (
        any(output.glob("*model-*")) and (busy := [one for one in (2, 1) if is_converting(three[one])])
    ):
        assert time.monotonic() < deadline, summary.read_text()
        assert process.poll() is None, summary.read_text()
        time.sleep(0.01)
    three[busy[0]].cut()
    process.wait(HANG_SECONDS)
    text = summary.read_text()
    assert process.returncode == 0, text
    assert f" on host{busy[0] + 1} was lost (" in text, text
    assert digest_folder(output) == digest_folder(tmp_path / "inline")
    retries = json.loads(text[text.index("\n{") :])["retries"]
    assert retries <= 1, "one worker on the host that was lost: one unit"


def test_a_node_that_does_not_see_the_files_is_named_and_left_out(
    three: list[Host], sentencepiece_file: Path, tmp_path: Path
) -> None:
    source, output = write_checkpoint(tmp_path / "in", LARGE, sentencepiece_file), tmp_path / "out"
    distconv.convert(source, tmp_path / "inline", max_shard_size=1_000_000)
    blind = three[1].run("mount", "-t", "tmpfs", "tmpfs", str(source))
    assert blind.returncode == 0, blind.stderr
    start_ray(three, tmp_path, (1, 1, 1))
    done = three[0].run(*command(source, output, "--max-shard-size=1MB", "--json"))
    assert done.returncode == 0, done.stderr
    words = f"node host2 (10.77.0.2) is left out, it does not see INPUT or OUTPUT: {source}/consolidated."
    assert words in done.stderr
    assert digest_folder(output) == digest_folder(tmp_path / "inline")
    assert {worker["host"] for worker in json.loads(done.stdout)["workers"]} <= {"host1", "host3"}


def test_a_folder_of_the_same_name_on_every_node_is_not_taken_for_a_shared_one(
    three: list[Host], checkpoint: Write, tmp_path: Path
) -> None:
    source, output = checkpoint(SPEC), tmp_path / "local" / "out"
    output.parent.mkdir()
    for host in three:
        assert host.run("mount", "-t", "tmpfs", "tmpfs", str(output.parent)).returncode == 0
        assert host.run("mkdir", str(output)).returncode == 0
    # The head has no slots: only others work, and none of them sees what the driver sees.
    start_ray(three, tmp_path, (0, 1, 1))
    done = three[0].run(*command(source, output))
    assert done.returncode == 1, done.stderr
    assert "error: no node of the Ray cluster sees INPUT and OUTPUT" in done.stderr
    for number in (2, 3):
        assert f"host{number} (10.77.0.{number}): {output}/.distconv.owner." in done.stderr
    assert three[0].run("ls", str(output)).stdout.split() == []
