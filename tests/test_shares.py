"""One owner of a folder also where hosts remember what files looked like, and process ids mean something else."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

import distconv
from distconv.errors import OutputError
from distconv.output import acquisition
from distconv.output.acquisition import owned
from distconv.output.ownership import OWNER_PREFIX
from distconv.storage.fencing import LocalRemoval
from distconv.storage.local import LocalStorage
from tests.checkpoints import write_checkpoint
from tests.contests import (
    LOST,
    contest_living,
    contest_output,
    end,
    start,
    undisturbed,
    wait_for_owner,
)
from tests.faults import digest_folder
from tests.mounts import bound_twice, shared_twice, why_no_bindfs, why_no_sshfs
from tests.torture import SPEC

HOLD = (
    "import sys, time; from distconv.output import acquisition; from distconv.storage.local import LocalStorage\n"
    "acquisition.BEAT_SECONDS = float(sys.argv[2])\n"
    "with acquisition.owned(LocalStorage(), sys.argv[1], print):\n"
    "    print('owned', flush=True); sys.stdin.read()\n"
)


@pytest.fixture
def held() -> Iterator[Callable[..., None]]:
    """Give a function that has a process own a folder until the test ends, started by a command."""
    with ExitStack() as stack:

        def hold(folder: Path, beat_seconds: float, *before: str) -> None:
            process = subprocess.Popen(
                [*before, sys.executable, "-c", HOLD, str(folder), str(beat_seconds)],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            )  # fmt: skip
            stack.enter_context(process)
            assert process.stdin is not None
            stack.callback(process.stdin.close)
            assert process.stdout is not None
            assert process.stdout.readline() == "owned\n"

        yield hold


def refuse(folder: Path) -> list[str]:
    """Find the folder owned by somebody who lives; gives what was told meanwhile."""
    told: list[str] = []
    with (
        pytest.raises(OutputError, match="distconv already writes into it"),
        owned(LocalStorage(), str(folder), told.append),
    ):
        pass
    return told


@pytest.fixture
def bound(tmp_path: Path) -> Iterator[tuple[Path, Path]]:
    """Give two names of one folder, each of which remembers attributes."""
    if (reason := why_no_bindfs()) is not None:
        pytest.skip(reason)
    with bound_twice(tmp_path) as folders:
        yield folders


@pytest.mark.slow
def test_who_stops_or_lives_behind_a_mount_that_remembers_is_told_by_its_beats(
    bound: tuple[Path, Path], sentencepiece_file: Path, tmp_path: Path
) -> None:
    source = write_checkpoint(tmp_path / "source", SPEC, sentencepiece_file)
    assert sum(contest_living(source, tmp_path, 2, os.getpid(), bound).values()) == 2
    assert sum(contest_output(source, tmp_path, 2, os.getpid(), bound).values()) >= 2


@pytest.mark.slow
def test_who_is_stopped_as_it_beats_is_succeeded(
    bound: tuple[Path, Path], sentencepiece_file: Path, tmp_path: Path
) -> None:
    source = write_checkpoint(tmp_path / "source", SPEC, sentencepiece_file)
    expected, _ = undisturbed(source, tmp_path / "expected")
    output = bound[0] / "out"
    victim = start(source, output, patience=0.5)
    wait_for_owner(victim, output)
    os.kill(victim, signal.SIGSTOP)
    try:
        (owner,) = output.glob(f"{OWNER_PREFIX}*")
        # A file that is open cannot be removed there: it stays, under another name, in the folder in which it is.
        with owner.open("rb"):
            assert end(start(source, output, patience=0.5)) == 0
            assert digest_folder(output) == expected
            assert distconv.verify(output).ok
    finally:
        os.kill(victim, signal.SIGCONT)
        assert end(victim) == LOST
    # By now it is closed: the next owner finds nothing of it.
    with owned(LocalStorage(), str(output), print):
        pass
    assert not list(output.glob(".*"))
    assert digest_folder(output) == expected


def test_a_removal_of_a_file_that_is_busy_has_taken_place(tmp_path: Path) -> None:
    removal = LocalRemoval(str(tmp_path / "file"))
    (tmp_path / "file").touch()
    (folder,) = tmp_path.glob(".*")
    removal.commit()
    # As what a network file system keeps of a file that is open.
    busy = ["mount", "--bind", str(folder / "removed"), str(folder / "removed")]
    if subprocess.run(busy, check=False, capture_output=True).returncode:
        pytest.skip("nothing can be mounted here")
    removal.abort()
    assert list(tmp_path.iterdir()) == [folder]
    subprocess.run(["umount", folder / "removed"], check=True)
    removal.abort()
    assert not list(tmp_path.iterdir())


def test_a_mount_that_remembers_hides_no_beat(
    bound: tuple[Path, Path], held: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("distconv.output.holders.Holder.lives_here", lambda _self: None)
    monkeypatch.setattr(acquisition, "PATIENCE_SECONDS", 20.0)
    for folder in bound:
        (folder / "out").mkdir(exist_ok=True)
    held(bound[0] / "out", 0.2)
    assert "watching" in refuse(bound[1] / "out")[0]


@pytest.mark.slow
def test_two_sshfs_with_the_options_that_they_have_by_themselves_hide_no_beat_for_long(
    held: Callable[..., None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if (reason := why_no_sshfs()) is not None:
        pytest.skip(reason)
    monkeypatch.setattr("distconv.output.holders.Holder.lives_here", lambda _self: None)
    with shared_twice(tmp_path) as (one, two):
        held(one, acquisition.BEAT_SECONDS)
        # What this host has seen it remembers.
        assert len(list(two.iterdir())) == 1
        assert "watching" in refuse(two)[0]


@pytest.mark.netns
@pytest.mark.parametrize("options", [("--mount-proc",), ()], ids=["own proc", "another's proc"])
def test_a_holder_whose_process_ids_are_others_is_watched(
    held: Callable[..., None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: tuple[str, ...]
) -> None:
    monkeypatch.setattr(acquisition, "PATIENCE_SECONDS", 20.0)
    held(tmp_path, 0.2, "unshare", "--pid", "--fork", "--kill-child", *options)
    assert "watching" in refuse(tmp_path)[0]


@pytest.mark.netns
def test_who_is_in_a_namespace_watches_a_holder_that_is_not(
    held: Callable[..., None], tmp_path: Path
) -> None:
    held(tmp_path, 0.2)
    asked = subprocess.run(
        ["unshare", "--pid", "--fork", "--mount-proc", sys.executable, "-c", HOLD, str(tmp_path), "1"],
        capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    assert "watching" in asked.stdout
    assert "distconv already writes into it" in asked.stderr
