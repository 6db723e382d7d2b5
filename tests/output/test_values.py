"""Values that somebody may have changed are taken only where they are what a conversion writes there."""

import json
import os
import re
import socket
from dataclasses import asdict, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distconv.formats.written import Written
from distconv.layout.dtypes import DTYPES
from distconv.layout.units import Gap
from distconv.moving.digests import PartDigests
from distconv.output.contents import _list_runs
from distconv.output.holders import LIVING, Holder
from distconv.output.unfinished import make_unfinished, read_unfinished
from distconv.output.values import WrongValueError, check, check_digest, show, take
from distconv.storage.fencing import make_attempt

KINDS = {str: "text", int: "a whole number", bool: "true or false", list: "a list", dict: "an object"}
OF_EACH: dict[type, object] = {str: "a", int: 1, bool: True, list: [1], dict: {"a": 1}}


@pytest.mark.parametrize("kind", KINDS)
def test_a_value_is_taken_only_where_it_is_of_exactly_its_kind(kind: type) -> None:
    for other, value in {**OF_EACH, type(None): None, float: 1.0}.items():
        if other is kind:
            assert take({"key": value}, "key", kind, "there") == value
            continue
        with pytest.raises(WrongValueError) as raised:
            take({"key": value}, "key", kind, "there")
        assert str(raised.value) == f"key of there is {show(value)}, expected {KINDS[kind]}"


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (None, "None"), (True, "True"), (1.5, "1.5"), ("é", r"'\xe9'"), ({"a": 1}, "an object"), ([1, 2], "a list"),
        ("x" * 78, f"'{'x' * 78}'"), ("x" * 79, f"'{'x' * 79}…"), ("x" * 200, f"'{'x' * 79}…"),
    ],
)  # fmt: skip
def test_a_value_is_shown_briefly(value: object, shown: str) -> None:
    assert show(value) == shown


def test_what_does_not_hold_is_said() -> None:
    check(holds=True, otherwise="wrong")
    with pytest.raises(WrongValueError, match=r"^wrong$"):
        check(holds=False, otherwise="wrong")
    check_digest("0a", re.compile("[0-9a-f]{2}"), "file")
    with pytest.raises(WrongValueError, match=r"^'0A' of 'file' is no digest$"):
        check_digest("0A", re.compile("[0-9a-f]{2}"), "file")


def test_a_holder_is_known_by_what_it_wrote_of_itself_and_by_all_of_it() -> None:
    me = Holder.here()
    assert (me.host, me.pid) == (socket.gethostname(), os.getpid())
    assert Holder.here().token != me.token
    assert str(me) == f"process {me.pid} on {me.host}"
    assert Holder.parse(me.to_bytes(0)) == Holder.parse(me.to_bytes(999_999_999_999)) == me
    assert len(me.to_bytes(0)) == len(me.to_bytes(123_456))
    assert json.loads(me.to_bytes(7)) == {**asdict(me), "beat": "000000000007"}
    for name in asdict(me):
        rest = {key: value for key, value in asdict(me).items() if key != name}
        assert Holder.parse(json.dumps(rest).encode()) is None
    assert Holder.parse(replace(me, pid=(1 << 31) - 1).to_bytes(0)) is not None
    for wrong in (replace(me, pid=1 << 31), replace(me, pid=0), replace(me, pid=True), replace(me, token="")):
        assert Holder.parse(wrong.to_bytes(0)) is None
    for content in (b"", b"[]", b"null", b"[" * 100_000, b"\xff"):
        assert Holder.parse(content) is None


def test_a_holder_lives_here_while_its_process_does_what_it_began() -> None:
    me = Holder.here()
    assert me.lives_here() is False
    LIVING.add(me.token)
    try:
        assert me.lives_here() is True
        assert replace(me, machine="another").lives_here() is None
        assert replace(me, host="another").lives_here() is None
    finally:
        LIVING.discard(me.token)
    parent = replace(me, pid=os.getppid())
    with open(f"/proc/{os.getppid()}/stat", encoding="utf-8", errors="replace") as file:
        started = file.read().rpartition(")")[2].split()[19]
    assert replace(parent, started=started).lives_here() is True
    assert replace(parent, started=str(int(started) + 1)).lives_here() is False


digests = st.text("0123456789abcdef", min_size=32, max_size=32)
without_version = st.lists(digests, max_size=3).map(lambda found: PartDigests(tuple(found), None, ()))
with_version = st.lists(st.tuples(digests, st.integers(0, (1 << 32) - 1)), max_size=3).map(
    lambda found: PartDigests(tuple(a for a, _ in found), "1:2", tuple(b for _, b in found))
)
unfinished = st.dictionaries(
    st.sampled_from(["consolidated.00.pth", "model.safetensors"]),
    st.dictionaries(st.integers(0, 1 << 40), without_version | with_version, max_size=3),
)


@given(unfinished)
def test_parts_are_read_back_as_they_were_recorded(files: dict[str, dict[int, PartDigests]]) -> None:
    attempts = {name: make_attempt(f"here/{name}") for name in files}
    made = make_unfinished({name: (attempts[name], parts) for name, parts in files.items()})
    assert [list(entry["parts"]) for entry in made.values()] == [  # type: ignore[index, call-overload]
        [str(number) for number in sorted(parts)] for parts in files.values()
    ]
    found = read_unfinished(json.loads(json.dumps(made)), "there")
    assert {name: dict(file.parts) for name, file in found.items()} == files
    assert {name: file.attempt for name, file in found.items()} == {
        name: f"there/{os.path.basename(attempt)}" for name, attempt in attempts.items()
    }


PART: dict[str, object] = {"tensors": ["a", "b"], "version": "1", "crc32": [0, (1 << 32) - 1]}
ATTEMPT = os.path.basename(make_attempt("model.safetensors"))


def read_part(part: object) -> PartDigests | None:
    """Read one part of a file beside a good one."""
    parts = {"0": part, "1": PART, "x": PART}
    found = read_unfinished({"m": {"attempt": ATTEMPT, "parts": parts}}, "o")["m"].parts
    assert found[1] == PartDigests(("a", "b"), "1", (0, (1 << 32) - 1))
    assert set(found) <= {0, 1}
    return found.get(0)


@pytest.mark.parametrize(
    "change",
    [
        {"tensors": None}, {"tensors": ["a", 1]}, {"tensors": ["a"]}, {"version": None}, {"version": 1}, {"crc32": [0]},
        {"crc32": None}, {"crc32": [0, 1 << 32]}, {"crc32": [0, -1]}, {"crc32": [0, True]}, {"crc32": [0, "1"]},
    ],
)  # fmt: skip
def test_a_part_that_is_not_as_it_is_recorded_is_no_part_and_the_others_are(
    change: dict[str, object],
) -> None:
    assert read_part(PART | change) is None


def test_of_what_is_no_record_of_an_unfinished_file_nothing_is_read() -> None:
    assert read_part(None) is None
    assert read_part({"tensors": ["a"]}) == PartDigests(("a",), None, ())
    good = {"attempt": ATTEMPT, "parts": {}}
    wrong: list[object] = [
        None, [], {}, good | {"attempt": 1}, good | {"attempt": "model.safetensors"}, good | {"parts": []},
        {"attempt": ATTEMPT}, {"parts": {}},
    ]  # fmt: skip
    assert [read_unfinished(found, "o") for found in (None, [], "x")] == [{}, {}, {}]
    assert list(read_unfinished({"m": good, **{str(place): w for place, w in enumerate(wrong)}}, "o")) == [
        "m"
    ]


@given(
    st.lists(st.tuples(st.integers(0, 3), st.integers(0, 4)), max_size=6),
    st.integers(0, 3),
    st.integers(0, 2),
)
def test_runs_cover_a_file_and_each_tensor_is_one(
    tensors: list[tuple[int, int]], behind: int, twins: int
) -> None:
    held, position = {}, 0
    for number, (gap, elements) in enumerate(tensors):
        for twin in range(1 + twins):
            held[f"{number}.{twin}"] = Written("file", position + gap, DTYPES["bfloat16"], (elements,))
        position += gap + 2 * elements
    runs = list(_list_runs("file", held, position + behind))
    places = [
        (run.first, run.end)
        if isinstance(run, Gap)
        else (held[run.name].offset_bytes, held[run.name].end_bytes)
        for run in runs
    ]
    assert b"".join(bytes(range(first, end)) for first, end in places) == bytes(range(position + behind))
    for written in held.values():
        assert (written.offset_bytes, written.end_bytes) in places
    assert all(run.first < run.end for run in runs if isinstance(run, Gap))
