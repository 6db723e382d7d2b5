"""Converting with threads of this process."""

import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import FrameType

import pytest

from distconv.errors import ConversionError, InputError, Terminated
from distconv.layout.files import File
from distconv.moving import inline
from distconv.moving.inline import run_inline
from distconv.moving.job import Job, Receipt
from distconv.moving.worker import write_file
from tests.moving.fakes import (
    RecordingProgress,
    be_overtaken,
    count_attempts,
    find_partials,
    is_committed_once,
    is_whole,
    make_chunks,
    make_job,
    write_slowly,
)


def test_all_chunks_are_written_and_the_receipts_come_in_order(tmp_path: Path) -> None:
    chunks = make_chunks([f"chunk{number}" for number in range(7)])
    progress = RecordingProgress()
    kept: list[tuple[str, threading.Thread]] = []
    receipts = run_inline(
        make_job(tmp_path), chunks, 3, progress, write_slowly,
        lambda receipt: kept.append((receipt.chunk, threading.current_thread())),
    )  # fmt: skip
    assert [receipt.chunk for receipt in receipts] == [chunk.name for chunk in chunks]
    assert sorted(kept, key=str) == [(chunk.name, threading.current_thread()) for chunk in chunks]
    assert all(is_whole(tmp_path, chunk) for chunk in chunks)
    assert progress.calls == ["begin", "end"]
    assert progress.moved_bytes == progress.total_bytes == 7000
    assert sorted(progress.units) == [chunk.name for chunk in chunks]
    assert sorted(unit for _lane, unit, _size_bytes in progress.taken) == sorted(progress.units)
    assert {(lane, size) for lane, _unit, size in progress.taken} == {(f"lane {n}", 1000) for n in range(3)}


def test_no_chunks_are_no_work(tmp_path: Path) -> None:
    assert run_inline(make_job(tmp_path), (), 3, RecordingProgress(), write_slowly) == ()


def test_the_real_worker_writes_and_then_keeps_a_chunk(tmp_path: Path) -> None:
    chunks = make_chunks(["chunk"])
    (written,) = run_inline(make_job(tmp_path), chunks, 1, RecordingProgress())
    again = replace(make_job(tmp_path), recorded={written.chunk: written.digests})
    (kept,) = run_inline(again, chunks, 1, RecordingProgress())
    assert is_whole(tmp_path, chunks[0])
    assert (written.kept, kept.kept) == (False, True)


def test_a_chunk_that_another_attempt_has_committed_meanwhile_stays(tmp_path: Path) -> None:
    chunks = make_chunks(["chunk", "other", "third"])
    receipts = run_inline(make_job(tmp_path), chunks, 2, RecordingProgress(), be_overtaken)
    assert all(is_whole(tmp_path, chunk) and is_committed_once(tmp_path, chunk) for chunk in chunks)
    assert [receipt.kept for receipt in receipts] == [False] * 3
    assert find_partials(tmp_path) == []


def test_an_input_output_error_is_tried_again_and_its_bytes_count_once(tmp_path: Path) -> None:
    chunks = make_chunks(["eio once", "chunk"])
    progress = RecordingProgress()
    receipts = run_inline(make_job(tmp_path), chunks, 2, progress, write_slowly)
    assert all(is_whole(tmp_path, chunk) for chunk in chunks)
    assert [receipt.attempts for receipt in receipts] == [2, 1]
    assert count_attempts(tmp_path, "eio once") == 2
    assert progress.moved_bytes == progress.total_bytes
    (note,) = progress.notes
    assert note.startswith("starts again: eio once: Input/output error; ")


@pytest.mark.parametrize(
    ("name", "error", "words"),
    [
        ("bad input", InputError, "bad input: not a checkpoint"),
        ("full disk", ConversionError, "full disk: No space left on device; free some space"),
        ("surprise", ConversionError, "surprise: KeyError: 'surprise'"),
    ],
)
def test_what_cannot_pass_is_raised_at_once_and_leaves_no_partial_file(
    tmp_path: Path, name: str, error: type[Exception], words: str
) -> None:
    chunks = make_chunks([name, "stays one", "stays other"])
    progress = RecordingProgress()
    with pytest.raises(error, match=words):
        run_inline(make_job(tmp_path), chunks, 2, progress, write_slowly)
    assert count_attempts(tmp_path, name) == 1
    assert progress.notes == [], "it does not start again"
    assert find_partials(tmp_path) == []
    assert not (tmp_path / "stays one").exists()


def test_bytes_that_a_unit_did_not_tell_of_count_when_it_is_done(tmp_path: Path) -> None:
    progress = RecordingProgress()
    run_inline(make_job(tmp_path), make_chunks(["chunk"]), 1, progress, write_silently)
    assert progress.moved_bytes == progress.total_bytes > 0


def write_silently(
    job: Job, chunk: File, advance: Callable[[int], None], stopped: Callable[[], bool]
) -> Receipt:
    """Write a chunk and tell of its first bytes only."""
    advance(len(chunk.head) // 3)
    return write_file(job, chunk, lambda _size_bytes: None, stopped)


class FailingProgress(RecordingProgress):
    """Raises of its own at one of its methods, each time: a bar that was closed, or a program that gave up."""

    def __init__(self, method: str, error: type[BaseException]) -> None:
        super().__init__()

        def fail(*_arguments: object) -> None:
            raise error("the bar is gone")

        setattr(self, method, fail)


@pytest.mark.parametrize("method", ["take", "advance"])
@pytest.mark.parametrize("error", [RuntimeError, OSError, KeyboardInterrupt])
def test_a_progress_that_raises_ends_the_run_with_what_it_said(
    tmp_path: Path, method: str, error: type[BaseException]
) -> None:
    with pytest.raises(ConversionError, match="the bar is gone"):
        run_inline(
            make_job(tmp_path), make_chunks(["chunk"]), 1, FailingProgress(method, error), write_slowly
        )
    assert find_partials(tmp_path) == []


def test_there_are_no_more_lanes_than_chunks(tmp_path: Path) -> None:
    begun: list[threading.Thread] = []

    def count(job: Job, chunk: File, advance: Callable[[int], None], stopped: Callable[[], bool]) -> Receipt:
        begun.extend(thread for thread in threading.enumerate() if thread.name.startswith("lane "))
        return write_file(job, chunk, advance, stopped)

    run_inline(make_job(tmp_path), make_chunks(["chunk", "other"]), 9, RecordingProgress(), count)
    assert {thread.name for thread in begun} <= {"lane 0", "lane 1"}


def test_lanes_that_hang_are_given_their_time_all_together_and_left_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inline, "STOP_SECONDS", 0.2)
    may_end, hanging = threading.Event(), threading.Semaphore(0)
    lanes = 9

    def hang(job: Job, chunk: File, _advance: Callable[[int], None], _stopped: Callable[[], bool]) -> Receipt:
        if chunk.name != "chunk0":
            hanging.release()
            may_end.wait()
        else:
            for _ in range(lanes - 1):
                hanging.acquire()
        raise InputError(f"{chunk.name}: not a checkpoint")

    progress = RecordingProgress()
    chunks = make_chunks([f"chunk{number}" for number in range(lanes)])
    before = time.monotonic()
    try:
        with pytest.raises(InputError, match="chunk0"):
            run_inline(make_job(tmp_path), chunks, lanes, progress, hang)
        left = [thread for thread in threading.enumerate() if thread.name.startswith("lane ")]
    finally:
        may_end.set()
    # One of them after the other would take more than a second each.
    assert 0.2 <= time.monotonic() - before < lanes - 1
    assert len(left) == lanes - 1
    assert all(thread.daemon for thread in left), "or they would keep the process from ending"
    assert progress.calls == ["begin", "end"]


def test_a_lane_that_cannot_begin_ends_the_run_with_the_systems_own_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Refused(threading.Thread):
        """A thread for which there is no room where another one is."""

        def start(self) -> None:
            if self.name != "lane 0":
                raise RuntimeError("can't start new thread")
            super().start()

    monkeypatch.setattr(inline.threading, "Thread", Refused)
    progress = RecordingProgress()
    with pytest.raises(RuntimeError, match="can't start new thread"):
        run_inline(make_job(tmp_path), make_chunks(["chunk", "other"]), 2, progress, write_slowly)
    assert progress.calls == ["begin", "end"]
    assert find_partials(tmp_path) == []


@pytest.fixture
def _sigterm_raises() -> Iterator[None]:
    def handle(_number: int, _frame: FrameType | None) -> None:
        raise Terminated("stopped by SIGTERM")

    before = signal.signal(signal.SIGTERM, handle)
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.mark.usefixtures("_sigterm_raises")
@pytest.mark.parametrize(
    ("number", "error"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, Terminated)]
)
def test_a_signal_stops_all_lanes_and_removes_their_partial_files(
    tmp_path: Path, number: signal.Signals, error: type[BaseException]
) -> None:
    chunks = make_chunks(["stays one", "stays other", "stays third"])

    def signal_when_both_write() -> None:
        while len(find_partials(tmp_path)) < 2:
            time.sleep(0.01)
        signal.pthread_kill(threading.main_thread().ident or 0, number)

    progress = RecordingProgress()
    sender = threading.Thread(target=signal_when_both_write)
    sender.start()
    with pytest.raises(error):
        run_inline(make_job(tmp_path), chunks, 2, progress, write_slowly)
    sender.join()
    assert find_partials(tmp_path) == []
    assert count_attempts(tmp_path, "stays third") == 0
    assert progress.calls == ["begin", "end"]


def test_ray_is_not_imported() -> None:
    asked = "import sys, distconv.moving.inline; sys.exit('ray' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", asked], check=False).returncode == 0
