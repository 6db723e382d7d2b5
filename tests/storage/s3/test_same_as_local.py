"""Whatever is done in whatever order, an object store and local files answer the same."""

import uuid
from collections.abc import Callable
from pathlib import Path

import hypothesis.strategies as st
import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    multiple,
    rule,
    run_state_machine_as_test,
)

from distconv.errors import InputError
from distconv.storage.base import Removal, Storage, Writer, join, read_small, write_small
from distconv.storage.fencing import is_attempt
from distconv.storage.local import LocalStorage
from distconv.storage.s3.storage import S3Storage
from tests.extent import share

NAMES = st.sampled_from(["config.json", ".distconv.journal", "model ü.safetensors"])
CONTENTS = st.sampled_from([b"", b"a", b"token one", b"token two"])


def outcome(work: Callable[[], object]) -> object:
    """Give what it gives, or what it raises."""
    try:
        return work()
    except (OSError, InputError) as error:
        return type(error)


class Pair(RuleBasedStateMachine):
    """Does the same in two places."""

    writers, removals = Bundle("writers"), Bundle("removals")
    storages: tuple[Storage, Storage]
    folders: tuple[str, str]

    def both(self, work: Callable[[Storage, str], object]) -> object:
        """Do it in both, and compare."""
        local, held = (
            outcome(lambda place=place: work(*place))
            for place in zip(self.storages, self.folders, strict=True)
        )
        assert local == held
        return local

    @rule(name=NAMES, content=CONTENTS)
    def write(self, name: str, content: bytes) -> None:
        self.both(lambda storage, folder: write_small(storage, join(folder, name), content))

    @rule(name=NAMES, content=CONTENTS)
    def create(self, name: str, content: bytes) -> None:
        self.both(lambda storage, folder: storage.create(join(folder, name), content))

    @rule(
        name=NAMES,
        mark=st.sampled_from([b"one", b"two"]),
        content=st.sampled_from([b"token one", b"token two"]),
    )
    def refresh(self, name: str, mark: bytes, content: bytes) -> None:
        self.both(lambda storage, folder: storage.refresh(join(folder, name), mark, content))

    @rule(name=NAMES, limit=st.integers(1, 20))
    def read(self, name: str, limit: int) -> None:
        self.both(lambda storage, folder: storage.read_now(join(folder, name), limit))
        self.both(lambda storage, folder: read_small(storage, join(folder, name), limit))

    @rule(name=NAMES)
    def remove(self, name: str) -> None:
        self.both(lambda storage, folder: storage.remove(join(folder, name)))

    @rule(target=writers, name=NAMES, content=CONTENTS, by_part=st.booleans())
    def begin(self, name: str, content: bytes, *, by_part: bool) -> tuple[Writer, ...]:
        begun = []
        for storage, folder in zip(self.storages, self.folders, strict=True):
            path = join(folder, name)
            begun.append(writer := storage.begin(path, len(content)))
            part = storage.open_attempt(path, writer.attempt, len(content)) if by_part else writer
            part.write_at(0, content)
            part.finish() if by_part and content else None
        return tuple(begun)

    @rule(target=writers, writers=consumes(writers), replace=st.booleans())
    def commit(self, writers: tuple[Writer, ...], *, replace: bool) -> object:
        local, held = (outcome(lambda one=one: one.commit(replace=replace)) for one in writers)
        assert local == held
        return multiple() if local is True else writers

    @rule(writers=consumes(writers))
    def abort(self, writers: tuple[Writer, ...]) -> None:
        for writer in writers:
            writer.abort()

    @rule(writers=writers)
    def drop(self, writers: tuple[Writer, ...]) -> None:
        for storage, writer in zip(self.storages, writers, strict=True):
            storage.drop_attempt(writer.attempt)
            assert (
                outcome(lambda s=storage, w=writer: s.open_attempt("s3://models/x", w.attempt, 1))
                is FileNotFoundError
            )

    @rule(target=removals, name=NAMES)
    def begin_removal(self, name: str) -> object:
        if self.both(lambda storage, folder: storage.find(join(folder, name)) is None):
            return multiple()
        return tuple(
            storage.begin_removal(join(folder, name))
            for storage, folder in zip(self.storages, self.folders, strict=True)
        )

    @rule(removals=consumes(removals))
    def commit_removal(self, removals: tuple[Removal, ...]) -> None:
        local, held = (outcome(removal.commit) for removal in removals)
        assert local == held
        self.abort_removal(removals)

    @rule(removals=consumes(removals))
    def abort_removal(self, removals: tuple[Removal, ...]) -> None:
        for removal in removals:
            removal.abort()

    @rule()
    def sweep(self) -> None:
        for storage, folder in zip(self.storages, self.folders, strict=True):
            for name in filter(is_attempt, storage.list_names(folder)):
                storage.drop_attempt(join(folder, name))

    @rule()
    def look(self) -> None:
        def look(storage: Storage, folder: str) -> object:
            entries = [entry for entry in storage.list_folder(folder) if not is_attempt(entry.name)]
            names = storage.list_names(folder)
            assert entries == [storage.find(join(folder, entry.name)) for entry in entries]
            sizes = [(entry.name, entry.is_folder, entry.size_bytes) for entry in entries]
            return sizes, sum(map(is_attempt, names))

        self.both(look)

    def teardown(self) -> None:
        self.sweep()
        self.look()


@pytest.fixture
def pair(storage: S3Storage, tmp_path: Path) -> type[Pair]:
    """Give a machine whose every example has two new folders."""

    class Here(Pair):
        def __init__(self) -> None:
            super().__init__()
            name = uuid.uuid4().hex
            self.storages = LocalStorage(), storage
            self.folders = str(tmp_path / name), f"s3://models/{name}"
            for one, folder in zip(self.storages, self.folders, strict=True):
                one.make_folder(folder)

    return Here


@pytest.mark.first(1)
def test_an_object_store_answers_as_local_files_do(pair: type[Pair]) -> None:
    run_state_machine_as_test(
        pair,
        settings=settings(
            max_examples=share(50), stateful_step_count=25, suppress_health_check=list(HealthCheck)
        ),
    )
