"""Who took a folder over is not disturbed by what others had prepared in it, however late they go on."""

import contextlib
import multiprocessing

import pytest

from distconv.errors import OutputError
from distconv.output.targets import is_partial
from distconv.storage.base import join, write_small
from distconv.storage.s3.removal import S3Removal
from distconv.storage.s3.storage import S3Storage
from tests.object_store import Fault, ObjectStore
from tests.storage.s3.test_verbs import begun


def sweep(storage: S3Storage, folder: str) -> None:
    """Drop all that is prepared."""
    for name in storage.list_names(folder):
        if is_partial(name):
            storage.drop_attempt(join(folder, name))


@pytest.mark.product
@pytest.mark.parametrize("replace", [False, True])
@pytest.mark.parametrize("is_taken", [False, True], ids=["no file there", "a file there"])
def test_a_write_that_was_dropped_fails_for_good(
    storage: S3Storage, folder: str, *, replace: bool, is_taken: bool
) -> None:
    path = join(folder, "config.json")
    writer = begun(storage, path, b"zombie")
    started = storage.open_attempt(path, writer.attempt, len(b"zombie"))
    sweep(storage, folder)
    if is_taken:
        write_small(storage, path, b"heir")
    for _time in range(2):
        with pytest.raises(FileNotFoundError):
            writer.commit(replace=replace)
    started.write_at(0, b"zombie")
    with pytest.raises(FileNotFoundError):
        started.finish()
    writer.abort()
    assert storage.list_names(folder) == (("config.json",) if is_taken else ())
    assert not is_taken or storage.read_now(path, 99) == b"heir"


def test_a_removal_that_was_dropped_fails_though_the_same_bytes_stand_there(
    storage: S3Storage, folder: str
) -> None:
    path = join(folder, "config.json")
    write_small(storage, path, b"content")
    removal = storage.begin_removal(path)
    sweep(storage, folder)
    storage.remove(path)
    write_small(storage, path, b"content")
    with pytest.raises(FileNotFoundError):
        removal.commit()
    removal.abort()
    assert storage.read_now(path, 99) == b"content"
    assert storage.list_names(folder) == ("config.json",)


def test_a_removal_takes_what_stands_there_when_it_is_committed(storage: S3Storage, folder: str) -> None:
    path = join(folder, ".distconv.owner.00000001")
    storage.create(path, b"token 1")
    removal = storage.begin_removal(path)
    assert storage.refresh(path, b"token", b"token 2")
    removal.commit()
    removal.abort()
    assert storage.list_names(folder) == ()
    storage.begin_removal(path).commit()


@pytest.mark.parametrize("heal", ["sweep", "create", "commit", "replace", "removal"])
def test_a_removal_whose_maker_died_in_it_counts_as_done(
    held: S3Storage, stand: ObjectStore, folder: str, heal: str
) -> None:
    path = join(folder, "config.json")
    write_small(held, path, b"content")
    removal = held.begin_removal(path)
    stand.fault(Fault("error", "DeleteObject", code="AccessDenied"))
    with pytest.raises(PermissionError):
        removal.commit()
    assert held.find(path) is None
    (name,) = held.list_names(folder)
    assert is_partial(name)
    with pytest.raises(FileNotFoundError):
        held.read_now(path, 99)
    with pytest.raises(FileNotFoundError):
        held.open(path)
    assert held.refresh(path, b"", b"other") is False
    match heal:
        case "sweep":
            sweep(held, folder)
        case "create":
            assert held.create(path, b"new") is True
        case "commit":
            assert begun(held, path, b"new").commit() is True
        case "replace":
            assert begun(held, path, b"new").commit(replace=True) is True
        case "removal":
            held.begin_removal(path).commit()
            sweep(held, folder)
    names = () if heal in {"sweep", "removal"} else ("config.json",)
    assert held.list_names(folder) == names
    # What its maker would do next does no harm.
    with contextlib.suppress(FileNotFoundError):
        removal.commit()
    assert held.list_names(folder) == names


def test_a_note_of_a_removal_that_was_replaced_is_not_deleted(
    held: S3Storage, stand: ObjectStore, folder: str
) -> None:
    path = join(folder, "config.json")
    write_small(held, path, b"content")
    stand.fault(Fault("hold", "DeleteObject", gate="late"))
    process = multiprocessing.get_context("fork").Process(target=remove, args=(held, path))
    process.start()
    stand.wait_held("late")
    sweep(held, folder)
    write_small(held, path, b"heir's")
    stand.release("late")
    process.join()
    assert process.exitcode == 0
    assert held.read_now(path, 99) == b"heir's"


def remove(storage: S3Storage, path: str) -> None:
    """Remove a file, as a process of its own that has inherited this one's connections."""
    S3Removal(storage.place, path).commit()


@pytest.mark.parametrize(
    ("ignored", "named"),
    [
        ("put", "If-None-Match of PutObject, If-Match of PutObject"),
        ("complete", "If-None-Match of CompleteMultipartUpload"),
        ("delete", "If-Match of DeleteObject"),
    ],
)
def test_a_store_that_ignores_conditions_is_refused_and_nothing_left_in_it(
    held: S3Storage, stand: ObjectStore, folder: str, ignored: str, named: str
) -> None:
    stand.change(ignored_conditions=[ignored])
    with pytest.raises(OutputError, match=f"this store ignores {named}; "):
        held.probe(folder)
    assert held.list_names(folder) == ()


def test_a_store_that_keeps_conditions_is_accepted_and_nothing_left_in_it(
    storage: S3Storage, folder: str
) -> None:
    storage.probe(folder)
    assert storage.list_names(folder) == ()


def test_a_probe_that_was_killed_leaves_what_the_next_owner_drops(
    held: S3Storage, stand: ObjectStore, folder: str
) -> None:
    # Not even what it began to write can be dropped.
    stand.fault(Fault("error", "AbortMultipartUpload", times=None, code="AccessDenied"))
    stand.fault(Fault("error", "DeleteObject", times=None, code="AccessDenied"))
    with pytest.raises(PermissionError):
        held.probe(folder)
    stand.clear_faults()
    names = held.list_names(folder)
    assert len(names) == 2
    assert all(map(is_partial, names))
    sweep(held, folder)
    assert held.list_names(folder) == ()
