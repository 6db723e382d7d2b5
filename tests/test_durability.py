"""What a power cut can leave: every call that makes files safe, in the order that counts."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

import distconv
from distconv.moving.job import Job
from distconv.moving.worker import write_file
from distconv.storage import local_files
from distconv.storage.base import write_small
from distconv.storage.local import LocalStorage
from tests.checkpoints import Spec
from tests.durability import Name, Recorder
from tests.moving.test_worker import plan_folder

Write = Callable[[Spec], Path]
SPEC = Spec("llama-2", heads=8, kv_heads=4, shards=2)
LIMIT = 100_000


@pytest.fixture
def recorder() -> Recorder:
    return Recorder()


@pytest.mark.parametrize("replace", [False, True])
def test_a_file_is_safe_before_it_has_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recorder: Recorder, replace: bool
) -> None:
    recorder.install(monkeypatch)
    writer = LocalStorage().begin(str(tmp_path / "file"), 6)
    writer.write_at(3, b"def")
    writer.write_at(0, b"abc")
    assert writer.commit(replace=replace)
    kinds = [name for name, _path in recorder.calls if name != "close"]
    named = ["replace"] if replace else ["link", "unlink"]
    assert kinds == ["open", "pwrite", "pwrite", "fsync", *named]
    assert (tmp_path / "file").read_bytes() == b"abcdef"


@pytest.mark.parametrize(
    ("blocks", "flushes"),
    [([999], 0), ([1000], 1), ([1001], 1), ([999, 1], 1), ([500] * 4, 2), ([999, 999, 999], 1), ([3000], 1)],
)
def test_what_is_written_becomes_safe_from_time_to_time(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    recorder: Recorder,
    blocks: list[int],
    flushes: int,
) -> None:
    monkeypatch.setattr(local_files, "FLUSH_BYTES", 1000)
    writer = LocalStorage().begin(str(tmp_path / "file"), sum(blocks))
    recorder.install(monkeypatch)
    start = 0
    for size_bytes in blocks:
        writer.write_at(start, bytes(size_bytes))
        start += size_bytes
    assert len([name for name, _path in recorder.calls if name == "fsync"]) == flushes
    writer.commit()
    assert len([name for name, _path in recorder.calls if name == "fsync"]) == flushes + 1


def test_a_chunk_tells_of_no_more_than_what_is_soon_safe(
    checkpoint: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recorder: Recorder
) -> None:
    chunk = max(plan_folder(checkpoint(SPEC)).files, key=lambda chunk: chunk.size_bytes)
    monkeypatch.setattr(local_files, "FLUSH_BYTES", 10_000)
    unsafe: list[int] = []

    def told(size_bytes: int) -> None:
        (name,) = (name for path, name in recorder.names.items() if path.endswith(".partial"))
        unsafe.append(name.states[-1].unsafe_bytes)

    recorder.install(monkeypatch)
    write_file(Job(LocalStorage(), str(tmp_path), "cpu", 4096), chunk, told, lambda: False)
    assert max(unsafe) < 10_000
    assert unsafe.count(0) >= chunk.size_bytes // 20_000 > 3


def test_so_much_is_written_before_it_is_made_safe_that_disks_are_not_slowed_and_hundreds_not_silent() -> (
    None
):
    assert 64 << 20 <= local_files.FLUSH_BYTES <= 256 << 20


def test_a_folder_is_flushed_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recorder: Recorder
) -> None:
    recorder.install(monkeypatch)
    LocalStorage().flush_folder(str(tmp_path))
    assert recorder.paths("fsync") == recorder.paths("close") == [str(tmp_path)]


def test_the_names_of_folders_that_are_made_are_safe_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recorder: Recorder
) -> None:
    recorder.install(monkeypatch)
    LocalStorage().make_folder(str(tmp_path / "one" / "two"))
    assert recorder.paths("fsync") == [str(tmp_path), str(tmp_path / "one")]
    LocalStorage().make_folder(str(tmp_path / "one" / "two"))
    assert len(recorder.paths("fsync")) == 2


def looks_whole_only_if_it_is(output: Path, names: list[str]) -> Callable[[Recorder], None]:
    """Make a check for after each call: where a model may be found it is there, whole and of one age."""
    marks = {"config.json", "model.safetensors.index.json"} & set(names)

    def check(recorder: Recorder) -> None:
        found = {name: recorder.names.get(str(output / name), Name([None])) for name in names}
        if all(found[mark].may_be_there for mark in marks):
            marked = {state.age for mark in marks for state in found[mark].states if state is not None}
            assert {found[name].safe_age for name in names if name not in marks} == marked, recorder.calls[-1]

    return check


@pytest.mark.parametrize("limit", [LIMIT, 10**9], ids=["several chunks", "one chunk"])
def test_a_power_cut_at_any_moment_leaves_no_folder_that_looks_whole_and_is_not(
    checkpoint: Write,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    recorder: Recorder,
    limit: int,
) -> None:
    output = tmp_path / "out"
    distconv.convert(checkpoint(SPEC), output, max_shard_size=limit)
    names = [path.name for path in output.iterdir()]
    for again in (Recorder(), recorder):
        before = [output / name for name in names] if again is recorder else []
        target = output if before else tmp_path / "fresh"
        again.watch = looks_whole_only_if_it_is(target, names)
        with monkeypatch.context() as patch:
            again.install(patch, before)
            distconv.convert(checkpoint(SPEC), target, max_shard_size=limit, overwrite=True)
        assert sorted(path.name for path in target.iterdir()) == sorted(names)
        # At the very end all is safe, the mark too.
        assert {again.names[str(target / name)].safe_age for name in names} == {"new"}


def test_a_small_file_is_safe_before_it_takes_the_place_of_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recorder: Recorder
) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")
    recorder.install(monkeypatch, [path])
    write_small(LocalStorage(), str(path), b"new content")
    assert [name for name, _path in recorder.calls if name != "close"] == [
        "open",
        "pwrite",
        "fsync",
        "replace",
    ]
    assert path.read_bytes() == b"new content"
    assert os.listdir(tmp_path) == ["file"]
