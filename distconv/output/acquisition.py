"""How a folder becomes a conversion's, and how long it stays that."""

import contextlib
import posixpath
import random
import threading
import time
from collections.abc import Callable, Iterator, Mapping

from distconv.errors import OutputError
from distconv.output.holders import LIVING, Holder
from distconv.output.ownership import (
    OWNER_PREFIX,
    IsOurs,
    Ownership,
    is_owner_attempt,
    read_owner,
    read_owners,
)
from distconv.storage.base import Storage, join

BEAT_SECONDS = 5.0
PATIENCE_SECONDS = 30.0
"""Without a beat for so long a holder elsewhere is taken for dead: several beats, on a slow share."""
_WATCH_SECONDS = 0.5
_BEATS = 2
"""So many are seen of who lives: one may be an old one that this host had not seen yet."""
_PAUSE_SECONDS = 0.2
_MOST_SWEEPS = 16
"""Who claims sweeps once; a store that loses what is begun does so for ever."""


@contextlib.contextmanager
def owned(
    storage: Storage, folder: str, tell: Callable[[str], None], is_ours: IsOurs = is_owner_attempt
) -> Iterator[Ownership]:
    """Own the folder for the block; OutputError where a conversion that lives has it, or nobody can own one there.

    Nothing of ours that an earlier owner had begun to write or to remove is there any more.
    """
    me = Holder.here()
    LIVING.add(me.token)
    try:
        ownership = _acquire(storage, folder, me, tell, is_ours)
        _probe(storage, ownership)
        ended = threading.Event()
        # A daemon, and nobody waits for it: it beats in no other file than its own.
        threading.Thread(target=_beat, args=(storage, ownership, me, ended), daemon=True).start()
        try:
            yield ownership
        finally:
            ended.set()
            _release(storage, ownership)
    finally:
        LIVING.discard(me.token)


def _probe(storage: Storage, ownership: Ownership) -> None:
    """See that nobody else can have got the folder as well; after others' attempts were dropped, none is in between."""
    try:
        # Who was held up meanwhile has lost it to somebody who drops what is tried here.
        with ownership.explaining(storage):
            storage.probe(ownership.folder)
    except BaseException:
        _release(storage, ownership)
        raise


def _beat(storage: Storage, ownership: Ownership, me: Holder, ended: threading.Event) -> None:
    beat = 0
    while not ended.wait(BEAT_SECONDS):
        beat += 1
        # A beat that fails is missed; the next one may do.
        with contextlib.suppress(OSError):
            if not storage.refresh(ownership.path, me.token.encode(), me.to_bytes(beat)):
                return


def _acquire(
    storage: Storage, folder: str, me: Holder, tell: Callable[[str], None], is_ours: IsOurs
) -> Ownership:
    while True:
        dead = _find_dead(storage, folder, tell)
        ownership = None if dead is None else _claim(storage, folder, me, dead, is_ours)
        if ownership is not None:
            return ownership
        # Others try as well; not all in step.
        time.sleep(random.uniform(0, _PAUSE_SECONDS))  # noqa: S311  no secret


def _claim(
    storage: Storage, folder: str, me: Holder, dead: Mapping[str, bytes], is_ours: IsOurs
) -> Ownership | None:
    """Take the place of the dead; None where somebody else came in between."""
    generation = 1 + max(map(_generation, dead), default=0)
    claim = Ownership(folder, join(folder, f"{OWNER_PREFIX}{generation:08}"), me.token)
    if not storage.create(claim.path, me.to_bytes(0)) and not claim.holds(storage):
        return None
    try:
        others = read_owners(storage, folder)
        others.pop(claim.path, None)
        # Who was judged may have gone long ago, and another have come and gone, or come and stayed.
        if others == dead:
            for path in dead:
                claim.remove(storage, posixpath.basename(path))
            claim.sweep(storage, is_ours)
            # Who is held up meanwhile has not begun to beat, and is taken for dead.
            if claim.holds(storage):
                return claim
    except FileNotFoundError:
        # Of two who claim, one has swept what the other had begun to remove; both begin anew.
        pass
    except BaseException:
        _release(storage, claim)
        raise
    _release(storage, claim)
    return None


def _release(storage: Storage, ownership: Ownership) -> None:
    """Remove the owner's file if it is still this one's."""
    for _ in range(_MOST_SWEEPS):
        # Where it fails, the process id tells the next one that nobody lives here any more.
        with contextlib.suppress(OSError, OutputError):
            try:
                ownership.remove(storage, posixpath.basename(ownership.path))
            except FileNotFoundError:
                # Of two who claim, the one that gets the folder sweeps; the file is still this one's.
                continue
        return


def _find_dead(storage: Storage, folder: str, tell: Callable[[str], None]) -> dict[str, bytes] | None:
    """Give the files of all who had the folder and are dead; None where that has changed meanwhile.

    OutputError where one lives.
    """
    found = read_owners(storage, folder)
    silent: dict[str, bytes] = {}
    for path, content in found.items():
        holder = Holder.parse(content)
        lives = None if holder is None else holder.lives_here()
        if lives:
            raise _refusal(folder, content)
        if lives is None:
            silent[path] = content
    if silent:
        who = next((f"on {holder.host} " for holder in map(Holder.parse, silent.values()) if holder), "")
        tell(
            f"{next(iter(silent))}: a conversion {who}may still run; "
            f"watching until it has been silent for {PATIENCE_SECONDS:.0f} s"
        )
        if not _stay_silent(storage, folder, silent):
            return None
    return found | silent


def _stay_silent(storage: Storage, folder: str, silent: dict[str, bytes]) -> bool:
    """Watch those who cannot be asked, noting what they write; False where one has gone or another come.

    OutputError where one beats.
    """
    beats = dict.fromkeys(silent, 0)
    since = time.monotonic()
    while True:
        time.sleep(_WATCH_SECONDS)
        # Before it is looked, and since after it: who is stopped in between has seen nothing meanwhile.
        now = time.monotonic()
        for path, before in silent.items():
            content = read_owner(storage, path)
            if content == before:
                continue
            if content is None or not _is_same(content, before):
                return False
            silent[path], since = content, time.monotonic()
            beats[path] += 1
            if beats[path] == _BEATS:
                raise _refusal(folder, content)
        if now - since >= PATIENCE_SECONDS:
            return True


def _is_same(content: bytes, before: bytes) -> bool:
    holder = Holder.parse(content)
    return holder is not None and holder == Holder.parse(before)


def _refusal(folder: str, content: bytes) -> OutputError:
    return OutputError(
        f"{folder}: distconv already writes into it ({Holder.parse(content)}); "
        "wait for its end or give another folder"
    )


def _generation(path: str) -> int:
    number = path.rpartition(".")[2]
    return int(number) if number.isdecimal() else 0
