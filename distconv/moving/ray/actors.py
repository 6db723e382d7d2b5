"""What runs in Ray's worker processes: one unit at a time, telling of its progress."""

import queue
import socket
import threading
import time
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from typing import cast

import ray
from ray.actor import ActorHandle

from distconv.errors import Interrupted
from distconv.layout.units import Unit
from distconv.moving.executor import Convert, classify
from distconv.moving.job import Job, Receipt
from distconv.moving.lane_devices import load_device
from distconv.moving.ray.cluster import Needs
from distconv.moving.ray.meters import Meters
from distconv.moving.scheduler import Failure

TELL_SECONDS = 0.5
"""Bytes are added up for so long before they are told: each telling is a message to the driver."""

STOP_SECONDS = 10.0
"""How long a worker that is told to stop may take for the block it is in."""

GPU_WORKER_THREADS = "4"
"""Ray gives a worker on a CPU slot one thread, which is right, and one without a slot too."""

VISIBLE_SECONDS = 5.0
"""How long a network share may take to show files that were made on another host."""

NODE_LABEL = "ray.io/node-id"

STOPPING = "stopping"
"""Calls of this group have a thread of their own."""

Event = int | Receipt | Failure
"""Bytes moved since the last one; or, as the last one, how the unit ended."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a worker came up, and what it does not see there, if anything."""

    host: str
    node: str
    unmet: str | None


class Worker:
    """One GPU or CPU slot; ``stop`` is answered while ``convert`` runs.

    Errors of a unit come back as values: what Ray raises at the driver is then always Ray's.
    """

    def __init__(self, job: Job, convert: Convert) -> None:
        """Take what does not change from unit to unit."""
        self._job = job
        self._convert = convert
        self._stop = threading.Event()
        self._busy = threading.Lock()
        self._meters = Meters()
        load_device(job.device)
        self._units: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        # One thread for all units, as a device is its thread's; a generator cannot yield from inside a callback.
        threading.Thread(target=self._work, daemon=True, name="worker").start()

    def _work(self) -> None:
        while True:
            self._units.get()()

    @ray.method
    def place(self) -> Place:
        """Answer, once the worker is up, where that is."""
        node: str = ray.get_runtime_context().get_node_id()
        return Place(socket.gethostname(), node, self._find_unmet())

    def _find_unmet(self) -> str | None:
        preconditions, storage = self._job.preconditions, self._job.storage
        if (missing := preconditions.find_missing_source(storage)) is not None:
            return missing
        # A network share may take a moment to show what is new.
        deadline = time.monotonic() + VISIBLE_SECONDS
        while (other := preconditions.find_other_output(storage)) is not None and time.monotonic() < deadline:
            time.sleep(VISIBLE_SECONDS / 5)
        return other

    @ray.method(num_returns="streaming")
    def convert(self, chunk: Unit) -> Iterator[Event]:
        """Convert one chunk, yielding bytes moved, then its end."""
        events: queue.SimpleQueue[Event] = queue.SimpleQueue()

        def work() -> None:
            with self._busy:
                # Who is told to stop before it begins must not begin: nobody would wait for its end.
                if self._stop.is_set():
                    events.put(Failure(Interrupted("stopped"), final=True))
                    return
                end: Event
                try:
                    end = self._convert(self._job, chunk, events.put, self._stop.is_set)
                except BaseException as error:  # noqa: BLE001  the driver decides what it means
                    end = classify(chunk.name, error)
                self._meters.count(end)
                events.put(end)

        self._units.put(work)
        yield from _add_up(events)

    @ray.method(concurrency_group=STOPPING)
    def stop(self) -> bool:
        """Make the running unit end, and wait until its partial file is gone; tell if it is."""
        self._stop.set()
        ended = self._busy.acquire(timeout=STOP_SECONDS)
        if ended:
            self._busy.release()
        return ended


def _add_up(events: "queue.SimpleQueue[Event]") -> Iterator[Event]:
    """Pass events on, with bytes added up; says nothing while nothing moves."""
    moved_bytes = 0
    told_at = time.monotonic()
    while True:
        try:
            event = events.get(timeout=TELL_SECONDS)
        except queue.Empty:
            event = 0
        if isinstance(event, int):
            moved_bytes += event
        if moved_bytes and (not isinstance(event, int) or time.monotonic() - told_at >= TELL_SECONDS):
            yield moved_bytes
            moved_bytes, told_at = 0, time.monotonic()
        if not isinstance(event, int):
            yield event
            return


def start_worker(job: Job, convert: Convert, needs: Needs, avoided: Collection[str]) -> "ActorHandle[Worker]":
    """Ask Ray for one more worker; it comes up when what it needs is free on a node that is not avoided."""
    on_gpu = needs.gpus > 0
    # Ray calls the handle a union with the class, for the sake of completion in editors.
    return cast(
        "ActorHandle[Worker]",
        ray.remote(concurrency_groups={STOPPING: 1})(Worker)  # type: ignore[call-overload]  # Ray's stub lacks it
        .options(
            num_gpus=needs.gpus,
            num_cpus=needs.cpus,
            resources=dict(needs.others),
            label_selector={NODE_LABEL: f"!in({','.join(sorted(avoided))})"} if avoided else None,
            runtime_env={"env_vars": {"OMP_NUM_THREADS": GPU_WORKER_THREADS}} if on_gpu else None,
            scheduling_strategy="SPREAD",
            # The driver counts attempts and losses; Ray must not try again behind its back.
            max_restarts=0,
            max_task_retries=0,
        )
        .remote(job, convert),
    )
