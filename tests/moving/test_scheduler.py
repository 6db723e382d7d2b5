"""The scheduler: every unit exactly once, or a reason why not."""

import random
from collections import Counter
from dataclasses import dataclass, field
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distconv.errors import ConversionError, InputError
from distconv.moving.executor import make_limits
from distconv.moving.scheduler import (
    Action,
    Assign,
    Failure,
    Finish,
    GiveUp,
    Limits,
    Replace,
    Scheduler,
)

UNITS = {"small": 1, "large": 3, "middle": 2}
EIO = Failure(ConversionError("input/output error"), final=False)
BAD_INPUT = Failure(InputError("not a checkpoint"), final=True)


def test_units_go_out_largest_first() -> None:
    scheduler = Scheduler(UNITS, Limits(), 0.0)
    assert scheduler.idle(1, 0.0) == (Assign(1, "large", 1),)
    assert scheduler.idle(2, 0.0) == (Assign(2, "middle", 1),)
    assert scheduler.done(1, 1.0) == (Assign(1, "small", 1),)
    assert scheduler.done(2, 1.0) == ()
    assert scheduler.done(1, 2.0) == (Finish(),)


def test_units_of_one_size_go_out_as_they_were_given_whatever_their_names() -> None:
    scheduler = Scheduler({"z": 1, "a": 1, "b": 3, "y": 2, "c": 2}, Limits(), 0.0)
    assert [action for worker in range(5) for action in scheduler.idle(worker, 0.0)] == [
        Assign(worker, unit, 1) for worker, unit in enumerate("bycza")
    ]


def test_a_unit_that_waits_for_others_comes_next_once_they_are_done() -> None:
    sizes = {"a": 5, "b": 5, "c": 1, "d": 4, "sum": 9}
    scheduler = Scheduler(sizes, Limits(), 0.0, {"sum": ("a", "b")})
    assert scheduler.idle(1, 0.0) + scheduler.idle(2, 0.0) == (Assign(1, "a", 1), Assign(2, "b", 1))
    assert scheduler.done(1, 1.0) == (Assign(1, "d", 1),)
    assert scheduler.done(2, 1.0) == (Assign(2, "sum", 1),)
    assert scheduler.done(1, 2.0) == (Assign(1, "c", 1),)
    assert scheduler.done(1, 2.2) == ()
    assert scheduler.done(2, 9.0) == (Finish(),)


def chained(*files: str) -> tuple[dict[str, int], Scheduler]:
    """Give units of files' parts and their digests, and what schedules them; names are of a letter and a number."""
    parts = {file: [f"{file}{number}" for number in range(4)] for file in files}
    sizes = {unit: 2 for units in parts.values() for unit in units} | {f"sum {file}": 8 for file in files}
    follows = {after: unit for units in parts.values() for unit, after in pairwise(units)}
    follows |= {f"sum {file}": units[-1] for file, units in parts.items()}
    after = {f"sum {file}": units for file, units in parts.items()}
    return sizes, Scheduler(sizes | {"small": 1}, Limits(attempts=9), 0.0, after, follows)


def test_who_began_a_chain_does_all_of_it_and_its_end_and_others_begin_elsewhere() -> None:
    _sizes, scheduler = chained("a", "b")
    assert scheduler.idle(1, 0.0) + scheduler.idle(2, 0.0) == (Assign(1, "a0", 1), Assign(2, "b0", 1))
    assert scheduler.done(2, 1.0) + scheduler.done(1, 1.0) == (Assign(2, "b1", 1), Assign(1, "a1", 1))
    assert scheduler.idle(3, 1.0) == (Assign(3, "small", 1),)
    # Two chains are too many for three workers to help.
    assert scheduler.done(3, 1.5) == ()
    assert scheduler.done(1, 1.5) == (Assign(1, "a2", 1),)
    # Of one it does the last that its worker has not come to; nobody but that makes the digests.
    assert scheduler.done(1, 2.0) == (Assign(1, "a3", 1), Assign(3, "b3", 1))
    assert scheduler.done(2, 2.0) == (Assign(2, "b2", 1),)
    assert scheduler.done(1, 2.5) == (Assign(1, "sum a", 1),)
    assert scheduler.done(2, 3.0) == ()
    assert scheduler.done(3, 3.5) == (Assign(2, "sum b", 1),)
    assert scheduler.done(2, 6.0) + scheduler.done(1, 6.0) == (Finish(),)


def test_a_chain_whose_worker_is_lost_is_anybody_s() -> None:
    _sizes, scheduler = chained("a")
    assert scheduler.idle(1, 0.0) == (Assign(1, "a0", 1),)
    assert scheduler.done(1, 1.0) == (Assign(1, "a1", 1),)
    assert scheduler.lost(1, "killed", 2.0) == (Replace(1, "a1", "killed"),)
    assert scheduler.idle(2, 3.0) == (Assign(2, "a1", 2),)
    for number in (2, 3):
        assert scheduler.done(2, float(number + 2)) == (Assign(2, f"a{number}", 1),)


@given(files=st.integers(1, 4), workers=st.integers(1, 9), seed=st.randoms(use_true_random=False))
def test_chains_end_whoever_comes_and_goes(files: int, workers: int, seed: random.Random) -> None:
    sizes, scheduler = chained(*"abcd"[:files])
    busy: dict[int, str] = {}
    done: Counter[str] = Counter()
    number, now = 0, 0.0

    def carry_out(actions: tuple[Action, ...]) -> bool:
        busy.update({action.worker: action.unit for action in actions if isinstance(action, Assign)})
        return any(isinstance(action, Finish) for action in actions)

    for number in range(1, workers + 1):
        carry_out(scheduler.idle(number, now))
    for now in range(1, 1000):
        worker = seed.choice(sorted(busy))
        if number < workers + 3 and seed.random() < 0.1:
            del busy[worker]
            number += 1
            carry_out(scheduler.lost(worker, "killed", now))
            finished = carry_out(scheduler.idle(number, now))
        else:
            done[busy.pop(worker)] += 1
            finished = carry_out(scheduler.done(worker, now))
        if finished:
            break
    assert done == dict.fromkeys([*sizes, "small"], 1)


def test_who_does_what_others_wait_for_may_fail_and_be_lost_first() -> None:
    scheduler = Scheduler({"a": 1, "sum": 1}, Limits(rest_seconds=0), 0.0, {"sum": ("a",)})
    scheduler.idle(1, 0.0)
    assert scheduler.failed(1, EIO, 1.0) == (Assign(1, "a", 2),)
    assert scheduler.lost(1, "killed", 2.0) == (Replace(1, "a", "killed"),)
    assert scheduler.idle(2, 3.0) == (Assign(2, "a", 3),)
    assert scheduler.done(2, 4.0) == (Assign(2, "sum", 1),)
    assert scheduler.done(2, 5.0) == (Finish(),)


def test_no_units_are_finished_at_the_first_tick() -> None:
    assert Scheduler({}, Limits(), 0.0).tick(0.0) == (Finish(),)


def test_the_unit_of_a_lost_worker_goes_to_the_front() -> None:
    scheduler = Scheduler(UNITS, Limits(), 0.0)
    scheduler.idle(1, 0.0)
    assert scheduler.lost(1, "killed", 1.0) == (Replace(1, "large", "killed"),)
    assert scheduler.idle(2, 1.0) == (Assign(2, "large", 2),)


def test_the_unit_of_a_lost_worker_goes_to_one_that_is_free() -> None:
    scheduler = Scheduler({"only": 1}, Limits(), 0.0)
    scheduler.idle(1, 0.0)
    scheduler.idle(2, 0.0)
    assert scheduler.lost(1, "killed", 1.0) == (Replace(1, "only", "killed"), Assign(2, "only", 2))


def test_a_failed_unit_rests_before_it_starts_again() -> None:
    scheduler = Scheduler({"only": 1}, Limits(rest_seconds=5), 0.0)
    scheduler.idle(1, 0.0)
    assert scheduler.failed(1, EIO, 1.0) == ()
    assert scheduler.tick(5.9) == ()
    assert scheduler.tick(6.0) == (Assign(1, "only", 2),)


def test_a_unit_that_fails_three_times_ends_the_run() -> None:
    scheduler = Scheduler({"only": 1}, Limits(rest_seconds=0), 0.0)
    scheduler.idle(1, 0.0)
    assert scheduler.failed(1, EIO, 1.0) == (Assign(1, "only", 2),)
    assert scheduler.failed(1, EIO, 1.0) == (Assign(1, "only", 3),)
    (given_up,) = scheduler.failed(1, EIO, 1.0)
    assert isinstance(given_up, GiveUp)
    assert str(given_up.error) == "only: failed 3 times, the last time with: input/output error"


def test_a_unit_that_loses_three_workers_ends_the_run() -> None:
    scheduler = Scheduler({"only": 1}, Limits(), 0.0)
    for worker in (1, 2):
        scheduler.idle(worker, 0.0)
        scheduler.lost(worker, "killed", 0.0)
    scheduler.idle(3, 0.0)
    (given_up,) = scheduler.lost(3, "killed", 0.0)
    assert isinstance(given_up, GiveUp)
    assert str(given_up.error) == "only: begun 3 times, and the last worker was lost: killed"


def test_a_final_failure_ends_the_run_at_once_with_its_own_error() -> None:
    scheduler = Scheduler(UNITS, Limits(), 0.0)
    scheduler.idle(1, 0.0)
    assert scheduler.failed(1, BAD_INPUT, 1.0) == (GiveUp(BAD_INPUT.error),)
    assert scheduler.idle(2, 1.0) == ()


def test_a_worker_that_says_nothing_is_taken_for_dead() -> None:
    scheduler = Scheduler({"only": 1}, Limits(stall_seconds=10), 0.0)
    scheduler.idle(1, 0.0)
    scheduler.progress(1, 5.0)
    assert scheduler.tick(15.0) == ()
    assert scheduler.tick(15.1) == (Replace(1, "only", "nothing heard of it for 10 s"),)


@pytest.mark.parametrize("idle", [0, 1, 2, 3])
def test_silence_of_less_than_a_second_can_be_too_long_whoever_has_nothing_to_do(idle: int) -> None:
    scheduler = Scheduler({"only": 1}, Limits(stall_seconds=0.25), 0.0)
    for worker in range(1 + idle):
        scheduler.idle(worker, 0.0)
    assert scheduler.tick(0.25) == ()
    assert scheduler.tick(0.375)[0] == Replace(0, "only", "nothing heard of it for 0 s")


def with_busy(workers: int, **limits: float) -> Scheduler:
    """Give a scheduler of so many workers, all of which began at 0; 10 s of silence are too long."""
    units = dict.fromkeys((f"unit{number}" for number in range(workers)), 1)
    scheduler = Scheduler(units, Limits(deaths=999, stall_seconds=10, **limits), 0.0)
    for worker in range(workers):
        scheduler.idle(worker, 0.0)
    return scheduler


def replaced(actions: tuple[Action, ...]) -> list[int]:
    """Give the workers that are to be replaced."""
    return [action.worker for action in actions if isinstance(action, Replace)]


@pytest.mark.parametrize("workers", [2, 3, 4, 191])
def test_when_all_are_as_silent_it_is_the_storage_and_nobody_is_taken_for_dead(workers: int) -> None:
    scheduler = with_busy(workers)
    for second in range(59):
        assert scheduler.tick(second + 1.0) == ()
    # The first to go on does not make the others dead.
    scheduler.progress(0, 59.0)
    assert scheduler.tick(59.5) == ()
    for worker in range(1, workers):
        scheduler.progress(worker, 59.9)
    assert scheduler.tick(60.0) == ()


@pytest.mark.parametrize("workers", [2, 3, 4, 191])
def test_when_all_are_silent_without_end_they_are_taken_for_dead_at_last(workers: int) -> None:
    scheduler = with_busy(workers)
    assert scheduler.tick(60.0) == ()
    assert replaced(scheduler.tick(60.1)) == list(range(workers))


@pytest.mark.parametrize(
    ("workers", "silent", "dead"),
    [(2, 1, True), (3, 1, True), (3, 2, True), (4, 2, True), (4, 3, False), (5, 3, True), (5, 4, False),
     (6, 3, True), (6, 4, False), (191, 96, True), (191, 97, False)],
)  # fmt: skip
def test_who_is_silent_while_half_of_the_others_speak_is_taken_for_dead(
    workers: int, silent: int, dead: bool
) -> None:
    scheduler = with_busy(workers)
    for second in range(1, 11):
        for worker in range(silent, workers):
            scheduler.progress(worker, float(second))
        assert scheduler.tick(float(second)) == ()
    assert replaced(scheduler.tick(10.1)) == (list(range(silent)) if dead else [])


def test_the_last_workers_are_not_excused_by_each_other_when_many_have_nothing_to_do() -> None:
    scheduler = with_busy(6)
    for worker in range(2, 6):
        scheduler.done(worker, 1.0)
    assert scheduler.tick(10.0) == ()
    assert scheduler.tick(10.1) == (
        Replace(0, "unit0", "nothing heard of it for 10 s"),
        Assign(2, "unit0", 2),
        Replace(1, "unit1", "nothing heard of it for 10 s"),
        Assign(3, "unit1", 2),
    )


def test_a_silence_of_twice_the_longest_that_ended_is_borne() -> None:
    """As where a flush takes long on storage that many share, and not all come to it at once."""
    scheduler = with_busy(3)
    for second in range(9, 19):
        for worker in (0, 1):
            scheduler.progress(worker, float(second))
        assert scheduler.tick(float(second)) == ()
    assert replaced(scheduler.tick(18.1)) == [2]


@pytest.mark.parametrize("end", ["done", "retry"])
def test_a_silence_that_ends_with_its_unit_is_one_that_ended(end: str) -> None:
    scheduler = with_busy(3, rest_seconds=999)
    for second in range(1, 19):
        scheduler.progress(1, float(second))
        if second == 9:
            assert (scheduler.done(0, 9.0) if end == "done" else scheduler.failed(0, EIO, 9.0)) == ()
        assert scheduler.tick(float(second)) == ()
    # Twice the nine seconds that are known to be common.
    assert replaced(scheduler.tick(18.1)) == [2]


def test_the_silence_of_who_is_gone_excuses_nobody() -> None:
    scheduler = with_busy(4)
    for worker in (0, 1):
        scheduler.lost(worker, "killed", 0.0)
    for second in range(1, 11):
        scheduler.progress(3, float(second))
        assert scheduler.tick(float(second)) == ()
    assert replaced(scheduler.tick(10.1)) == [2]


def test_who_has_nothing_to_do_may_be_silent_whatever_it_said_late() -> None:
    scheduler = with_busy(2)
    assert scheduler.done(0, 1.0) == ()
    scheduler.progress(0, 1.0)
    for second in range(2, 30):
        scheduler.progress(1, float(second))
        assert scheduler.tick(float(second)) == ()


def test_what_the_executor_did_not_hear_is_nobodys_silence() -> None:
    scheduler = with_busy(2, turn_seconds=1)
    assert scheduler.tick(1.0) == ()
    # Held up for a long time; a message of one worker is heard at once, the other has none.
    scheduler.progress(0, 700.0)
    assert scheduler.tick(700.0) == ()
    for second in range(701, 709):
        scheduler.progress(0, float(second))
        assert scheduler.tick(float(second)) == ()
    # Two seconds up to then and eight after it.
    assert replaced(scheduler.tick(708.1)) == [1]


def test_a_run_whose_executor_was_held_up_does_not_give_up_for_want_of_workers() -> None:
    scheduler = Scheduler(UNITS, Limits(empty_seconds=60, turn_seconds=1), 0.0)
    for second in range(1, 60):
        assert scheduler.tick(float(second)) == ()
    assert scheduler.tick(700.0) == ()
    assert scheduler.tick(701.0) != ()


def test_each_turn_that_takes_a_little_too_long_is_excused_for_what_it_takes_longer() -> None:
    scheduler = with_busy(1, turn_seconds=1)
    # Half a second of each is nobody's silence: ten turns are as good as ten seconds.
    for turn in range(1, 11):
        assert scheduler.tick(1.5 * turn) == ()
    assert replaced(scheduler.tick(15.0 + 0.5)) == [0]


@pytest.mark.parametrize("event", ["idle", "progress", "done", "retry", "lost"])
def test_whatever_is_heard_shows_that_the_executor_listens(event: str) -> None:
    scheduler = Scheduler(
        dict.fromkeys((f"unit{number}" for number in range(99)), 1),
        Limits(attempts=9, deaths=99, stall_seconds=10, turn_seconds=1, rest_seconds=0),
        0.0,
    )
    scheduler.idle(0, 0.0)
    executor = Executor(Limits(attempts=9, deaths=99))
    for second in range(1, 10, 2):
        worker = second + 1 if event == "lost" else 1
        executor.carry_out(scheduler.idle(1, second - 1.0))
        scheduler.progress(1, second - 1.0)
        happen(scheduler, executor, event, worker, float(second))
        assert replaced(scheduler.tick(second + 1.0)) == []
    # No turn was longer than usual, so all of it is the silence of the first.
    assert replaced(scheduler.tick(10.5)) == [0]


def test_turns_of_the_usual_length_are_silence_to_the_last_second() -> None:
    scheduler = with_busy(1, turn_seconds=1)
    for second in range(1, 11):
        assert scheduler.tick(float(second)) == ()
    assert replaced(scheduler.tick(10.5)) == [0]


def test_a_late_result_of_a_worker_taken_for_dead_is_ignored() -> None:
    scheduler = Scheduler({"only": 1}, Limits(stall_seconds=10), 0.0)
    scheduler.idle(1, 0.0)
    scheduler.tick(11.0)
    assert scheduler.done(1, 12.0) == ()
    assert scheduler.failed(1, BAD_INPUT, 12.0) == ()
    assert scheduler.idle(1, 12.0) == ()
    assert scheduler.idle(2, 12.0) == (Assign(2, "only", 2),)
    assert scheduler.done(2, 13.0) == (Finish(),)


def test_a_worker_that_is_lost_twice_is_replaced_once_and_counts_once() -> None:
    scheduler = Scheduler(UNITS, Limits(deaths=2), 0.0)
    scheduler.idle(1, 0.0)
    assert replaced(scheduler.lost(1, "killed", 0.0)) == [1]
    assert scheduler.lost(1, "killed", 0.0) == ()
    assert replaced(scheduler.lost(2, "killed", 0.0)) == [2]


@pytest.mark.parametrize("worker", [1, 2])
def test_who_says_twice_that_it_has_nothing_to_do_gets_one_unit(worker: int) -> None:
    scheduler = Scheduler(UNITS, Limits(rest_seconds=5), 0.0)
    assert scheduler.idle(1, 0.0) == (Assign(1, "large", 1),)
    assert scheduler.idle(2, 0.0) == (Assign(2, "middle", 1),)
    assert scheduler.idle(3, 0.0) == (Assign(3, "small", 1),)
    for each in (1, 2):
        scheduler.failed(each, EIO, 1.0)
        assert scheduler.idle(worker, 2.0) == ()
    assert [(a.worker, a.unit) for a in scheduler.tick(6.0) if isinstance(a, Assign)] == [
        (1, "large"), (2, "middle"),
    ]  # fmt: skip
    # While it is busy it is not free as well.
    assert scheduler.idle(worker, 6.0) == ()
    assert scheduler.failed(3, EIO, 6.0) == ()
    assert scheduler.tick(11.0) == (Assign(3, "small", 2),)


def test_units_that_have_rested_start_again_in_the_order_in_which_they_failed() -> None:
    scheduler = Scheduler({"one": 1, "other": 1, "third": 1}, Limits(rest_seconds=5), 0.0)
    for worker in (1, 2):
        scheduler.idle(worker, 0.0)
    scheduler.failed(2, EIO, 1.0)
    scheduler.failed(1, EIO, 1.0)
    actions = scheduler.tick(6.0)
    assert [action.unit for action in actions if isinstance(action, Assign)] == ["other"]


def test_a_unit_rests_longer_each_time() -> None:
    scheduler = Scheduler({"only": 1}, Limits(attempts=4), 0.0)
    scheduler.idle(1, 0.0)
    now = 0.0
    rests = []
    for _ in range(3):
        scheduler.failed(1, EIO, now)
        failed_at = now
        while not scheduler.tick(now):
            now += 0.25
        rests.append(now - failed_at)
    assert rests == [1, 2, 3]


@pytest.mark.parametrize("end", [BAD_INPUT, None], ids=["given up", "finished"])
@pytest.mark.parametrize("event", ["idle", "progress", "done", "retry", "final", "lost", "tick"])
def test_nothing_is_asked_for_after_the_end(event: str, end: Failure | None) -> None:
    limits = Limits(stall_seconds=10, empty_seconds=10, rest_seconds=0)
    scheduler = Scheduler({"one": 1} if end is None else {"one": 1, "other": 1, "third": 1}, limits, 0.0)
    scheduler.idle(1, 0.0)
    scheduler.idle(2, 0.0)
    if end is None:
        assert scheduler.done(1, 1.0) == (Finish(),)
    else:
        assert scheduler.failed(1, end, 1.0) == (GiveUp(end.error),)
    executor = Executor(limits, busy={2: "other"}, end=Finish())
    happen(scheduler, executor, event, 2, 2.0)
    scheduler.lost(1, "killed", 2.0)
    happen(scheduler, executor, event, 2, 99.0)


def test_workers_that_never_come_up_end_the_run() -> None:
    scheduler = Scheduler(UNITS, Limits(deaths=1), 0.0)
    assert scheduler.lost(1, "no such image", 0.0) == (Replace(1, None, "no such image"),)
    (given_up,) = scheduler.lost(2, "no such image", 0.0)
    assert isinstance(given_up, GiveUp)
    assert str(given_up.error) == "2 workers were lost, the last one because: no such image"


@pytest.mark.parametrize(("workers", "borne"), [(1, 6), (3, 10), (191, 386)])
def test_a_cluster_may_lose_each_worker_twice_and_four_more(workers: int, borne: int) -> None:
    scheduler = Scheduler(UNITS, make_limits(workers), 0.0)
    for worker in range(borne):
        assert isinstance(scheduler.lost(worker, "killed", 0.0)[0], Replace)
    assert isinstance(scheduler.lost(borne, "killed", 0.0)[0], GiveUp)


def test_a_run_without_workers_gives_up_after_a_while() -> None:
    scheduler = Scheduler(UNITS, Limits(empty_seconds=60), 0.0)
    scheduler.idle(1, 50.0)
    assert scheduler.tick(100.0) == ()
    scheduler.lost(1, "killed", 101.0)
    assert scheduler.tick(161.0) == ()
    (given_up,) = scheduler.tick(161.1)
    assert isinstance(given_up, GiveUp)
    assert str(given_up.error) == "no worker came up in 60 s"
    assert scheduler.tick(999.0) == ()


def test_a_worker_that_waits_for_a_unit_that_rests_is_a_worker() -> None:
    scheduler = Scheduler({"only": 1}, Limits(empty_seconds=60, rest_seconds=99), 0.0)
    scheduler.idle(1, 0.0)
    scheduler.failed(1, EIO, 1.0)
    assert scheduler.tick(99.0) == ()
    assert scheduler.tick(100.0) == (Assign(1, "only", 2),)


def with_one_ahead(units: str, done: int, *, kept: bool = False) -> Scheduler:
    """Give a scheduler of equal units, two workers at work, the first of which ended one a second."""
    scheduler = Scheduler(dict.fromkeys(units, 10), Limits(), 0.0)
    scheduler.idle(1, 0.0)
    scheduler.idle(2, 0.0)
    for number in range(1, done + 1):
        scheduler.done(1, float(number), moved=not kept)
    return scheduler


def test_a_slow_worker_waits_if_the_others_are_through_before_it_would_be() -> None:
    scheduler = with_one_ahead("abcdef", 3)
    assert scheduler.done(2, 3.5) == ()  # would need until 7, the other ends both units at 5
    assert scheduler.done(1, 4.0) == (Assign(1, "f", 1),)
    assert scheduler.done(1, 5.0) == (Finish(),)


@pytest.mark.parametrize(("left", "waits"), [(4, True), (5, False)])
def test_what_all_the_faster_workers_get_done_is_taken_together(left: int, waits: bool) -> None:
    scheduler = Scheduler(dict.fromkeys(map(str, range(9 + left)), 10), Limits(), 0.0)
    for worker in (1, 2, 3):
        scheduler.idle(worker, 0.0)
    for second in (1.0, 2.0, 3.0):
        for worker in (1, 2):
            scheduler.done(worker, second)
    # It would need until 7; before that each of the others, busy until 4, ends two more.
    assert scheduler.done(3, 3.5) == (() if waits else (Assign(3, "9", 1),))


def test_who_will_be_busy_for_long_takes_nothing_off_what_others_get_done() -> None:
    sizes = {"A": 100, "B": 100, "C": 20} | dict.fromkeys("defghijk", 10)
    scheduler = Scheduler(sizes, Limits(), 0.0)
    scheduler.idle(3, 0.0)
    assert scheduler.done(3, 10.0) == (Assign(3, "B", 1),)  # expected to take until 20
    assert scheduler.idle(2, 10.0) == (Assign(2, "C", 1),)
    assert scheduler.idle(1, 10.0) == (Assign(1, "d", 1),)
    for number, unit in enumerate("efghij", 1):
        assert scheduler.done(1, 10 + number / 2) == (Assign(1, unit, 1),)
    assert scheduler.done(2, 13.0) == ()  # would need until 14.5, the first ends the last unit at 14
    assert scheduler.done(1, 13.5) == (Assign(1, "k", 1),)


def test_a_slow_worker_is_of_use_as_long_as_there_is_enough_to_do() -> None:
    scheduler = with_one_ahead("abcdefghi", 3)
    assert scheduler.done(2, 3.5) == (Assign(2, "f", 1),)


def test_a_worker_waits_no_longer_for_one_that_has_become_slow() -> None:
    scheduler = with_one_ahead("abcde", 2)
    assert scheduler.done(2, 2.5) == ()  # the other is expected at 3, and with the last unit at 4
    assert scheduler.tick(4.0) == ()
    assert scheduler.tick(5.0) == (Assign(2, "e", 1),)


def test_a_worker_that_would_end_the_last_unit_when_the_others_would_takes_it() -> None:
    scheduler = with_one_ahead("abcd", 1)
    assert scheduler.done(2, 1.0) == (Assign(2, "d", 1),)  # each ends one a second, and both are free at 2
    scheduler = with_one_ahead("abcde", 2)
    assert scheduler.done(2, 2.0) == (Assign(2, "e", 1),)  # until 4, as the other, which is busy until 3


def test_a_lost_worker_is_not_waited_for() -> None:
    scheduler = with_one_ahead("abcde", 2)
    scheduler.done(2, 2.5)
    assert scheduler.lost(1, "killed", 2.6) == (Replace(1, "d", "killed"), Assign(2, "d", 2))


def test_kept_units_say_nothing_of_a_worker_s_pace() -> None:
    scheduler = with_one_ahead("abcdef", 3, kept=True)
    assert scheduler.done(2, 3.5) == (Assign(2, "f", 1),)


def test_of_two_free_workers_the_faster_one_gets_the_unit() -> None:
    scheduler = Scheduler(dict.fromkeys("abc", 10), Limits(rest_seconds=1), 0.0)
    for worker in (1, 2, 3):
        scheduler.idle(worker, 0.0)
    scheduler.done(2, 5.0)
    scheduler.done(1, 6.0)
    scheduler.failed(3, EIO, 7.0)
    assert scheduler.tick(8.0) == (Assign(3, "c", 2),)
    scheduler.failed(3, EIO, 9.0)
    scheduler.lost(3, "killed", 9.0)
    assert scheduler.tick(11.0) == (Assign(2, "c", 3),)


@dataclass
class Executor:
    """Obeys the scheduler, and remembers what must never happen."""

    limits: Limits
    busy: dict[int, str] = field(default_factory=dict)
    replaced: set[int] = field(default_factory=set)
    begun: list[str] = field(default_factory=list)
    finished: list[str] = field(default_factory=list)
    end: Finish | GiveUp | None = None
    newest: int = 0

    def carry_out(self, actions: tuple[Action, ...]) -> None:
        """Do what is asked, and check that it may be asked."""
        for action in actions:
            assert self.end is None
            match action:
                case Assign(worker, unit, attempt):
                    assert worker not in self.busy
                    assert worker not in self.replaced
                    assert unit not in self.busy.values()
                    assert unit not in self.finished
                    self.begun.append(unit)
                    assert attempt == self.begun.count(unit) <= self.limits.attempts
                    self.busy[worker] = unit
                case Replace(worker, unit):
                    assert self.busy.pop(worker, None) == unit
                    self.replaced.add(worker)
                    assert len(self.replaced) <= self.limits.deaths
                    self.newest += 1
                case Finish() | GiveUp():
                    self.end = action


EVENTS = st.lists(
    st.tuples(
        st.sampled_from(["idle", "progress", "done", "retry", "final", "lost", "tick"]),
        st.integers(min_value=1, max_value=12),
        st.floats(min_value=0, max_value=20),
    ),
    max_size=120,
)


@given(
    sizes=st.lists(st.integers(0, 5), max_size=6),
    events=EVENTS,
    attempts=st.integers(1, 4),
    deaths=st.integers(0, 6),
)
def test_whatever_happens_every_unit_is_done_once_or_the_run_gives_up(
    sizes: list[int], events: list[tuple[str, int, float]], attempts: int, deaths: int
) -> None:
    """Events may come in any order, from workers that never were, are idle, or were replaced."""
    units = {f"unit{number}": size for number, size in enumerate(sizes)}
    limits = Limits(attempts, deaths, stall_seconds=30, turn_seconds=5, empty_seconds=300, rest_seconds=3)
    executor = Executor(limits, newest=13)
    now = 0.0
    scheduler = Scheduler(units, limits, now)
    for event, worker, seconds in events:
        now += seconds
        happen(scheduler, executor, event, worker, now)
    # From here on nothing goes wrong: the run must come to an end by itself.
    for _ in range(200):
        now += 1
        happen(scheduler, executor, "idle", executor.newest, now)
        for worker in tuple(executor.busy):
            happen(scheduler, executor, "done", worker, now)
        happen(scheduler, executor, "tick", 0, now)
    assert executor.end is not None
    assert len(set(executor.finished)) == len(executor.finished)
    if isinstance(executor.end, Finish):
        assert sorted(executor.finished) == sorted(units)
    else:
        assert str(executor.end.error)


def happen(scheduler: Scheduler, executor: Executor, event: str, worker: int, now: float) -> None:
    """Tell one event to the scheduler; the executor knows before it what it means for the units."""
    if event in {"done", "retry", "final"}:
        unit = executor.busy.pop(worker, None)
        if unit is not None and event == "done" and executor.end is None:
            executor.finished.append(unit)
    match event:
        case "idle":
            actions = scheduler.idle(worker, now)
        case "progress":
            actions = scheduler.progress(worker, now)
        case "done":
            actions = scheduler.done(worker, now)
        case "retry":
            actions = scheduler.failed(worker, EIO, now)
        case "final":
            actions = scheduler.failed(worker, BAD_INPUT, now)
        case "lost":
            actions = scheduler.lost(worker, "killed", now)
        case _:
            actions = scheduler.tick(now)
    executor.carry_out(actions)
