"""What a log and a terminal show while bytes move."""

import io
import re
import time
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distconv.humanize import format_duration, format_size
from distconv.moving.progress import OutputProgress, Stopwatch
from distconv.moving.progress_bar import LINES, BarProgress
from distconv.moving.progress_lines import LineProgress
from tests.moving.fakes import RecordingProgress


class Clock:
    """A clock that is set by hand, in seconds."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def lines() -> list[str]:
    return []


@pytest.fixture
def progress(clock: Clock, lines: list[str]) -> LineProgress:
    return LineProgress(lines.append, interval_seconds=5, clock=clock)


def test_a_line_is_written_every_few_seconds_with_speed_and_time_left(
    progress: LineProgress, clock: Clock, lines: list[str]
) -> None:
    progress.begin(100_000_000_000, 64)
    for second in range(11):
        clock.now = 100.0 + second
        progress.advance(1_000_000_000)
    progress.unit_done("chunk")
    assert lines == [
        "  6.0%, 6.00 GB of 100.00 GB, 0 of 64 chunks, 1.20 GB/s, 1 min 18 s left",
        " 11.0%, 11.00 GB of 100.00 GB, 0 of 64 chunks, 1.10 GB/s, 1 min 21 s left",
    ]


def test_the_last_line_tells_where_it_ended_once(
    progress: LineProgress, clock: Clock, lines: list[str]
) -> None:
    progress.begin(2_000_000, 1)
    clock.now += 1
    progress.advance(2_000_000)
    progress.unit_done("chunk")
    progress.end()
    progress.end()
    assert lines == ["100.0%, 2.0 MB of 2.0 MB, 1 of 1 chunks, 2.0 MB/s"]


def test_bytes_of_a_failed_attempt_are_taken_back(
    progress: LineProgress, clock: Clock, lines: list[str]
) -> None:
    progress.begin(1000, 1)
    progress.advance(600)
    progress.advance(-600)
    clock.now += 1
    progress.end()
    assert lines == ["  0.0%, 0 B of 1.0 kB, 0 of 1 chunks, 0 B/s"]


def test_a_second_beginning_counts_from_nothing(
    progress: LineProgress, clock: Clock, lines: list[str]
) -> None:
    for _ in range(2):
        progress.begin(1000, 1)
        clock.now += 1
        progress.advance(1000)
        progress.unit_done("chunk")
        progress.end()
    assert lines == ["100.0%, 1.0 kB of 1.0 kB, 1 of 1 chunks, 1.0 kB/s"] * 2


def test_nothing_to_do_is_all_done(progress: LineProgress, lines: list[str]) -> None:
    progress.begin(0, 0)
    progress.end()
    assert lines == ["100.0%, 0 B of 0 B, 0 of 0 chunks, 0 B/s"]


@pytest.mark.parametrize(
    ("seconds", "moved_bytes", "told"),
    [(4.99, 10**9, False), (5.0, 10**9, True), (60.0, 63_999_999, False), (60.0, 64_000_000, True)],
)
def test_no_time_is_told_before_enough_moved_for_long_enough(
    progress: LineProgress, clock: Clock, lines: list[str], seconds: float, moved_bytes: int, told: bool
) -> None:
    progress.begin(100_000_000_000, 64)
    clock.now += 20  # of reading headers, or of importing what compares
    progress.advance(6)
    clock.now += seconds
    progress.advance(moved_bytes - 6)
    assert len(lines) == 1 + (seconds >= 5)
    progress.note("so far")
    progress.begin(100_000_000_000, 64)
    assert lines[0] == "  0.0%, 6 B of 100.00 GB, 0 of 64 chunks"
    assert any("left" in line and "/s" in line for line in lines) == told


def test_a_thousandth_of_a_small_model_is_enough(
    progress: LineProgress, clock: Clock, lines: list[str]
) -> None:
    for moved_bytes in (999, 1000):
        progress.begin(1_000_000, 1)
        progress.advance(moved_bytes)
        clock.now += 5
        progress.advance(0)
    assert lines == [
        "  0.1%, 999 B of 1.0 MB, 0 of 1 chunks",
        "  0.1%, 1.0 kB of 1.0 MB, 0 of 1 chunks, 200 B/s, 1 h 23 min left",
    ]


def test_what_passes_before_the_first_byte_does_not_slow_it_down(
    progress: LineProgress, clock: Clock, lines: list[str]
) -> None:
    progress.begin(10_000_000_000, 1)
    clock.now += 3600
    for _ in range(6):
        progress.advance(1_000_000_000)
        clock.now += 1
    progress.end()
    assert lines[-1] == " 60.0%, 6.00 GB of 10.00 GB, 0 of 1 chunks, 1.00 GB/s, 4 s left"


def test_more_taken_back_than_moved_is_nothing(
    progress: LineProgress, clock: Clock, lines: list[str]
) -> None:
    progress.begin(1000, 1)
    progress.advance(-600)
    clock.now += 6
    progress.advance(0)
    assert lines == ["  0.0%, 0 B of 1.0 kB, 0 of 1 chunks"]


class Terminal(io.StringIO):
    """A terminal as rich sees one."""

    def isatty(self) -> bool:
        return True


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "100")
    return Terminal()


def test_the_bar_ends_full_and_notes_stand_above_it(terminal: Terminal) -> None:
    progress = BarProgress(terminal)
    progress.note("before")
    progress.begin(2_000_000, 2)
    progress.advance(2_000_000)
    progress.unit_done("one")
    progress.note("[in] between")
    progress.unit_done("other")
    progress.end()
    progress.note("after")
    shown = terminal.getvalue()
    assert shown.startswith("before\n")
    assert "[in] between" in shown
    assert "2 of 2 chunks" in shown
    assert "100%" in shown
    assert "2.0/2.0 MB" in shown
    assert shown.endswith("after\n")


def draw(progress: BarProgress, terminal: Terminal) -> str:
    """Draw the bars now, and give that drawing alone: a thread draws them too, when it likes."""
    progress._bar.refresh()
    drawn = re.split(r"\x1b\[2K", terminal.getvalue())[-1]
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", drawn).replace("\r", "")


def test_what_a_terminal_echoes_behind_the_bars_begins_no_line_of_its_own(terminal: Terminal) -> None:
    progress = BarProgress(terminal)
    progress.begin(10_000_000_000, 2)
    progress.take("lane 0", "model-00001-of-00002.safetensors", 5_000_000_000)
    *_, last = lines = draw(progress, terminal).split("\n")
    progress.end()
    # The cursor stays behind it; one more than 100 would be the first of the next line.
    assert len(f"{last}^C^C") <= 100
    assert max(map(len, lines)) > 90


@pytest.mark.parametrize(("seconds", "told"), [(4.9, False), (5.1, True)])
def test_the_bar_tells_no_time_before_it_is_known(
    terminal: Terminal, clock: Clock, seconds: float, told: bool
) -> None:
    progress = BarProgress(terminal, clock=clock)
    progress.begin(10_000_000_000, 2)
    progress.advance(1_000_000)
    clock.now += seconds
    progress.advance(1_000_000_000)
    drawn = draw(progress, terminal)
    progress.end()
    assert ("-:--:--" in drawn) != told
    assert ("0:00:" in drawn) == told


@pytest.mark.parametrize(
    ("moved", "told"),
    [
        pytest.param([], None, id="nothing moved"),
        pytest.param([100], None, id="a first step, of which nobody knows how long it took"),
        pytest.param([100, 500_000], "100.0 kB/s", id="on its way"),
        pytest.param([400_000, 0, -400_000], None, id="all taken back"),
        pytest.param([0, 0, 1], None, id="less than a byte a second"),
        pytest.param([0, 1_000_000], "200.0 kB/s", id="all of it, as one worker tells it"),
        pytest.param([1_000_000], None, id="all of it in no time"),
        pytest.param([600_000, 400_000], "200.0 kB/s", id="all of it: the mean"),
    ],
)
def test_the_bar_tells_a_speed_that_it_knows(
    terminal: Terminal, clock: Clock, moved: list[int], told: str | None
) -> None:
    progress = BarProgress(terminal, clock=clock)
    progress.begin(1_000_000, 1)
    for step, size in enumerate(moved):
        clock.now += 5 * (step > 0)
        progress.advance(size)
    drawn = draw(progress, terminal)
    progress.end()
    found = re.search(r"\S+ \w+/s|\?", drawn)
    assert (found and found[0]) == told


@pytest.mark.parametrize(
    ("show", "value", "shown"),
    [
        (format_duration, 45.4, "45 s"),
        (format_duration, 59.6, "1 min 00 s"),
        (format_duration, 200, "3 min 20 s"),
        (format_duration, 7500, "2 h 05 min"),
        (format_size, 512, "512 B"),
        (format_size, 1500, "1.5 kB"),
        (format_size, 2e6, "2.0 MB"),
        (format_size, 137_953_296_384, "137.95 GB"),
        (format_size, 1.6e12, "1,600.00 GB"),
    ],
)
def test_sizes_and_durations_read_as_people_say_them(
    show: Callable[[float], str], value: float, shown: str
) -> None:
    assert show(value) == shown


def test_each_worker_has_a_line_while_there_are_few(
    terminal: Terminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    progress = BarProgress(terminal)
    progress.begin(100_000_000, 20)
    for number in range(LINES + 2):
        progress.take(f"lane {number}", f"model-{number + 1:05}-of-00020.safetensors", 5_000_000)
        progress.advance(2_500_000, f"lane {number}")
    progress.take("lane 0", "model-00011-of-00020.safetensors", 5_000_000)
    progress.advance(1_000_000, "lane 0")
    drawn = draw(progress, terminal)
    progress.end()
    assert "lane 0 model-00011-of-00020" in drawn
    assert "1.0/5.0 MB" in drawn
    assert f"lane {LINES - 1} model-{LINES:05}-of-00020" in drawn
    assert f"lane {LINES}" not in drawn
    assert "26.0/100.0 MB" in drawn
    assert all(len(line) <= 80 for line in drawn.splitlines())
    assert "…" not in drawn


def test_speed_and_time_left_are_those_of_the_last_30_seconds(clock: Clock, lines: list[str]) -> None:
    progress = LineProgress(lines.append, interval_seconds=1, clock=clock)
    progress.begin(1_000_000_000_000, 64)
    for second in range(1, 81):
        clock.now = 100.0 + second
        progress.advance(1_000_000_000 if second <= 40 else 4_000_000_000)
    # Nothing is told of speed in the first five seconds after the first byte.
    assert not any("/s" in line for line in lines[:5])
    speeds = [float(re.search(r"([\d.]+) GB/s", line)[1]) for line in lines[5:]]
    # The mean of the seconds that lie in the window, of which some are slow and some quick.
    assert speeds == [
        pytest.approx(sum(1 if second <= 40 else 4 for second in range(max(0, end - 30) + 1, end + 1))
                      / min(end, 30), abs=0.005)
        for end in range(6, 81)
    ]  # fmt: skip
    assert lines[-1].endswith(", 4.00 GB/s, 3 min 20 s left")


@pytest.mark.parametrize(
    ("show", "value", "shown"),
    [
        (format_duration, 59.4, "59 s"),
        (format_duration, 60, "1 min 00 s"),
        (format_duration, 3599, "59 min 59 s"),
        (format_duration, 3600, "1 h 00 min"),
        (format_size, 999, "999 B"),
        (format_size, 1000, "1.0 kB"),
        (format_size, 999_999, "1000.0 kB"),
        (format_size, 1_000_000, "1.0 MB"),
        (format_size, 999_999_999, "1000.0 MB"),
        (format_size, 1_000_000_000, "1.00 GB"),
    ],
)
def test_a_unit_begins_where_it_is_one(show: Callable[[float], str], value: float, shown: str) -> None:
    assert show(value) == shown


def test_a_stopwatch_passes_all_on_and_takes_the_time_of_the_first_byte_and_the_last_unit(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(time, "monotonic", clock)
    told = RecordingProgress()
    watch = Stopwatch(told)
    assert (watch.begun, watch.first, watch.ended) == (None, None, None)
    watch.begin(3, 2)
    for seconds in (101.0, 102.0):
        clock.now = seconds
        watch.take("lane 0", "unit", 1)
        watch.advance(1, "lane 0")
        watch.unit_done(f"unit {seconds}")
        watch.note(f"note {seconds}")
    watch.end()
    assert (watch.begun, watch.first, watch.ended) == (100.0, 101.0, 102.0)
    assert told.calls == ["begin", "end"]
    assert (told.total_bytes, told.moved_bytes) == (3, 2)
    assert told.units == ["unit 101.0", "unit 102.0"]
    assert told.notes == ["note 101.0", "note 102.0"]
    watch.begin(1, 1)
    assert watch.first is None


@given(
    written=st.integers(1, 10**12),
    read=st.integers(0, 10**12),
    steps=st.lists(st.integers(-(10**6), 10**12), max_size=20),
)
def test_bytes_that_are_written_and_read_again_are_counted_once(
    written: int, read: int, steps: list[int]
) -> None:
    told = RecordingProgress()
    progress = OutputProgress(told, written)
    progress.begin(written + read, 2)
    assert told.total_bytes == written
    for step in [*steps, written + read - sum(steps)]:
        progress.take("lane 0", "unit", step)
        progress.advance(step, "lane 0")
    assert told.moved_bytes == written
    assert all(
        abs(size - step * written / (written + read)) <= 1
        for (*_, size), step in zip(told.taken, steps, strict=False)
    )
