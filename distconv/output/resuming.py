"""Whether a conversion may have OUTPUT, and go on in it with what an earlier run made."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import cache, partial
from typing import Protocol

from distconv.errors import OutputError
from distconv.moving.digests import ChunkDigests
from distconv.moving.existing import find_finished
from distconv.moving.progress import Progress
from distconv.output.acquisition import owned
from distconv.output.descriptions import describe_difference
from distconv.output.finalise import clear_folder, clear_marks
from distconv.output.folder import Folder
from distconv.output.identity import Source
from distconv.output.loading import find_legal, find_replaced
from distconv.output.ownership import Ownership
from distconv.output.room import refuse_full
from distconv.output.state import Found, RecordedDigests, find_attempts, look_at_output
from distconv.output.targets import Target, is_partial
from distconv.planning.plan import Plan
from distconv.storage.base import Storage

_SMALL_FILES_BYTES = 32 << 20
"""Room for what stands beside the chunks: the largest tokenizer takes half of it."""


class FindObstacles(Protocol):
    """Tells of what must be moved away, see ``output.loading.find_obstacles``."""

    def __call__(self, *, overwrite: bool) -> Iterable[str]:
        """Tell of all that is not removed."""


@contextmanager
def take_output(
    storage: Storage, output: str, source: Source, plan: Plan, identity: dict[str, object], progress: Progress,
    find_obstacles: FindObstacles, target: Target, *, overwrite: bool, ignore_free_space: bool,
) -> Iterator[Folder]:  # fmt: skip
    """Take OUTPUT for a conversion: owned, cleared of what is not wanted, with room for the rest.

    With ``ignore_free_space`` room is found, or not, while writing. OutputError, with nothing touched, where it holds something else, has too little room, or
    is another conversion's that still runs.
    """
    check = partial(
        _check, storage, output, plan, identity, find_obstacles, target,
        overwrite=overwrite, ignore_free_space=ignore_free_space,
    )  # fmt: skip
    check()
    storage.make_folder(output)
    # Read once the folder is this one's: the journal is nobody else's to write then.
    attempts = cache(lambda: frozenset[str]() if overwrite else find_attempts(storage, output, identity))
    is_ours = partial(_is_dropped, attempts)
    with owned(storage, output, progress.note, is_ours) as owner:
        try:
            found = check()
            if overwrite:
                clear_folder(storage, owner, find_legal(storage, output), target)
                folder = Folder(storage, owner, source, plan, identity, {}, {}, {}, {})
            else:
                # What misses a chunk must not look whole while it is mended.
                clear_marks(storage, owner, (target,))
                folder = _go_on(storage, owner, source, plan, identity, found)
        except BaseException:
            # A signal may raise where something was begun that nobody knows yet.
            with suppress(OSError, OutputError):
                owner.sweep(storage, is_ours)
            raise
        try:
            # What a successor makes of it is not what this one planned.
            with owner.explaining(storage):
                yield folder
        finally:
            folder.close()


def _is_dropped(attempts: Callable[[], frozenset[str]], name: str) -> bool:
    """Whether a name is that of a file that was begun, and that nobody goes on with."""
    return is_partial(name) and name not in attempts()


def _go_on(
    storage: Storage, owner: Ownership, source: Source, plan: Plan, identity: dict[str, object], found: Found
) -> Folder:
    """Begin with what an earlier run made."""
    versions = found.find_vouched(storage, owner.folder)
    recorded = _find_recorded(storage, owner.folder, found.digests, plan, versions)
    md5s = found.list_md5s(recorded)
    return Folder(storage, owner, source, plan, identity, recorded, md5s, found.unfinished, versions)


def _find_recorded(
    storage: Storage,
    output: str,
    digests: Mapping[str, RecordedDigests],
    plan: Plan,
    versions: Mapping[str, str],
) -> dict[str, ChunkDigests]:
    """Give the digests of chunks that are recorded and there.

    What is there is compared with them later, unless a version vouches for it.
    """
    recorded = {
        chunk.name: found
        for chunk in plan.files
        if (record := digests.get(chunk.name)) is not None
        and (found := record.in_order(tensor.name for tensor in chunk.tensors)) is not None
    }
    files = [chunk for chunk in plan.files if chunk.name in recorded]
    there = find_finished(storage, output, files, versions) if files else frozenset()
    return {name: found for name, found in recorded.items() if name in there}


def _check(
    storage: Storage,
    output: str,
    plan: Plan,
    identity: dict[str, object],
    find_obstacles: FindObstacles,
    target: Target,
    *,
    overwrite: bool,
    ignore_free_space: bool,
) -> Found:
    found = look_at_output(storage, output)
    if found.entries and not overwrite and found.conversion != identity:
        lasting = tuple(find_obstacles(overwrite=True))
        way_out = (
            "move away what `overwrite=True` does not replace"
            if lasting
            else "`overwrite=True` to replace the model in it"
        )
        words = f"{output}: holds {describe_difference(found, identity)}; give an empty folder, or {way_out}"
        raise OutputError("\n".join((words, *lasting)))
    obstacles = tuple(find_obstacles(overwrite=overwrite))
    if obstacles:
        raise OutputError("\n".join(obstacles))
    free_bytes = None if ignore_free_space else storage.free_bytes(output)
    if free_bytes is not None:
        _look_for_room(storage, output, plan, found, free_bytes, target, overwrite=overwrite)
    return found


def _look_for_room(
    storage: Storage,
    output: str,
    plan: Plan,
    found: Found,
    free_bytes: int,
    target: Target,
    *,
    overwrite: bool,
) -> None:
    there = frozenset() if overwrite else find_finished(storage, output, plan.files)
    needed_bytes = sum(chunk.size_bytes for chunk in plan.files if chunk.name not in there)
    replaced = find_replaced(storage, output, target) if overwrite else ()
    removed = [
        size for name, size in found.entries.items() if any(old.is_model_file(name) for old in replaced)
    ]
    free_bytes += found.left_bytes + sum(removed)
    refuse_full(output, needed_bytes, free_bytes, _SMALL_FILES_BYTES)
