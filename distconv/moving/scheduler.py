"""Who does which unit next, and when to give up: a state machine without clock or threads.

An executor (inline threads, Ray, a simulation) tells what happened, with the time in
seconds, and carries out the actions it gets back, in order::

    idle ─────► Assign          a worker that has nothing to do gets the largest unit left, unless
                                those that are busy would be through with all before it was with that
    progress                    a worker is alive
    done ─────► Assign, Finish
    failed ───► Assign, GiveUp  a unit failed, its worker is well
    lost ─────► Replace, GiveUp a worker is gone, and its unit starts again elsewhere
    tick ─────► all of these    time has passed: stalled workers, rested units

What workers have said is told before a tick, or their silence would be the executor's own.

Workers are numbers that are never used twice. Events of a worker that was replaced are
ignored: it may only have been slow, and its unit may be somebody else's by now.
"""

import math
from collections import deque
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from distconv.errors import ConversionError, DistconvError
from distconv.moving.chains import Chains
from distconv.moving.paces import Paces
from distconv.moving.silence import Silences


@dataclass(frozen=True, slots=True)
class Limits:
    """How much trouble is borne."""

    attempts: int = 3
    """How often one unit is begun."""
    deaths: int = 8
    """How many workers are replaced in the whole run."""
    stall_seconds: float = math.inf
    """A busy worker that says nothing for longer is taken for dead, unless the others are as silent."""
    turn_seconds: float = math.inf
    """After so long the executor tells of something, or ticks; what it takes longer is nobody's silence."""
    empty_seconds: float = math.inf
    """A run that has no worker for longer gives up."""
    rest_seconds: float = 1.0
    """How long a failed unit rests, times its attempts: storage needs a moment to recover."""


@dataclass(frozen=True, slots=True)
class Failure:
    """Why an attempt failed; a final failure is not tried again."""

    error: DistconvError
    final: bool


@dataclass(frozen=True, slots=True)
class Assign:
    """Give this unit to this worker."""

    worker: int
    unit: str
    attempt: int
    """Counts from 1."""


@dataclass(frozen=True, slots=True)
class Replace:
    """End this worker, drop what it may still say, start one with a new number."""

    worker: int
    unit: str | None
    """What it was doing; that starts again."""
    reason: str


@dataclass(frozen=True, slots=True)
class GiveUp:
    """Stop everything and raise this error."""

    error: DistconvError


@dataclass(frozen=True, slots=True)
class Finish:
    """Every unit is done."""


Action = Assign | Replace | GiveUp | Finish


@dataclass(slots=True)
class _Assignment:
    unit: str
    began_at: float


class Scheduler:
    """The state of one run; after GiveUp or Finish every event is ignored."""

    def __init__(
        self,
        sizes_bytes: Mapping[str, int],
        limits: Limits,
        now: float,
        after: Mapping[str, Collection[str]] | None = None,
        follows: Mapping[str, str] | None = None,
    ) -> None:
        """Line up the units, the largest first, so that the last to end are small.

        Those that ``after`` names wait until the others that it gives for them are done; see ``Chains`` for those
        that ``follows`` names.
        """
        self._chains = Chains(follows or {}, sizes_bytes, frozenset(after or ()))
        self._waiting = {unit: set(others) for unit, others in (after or {}).items() if others}
        # Equal sizes keep their order, so that a run can be repeated.
        ready = (unit for unit in sizes_bytes if unit not in self._waiting)
        self._todo = deque(sorted(ready, key=lambda unit: -self._chains.weigh(unit, sizes_bytes[unit])))
        self._sizes_bytes = sizes_bytes
        self._limits = limits
        self._left = len(sizes_bytes)
        self._attempts = dict.fromkeys(sizes_bytes, 0)
        self._resting: list[tuple[float, str]] = []
        self._free: list[int] = []
        self._busy: dict[int, _Assignment] = {}
        self._paces = Paces()
        self._silences = Silences(limits.stall_seconds)
        self._gone: set[int] = set()
        self._empty_since = now
        self._told_at = now
        self._over = False

    def idle(self, worker: int, now: float) -> tuple[Action, ...]:
        """Tell that a worker has started and has nothing to do."""
        self._listen(now)
        if not (worker in self._gone or worker in self._busy or worker in self._free):
            self._free.append(worker)
        return self._settle(now)

    def progress(self, worker: int, now: float) -> tuple[Action, ...]:
        """Tell that a worker is moving bytes."""
        self._listen(now)
        if worker in self._busy:
            self._silences.hear(worker, now)
        return ()

    def done(self, worker: int, now: float, *, moved: bool = True) -> tuple[Action, ...]:
        """Tell that a worker finished its unit; one of which nothing was moved says nothing of its pace."""
        assignment = self._release(worker, now)
        if assignment is None:
            return ()
        if moved:
            self._paces.count(worker, self._sizes_bytes[assignment.unit], now - assignment.began_at)
        self._left -= 1
        self._let_go_behind(assignment.unit)
        self._free.append(worker)
        return self._settle(now)

    def _let_go_behind(self, done: str) -> None:
        """Let go what waited for this unit last, before all others: what it reads is in memory still."""
        for unit, others in list(self._waiting.items()):
            others.discard(done)
            if not others:
                del self._waiting[unit]
                self._todo.appendleft(unit)

    def failed(self, worker: int, failure: Failure, now: float) -> tuple[Action, ...]:
        """Tell that a worker could not do its unit, and waits for another one."""
        assignment = self._release(worker, now)
        if self._over or assignment is None:
            return ()
        self._free.append(worker)
        unit = assignment.unit
        attempts = self._attempts[unit]
        if failure.final:
            return self._give_up(failure.error)
        if attempts >= self._limits.attempts:
            return self._give_up(
                ConversionError(f"{unit}: failed {attempts} times, the last time with: {failure.error}")
            )
        self._resting.append((now + self._limits.rest_seconds * attempts, unit))
        return self._settle(now)

    def lost(self, worker: int, reason: str, now: float) -> tuple[Action, ...]:
        """Tell that a worker is gone, or that it never came up."""
        self._listen(now)
        if self._over or worker in self._gone:
            return ()
        self._gone.add(worker)
        self._silences.forget(worker)
        assignment = self._busy.pop(worker, None)
        if worker in self._free:
            self._free.remove(worker)
        if not self._has_workers():
            self._empty_since = now
        if len(self._gone) > self._limits.deaths:
            return self._give_up(
                ConversionError(f"{len(self._gone)} workers were lost, the last one because: {reason}")
            )
        unit = assignment.unit if assignment is not None else None
        if unit is not None:
            attempts = self._attempts[unit]
            if attempts >= self._limits.attempts:
                return self._give_up(
                    ConversionError(f"{unit}: begun {attempts} times, and the last worker was lost: {reason}")
                )
            self._todo.appendleft(unit)
        return (Replace(worker, unit, reason), *self._settle(now))

    def tick(self, now: float) -> tuple[Action, ...]:
        """Tell that time has passed; call it about once a second, when all that was said is told."""
        self._listen(now)
        actions: list[Action] = []
        if self._has_workers():
            self._empty_since = now
        elif not self._over and now - self._empty_since > self._limits.empty_seconds:
            return self._give_up(ConversionError(f"no worker came up in {self._limits.empty_seconds:.0f} s"))
        stalled, silence = self._silences.find_stalled(len(self._free), now)
        for worker in stalled:
            actions += self.lost(worker, f"nothing heard of it for {silence:.0f} s", now)
        return (*actions, *self._settle(now))

    def _listen(self, now: float) -> None:
        """Excuse the time for which the executor was held up, if it was: it told of nothing then."""
        late = now - self._told_at - self._limits.turn_seconds
        self._told_at = now
        if late > 0:
            self._silences.excuse(late, now)
            self._empty_since = min(now, self._empty_since + late)

    def _release(self, worker: int, now: float) -> _Assignment | None:
        """Take from a worker the unit that it says has ended."""
        self._listen(now)
        assignment = self._busy.pop(worker, None)
        if assignment is not None:
            self._silences.hear(worker, now)
            self._silences.forget(worker)
        return assignment

    def _settle(self, now: float) -> tuple[Action, ...]:
        """Finish if all is done, else give units to free workers."""
        if self._over:
            return ()
        if self._left == 0:
            self._over = True
            return (Finish(),)
        rested = [unit for ready_at, unit in self._resting if ready_at <= now]
        self._resting = [(ready_at, unit) for ready_at, unit in self._resting if ready_at > now]
        self._todo.extendleft(reversed(rested))
        actions = []
        for worker in sorted(self._free, key=self._paces.of):
            # Who is slower than one that waits has no reason not to.
            if not self._todo or self._is_better_left(worker, now):
                break
            unit = self._chains.choose(worker, self._todo, (*self._free, *self._busy))
            if unit is None:
                continue
            self._todo.remove(unit)
            self._free.remove(worker)
            self._attempts[unit] += 1
            self._busy[worker] = _Assignment(unit, now)
            self._silences.hear(worker, now)
            actions.append(Assign(worker, unit, self._attempts[unit]))
        return tuple(actions)

    def _is_better_left(self, worker: int, now: float) -> bool:
        """Whether the busy workers would end all that is left before this one ended the next unit.

        It goes by their mean paces and takes all units to be as large as the next one. A worker that
        has moved nothing yet neither waits nor is waited for.
        """
        size_bytes = self._sizes_bytes[self._todo[0]]
        end = now + size_bytes * self._paces.of(worker)
        units = 0
        for other, assignment in self._busy.items():
            held_bytes = self._sizes_bytes[assignment.unit]
            ready_at, pace = self._paces.expect(other, held_bytes, assignment.began_at, now)
            if pace and ready_at < end:
                # What they would end at the very same moment is better begun now.
                units += math.ceil(min((end - ready_at) / (size_bytes * pace), 1 + len(self._todo))) - 1
        return units >= len(self._todo)

    def _give_up(self, error: DistconvError) -> tuple[Action, ...]:
        self._over = True
        return (GiveUp(error),)

    def _has_workers(self) -> bool:
        return bool(self._free or self._busy)
