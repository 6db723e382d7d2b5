"""Converting with the workers of a real Ray on this host."""

import gc
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import FrameType

import pytest
import ray
from ray import ObjectRefGenerator
from ray.actor import ActorHandle

from distconv.errors import ConversionError, InputError, Terminated, UsageError
from distconv.moving.job import Receipt
from distconv.moving.ray.cluster import start_local
from distconv.moving.ray.driver import Cluster, run_on_ray
from distconv.moving.scheduler import Action, Scheduler
from tests.moving.fakes import (
    STANDING_SECONDS,
    TOLD_NAME,
    RecordingProgress,
    be_overtaken,
    count_attempts,
    find_partials,
    is_committed_once,
    is_whole,
    make_chunks,
    make_job,
    read_pids,
    stand_together,
    write_slowly,
    write_together,
)

ROOT = Path(__file__).parents[2]
SLOTS = 3
ANY = Cluster()


@pytest.fixture(scope="module", autouse=True)
def _fakes_for_workers() -> Iterator[None]:
    """Let workers import the tests wherever pytest was started; leave no Ray behind."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(ROOT), prepend=os.pathsep)
        yield
        ray.shutdown()


@pytest.fixture(autouse=True)
def handlers() -> Iterator[tuple[object, object]]:
    """Have handlers that raise, which a run must put back; Ray's own must not outlive a test."""

    def terminate(_number: int, _frame: FrameType | None) -> None:
        raise Terminated("stopped by SIGTERM")

    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    signal.signal(signal.SIGTERM, terminate)
    yield signal.default_int_handler, terminate
    for number, handler in zip((signal.SIGINT, signal.SIGTERM), before, strict=True):
        signal.signal(number, handler)


def current_handlers() -> tuple[object, object]:
    """The handlers that stand now."""
    return signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)


@pytest.fixture
def _three_slots(handlers: tuple[object, object]) -> None:
    """Have a Ray of three slots, which is started once."""
    if not ray.is_initialized():
        start_local(SLOTS)
        for number, handler in zip((signal.SIGINT, signal.SIGTERM), handlers, strict=True):
            signal.signal(number, handler)  # type: ignore[arg-type]


@pytest.fixture
def _no_ray() -> None:
    """Have no Ray, so that a run must find its own."""
    ray.shutdown()


with_slots = pytest.mark.usefixtures("_three_slots")
without_ray = pytest.mark.usefixtures("_no_ray")


def signal_when_writing(output: Path, number: signal.Signals, partials: int) -> threading.Thread:
    """Send a signal to the main thread once so many partial files are there."""

    def send() -> None:
        while len(find_partials(output)) < partials:
            time.sleep(0.01)
        signal.pthread_kill(threading.main_thread().ident or 0, number)

    sender = threading.Thread(target=send, daemon=True)
    sender.start()
    return sender


@without_ray
def test_a_ray_of_its_own_is_started_whatever_the_environment_says_and_shut_down(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, handlers: tuple[object, object]
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    chunks = make_chunks(["chunk", "other", "third"])
    progress = RecordingProgress()
    receipts = run_on_ray(make_job(tmp_path), chunks, Cluster(workers=SLOTS), progress, write_together)
    assert [receipt.chunk for receipt in receipts] == [chunk.name for chunk in chunks]
    assert all(is_whole(tmp_path, chunk) for chunk in chunks)
    assert progress.moved_bytes == progress.total_bytes
    assert not ray.is_initialized()
    assert current_handlers() == handlers


@pytest.mark.slow
@without_ray
def test_sigterm_ends_a_run_on_a_ray_of_its_own_which_is_shut_down(
    tmp_path: Path, handlers: tuple[object, object]
) -> None:
    chunks = make_chunks(["stays one", "stays other", "stays third"])
    sender = signal_when_writing(tmp_path, signal.SIGTERM, 2)
    with pytest.raises(Terminated, match="stopped by SIGTERM"):
        run_on_ray(make_job(tmp_path), chunks, Cluster("local", 2), RecordingProgress(), write_slowly)
    sender.join()
    assert find_partials(tmp_path) == []
    assert not ray.is_initialized()
    assert current_handlers() == handlers


@pytest.mark.slow
@without_ray
@pytest.mark.parametrize("name", ["killed once", pytest.param("eio once", marks=pytest.mark.slow)])
def test_nothing_of_ray_is_left_to_be_collected_when_it_is_shut_down(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    # Ray ends the process of a thread whose turn it is to collect such a thing meanwhile.
    left: list[str] = []
    shut_down = ray.shutdown

    def look() -> None:
        gc.set_debug(gc.DEBUG_SAVEALL)
        gc.collect()
        gc.set_debug(0)
        left.extend(
            type(found).__name__
            for found in gc.garbage
            if isinstance(found, (ActorHandle, ObjectRefGenerator))
        )
        gc.garbage.clear()
        shut_down()

    monkeypatch.setattr(ray, "shutdown", look)
    gc.disable()
    try:
        run_on_ray(
            make_job(tmp_path),
            make_chunks([name, "chunk"]),
            Cluster("local", 2),
            RecordingProgress(),
            write_slowly,
        )
    finally:
        gc.enable()
    assert left == []
    assert count_attempts(tmp_path, name) == 2


@without_ray
def test_the_address_of_a_ray_client_is_refused_with_a_way_out(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"ray://head:10001: Ray Client is not supported; .*ray job submit"):
        run_on_ray(
            make_job(tmp_path), make_chunks(["chunk"]), Cluster("ray://head:10001"), RecordingProgress()
        )


@without_ray
def test_a_cluster_that_cannot_be_reached_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConversionError, match=r"Ray at 127\.0\.0\.1:1 cannot be reached"):
        run_on_ray(make_job(tmp_path), make_chunks(["chunk"]), Cluster("127.0.0.1:1"), RecordingProgress())
    assert not ray.is_initialized()


DRIVER = """
import sys
from pathlib import Path
from distconv.moving.ray.driver import Cluster, run_on_ray
from tests.moving.fakes import RecordingProgress, make_chunks, make_job, write_slowly

output, stall_seconds, *names = sys.argv[1:]
progress = RecordingProgress()
run_on_ray(
    make_job(Path(output)), make_chunks(names), Cluster("local", 2), progress, write_slowly, float(stall_seconds)
)
assert progress.notes == ["starting a local Ray"], progress.notes
"""


@pytest.mark.slow
@without_ray
def test_a_driver_that_was_stopped_for_long_takes_nobody_for_dead(tmp_path: Path) -> None:
    names = ["slow one", "slow other"]
    command = [sys.executable, "-c", DRIVER, str(tmp_path), "3", *names]
    driver = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    while len(find_partials(tmp_path)) < 2:
        time.sleep(0.01)
    driver.send_signal(signal.SIGSTOP)
    while not all((tmp_path / name).exists() for name in names):
        time.sleep(0.01)
    time.sleep(4)
    driver.send_signal(signal.SIGCONT)
    _output, errors = driver.communicate()
    assert driver.returncode == 0, errors
    assert [count_attempts(tmp_path, name) for name in names] == [1, 1]


@with_slots
def test_all_chunks_are_written_by_three_workers_and_the_receipts_come_in_order(
    tmp_path: Path, handlers: tuple[object, object]
) -> None:
    chunks = make_chunks([f"chunk{number}" for number in range(7)])
    progress = RecordingProgress()
    receipts = run_on_ray(make_job(tmp_path), chunks, ANY, progress, write_together)
    assert [receipt.chunk for receipt in receipts] == [chunk.name for chunk in chunks]
    assert all(is_whole(tmp_path, chunk) for chunk in chunks)
    assert len(read_pids(tmp_path)) == SLOTS
    assert os.getpid() not in read_pids(tmp_path)
    assert progress.calls == ["begin", "end"]
    assert progress.moved_bytes == progress.total_bytes == 7000
    assert sorted(progress.units) == [chunk.name for chunk in chunks]
    assert progress.notes == []
    assert ray.is_initialized()
    assert current_handlers() == handlers


@pytest.mark.slow
@with_slots
def test_the_largest_chunk_is_begun_first_by_the_only_worker(tmp_path: Path) -> None:
    (small,), (large,) = make_chunks(["small"], 100), make_chunks(["large"], 2000)
    progress = RecordingProgress()
    receipts = run_on_ray(make_job(tmp_path), (small, large), Cluster(workers=1), progress, write_slowly)
    assert [receipt.chunk for receipt in receipts] == ["small", "large"]
    assert progress.units == ["large", "small"]
    assert len(read_pids(tmp_path)) == 1


class SlowlyBegun(RecordingProgress):
    """Takes its time to begin, and notes when that was over."""

    begun_at = 0.0

    def begin(self, total_bytes: int, units: int, kind: str = "chunks") -> None:
        super().begin(total_bytes, units, kind)
        time.sleep(0.1)
        self.begun_at = time.monotonic()


@pytest.mark.slow
@with_slots
def test_what_a_progress_takes_to_begin_is_not_the_first_workers_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assigned_at: list[float] = []
    idle = Scheduler.idle

    def note(scheduler: Scheduler, worker: int, now: float) -> tuple[Action, ...]:
        assigned_at.append(now)
        return idle(scheduler, worker, now)

    monkeypatch.setattr(Scheduler, "idle", note)
    progress = SlowlyBegun()
    run_on_ray(make_job(tmp_path), make_chunks(["chunk"]), ANY, progress, write_slowly)
    assert min(assigned_at) >= progress.begun_at > 0


@pytest.mark.slow
@with_slots
def test_no_more_workers_are_started_than_there_are_chunks(tmp_path: Path) -> None:
    run_on_ray(make_job(tmp_path), make_chunks(["chunk"]), ANY, RecordingProgress(), write_slowly)
    assert len(read_pids(tmp_path)) == 1


@with_slots
def test_no_chunks_are_no_work(tmp_path: Path) -> None:
    assert run_on_ray(make_job(tmp_path), (), ANY, RecordingProgress(), write_slowly) == ()


@with_slots
def test_the_real_worker_writes_and_then_keeps_a_chunk(tmp_path: Path) -> None:
    chunks = make_chunks(["chunk"])
    progress = RecordingProgress()
    (written,) = run_on_ray(make_job(tmp_path), chunks, ANY, RecordingProgress())
    again = replace(make_job(tmp_path), recorded={written.chunk: written.digests})
    (kept,) = run_on_ray(again, chunks, ANY, progress)
    assert is_whole(tmp_path, chunks[0])
    assert (written.kept, kept.kept) == (False, True)
    assert progress.moved_bytes == progress.total_bytes


@pytest.mark.slow
@with_slots
def test_a_chunk_that_another_attempt_has_committed_meanwhile_stays(tmp_path: Path) -> None:
    chunks = make_chunks(["chunk", "other"])
    run_on_ray(make_job(tmp_path), chunks, ANY, RecordingProgress(), be_overtaken)
    assert all(is_whole(tmp_path, chunk) and is_committed_once(tmp_path, chunk) for chunk in chunks)
    assert find_partials(tmp_path) == []


class TellingProgress(RecordingProgress):
    """Leaves a file when it is told of the first bytes of a chunk that waits for that."""

    def __init__(self, output: Path) -> None:
        super().__init__()
        self._output = output
        self._worker = ""

    def take(self, worker: str, unit: str, size_bytes: int) -> None:
        super().take(worker, unit, size_bytes)
        if TOLD_NAME in unit:
            self._worker = worker

    def advance(self, size_bytes: int, worker: str = "") -> None:
        super().advance(size_bytes, worker)
        if worker == self._worker:
            (self._output / TOLD_NAME).touch()


@with_slots
def test_a_killed_worker_is_replaced_and_the_bytes_of_its_chunk_count_once(tmp_path: Path) -> None:
    chunks = make_chunks(["killed once, told", "chunk", "other", "third"])
    progress = TellingProgress(tmp_path)
    receipts = run_on_ray(make_job(tmp_path), chunks, ANY, progress, write_slowly)
    assert [receipt.chunk for receipt in receipts] == [chunk.name for chunk in chunks]
    assert all(is_whole(tmp_path, chunk) for chunk in chunks)
    assert [count_attempts(tmp_path, chunk.name) for chunk in chunks] == [2, 1, 1, 1]
    first, second = (tmp_path / "killed once, told.attempts").read_text().splitlines()
    assert first != second
    (note,) = progress.notes
    assert note.endswith("; killed once, told starts again")
    assert "was lost (ActorDiedError: " in note
    # It had told of some bytes before it was killed.
    assert progress.taken_back_bytes > 0
    assert progress.moved_bytes == progress.total_bytes == 4000
    # Nobody is left who could remove what the dead one was writing.
    assert [f"-{first}-" in name for name in find_partials(tmp_path)] == [True]


@pytest.mark.slow
@with_slots
def test_a_chunk_that_always_kills_its_worker_ends_the_run_with_one_error(tmp_path: Path) -> None:
    chunks = make_chunks(["always killed", "stays one", "stays other"])
    progress = RecordingProgress()
    with pytest.raises(ConversionError) as found:
        run_on_ray(make_job(tmp_path), chunks, ANY, progress, write_slowly)
    message = str(found.value)
    assert message.startswith("always killed: begun 3 times, and the last worker was lost: ActorDiedError: ")
    assert "\n" not in message
    assert count_attempts(tmp_path, "always killed") == 3
    assert [name for name in find_partials(tmp_path) if not name.startswith(".always killed.")] == []
    assert progress.calls == ["begin", "end"]


@pytest.mark.slow
@with_slots
def test_an_input_output_error_is_tried_again_and_its_bytes_count_once(tmp_path: Path) -> None:
    chunks = make_chunks(["eio once, slow", "chunk"])
    progress = RecordingProgress()
    receipts = run_on_ray(make_job(tmp_path), chunks, ANY, progress, write_slowly)
    assert all(is_whole(tmp_path, chunk) for chunk in chunks)
    assert count_attempts(tmp_path, "eio once, slow") == 2
    assert [receipt.attempts for receipt in receipts] == [2, 1]
    assert progress.taken_back_bytes > 0
    assert progress.moved_bytes == progress.total_bytes
    (note,) = progress.notes
    assert note.startswith("starts again: eio once, slow: Input/output error; ")
    assert find_partials(tmp_path) == []


@pytest.mark.slow
@with_slots
def test_a_chunk_that_always_fails_is_begun_three_times(tmp_path: Path) -> None:
    words = r"always eio: failed 3 times, the last time with: always eio: Input/output error"
    with pytest.raises(ConversionError, match=words):
        run_on_ray(make_job(tmp_path), make_chunks(["always eio"]), ANY, RecordingProgress(), write_slowly)
    assert count_attempts(tmp_path, "always eio") == 3
    assert find_partials(tmp_path) == []


@pytest.mark.first(1)
@with_slots
@pytest.mark.parametrize(
    ("name", "error", "words"),
    [
        ("bad input", InputError, "^bad input: not a checkpoint$"),
        ("full disk", ConversionError, "^full disk: No space left on device; free some space"),
        ("surprise", ConversionError, "^surprise: KeyError: 'surprise'$"),
    ],
)
def test_what_cannot_pass_is_raised_at_once_and_leaves_no_partial_file(
    tmp_path: Path, name: str, error: type[Exception], words: str, handlers: tuple[object, object]
) -> None:
    chunks = make_chunks([name, "stays one", "stays other"])
    with pytest.raises(error, match=words) as found:
        run_on_ray(make_job(tmp_path), chunks, Cluster(workers=2), RecordingProgress(), write_slowly)
    assert type(found.value) is error
    assert count_attempts(tmp_path, name) == 1
    assert find_partials(tmp_path) == []
    assert not (tmp_path / "stays one").exists()
    assert current_handlers() == handlers


@pytest.mark.slow
@with_slots
def test_a_worker_that_hangs_is_replaced_and_one_that_is_slow_is_not(tmp_path: Path) -> None:
    chunks = make_chunks(["hangs once", "slow"])
    progress = RecordingProgress()
    run_on_ray(make_job(tmp_path), chunks, ANY, progress, write_slowly, stall_seconds=2.5)
    assert all(is_whole(tmp_path, chunk) for chunk in chunks)
    assert [count_attempts(tmp_path, chunk.name) for chunk in chunks] == [2, 1]
    (note,) = progress.notes
    assert re.search(r" was lost \(nothing heard of it for \d+ s\); hangs once starts again$", note)
    assert progress.moved_bytes == progress.total_bytes


@pytest.mark.slow
@with_slots
def test_workers_that_are_silent_together_wait_for_their_storage_and_are_not_dead(tmp_path: Path) -> None:
    chunks = make_chunks(["one", "other"])
    progress = RecordingProgress()
    stall_seconds = STANDING_SECONDS / 2
    run_on_ray(make_job(tmp_path), chunks, ANY, progress, stand_together, stall_seconds)
    assert all(is_whole(tmp_path, chunk) for chunk in chunks)
    assert [count_attempts(tmp_path, chunk.name) for chunk in chunks] == [1, 1]
    assert progress.notes == []
    assert progress.moved_bytes == progress.total_bytes


@pytest.mark.slow
@with_slots
def test_what_workers_said_while_the_driver_was_held_up_is_heard(tmp_path: Path) -> None:
    chunks = make_chunks(["chunk", "slow one", "slow other"])
    progress = RecordingProgress()
    held_up: list[str] = []

    def keep(receipt: Receipt) -> None:
        if not held_up:
            time.sleep(6)
        held_up.append(receipt.chunk)

    run_on_ray(make_job(tmp_path), chunks, ANY, progress, write_slowly, stall_seconds=3, keep=keep)
    assert sorted(held_up) == [chunk.name for chunk in chunks]
    assert [count_attempts(tmp_path, chunk.name) for chunk in chunks] == [1, 1, 1]
    assert progress.notes == []


@pytest.mark.slow
@with_slots
def test_more_lost_workers_than_two_for_each_and_four_end_the_run(tmp_path: Path) -> None:
    chunks = make_chunks([f"killed once {number}" for number in range(8)])
    with pytest.raises(
        ConversionError, match=r"^7 workers were lost, the last one because: ActorDiedError: "
    ):
        run_on_ray(make_job(tmp_path), chunks, Cluster(workers=1), RecordingProgress(), write_slowly)
    assert len(read_pids(tmp_path)) == 7


@pytest.mark.first(1)
@with_slots
@pytest.mark.parametrize(
    ("number", "error"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, Terminated)]
)
def test_a_signal_ends_the_run_and_the_workers_remove_their_partial_files(
    tmp_path: Path, number: signal.Signals, error: type[BaseException], handlers: tuple[object, object]
) -> None:
    chunks = make_chunks(["stays one", "stays other", "stays third"])
    progress = RecordingProgress()
    sender = signal_when_writing(tmp_path, number, 2)
    with pytest.raises(error):
        run_on_ray(make_job(tmp_path), chunks, Cluster(workers=2), progress, write_slowly)
    sender.join()
    assert find_partials(tmp_path) == []
    assert count_attempts(tmp_path, "stays third") == 0
    assert progress.calls == ["begin", "end"]
    assert ray.is_initialized()
    assert current_handlers() == handlers


class SignallingProgress(RecordingProgress):
    """Sends SIGTERM to this process at the end of the first unit."""

    def unit_done(self, name: str) -> None:
        """Send it."""
        super().unit_done(name)
        signal.raise_signal(signal.SIGTERM)


@with_slots
def test_a_signal_that_comes_with_the_end_of_the_last_unit_is_not_lost(
    tmp_path: Path, handlers: tuple[object, object]
) -> None:
    with pytest.raises(Terminated, match="stopped by SIGTERM"):
        run_on_ray(make_job(tmp_path), make_chunks(["chunk"]), ANY, SignallingProgress(), write_slowly)
    assert current_handlers() == handlers


@with_slots
def test_a_run_in_another_thread_works_and_leaves_signals_alone(
    tmp_path: Path, handlers: tuple[object, object]
) -> None:
    chunks = make_chunks(["chunk", "other"])
    thread = threading.Thread(
        target=run_on_ray, args=(make_job(tmp_path), chunks, ANY, RecordingProgress(), write_slowly)
    )
    thread.start()
    thread.join()
    assert all(is_whole(tmp_path, chunk) for chunk in chunks)
    assert current_handlers() == handlers


@with_slots
def test_workers_that_cannot_import_what_they_need_end_the_run_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "only_here.py").write_text("def convert(job, chunk, advance, stopped):\n    return None\n")
    monkeypatch.syspath_prepend(tmp_path)
    import only_here

    with pytest.raises(ConversionError, match=r"Ray workers cannot start; .*ModuleNotFoundError.*only_here"):
        run_on_ray(make_job(tmp_path), make_chunks(["chunk"]), ANY, RecordingProgress(), only_here.convert)


@with_slots
def test_more_workers_than_the_cluster_has_slots_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="4 workers, but the Ray cluster has room for 3 of 1 CPU each"):
        run_on_ray(make_job(tmp_path), make_chunks(["chunk"]), Cluster(workers=4), RecordingProgress())
    assert list(tmp_path.iterdir()) == []


@with_slots
def test_the_device_cuda_on_a_cluster_without_a_gpu_is_refused(tmp_path: Path) -> None:
    from dataclasses import replace

    job = replace(make_job(tmp_path), device="cuda")
    with pytest.raises(
        ConversionError, match="no node of the Ray cluster has 1 GPU, which a worker of device cuda needs"
    ):
        run_on_ray(job, make_chunks(["chunk"]), ANY, RecordingProgress())
