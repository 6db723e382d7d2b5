"""Makes OUTPUT as it is planned: moves what is not there yet, checks it, and sets the mark last."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from distconv.errors import ConversionError
from distconv.moving.existing import find_finished
from distconv.moving.job import Job, Preconditions, Receipt
from distconv.moving.progress import OutputProgress, Stopwatch
from distconv.moving.running import run_units
from distconv.moving.shared import SharedFiles
from distconv.output.checklist import make_output_checklist
from distconv.output.folder import Folder
from distconv.output.identity import Source
from distconv.output.loading import find_obstacles
from distconv.output.resuming import take_output
from distconv.planning.plan import Plan
from distconv.storage.base import Storage, join
from distconv.verbs.finished import compare_all
from distconv.verbs.options import Options
from distconv.verbs.prepared import Prepared
from distconv.verbs.running import choose_cluster


@dataclass(frozen=True, slots=True)
class Moved:
    """What was done, and when, in seconds of one clock: tensors are moved, and then digests made of whole files."""

    receipts: tuple[Receipt, ...]
    begun: float
    first: float | None
    moved: float
    ended: float


def make_output(
    source: Source,
    options: Options,
    prepared: Prepared,
    identity: dict[str, object],
    damaged: frozenset[str],
    watch: Stopwatch,
) -> Moved:
    """Take OUTPUT, move all that is not there yet, and make the folder whole.

    ``identity`` is what OUTPUT's records say of this conversion, ``damaged`` the files in it to be made again.
    """
    plan, output, storage = prepared.plan, options.output, source.pinned
    names = [file.name for file in plan.files]
    obstacles = partial(
        find_obstacles, storage, output, names, prepared.files, source.digests, target=prepared.target
    )
    with take_output(
        storage,
        output,
        source,
        plan,
        identity,
        watch,
        obstacles,
        prepared.target,
        overwrite=options.overwrite,
        ignore_free_space=options.ignore_free_space,
    ) as folder:
        folder.remove(damaged)
        receipts = _move_all(source, options, prepared, folder, watch)
        _check_chunks(storage, output, plan, folder.versions)
        begun = watch.begun or time.monotonic()
        moved = Moved(receipts, begun, watch.first, watch.moved or begun, watch.ended or time.monotonic())
        if options.verify:
            compare_all(storage, output, prepared, watch, folder.remove)
        if strangers := tuple(obstacles(overwrite=False)):
            raise ConversionError("\n".join(strangers))
        folder.finish(_complete(prepared, output, names, folder.md5s))
    return moved


def _complete(
    prepared: Prepared, output: str, names: Sequence[str], md5s: Mapping[str, str]
) -> Mapping[str, bytes]:
    """Add to the files beside the weights what is made of all others, before the mark."""
    if prepared.target.checklist is None:
        return prepared.files
    if changed := [join(output, name) for name in names if name not in md5s]:
        raise ConversionError(
            f"{', '.join(changed)}: made again, and not as it was recorded; run the same command again"
        )
    return {prepared.target.checklist: make_output_checklist(md5s, prepared.files), **prepared.files}


def _move_all(
    source: Source, options: Options, prepared: Prepared, folder: Folder, watch: Stopwatch
) -> tuple[Receipt, ...]:
    """Write all files; those that are too large for one worker, or that take turns in INPUT, in parts."""
    plan, storage = prepared.plan, source.pinned
    # One worker looks at all of a file that is there.
    units = plan.list_units(
        folder.recorded,
        lambda file: storage.find_least_run(join(options.output, file.name), file.size_bytes),
        storage.find_most_written(options.output),
    )
    checksums = plan.list_checksums(units, folder.md5s, md5s=prepared.target.checklist is not None)
    digesting = {unit.name: unit for unit in checksums}
    progress = OutputProgress(watch, sum(unit.size_bytes for unit in units)) if checksums else watch
    with SharedFiles(storage, options.output, plan.files, units, folder.unfinished, checksums) as shared:
        folder.go_on(shared.unfinished)
        job = Job(
            storage, options.output, options.device, recorded=folder.recorded, vouched=frozenset(folder.versions),
            attempts=shared.attempts, parts=shared.durable,
            traced=bool(options.trace or options.report), preconditions=Preconditions(source.sizes, folder.owner),
        )  # fmt: skip
        keep = shared.hear(job, folder.expect, folder.keep, folder.keep_part)

        def hear(receipt: Receipt) -> None:
            unit = digesting.get(receipt.chunk)
            if unit is None or unit.is_open:
                keep(receipt)
            if unit is None:
                watch.has_moved()
            elif receipt.md5 is not None:
                folder.keep_md5(unit.file, receipt.md5)

        return run_units(job, (*units, *checksums), choose_cluster(options), progress, hear)


def _check_chunks(storage: Storage, output: str, plan: Plan, versions: Mapping[str, str]) -> None:
    there = find_finished(storage, output, plan.files, versions)
    if wrong := [join(output, file.name) for file in plan.files if file.name not in there]:
        raise ConversionError(
            f"{', '.join(wrong)}: not of the planned header and size after moving; run the same command again"
        )
