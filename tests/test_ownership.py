"""One owner of a folder at a time, whoever is stopped, dies, comes back or sees what is old."""

import dataclasses
import itertools
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from distconv.errors import OutputError
from distconv.output import acquisition, holders, ownership
from distconv.output.acquisition import owned
from distconv.output.holders import Holder, _state
from distconv.output.ownership import OWNER_PREFIX, Ownership, is_owner_attempt
from distconv.storage.fencing import is_attempt, make_attempt
from distconv.storage.local import LocalStorage

STORAGE = LocalStorage()


@pytest.fixture(autouse=True)
def _hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(acquisition, "BEAT_SECONDS", 0.05)
    monkeypatch.setattr(acquisition, "PATIENCE_SECONDS", 1.0)
    monkeypatch.setattr(acquisition, "_WATCH_SECONDS", 0.02)


def owner_path(folder: Path, generation: int = 1) -> Path:
    """Name an owner's file."""
    return folder / f"{OWNER_PREFIX}{generation:08}"


def write_owner(folder: Path, holder: Holder, generation: int = 1, beat: int = 0) -> Path:
    """Leave an owner's file as somebody else would."""
    path = owner_path(folder, generation)
    path.write_bytes(holder.to_bytes(beat))
    return path


def elsewhere() -> Holder:
    """Name somebody who cannot be asked."""
    return dataclasses.replace(Holder.here(), host="elsewhere", machine="another boot")


def dead() -> Holder:
    """Name a process of this machine that there cannot be."""
    return dataclasses.replace(Holder.here(), pid=2**22 + 1)


def take(folder: Path, told: list[str] | None = None) -> None:
    """Own the folder and give it back."""
    with owned(STORAGE, str(folder), (told if told is not None else []).append) as mine:
        assert [path.name for path in folder.iterdir()] == [Path(mine.path).name]
    assert list(folder.iterdir()) == []


def test_nothing_is_left_when_it_is_given_back(tmp_path: Path) -> None:
    take(tmp_path)
    with pytest.raises(KeyError), owned(STORAGE, str(tmp_path), print):
        raise KeyError
    take(tmp_path)


def test_a_living_holder_is_named_and_left_alone(tmp_path: Path) -> None:
    with owned(STORAGE, str(tmp_path), print) as mine:
        with pytest.raises(OutputError) as raised:
            take(tmp_path)
        assert str(raised.value) == (
            f"{tmp_path}: distconv already writes into it ({Holder.here()}); "
            "wait for its end or give another folder"
        )
        mine.check(STORAGE)


def test_the_folder_of_a_dead_process_is_taken_at_once(tmp_path: Path) -> None:
    code = (
        "import os, sys; from distconv.output.acquisition import owned; from distconv.storage.local import LocalStorage\n"
        "held = owned(LocalStorage(), sys.argv[1], print); held.__enter__(); os.kill(os.getpid(), 9)"
    )
    subprocess.run([sys.executable, "-c", code, tmp_path], check=False)
    assert owner_path(tmp_path).exists()
    told: list[str] = []
    take(tmp_path, told)
    assert told == []


def test_each_owner_is_of_the_generation_after_all_the_dead(tmp_path: Path) -> None:
    for generation in (2, 11):
        write_owner(tmp_path, dead(), generation)
    with owned(STORAGE, str(tmp_path), print) as mine:
        assert list(tmp_path.iterdir()) == [owner_path(tmp_path, 12)]
        assert mine.path == str(owner_path(tmp_path, 12))


def test_who_claims_a_folder_and_does_not_get_it_leaves_nothing(tmp_path: Path) -> None:
    def fail(_name: str) -> bool:
        raise KeyError

    with pytest.raises(KeyError), owned(STORAGE, str(tmp_path), print, fail):
        pass
    assert list(tmp_path.iterdir()) == []
    claim = partial(acquisition._claim, STORAGE, str(tmp_path), Holder.here(), is_ours=is_attempt)
    assert claim({str(owner_path(tmp_path)): b"judged, and gone since"}) is None
    assert list(tmp_path.iterdir()) == []
    other = write_owner(tmp_path, elsewhere())
    before = other.read_bytes()
    assert claim({}) is None
    assert list(tmp_path.iterdir()) == [other]
    assert other.read_bytes() == before


@pytest.mark.parametrize("started", ["1", ""])
def test_a_process_id_that_is_used_again_is_not_the_holder(tmp_path: Path, started: str) -> None:
    write_owner(tmp_path, dataclasses.replace(Holder.here(), pid=os.getppid(), started=started))
    take(tmp_path)


def test_a_process_that_has_ended_and_for_which_nobody_waited_is_not_the_holder(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        started = _state(process.pid)[1]
        holder = dataclasses.replace(Holder.here(), pid=process.pid, started=started)
        assert holder.lives_here()
        process.kill()
        while _state(process.pid)[0] != "Z":
            pass
        assert holder.lives_here() is False
        write_owner(tmp_path, holder)
        take(tmp_path)


def test_what_an_owner_was_removing_is_told_by_its_name() -> None:
    owner = make_attempt(f"{OWNER_PREFIX}00000001")
    assert is_owner_attempt(owner)
    assert not is_owner_attempt(make_attempt("model.safetensors"))
    assert not is_owner_attempt(f".{OWNER_PREFIX}00000001")


@pytest.mark.parametrize("lives", [True, False])
def test_the_lock_of_an_older_version_is_its_holders_too(tmp_path: Path, lives: bool) -> None:
    parent = os.getppid()
    holder = (
        dataclasses.replace(Holder.here(), pid=parent, started=holders._state(parent)[1]) if lives else dead()
    )
    lock = tmp_path / ".distconv.lock"
    lock.write_text(json.dumps(dataclasses.asdict(holder)))
    assert ownership.is_owned(STORAGE.list_names(str(tmp_path)))
    if not lives:
        take(tmp_path)
        return
    with pytest.raises(OutputError, match=f"already writes into it .*process {parent} on "):
        take(tmp_path)
    assert list(tmp_path.iterdir()) == [lock]


def test_a_file_of_this_process_that_could_not_be_removed_is_nobodys(tmp_path: Path) -> None:
    with owned(STORAGE, str(tmp_path), print) as mine:
        kept = Path(mine.path).read_bytes()
    Path(mine.path).write_bytes(kept)
    take(tmp_path)


def test_a_silent_holder_elsewhere_is_watched_and_then_taken_for_dead(tmp_path: Path) -> None:
    write_owner(tmp_path, elsewhere())
    told: list[str] = []
    before = time.monotonic()
    take(tmp_path, told)
    assert time.monotonic() - before >= 1.0
    assert told == [
        f"{owner_path(tmp_path)}: a conversion on elsewhere may still run; watching until it has been silent for 1 s"
    ]


def test_who_comes_while_another_is_watched_is_watched_from_the_beginning(tmp_path: Path) -> None:
    write_owner(tmp_path, elsewhere())
    told: list[str] = []

    def tell(words: str) -> None:
        told.append(words)
        if len(told) == 1:
            write_owner(tmp_path, elsewhere())

    with owned(STORAGE, str(tmp_path), tell):
        assert len(told) == 2


@pytest.fixture
def beating(tmp_path: Path) -> Iterator[Callable[..., None]]:
    """Give a function that lets a holder beat in a folder, until the test ends."""
    ended = threading.Event()
    threads: list[threading.Thread] = []

    def beat(holder: Holder, generation: int = 1) -> None:
        path = write_owner(tmp_path, holder, generation)

        def run() -> None:
            for number in itertools.count(1):
                if ended.wait(0.1) or not STORAGE.refresh(
                    str(path), holder.token.encode(), holder.to_bytes(number)
                ):
                    return

        threads.append(threading.Thread(target=run))
        threads[-1].start()

    yield beat
    ended.set()
    for thread in threads:
        thread.join()


@pytest.mark.parametrize("silent", [0, 1])
def test_a_beating_holder_elsewhere_is_left_alone(
    tmp_path: Path, beating: Callable[..., None], monkeypatch: pytest.MonkeyPatch, silent: int
) -> None:
    monkeypatch.setattr(acquisition, "PATIENCE_SECONDS", 60.0)
    holder = elsewhere()
    if silent:
        write_owner(tmp_path, elsewhere())
    beating(holder, 1 + silent)
    with pytest.raises(OutputError, match=f"^{tmp_path}: .* on elsewhere"):
        take(tmp_path)
    assert Holder.parse(owner_path(tmp_path, 1 + silent).read_bytes()) == holder


class OldStorage(LocalStorage):
    """A host that sees for a while what an owner's file once was."""

    def __init__(self, content: bytes, reads: int) -> None:
        object.__setattr__(self, "left", [content] * reads)

    def read_now(self, path: str, limit_bytes: int) -> bytes:
        """Give what was, or what is."""
        return self.left.pop() if self.left else LocalStorage.read_now(self, path, limit_bytes)  # type: ignore[attr-defined]


def test_one_old_beat_that_is_seen_late_is_no_life(tmp_path: Path) -> None:
    holder = elsewhere()
    write_owner(tmp_path, holder, beat=7)
    with owned(OldStorage(holder.to_bytes(6), 2), str(tmp_path), print) as mine:
        mine.check(STORAGE)


@pytest.mark.first(2)
@pytest.mark.parametrize("content", [b"", b"[]", b"{}", b'{"host": 1}', b"\0\0\0", b"[" * 4000])
def test_a_file_that_says_nothing_is_watched_too(tmp_path: Path, content: bytes) -> None:
    owner_path(tmp_path).write_bytes(content)
    told: list[str] = []
    take(tmp_path, told)
    assert told == [
        f"{owner_path(tmp_path)}: a conversion may still run; watching until it has been silent for 1 s"
    ]


@pytest.mark.first(1)
@pytest.mark.timeout(60)
@pytest.mark.parametrize("kind", ["link", "pipe"])
def test_what_is_no_file_is_neither_followed_nor_waited_for(tmp_path: Path, kind: str) -> None:
    folder, other = tmp_path / "folder", tmp_path / "other"
    folder.mkdir()
    other.write_text("somebody's")
    owner_path(folder).symlink_to(other) if kind == "link" else os.mkfifo(owner_path(folder))
    take(folder)
    assert other.read_text() == "somebody's"


@pytest.mark.parametrize("field", ["host", "machine", "started", "token", "pid"])
@pytest.mark.parametrize("value", [None, True, [], {}, -1, 0, 1 << 40, 1.0, ""])
def test_a_holder_of_odd_values_is_none(field: str, value: object) -> None:
    changed = dataclasses.replace(Holder.here(), **{field: value})  # type: ignore[arg-type]
    if isinstance(value, str) and field in {"host", "machine", "started"}:
        assert Holder.parse(changed.to_bytes(0)) == changed
    else:
        assert Holder.parse(changed.to_bytes(0)) is None


def test_a_process_of_another_user_that_proc_hides_is_watched(monkeypatch: pytest.MonkeyPatch) -> None:
    here = Holder.here()
    other = dataclasses.replace(here, pid=os.getppid())
    monkeypatch.setattr("distconv.output.holders.Path.read_text", hide(f"/proc/{other.pid}/stat"))
    assert other.lives_here() is None


def hide(path: str) -> Callable[..., str]:
    """Give a read_text that finds no such file."""
    read_text = Path.read_text

    def read(self: Path, *arguments: str, **options: str) -> str:
        if str(self) == path:
            raise FileNotFoundError(path)
        return read_text(self, *arguments, **options)

    return read


@dataclasses.dataclass
class Lost:
    """An owner that was robbed, and the words for it."""

    mine: Ownership
    words: str


@pytest.fixture(params=["taken over", "taken over and given back", "removed", "folder removed"])
def lost(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Lost]:
    """Give a holder that does not know that it has lost the folder."""
    folder = tmp_path / "folder"
    folder.mkdir()
    held = owned(STORAGE, str(folder), print)
    mine = held.__enter__()
    other = dataclasses.replace(Holder.here(), host="elsewhere")
    Path(mine.path).unlink()
    words = "took it over and has ended, or .* was removed"
    if request.param == "folder removed":
        folder.rmdir()
    if request.param == "taken over":
        write_owner(folder, other, generation=2)
        words = rf"another conversion \(process {other.pid} on elsewhere\) took it over"
    if request.param == "taken over and given back":
        # Whoever comes then has the same file's name, and not its content.
        write_owner(folder, other)
        words = "took it over"
    yield Lost(mine, words)
    before = sorted(folder.iterdir()) if folder.exists() else []
    held.__exit__(None, None, None)
    assert (sorted(folder.iterdir()) if folder.exists() else []) == before


def test_who_lost_a_folder_is_told_so_and_writes_nothing(lost: Lost) -> None:
    folder = Path(lost.mine.folder)
    before = {path.name: path.read_bytes() for path in folder.iterdir()} if folder.exists() else {}
    time.sleep(3 * acquisition.BEAT_SECONDS)
    for attempt in (
        lambda: lost.mine.check(STORAGE),
        lambda: lost.mine.write(STORAGE, "config.json", b"{}"),
        lambda: lost.mine.remove(STORAGE, "config.json"),
        lambda: lost.mine.sweep(STORAGE, is_attempt),
    ):
        with pytest.raises(OutputError, match=lost.words):
            attempt()
    assert ({path.name: path.read_bytes() for path in folder.iterdir()} if folder.exists() else {}) == before


def test_a_beat_brings_nothing_back(tmp_path: Path) -> None:
    with owned(STORAGE, str(tmp_path), print) as mine:
        Path(mine.path).unlink()
        time.sleep(5 * acquisition.BEAT_SECONDS)
        assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("replace", [False, True])
def test_a_commit_that_was_decided_before_a_takeover_does_not_land_after_it(
    tmp_path: Path, replace: bool
) -> None:
    held = owned(STORAGE, str(tmp_path), print)
    held.__enter__()
    if replace:
        (tmp_path / "chunk").write_bytes(b"older")
    writer = STORAGE.begin(str(tmp_path / "chunk"), 5)
    writer.write_at(0, b"first")
    robbed(tmp_path)
    with owned(STORAGE, str(tmp_path), print, is_attempt) as successor:
        with pytest.raises(FileNotFoundError):
            writer.commit(replace=replace)
        successor.write(STORAGE, "chunk", b"again")
        with pytest.raises(FileNotFoundError):
            writer.commit(replace=replace)
    assert (tmp_path / "chunk").read_bytes() == b"again"


def test_a_removal_that_was_decided_before_a_takeover_does_not_happen_after_it(tmp_path: Path) -> None:
    held = owned(STORAGE, str(tmp_path), print)
    held.__enter__()
    removal = STORAGE.begin_removal(str(tmp_path / "config.json"))
    robbed(tmp_path)
    with owned(STORAGE, str(tmp_path), print, is_attempt) as successor:
        successor.write(STORAGE, "config.json", b"{}")
        with pytest.raises(FileNotFoundError):
            removal.commit()
    assert (tmp_path / "config.json").read_bytes() == b"{}"


def robbed(folder: Path) -> None:
    """Make the folder's holder look like one that is dead."""
    path = owner_path(folder)
    holder = Holder.parse(path.read_bytes())
    assert holder is not None
    path.unlink()
    # Of another token: the holder, which lives, must not beat there any more.
    write_owner(folder, dataclasses.replace(holder, pid=2**22 + 1, token="another"))


def test_a_removal_takes_the_file_alone_and_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "mark").write_text("x")
    (tmp_path / "link").symlink_to("folder")
    with owned(STORAGE, str(tmp_path), print) as mine:
        for name in ("mark", "link", "not there"):
            mine.remove(STORAGE, name)
        with pytest.raises(IsADirectoryError):
            mine.remove(STORAGE, "folder")
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


@pytest.mark.parametrize("holder", [dead, elsewhere])
def test_only_one_of_many_takes_a_dead_holders_folder(tmp_path: Path, holder: Callable[[], Holder]) -> None:
    write_owner(tmp_path, holder())
    start, over, winners, losers = threading.Barrier(8), threading.Event(), [], []

    def run() -> None:
        start.wait()
        try:
            with owned(STORAGE, str(tmp_path), print):
                winners.append(1)
                over.wait(60)
        except OutputError:
            losers.append(1)
            if len(losers) == 7:
                over.set()

    threads = [threading.Thread(target=run) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(winners), len(losers)) == (1, 7)
    assert list(tmp_path.iterdir()) == []
