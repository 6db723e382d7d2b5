"""Convert with the workers of a Ray cluster: one loop that hands out units and hears of them."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import ray
from ray.actor import ActorHandle
from ray.exceptions import RayError, RayTaskError

from distconv.errors import ConversionError
from distconv.layout.units import Unit, find_chains, find_order, name_units
from distconv.moving.executor import (
    STALL_SECONDS,
    TICK_SECONDS,
    Cluster,
    Convert,
    Keep,
    classify,
    forget,
    make_limits,
)
from distconv.moving.job import Job, Receipt
from distconv.moving.progress import Progress
from distconv.moving.ray.actors import STOP_SECONDS, Event, Place, Worker, start_worker
from distconv.moving.ray.cluster import (
    Needs,
    connected,
    count_workers,
    find_needs,
    find_nodes,
    is_elsewhere,
    refuse_dead,
)
from distconv.moving.ray.signals import held_back
from distconv.moving.scheduler import Action, Assign, Failure, Finish, GiveUp, Limits, Replace, Scheduler
from distconv.moving.worker import make_unit

__all__ = ["Cluster", "run_on_ray"]

CREATION_FAILED = "creation task"
"""How Ray says that a worker died of an exception in its own beginning."""


@dataclass(slots=True)
class _Member:
    """One actor: where it is, what it was asked last, and what of its unit it has told."""

    name: str
    actor: "ActorHandle[Worker]"
    waiting: "ray.ObjectRef[Place] | ray.ObjectRefGenerator | None"
    place: Place | None = None
    chunk: Unit | None = None
    attempt: int = 1
    moved_bytes: int = 0


def run_on_ray(
    job: Job,
    chunks: Sequence[Unit],
    cluster: Cluster,
    progress: Progress,
    convert: Convert = make_unit,
    stall_seconds: float = STALL_SECONDS,
    keep: Keep = forget,
) -> tuple[Receipt, ...]:
    """Convert all chunks on a Ray cluster; the receipts come in the order of the chunks.

    There is one worker per GPU for the device ``cuda``, else one per CPU slot. Lost workers
    are replaced and their units done again; the first error that does not pass is raised.
    Progress begins when the first worker is up. Whatever ends the run, also an exception that a signal handler raises, the workers are
    given a few seconds to remove their partial files. A worker that was killed leaves its
    own behind, for who owns the folder.
    """
    is_own = not is_elsewhere(cluster)
    with connected(cluster, job.device, len(chunks), progress) as found:
        workers = count_workers(found, job.device, len(chunks))
        limits = make_limits(workers, stall_seconds)
        run = _Run(
            job, chunks, find_needs(cluster, job.device), progress, convert, limits, keep, is_own=is_own
        )
        with held_back() as deliver_signals:
            try:
                receipts = run.drive(workers, deliver_signals)
            finally:
                run.close()
                progress.end()
    return tuple(receipts[chunk.name] for chunk in chunks)


class _Run:
    """The actors of one run and the scheduler that rules them."""

    def __init__(
        self,
        job: Job,
        chunks: Sequence[Unit],
        needs: Needs,
        progress: Progress,
        convert: Convert,
        limits: Limits,
        keep: Keep,
        *,
        is_own: bool,
    ) -> None:
        self._is_own = is_own
        self._chunks = {chunk.name: chunk for chunk in chunks}
        self._progress = progress
        self._job, self._convert, self._keep = job, convert, keep
        self._needs = needs
        self._left_out: dict[str, str] = {}
        sizes_bytes = {chunk.name: chunk.size_bytes for chunk in chunks}
        self._scheduler = Scheduler(
            sizes_bytes, limits, time.monotonic(), find_order(chunks), find_chains(chunks)
        )
        self._members: dict[int, _Member] = {}
        self._receipts: dict[str, Receipt] = {}
        self._started = 0
        self._begun = False
        self._finished = False

    def drive(self, workers: int, deliver_signals: Callable[[], None]) -> dict[str, Receipt]:
        """Start the workers, then carry events and actions until all is done."""
        for _ in range(workers):
            self._start_worker()
        self._carry_out(self._scheduler.tick(time.monotonic()))
        while not self._finished:
            deliver_signals()
            for number in self._wait():
                # Whoever was replaced a moment ago is not heard any more.
                if number in self._members:
                    self._hear(number, self._members[number])
            if self._is_own and not any(member.place for member in self._members.values()):
                # Nobody brings up another node.
                refuse_dead(self._needs)
            # Behind the hearing: after a pause of this process, what waits tells who is alive.
            self._carry_out(self._scheduler.tick(time.monotonic()))
        return self._receipts

    def close(self) -> None:
        """Stop what still runs, wait until partial files are gone, end the workers."""
        busy: list[ray.ObjectRef[bool]] = [
            member.actor.stop.remote() for member in self._members.values() if member.chunk is not None
        ]
        if busy:
            ray.wait(busy, num_returns=len(busy), timeout=STOP_SECONDS, fetch_local=False)
        for member in self._members.values():
            ray.kill(member.actor)

    def _start_worker(self) -> None:
        self._started += 1
        actor = start_worker(self._job, self._convert, self._needs, self._left_out)
        self._members[self._started] = _Member(f"worker {self._started}", actor, actor.place.remote())

    def _wait(self) -> list[int]:
        """Wait a moment for workers that have something to say."""
        waiting = {
            member.waiting: number for number, member in self._members.items() if member.waiting is not None
        }
        sources = list(waiting)
        if not sources:
            time.sleep(TICK_SECONDS)
            return []
        # Twice: until somebody has something to say, and then for all who have.
        ray.wait(sources, num_returns=1, timeout=TICK_SECONDS, fetch_local=False)
        ready, _ = ray.wait(sources, num_returns=len(sources), timeout=0, fetch_local=False)
        return [waiting[source] for source in ready]

    def _hear(self, number: int, member: _Member) -> None:
        """Take one message of a worker and tell the scheduler what it means."""
        try:
            event = _read_event(member)
        except RayTaskError as error:
            name = member.chunk.name if member.chunk is not None else "worker"
            event = classify(name, error.cause)
        except (RayError, StopIteration) as error:
            self._lose(number, member, error)
            return
        now = time.monotonic()
        match event:
            case Place(unmet=str()):
                self._leave_out(number, member, event)
            case Place():
                member.waiting, member.place = None, event
                self._begin()
                # Telling of the beginning takes its time, which is not the worker's.
                self._carry_out(self._scheduler.idle(number, time.monotonic()))
            case int():
                self._count(member, event)
                self._carry_out(self._scheduler.progress(number, now))
            case Receipt():
                self._end_unit(number, member, event, now)
            case Failure():
                self._fail(number, member, event, now)

    def _leave_out(self, number: int, member: _Member, place: Place) -> None:
        """Go on without a node that does not see INPUT or OUTPUT, unless none does."""
        del self._members[number]
        ray.kill(member.actor)
        nodes = find_nodes(self._needs)
        name = f"{place.host} ({nodes.get(place.node, 'gone')})"
        if place.node not in self._left_out:
            self._left_out[place.node] = f"{name}: {place.unmet}"
            self._progress.note(f"node {name} is left out, it does not see INPUT or OUTPUT: {place.unmet}")
        if not nodes.keys() - self._left_out.keys():
            words = (
                "no node of the Ray cluster sees INPUT and OUTPUT; put them on storage that every node has"
            )
            raise ConversionError("\n".join((words, *self._left_out.values())))
        self._start_worker()

    def _begin(self) -> None:
        """Tell that bytes move from now on; starting up is over when the first worker is up."""
        if not self._begun:
            self._begun = True
            chunks = self._chunks.values()
            self._progress.begin(sum(chunk.size_bytes for chunk in chunks), len(chunks), name_units(chunks))

    def _end_unit(self, number: int, member: _Member, receipt: Receipt, now: float) -> None:
        """Keep what came of a unit."""
        self._receipts[receipt.chunk] = replace(receipt, attempts=member.attempt)
        self._keep(receipt)
        self._count(member, self._chunks[receipt.chunk].size_bytes - member.moved_bytes)
        self._progress.unit_done(receipt.chunk)
        _clear(member)
        self._carry_out(self._scheduler.done(number, now, moved=receipt.bytes_written > 0))

    def _fail(self, number: int, member: _Member, failure: Failure, now: float) -> None:
        """Hand a failure on; its bytes do not count."""
        if not failure.final:
            self._progress.note(f"starts again: {failure.error}")
        self._count(member, -member.moved_bytes)
        _clear(member)
        self._carry_out(self._scheduler.failed(number, failure, now))

    def _lose(self, number: int, member: _Member, error: Exception) -> None:
        """Report a worker as lost, unless it cannot even begin: then no other one could."""
        reason = _first_line(error)
        if member.chunk is None and CREATION_FAILED in str(error):
            raise ConversionError(
                f"Ray workers cannot start; is distconv installed on every node? "
                f"{str(error).strip().splitlines()[-1]}"
            )
        self._carry_out(self._scheduler.lost(number, reason, time.monotonic()))

    def _carry_out(self, actions: Sequence[Action]) -> None:
        for action in actions:
            match action:
                case Assign(worker, unit, attempt):
                    member = self._members[worker]
                    member.chunk, member.attempt = self._chunks[unit], attempt
                    self._progress.take(member.name, unit, self._chunks[unit].size_bytes)
                    member.waiting = member.actor.convert.remote(member.chunk)
                case Replace(worker, unit, reason):
                    self._replace(worker, unit, reason)
                case GiveUp(error):
                    raise error
                case Finish():
                    self._finished = True

    def _replace(self, worker: int, unit: str | None, reason: str) -> None:
        """End a worker and start another; Ray places it when there is room."""
        member = self._members.pop(worker)
        self._count(member, -member.moved_bytes)
        again = f"; {unit} starts again" if unit is not None else ""
        where = f" on {member.place.host}" if member.place is not None else ""
        self._progress.note(f"worker {worker}{where} was lost ({reason}){again}")
        ray.kill(member.actor)
        self._start_worker()

    def _count(self, member: _Member, size_bytes: int) -> None:
        member.moved_bytes += size_bytes
        self._progress.advance(size_bytes, member.name)


def _read_event(member: _Member) -> Event | Place | None:
    """Take what is ready; a place says that the worker has come up."""
    if isinstance(member.waiting, ray.ObjectRefGenerator):
        event: Event = ray.get(next(member.waiting))
        return event
    return ray.get(member.waiting) if member.waiting is not None else None


def _clear(member: _Member) -> None:
    """Forget the unit that has ended."""
    member.chunk, member.waiting, member.moved_bytes = None, None, 0


def _first_line(error: Exception) -> str:
    """Say in one line what Ray says in many."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
