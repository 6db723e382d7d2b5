"""Stores fail, and so does the way to them: nothing is read wrong, nothing is done twice, nothing waits for ever."""

import errno
import multiprocessing
import socket
import threading

import pytest

from distconv.errors import InputError
from distconv.moving.executor import classify
from distconv.storage.base import join, opened, read_range, write_small
from distconv.storage.http import retry
from distconv.storage.http.retry import TransientError, Window, persist
from distconv.storage.requests import count_requests
from distconv.storage.s3.client import LARGEST_WINDOW, connect
from distconv.storage.s3.place import Place, split_path
from distconv.storage.s3.storage import S3Storage
from distconv.storage.s3.stream import BUFFERS, PartStream, part_size
from tests.object_store import Fault, ObjectStore, made_up_bytes
from tests.storage.s3.conftest import PATIENCE_SECONDS
from tests.storage.s3.test_verbs import begun

PART = part_size(0)
TRANSIENT = [
    Fault("error", code="InternalError", times=2),
    Fault("error", code="ServiceUnavailable", times=2),
    Fault("error", code="SlowDown", times=2),
    Fault("error", code="RequestTimeout", times=2),
    Fault("reset", times=2),
    Fault("reset", times=2, after_effect=True),
    Fault("error", code="InternalError", times=2, after_effect=True),
]


def struck(stand: ObjectStore, fault: Fault, operation: str) -> None:
    """Let a fault strike one kind of request."""
    changed = {name: getattr(fault, name) for name in Fault.__dataclass_fields__} | {"operation": operation}
    stand.fault(Fault(**changed))


@pytest.mark.product
@pytest.mark.parametrize(
    "fault", TRANSIENT, ids=lambda fault: f"{fault.code} {fault.action} {fault.after_effect}"
)
@pytest.mark.parametrize("operation", ["*Upload", "UploadPart", "CompleteMultipartUpload", "HeadObject"])
@pytest.mark.parametrize("forget", [False, True], ids=["", "forgetful"])
def test_a_file_is_written_once_whatever_answer_is_lost(
    held: S3Storage, stand: ObjectStore, folder: str, fault: Fault, operation: str, *, forget: bool
) -> None:
    path = join(folder, "file")
    stand.change(forget_completed=forget)
    struck(stand, fault, operation)
    assert begun(held, path, b"first").commit() is True
    struck(stand, fault, operation)
    second = begun(held, path, b"second")
    assert second.commit() is False
    struck(stand, fault, operation)
    assert second.commit(replace=True) is True
    assert held.read_now(path, 99) == b"second"


def test_an_error_behind_a_status_of_success_is_an_error(
    held: S3Storage, stand: ObjectStore, folder: str
) -> None:
    stand.fault(Fault("error in 200", "CompleteMultipartUpload", code="InternalError"))
    assert begun(held, join(folder, "file"), b"first").commit() is True
    stand.fault(Fault("error in 200", "CompleteMultipartUpload", code="PreconditionFailed"))
    assert begun(held, join(folder, "file"), b"second").commit() is False
    assert held.read_now(join(folder, "file"), 99) == b"first"


def test_somebody_elses_upload_is_completed_once_whatever_answer_is_lost(
    held: S3Storage, stand: ObjectStore, folder: str
) -> None:
    path, content = join(folder, "file"), b"content"
    maker = begun(held, path, content)
    maker.finish()
    heir = held.take_attempt(path, maker.attempt, len(content))
    assert heir is not None
    heir.write_at(0, content)
    stand.change(forget_completed=True)
    stand.fault(Fault("reset", "CompleteMultipartUpload", after_effect=True))
    assert heir.commit() is True
    assert held.take_attempt(path, maker.attempt, len(content)) is None
    assert held.read_now(path, 99) == content


def test_a_conflict_at_the_completion_may_pass_but_the_upload_is_made_again(
    held: S3Storage, stand: ObjectStore, folder: str
) -> None:
    stand.fault(Fault("error", "CompleteMultipartUpload", code="ConditionalRequestConflict"))
    writer = begun(held, join(folder, "file"), b"content")
    with pytest.raises(OSError, match="somebody else changed it meanwhile") as caught:
        writer.commit()
    assert not classify("unit", caught.value).final
    writer.abort()
    assert len(stand.requests("CompleteMultipartUpload")) == 1


@pytest.mark.first(3)
@pytest.mark.parametrize(
    "fault", TRANSIENT, ids=lambda fault: f"{fault.code} {fault.action} {fault.after_effect}"
)
def test_a_small_file_is_made_and_changed_once_whatever_answer_is_lost(
    held: S3Storage, stand: ObjectStore, folder: str, fault: Fault
) -> None:
    path = join(folder, "owner")
    struck(stand, fault, "PutObject")
    assert held.create(path, b"one 0") is True
    struck(stand, fault, "PutObject")
    assert held.create(path, b"two 0") is False
    struck(stand, fault, "PutObject")
    assert held.refresh(path, b"one", b"one 1") is True
    struck(stand, fault, "DeleteObject")
    removal = held.begin_removal(path)
    struck(stand, fault, "CompleteMultipartUpload")
    removal.commit()
    assert held.list_names(folder) == ()


def test_of_many_who_make_a_file_at_once_one_does(held: S3Storage, folder: str) -> None:
    path, count = join(folder, "owner"), 8
    together = threading.Barrier(count)
    made: list[bool] = []

    def make(number: int) -> None:
        together.wait()
        made.append(held.create(path, str(number).encode()))

    threads = [threading.Thread(target=make, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(made) == [False] * (count - 1) + [True]


def test_reads_go_on_where_a_body_broke_off(held: S3Storage, stand: ObjectStore, folder: str) -> None:
    path = join(folder, "file")
    stand.make_up(*split_path(path), 1 << 20)
    with opened(held, path) as reader:
        stand.clear_requests()
        stand.fault(Fault("cut", "GetObject", bytes=1000, times=3))
        stand.fault(Fault("error", "GetObject", code="SlowDown", first=4))
        stand.fault(Fault("reset", "GetObject", first=5))
        assert read_range(reader, 77, 500_000) == made_up_bytes(77, 500_000)
    ranges = [record.range for record in stand.requests("GetObject")]
    starts = (77, 1077, 2077, 3077, 3077, 3077)
    assert ranges == [f"bytes={start}-500076" for start in starts]


def test_a_body_that_breaks_off_again_and_again_is_read_as_long_as_some_comes(
    stand: ObjectStore, folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retry, "_FIRST_SECONDS", 0.001)
    storage = S3Storage(Place(stand.url, profile="stand", patience_seconds=0.5))
    path = join(folder, "file")
    stand.make_up(*split_path(path), 100_000)
    with opened(storage, path) as reader:
        stand.fault(Fault("cut", "GetObject", bytes=500, times=None))
        assert read_range(reader, 0, 100_000) == made_up_bytes(0, 100_000)


def test_what_does_not_pass_is_told_in_time_and_may_be_tried_by_others(
    stand: ObjectStore, folder: str
) -> None:
    storage = S3Storage(Place(stand.url, profile="stand", patience_seconds=0.5))
    path = join(folder, "file")
    write_small(storage, path, b"content")
    stand.fault(Fault("error", "GetObject", code="InternalError", times=None))
    with pytest.raises(OSError, match="answers 500 InternalError") as caught:
        storage.open(path)
    assert caught.value.filename == path
    assert not classify("unit", caught.value).final


def test_an_endpoint_where_nobody_is_is_told_soon(
    stand: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("distconv.storage.s3.client._FIRST_PATIENCE_SECONDS", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as nobody:
        host = f"127.0.0.1:{nobody.getsockname()[1]}"
    storage = S3Storage(Place(f"http://{host}", profile="stand"))
    with pytest.raises(ConnectionRefusedError) as caught:
        storage.find("s3://models/file")
    assert str(caught.value).endswith(
        f"HeadObject: the connection to {host} failed (Connection refused): 's3://models/file'"
    )


def test_a_part_that_came_damaged_is_sent_again(held: S3Storage, stand: ObjectStore, folder: str) -> None:
    stand.fault(Fault("error", "UploadPart", code="BadDigest"))
    assert begun(held, join(folder, "file"), b"content").commit() is True
    (first, second) = stand.requests("UploadPart")
    assert first.headers["x-amz-checksum-crc64nvme"] == second.headers["x-amz-checksum-crc64nvme"]


def test_a_store_that_asks_for_less_gets_less_and_more_again_later(stand: ObjectStore, folder: str) -> None:
    held = S3Storage(Place(stand.url, profile="stand", patience_seconds=PATIENCE_SECONDS + 1))
    path = join(folder, "file")
    write_small(held, path, b"content")
    window = connect(held.place).window
    stand.fault(Fault("error", "HeadObject", code="SlowDown", times=3))
    assert held.find(path)
    slow = window.limit
    assert slow == LARGEST_WINDOW // 8
    for _time in range(20):
        held.find(path)
    assert slow < window.limit < LARGEST_WINDOW


def test_a_window_lets_no_more_in_than_it_says() -> None:
    window, running, most = Window(3), [0], [0]

    def enter(_number: int) -> None:
        with window.entered():
            running[0] += 1
            most[0] = max(most[0], running[0])
            running[0] -= 1

    threads = [threading.Thread(target=enter, args=(number,)) for number in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert running == [0]
    assert most[0] <= 3


def test_pauses_are_drawn_from_longer_and_longer_times(monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[float] = []
    clock = [0.0]
    monkeypatch.setattr(retry._random, "uniform", lambda _least, most: most)
    monkeypatch.setattr(retry.time, "monotonic", lambda: clock[0])

    def sleep(seconds: float) -> None:
        pauses.append(seconds)
        clock[0] += seconds

    monkeypatch.setattr(retry.time, "sleep", sleep)

    def fail() -> None:
        raise TransientError(errno.ECONNRESET, "reset", "s3://models/file")

    with pytest.raises(ConnectionResetError, match="reset"):
        persist(fail, 60)
    assert pauses[:5] == pytest.approx([0.1, 0.2, 0.4, 0.8, 1.6])
    assert max(pauses) == 10
    assert 50 <= sum(pauses) <= 60


def test_a_writer_has_few_parts_in_memory_however_slow_the_store_is(
    held: S3Storage, stand: ObjectStore, folder: str
) -> None:
    path = join(folder, "file")
    writer = held.begin(path, 40 * PART)
    stream: PartStream = writer._stream
    stand.fault(Fault("hold", "UploadPart", times=None, gate="slow"))
    block = bytes(PART)

    def write() -> None:
        for number in range(40):
            writer.write_at(number * PART, block)

    thread = threading.Thread(target=write)
    thread.start()
    stand.wait_held("slow", BUFFERS - 2)
    assert stream._made <= BUFFERS
    stand.clear_faults()
    thread.join()
    assert stream._made == BUFFERS
    writer.abort()


def test_a_forked_process_makes_connections_of_its_own(
    held: S3Storage, stand: ObjectStore, folder: str
) -> None:
    path = join(folder, "file")
    write_small(held, path, b"content")
    with opened(held, path) as reader:
        read_range(reader, 0, 7)
        used = {record.connection for record in stand.requests()}
        stand.clear_requests()
        with multiprocessing.get_context("fork").Pool(1) as pool:
            assert pool.apply(read_all, (held, path)) == (b"content", {"GetObject": 1})
        assert not used & {record.connection for record in stand.requests()}
        assert read_range(reader, 0, 7) == b"content"


def read_all(storage: S3Storage, path: str) -> tuple[bytes, dict[str, int]]:
    """Read a file in another process, and count what that took."""
    with opened(storage, path) as reader:
        return bytes(read_range(reader, 0, reader.size_bytes)), count_requests()


def test_a_truncated_file_is_an_error_of_input(held: S3Storage, folder: str) -> None:
    path = join(folder, "file")
    write_small(held, path, b"content")
    with opened(held, path) as reader, pytest.raises(InputError, match="truncated"):
        read_range(reader, 0, 8)
