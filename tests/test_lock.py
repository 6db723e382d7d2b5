"""One conversion at a time into one folder."""

import dataclasses
import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from distconv import lock
from distconv.errors import OutputError
from distconv.lock import LOCK_NAME, Holder, locked
from distconv.storage import LocalStorage


@pytest.fixture(autouse=True)
def _hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "BEAT_SECONDS", 0.05)
    monkeypatch.setattr(lock, "PATIENCE_SECONDS", 1.0)
    monkeypatch.setattr(lock, "_WATCH_SECONDS", 0.05)


def write_lock(folder: Path, holder: Holder) -> None:
    """Leave a lock as somebody else would."""
    (folder / LOCK_NAME).write_text(json.dumps(dataclasses.asdict(holder)))


def take(folder: Path, told: list[str] | None = None) -> None:
    """Take the lock and give it back."""
    with locked(LocalStorage(), str(folder), (told if told is not None else []).append):
        assert (folder / LOCK_NAME).exists()
    assert list(folder.iterdir()) == []


def test_a_lock_is_gone_when_it_is_given_back(tmp_path: Path) -> None:
    take(tmp_path)
    with pytest.raises(KeyError), locked(LocalStorage(), str(tmp_path), print):
        raise KeyError
    take(tmp_path)


def test_a_living_holder_is_named_and_left_alone(tmp_path: Path) -> None:
    with locked(LocalStorage(), str(tmp_path), print) as held:
        with pytest.raises(OutputError, match=f"already writes into it .*process {os.getpid()} on "):
            take(tmp_path)
        held.check()


def test_the_lock_of_a_dead_process_is_taken_at_once(tmp_path: Path) -> None:
    code = (
        "import os, sys; from distconv.lock import locked; from distconv.storage import LocalStorage\n"
        "lock = locked(LocalStorage(), sys.argv[1], print); lock.__enter__(); os.kill(os.getpid(), 9)"
    )
    subprocess.run([sys.executable, "-c", code, tmp_path], check=False)
    assert (tmp_path / LOCK_NAME).exists()
    told: list[str] = []
    take(tmp_path, told)
    assert told == []


def test_a_process_id_that_is_used_again_is_not_the_holder(tmp_path: Path) -> None:
    write_lock(tmp_path, dataclasses.replace(Holder.here(), pid=os.getppid(), started="1"))
    take(tmp_path)


def test_a_lock_of_this_process_that_could_not_be_removed_is_nobodys(tmp_path: Path) -> None:
    with locked(LocalStorage(), str(tmp_path), print):
        kept = (tmp_path / LOCK_NAME).read_bytes()
    (tmp_path / LOCK_NAME).write_bytes(kept)
    take(tmp_path)


def test_a_silent_holder_elsewhere_is_watched_and_then_taken_for_dead(tmp_path: Path) -> None:
    write_lock(tmp_path, dataclasses.replace(Holder.here(), host="elsewhere", machine="another boot"))
    told: list[str] = []
    before = time.monotonic()
    take(tmp_path, told)
    assert time.monotonic() - before >= 1.0
    assert "on elsewhere" in told[0]


def test_a_beating_holder_elsewhere_is_left_alone(tmp_path: Path) -> None:
    elsewhere = dataclasses.replace(Holder.here(), host="elsewhere", machine="another boot")
    write_lock(tmp_path, elsewhere)
    ended = threading.Event()

    def beat() -> None:
        while not ended.wait(0.2):
            write_lock(tmp_path, elsewhere)

    thread = threading.Thread(target=beat)
    thread.start()
    try:
        with pytest.raises(OutputError, match="on elsewhere"):
            take(tmp_path)
    finally:
        ended.set()
        thread.join()


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"host": 1}', "\0\0\0"])
def test_a_lock_that_says_nothing_is_watched_too(tmp_path: Path, content: str) -> None:
    (tmp_path / LOCK_NAME).write_text(content)
    told: list[str] = []
    take(tmp_path, told)
    assert len(told) == 1


def test_who_lost_the_lock_is_told_and_leaves_the_others(tmp_path: Path) -> None:
    other = dataclasses.replace(Holder.here(), token="other")
    with locked(LocalStorage(), str(tmp_path), print) as held:
        write_lock(tmp_path, other)
        deadline = time.monotonic() + 5
        while held._lost_to is None and time.monotonic() < deadline:
            time.sleep(0.01)
        with pytest.raises(OutputError, match="already writes into it"):
            held.check()
    assert json.loads((tmp_path / LOCK_NAME).read_text())["token"] == "other"


def test_only_one_of_many_takes_a_dead_holders_lock(tmp_path: Path) -> None:
    write_lock(tmp_path, dataclasses.replace(Holder.here(), pid=2**22 + 1))
    start, winners, losers = threading.Barrier(8), [], []

    def run() -> None:
        start.wait()
        try:
            with locked(LocalStorage(), str(tmp_path), print):
                winners.append(1)
                time.sleep(1.5)
        except OutputError:
            losers.append(1)

    threads = [threading.Thread(target=run) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(winners), len(losers)) == (1, 7)
