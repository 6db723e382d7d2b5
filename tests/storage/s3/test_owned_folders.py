"""A folder of an object store is one conversion's at a time, as one of files is."""

import threading
from collections.abc import Iterator
from dataclasses import replace

import pytest

from distconv.errors import OutputError
from distconv.output import acquisition
from distconv.output.acquisition import owned
from distconv.output.holders import Holder
from distconv.output.ownership import is_owned
from distconv.output.targets import is_partial
from distconv.storage.base import ConflictError, join
from distconv.storage.s3.storage import S3Storage
from tests.object_store import Fault, ObjectStore
from tests.storage.s3.test_verbs import begun


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Beat fast, and have little patience."""
    monkeypatch.setattr(acquisition, "BEAT_SECONDS", 0.1)
    monkeypatch.setattr(acquisition, "PATIENCE_SECONDS", 3.0)
    monkeypatch.setattr(acquisition, "_WATCH_SECONDS", 0.05)
    return


@pytest.mark.first(1)
def test_who_has_a_folder_has_it_alone_and_gives_it_back(storage: S3Storage, folder: str) -> None:
    with owned(storage, folder, print) as owner:
        assert is_owned(storage.list_names(folder))
        owner.write(storage, "config.json", b"{}")
        with (
            pytest.raises(OutputError, match="distconv already writes into it"),
            owned(storage, folder, print),
        ):
            pass
        owner.remove(storage, "config.json")
    assert not is_owned(storage.list_names(folder))
    assert storage.list_names(folder) == ()


def test_a_small_file_is_written_and_removed_though_others_come_in_between(
    held: S3Storage, stand: ObjectStore, folder: str
) -> None:
    conflict = Fault("error", "CompleteMultipartUpload", code="ConditionalRequestConflict", times=2)
    with owned(held, folder, print) as owner:
        stand.fault(conflict)
        owner.write(held, "config.json", b"{}")
        assert held.read_now(join(folder, "config.json"), 9) == b"{}"
        stand.clear_faults()
        stand.fault(conflict)
        owner.remove(held, "config.json")
        assert held.find(join(folder, "config.json")) is None
        stand.clear_faults()
        stand.fault(replace(conflict, times=None))
        with pytest.raises(ConflictError):
            owner.write(held, "config.json", b"{}")
        stand.clear_faults()
    assert held.list_names(folder) == ()


def test_a_folder_that_cannot_be_given_back_is_not_tried_for_ever_and_leaves_no_uploads(
    held: S3Storage, stand: ObjectStore, folder: str
) -> None:
    # For ever, as where the bucket has gone; but a test must end.
    fault = Fault("error", "UploadPart", "*.distconv.owner.*", code="NoSuchUpload", times=100)
    with owned(held, folder, print):
        stand.fault(fault)
        stand.clear_requests()
    assert len(stand.requests("UploadPart")) < 20
    stand.clear_faults()
    assert [name for name in held.list_names(folder) if is_partial(name)] == []


@pytest.mark.first(1)
def test_one_elsewhere_that_beats_is_left_alone_and_a_silent_one_succeeded(
    storage: S3Storage, folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Holder, "lives_here", lambda _self: None)
    told: list[str] = []
    with owned(storage, folder, print) as before:
        with pytest.raises(OutputError, match="already writes into it"), owned(storage, folder, told.append):
            pass
        prepared = begun(storage, join(folder, "config.json"), b"zombie")
        removal = storage.begin_removal(before.path)
        monkeypatch.setattr(S3Storage, "refresh", lambda *_arguments: False)
        with owned(storage, folder, told.append, is_partial) as after:
            with pytest.raises(OutputError, match=r"another conversion .* took it over"):
                before.commit(storage, prepared, replace=True)
            with pytest.raises(FileNotFoundError):
                removal.commit()
            after.check(storage)
    assert storage.list_names(folder) == ()
    assert told


def test_of_many_who_come_at_once_one_has_it(held: S3Storage, folder: str) -> None:
    inside, most, got, refused = [0], [0], [0], [0]
    together = threading.Barrier(4)

    def come() -> None:
        together.wait()
        try:
            with owned(held, folder, print):
                inside[0] += 1
                got[0] += 1
                most[0] = max(most[0], inside[0])
                held.list_names(folder)
                inside[0] -= 1
        except OutputError:
            refused[0] += 1

    threads = [threading.Thread(target=come) for _number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1]
    assert got[0] + refused[0] == 4
    assert held.list_names(folder) == ()
