"""Parts of several writers of one file have numbers of their own, and attempts have names that can be read."""

from collections.abc import Callable
from concurrent.futures import Future

import hypothesis.strategies as st
import pytest
from hypothesis import given

from distconv.storage.fencing import is_attempt
from distconv.storage.parallel import make_done
from distconv.storage.s3 import stream
from distconv.storage.s3.documents import StoredPart
from distconv.storage.s3.place import Place
from distconv.storage.s3.stream import PartStream, number_part, part_size
from distconv.storage.s3.uploads import make_name, parse_name

STEP = 16


def do_at_once(work: Callable[..., StoredPart], *arguments: object) -> "Future[StoredPart]":
    """Do what is to be done by a thread."""
    future: Future[StoredPart] = Future()
    future.set_result(work(*arguments))
    return future


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> dict[int, bytes]:
    """Make parts tiny, and give those that are sent."""
    sent: dict[int, bytes] = {}

    def send(
        _client: object, _bucket: str, _key: str, _upload: str, number: int, blocks: list[memoryview]
    ) -> StoredPart:
        assert number not in sent
        sent[number] = b"".join(blocks)
        return StoredPart(number, "", len(sent[number]), None)

    monkeypatch.setattr(stream, "part_size", lambda _size: STEP)
    monkeypatch.setattr(stream, "connect", lambda _place: None)
    monkeypatch.setattr(stream, "submit", do_at_once)
    monkeypatch.setattr(stream, "send_part", send)
    return sent


@given(
    runs=st.lists(st.integers(STEP, 5 * STEP), min_size=1, max_size=5),
    last=st.integers(0, STEP),
    order=st.randoms(),
    block=st.integers(1, 3 * STEP),
)
def test_runs_of_at_least_a_part_are_told_apart_by_where_they_begin(
    runs: list[int], last: int, order: object, block: int
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        sent = small_parts.__wrapped__(patch)  # type: ignore[attr-defined]
        runs = [*runs, last] if last else runs
        content = bytes(number % 251 for number in range(sum(runs)))
        starts = [sum(runs[:number]) for number in range(len(runs))]
        pairs = list(zip(starts, runs, strict=True))
        order.shuffle(pairs)  # type: ignore[attr-defined]
        for start, size in pairs:
            writer = PartStream(Place(), "s3://models/file", make_done("upload"), len(content))
            for first in range(start, start + size, block):
                writer.write(first, content[first : min(first + block, start + size)])
            writer.finish()
        assert b"".join(sent[number] for number in sorted(sent)) == content
        offset = 0
        for number in sorted(sent):
            end = offset + len(sent[number])
            assert number == number_part(offset, end, len(content))
            offset = end
        assert all(STEP <= len(sent[number]) <= 2 * STEP for number in sorted(sent)[:-2])


@pytest.mark.parametrize("size", [0, 1, 70 << 30, 80 << 30, 400 << 30, 5 << 40])
def test_a_file_of_any_size_fits_in_the_parts_that_it_may_have(size: int) -> None:
    step = part_size(size)
    assert 5 << 20 <= step <= 5 << 30
    assert size / step <= 9000
    assert step == 5 << 20 or size / (step - (1 << 20)) > 9000


@given(size=st.integers(1, 6 * STEP), block=st.integers(1, 3 * STEP))
def test_of_a_file_that_one_writes_alone_each_part_is_sent_as_soon_as_it_is_full(
    size: int, block: int
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        sent = small_parts.__wrapped__(patch)  # type: ignore[attr-defined]
        content = bytes(number % 251 for number in range(size))
        writer = PartStream(Place(), "s3://models/file", make_done("upload"), size, alone=True)
        for first in range(0, size, block):
            end = min(first + block, size)
            writer.write(first, content[first:end])
            assert sum(map(len, sent.values())) == (end if end == size else end // STEP * STEP)
        writer.finish()
        assert b"".join(sent[number] for number in sorted(sent)) == content
        assert all(len(sent[number]) == STEP for number in sorted(sent)[:-1])


@given(
    name=st.text(st.characters(exclude_characters="/", exclude_categories=["Cs"]), min_size=1),
    upload=st.text(st.characters(exclude_categories=["Cs"]), min_size=1),
)
def test_an_attempts_name_tells_file_and_upload(name: str, upload: str) -> None:
    made = make_name(name, upload)
    assert is_attempt(made)
    assert "/" not in made
    assert parse_name(made) == (name, upload)


@pytest.mark.parametrize(
    "name", [".config.json.host-12-0a1b2c3d.partial", "config.json", ".a.b-0-00000000.partial", ".a.partial"]
)
def test_other_names_tell_of_no_upload(name: str) -> None:
    assert parse_name(name) is None
