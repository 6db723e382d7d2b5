"""Comparisons by several lanes at once: how many, in which order their findings come, and how they end."""

import itertools
import os
import threading
from collections.abc import Callable

import pytest

from distconv.errors import InputError, Interrupted
from distconv.moving.progress import SilentProgress
from distconv.output.findings import Finding
from distconv.storage.local import LocalStorage
from distconv.verbs.side_by_side import Reading, ask_for, compare_side_by_side

Act = Callable[[Reading], None]


@pytest.fixture(autouse=True)
def _three_processors(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the process have three processors."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _process: {0, 1, 2})


def compare(*acts: Act) -> list[str]:
    """Do comparisons, each of which finds its own number; give what was found."""

    def ask(number: int, act: Act) -> Callable[[Reading], list[Finding]]:
        def look(reading: Reading) -> list[Finding]:
            act(reading)
            return [Finding(str(number))]

        return look

    asked = [(ask_for(f"file {number}", {}), ask(number, act)) for number, act in enumerate(acts)]
    return [finding.words for finding in compare_side_by_side(LocalStorage(), asked, SilentProgress())]


def test_as_many_are_done_at_once_as_there_are_processors() -> None:
    # With fewer lanes nobody would ever pass.
    barrier = threading.Barrier(3, timeout=60)

    def meet(_reading: Reading) -> None:
        barrier.wait()

    assert compare(*[meet] * 6) == list("012345")


def test_findings_come_in_the_order_in_which_they_were_asked_for() -> None:
    last = threading.Event()

    def wait(_reading: Reading) -> None:
        assert last.wait(60)

    assert compare(wait, wait, lambda _reading: last.set()) == ["0", "1", "2"]


def test_the_first_error_ends_all_others() -> None:
    others, ended = threading.Barrier(3, timeout=60), []

    def fail(_reading: Reading) -> None:
        others.wait()
        raise InputError("cannot be read")

    def go_on(reading: Reading) -> None:
        others.wait()
        try:
            for _ in itertools.count():
                reading.advance(0)
        except Interrupted:
            ended.append(reading)
            raise

    with pytest.raises(InputError, match="cannot be read"):
        compare(fail, go_on, go_on)
    assert len(ended) == 2
