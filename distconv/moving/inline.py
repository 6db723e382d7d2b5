"""Convert with threads of this process: the way for one machine without a cluster."""

import contextlib
import queue
import threading
import time
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

from distconv.layout.units import Unit, find_chains, find_order, name_units
from distconv.moving.executor import Convert, Keep, classify, forget
from distconv.moving.job import Job, Receipt
from distconv.moving.lane_devices import load_device
from distconv.moving.progress import Progress
from distconv.moving.scheduler import Action, Assign, Failure, Finish, GiveUp, Limits, Replace, Scheduler
from distconv.moving.worker import make_unit

TICK_SECONDS = 0.2
STOP_SECONDS = 5.0
"""How long lanes that are told to stop may take, all together, for the blocks they are in."""


@dataclass(frozen=True, slots=True)
class _Outcome:
    lane: int
    chunk: Unit
    result: Receipt | Failure


@dataclass(frozen=True, slots=True)
class _Lane:
    """One thread and the way to give it work; None ends it."""

    thread: threading.Thread
    inbox: "queue.SimpleQueue[Unit | None]"


def run_inline(
    job: Job,
    chunks: Sequence[Unit],
    lanes: int,
    progress: Progress,
    convert: Convert = make_unit,
    keep: Keep = forget,
) -> tuple[Receipt, ...]:
    """Convert all chunks, ``lanes`` at a time; the receipts come in the order of the chunks.

    The first error that does not pass is raised. Whatever ends the run, also an exception
    that a signal handler raises in the calling thread, every lane is given STOP_SECONDS to end
    and so to remove its partial file; one that hangs in a dead file system is left behind.
    """
    stop = threading.Event()
    outbox: queue.SimpleQueue[_Outcome] = queue.SimpleQueue()
    running: dict[int, _Lane] = {}
    # Or all lanes would wait for it at their first block.
    load_device(job.device)
    try:
        progress.begin(sum(chunk.size_bytes for chunk in chunks), len(chunks), name_units(chunks))
        for number in range(min(lanes, len(chunks))):
            inbox: queue.SimpleQueue[Unit | None] = queue.SimpleQueue()
            # A daemon: a lane that hangs in a dead file system must not keep the process from ending.
            thread = threading.Thread(
                target=_work,
                args=(number, job, convert, inbox, outbox, stop, progress),
                daemon=True,
                name=f"lane {number}",
            )
            running[number] = _Lane(thread, inbox)
            thread.start()
        receipts = _drive(chunks, running, outbox, progress, keep)
    finally:
        stop.set()
        _end_lanes(running.values())
        progress.end()
    return tuple(receipts[chunk.name] for chunk in chunks)


def _end_lanes(lanes: Collection[_Lane]) -> None:
    """Let lanes end, and wait for them all together."""
    for lane in lanes:
        lane.inbox.put(None)
    deadline = time.monotonic() + STOP_SECONDS
    for lane in lanes:
        if lane.thread.ident is not None:
            lane.thread.join(max(0.0, deadline - time.monotonic()))


def _drive(
    chunks: Sequence[Unit],
    running: dict[int, _Lane],
    outbox: "queue.SimpleQueue[_Outcome]",
    progress: Progress,
    keep: Keep,
) -> dict[str, Receipt]:
    """Carry events to the scheduler and its actions to the lanes until it finishes or gives up."""
    by_name = {chunk.name: chunk for chunk in chunks}
    receipts: dict[str, Receipt] = {}
    attempts: Counter[str] = Counter()
    # A thread cannot be ended from outside, so none is ever taken for dead.
    sizes_bytes = {chunk.name: chunk.size_bytes for chunk in chunks}
    scheduler = Scheduler(sizes_bytes, Limits(), time.monotonic(), find_order(chunks), find_chains(chunks))
    actions: list[Action] = list(scheduler.tick(time.monotonic()))
    for number in running:
        actions += scheduler.idle(number, time.monotonic())
    while not _carry_out(actions, running, by_name):
        try:
            outcome = outbox.get(timeout=TICK_SECONDS)
        except queue.Empty:
            actions = list(scheduler.tick(time.monotonic()))
            continue
        now = time.monotonic()
        if isinstance(outcome.result, Failure):
            if not outcome.result.final:
                progress.note(f"starts again: {outcome.result.error}")
            attempts[outcome.chunk.name] += 1
            actions = list(scheduler.failed(outcome.lane, outcome.result, now))
        else:
            receipts[outcome.chunk.name] = replace(outcome.result, attempts=attempts[outcome.chunk.name] + 1)
            keep(outcome.result)
            progress.unit_done(outcome.chunk.name)
            actions = list(scheduler.done(outcome.lane, now, moved=outcome.result.bytes_written > 0))
    return receipts


def _carry_out(actions: Sequence[Action], running: dict[int, _Lane], by_name: Mapping[str, Unit]) -> bool:
    """Do what the scheduler asks; True when all is done."""
    for action in actions:
        match action:
            case Assign(worker, unit):
                running[worker].inbox.put(by_name[unit])
            case Finish():
                return True
            case GiveUp(error):
                raise error
            case Replace(worker):
                raise RuntimeError(f"lane {worker} was never reported lost")
    return False


def _work(
    lane: int,
    job: Job,
    convert: Convert,
    inbox: "queue.SimpleQueue[Unit | None]",
    outbox: "queue.SimpleQueue[_Outcome]",
    stop: threading.Event,
    progress: Progress,
) -> None:
    """Convert what comes in until None does."""
    while (chunk := inbox.get()) is not None:
        moved_bytes = 0
        name = f"lane {lane}"

        def advance(size_bytes: int, name: str = name) -> None:
            nonlocal moved_bytes
            moved_bytes += size_bytes
            progress.advance(size_bytes, name)

        result: Receipt | Failure
        try:
            progress.take(name, chunk.name, chunk.size_bytes)
            result = convert(job, chunk, advance, stop.is_set)
            # A chunk that was there already, and its header, count as moved too.
            progress.advance(chunk.size_bytes - moved_bytes, name)
        except BaseException as error:  # noqa: BLE001  nobody else would ever hear of it
            result = classify(chunk.name, error)
            # It may be the progress itself that fails, each time.
            with contextlib.suppress(BaseException):
                progress.advance(-moved_bytes, name)
        outbox.put(_Outcome(lane, chunk, result))
