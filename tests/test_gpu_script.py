"""``make gpu``: it runs to its end, whatever fails on the way, and loses nothing when it is stopped."""

import json
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest

from tests.gpu.running import LeftOut, Results
from tests.gpu.wheels import slim, unpack

ROOT = Path(__file__).parents[1]


@pytest.fixture
def results(tmp_path: Path) -> Results:
    """Give results without rows, with a minute left."""
    return Results(tmp_path, {"cores": 2}, tmp_path, section="x", deadline=time.monotonic() + 60)


def test_what_fails_and_what_is_left_out_are_rows_that_are_on_the_disk_at_once(results: Results) -> None:
    with results.trying("one"):
        raise KeyError("one")
    with results.trying("other"):
        raise LeftOut("no room")
    results.add("third", gb=1.5, seconds=0.5)
    rows = json.loads((results.out / "gpu.json").read_text())["rows"]
    assert [(row["what"], row["status"]) for row in rows] == [
        ("one", "FAILED"),
        ("other", "left out"),
        ("third", "ok"),
    ]
    assert (results.out / "gpu.txt").read_text().splitlines() == results.lines()


@pytest.mark.slow
def test_a_command_whose_time_is_over_is_ended_and_what_it_said_is_kept(results: Results) -> None:
    results.deadline = time.monotonic() + 3
    ran = results.run_any(["/bin/sh", "-c", "echo said; exec sleep 600"])
    assert ran.code == 124
    assert ran.output.splitlines()[0] == "said"
    assert "s were over" in (results.out / "gpu.log").read_text()
    results.deadline = time.monotonic()
    with pytest.raises(LeftOut):
        results.run_any(["true"])


def test_what_has_no_room_is_left_out(results: Results) -> None:
    results.need_room(1)
    with pytest.raises(LeftOut, match=r"needs 1000000000\.0 GB"):
        results.need_room(10**18)


def test_a_slimmed_wheel_has_what_actors_need_and_its_programs_may_be_run(tmp_path: Path) -> None:
    wheel = tmp_path / "ray-0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for name, mode in (("ray/raylet", 0o755), ("ray/actor.py", 0o644), ("ray/rllib/agent.py", 0o644)):
            entry = zipfile.ZipInfo(name)
            entry.external_attr = (0o100000 | mode) << 16
            archive.writestr(entry, name * 1000)
    slim(wheel)
    into = tmp_path / "site"
    assert unpack(tmp_path, into) == [str(into)]
    assert sorted(path.name for path in into.rglob("*") if path.is_file()) == ["actor.py", "raylet"]
    assert (into / "ray/raylet").read_text() == "ray/raylet" * 1000
    assert (into / "ray/raylet").stat().st_mode & 0o777 == 0o755
    assert unpack(tmp_path / "none", into) == []


@pytest.mark.slow
def test_the_script_runs_to_its_end_without_a_gpu(tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "tests.gpu",
        "--device",
        "cpu",
        "--small",
        "--minutes",
        "30",
        "--wheels",
        tmp_path / "none",
        "--ram",
        tmp_path,
        "--out",
        tmp_path / "out",
    ]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    rows = json.loads((tmp_path / "out/gpu.json").read_text())["rows"]
    assert "".join(dict.fromkeys(row["section"] for row in rows)) == "abcde*"
    assert [row["what"] for row in rows if row["status"] != "ok"] == [
        "8b, Ray, 4 workers on quarters of a GPU"
    ]
    assert ended.stdout == (tmp_path / "out/gpu.txt").read_text()
