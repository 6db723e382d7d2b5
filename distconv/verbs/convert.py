"""Convert a checkpoint: read headers, plan, move, check, and set the mark last."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

from distconv.errors import ConversionError, InputError
from distconv.humanize import format_count
from distconv.layout.units import Unit
from distconv.moving.executor import Cluster, forget
from distconv.moving.existing import find_finished
from distconv.moving.job import Job, Preconditions, Receipt
from distconv.moving.progress import Progress, Stopwatch
from distconv.moving.progress_default import choose_default_progress
from distconv.moving.running import run_units
from distconv.moving.shared import SharedFiles
from distconv.moving.trace import RunCharts, sum_requests, summarise
from distconv.output.checklist import make_output_checklist
from distconv.output.folder import Folder
from distconv.output.identity import Source, make_identity, refuse_overlap
from distconv.output.loading import find_obstacles
from distconv.output.resuming import take_output
from distconv.output.state import is_recorded
from distconv.planning.plan import Plan
from distconv.storage.base import PathLike, Storage, join
from distconv.storage.places import read_output, read_place
from distconv.storage.requests import count_requests
from distconv.verbs.conversion_report import ConversionReport
from distconv.verbs.finished import compare_all, examine
from distconv.verbs.options import Options, open_storage, parse_size_or_none, read_place_or_none
from distconv.verbs.prepared import Prepared
from distconv.verbs.running import choose_asking_cluster, choose_cluster, choose_device, name_for_workers
from distconv.verbs.sources import find_input, list_input, prepare
from distconv.version import VERSION


def convert(
    source: PathLike, output: PathLike, *, to: str = "transformers", shards: int | None = None,
    dtype: str = "auto", max_shard_size: int | str | None = None, device: str = "auto",
    workers: int | None = None, address: str | None = None, family: str | None = None,
    instruct: bool = False, tokenizer: PathLike | None = None, params: PathLike | None = None,
    like: PathLike | None = None, dialect: str | None = None, fill_from_like: bool = False,
    check: bool = False, verify: bool = False, overwrite: bool = False, ignore_free_space: bool = False,
    gpus_per_worker: float = 1.0, worker_resources: Mapping[str, float] | None = None,
    trace: PathLike | None = None, report: PathLike | None = None, endpoint_url: str | None = None,
    progress: Progress | None = None,
) -> ConversionReport:  # fmt: skip
    """Convert the checkpoint in ``source`` into a folder ``output``; the same call again goes on where it stopped.

    ``to`` is "transformers", or "meta" with so many ``shards``. ``dtype`` is "auto" (as stored), "float16", "bfloat16"
    or "float32"; ``max_shard_size`` the most bytes of tensors in a file, as 5_000_000_000 or "5GB". What files cannot
    tell: ``family``, as "llama-3.2"; ``instruct``, a chat model; ``tokenizer`` and ``params``, files that lie elsewhere.
    For a trainer's checkpoint: ``like``, the Transformers folder of the model that was trained, ``dialect``, how tensors
    are named, ``fill_from_like``, whether those that it lacks come from there. ``check`` compares INPUT with its
    checksums first, ``verify`` every tensor with INPUT last; ``overwrite`` replaces the model in ``output``.
    OUTPUT's free space is compared with what will be written unless ``ignore_free_space``, for file systems that compress.

    Runs here on ``device`` ("auto", "cpu", "cuda"), or, with ``workers``, ``address`` or several GPUs, on Ray, where a
    worker takes ``gpus_per_worker`` and ``worker_resources``. ``trace`` is a file for a Chrome trace, ``report`` for a
    PNG; all others may be URLs, ``endpoint_url`` that of an S3 service. ``progress`` is told how far along it is.
    Raises UsageError, InputError, OutputError, ConversionError, and OSError for what the machine refuses.
    """
    options = Options(
        source=read_place(source), output=read_output(output), to=to, shards=shards, dtype=dtype,
        max_shard_size=parse_size_or_none(max_shard_size), device=device, family=family, instruct=instruct,
        tokenizer=read_place_or_none(tokenizer),
        params=read_place_or_none(params),
        like=read_place_or_none(like), dialect=dialect, fill_from_like=fill_from_like,
        check=check, verify=verify, overwrite=overwrite, ignore_free_space=ignore_free_space, trace=trace,
        report=report, endpoint_url=endpoint_url, cluster=Cluster(address, workers, gpus_per_worker, worker_resources or {}),
    )  # fmt: skip
    return run(options, progress or choose_default_progress())


def run(options: Options, progress: Progress) -> ConversionReport:
    """Convert as ``convert`` does."""
    options = name_for_workers(replace(options, device=choose_device(options)))
    watch, before = Stopwatch(progress), count_requests()
    charts = RunCharts(options.output, options.trace, options.report)
    storage = open_storage(options)
    found = find_input(storage, options)
    files = list_input(storage, found, options)
    with Source(storage, files) as source:
        storage = source.pinned
        if options.check:
            # What is compared is what is converted.
            _check(options, watch)
        started = time.monotonic()
        refuse_overlap(storage, files, options.output)
        prepared = prepare(storage, source, found, options, partial(_ask, source, options, watch))
        for note in prepared.notes:
            watch.note(f"note: {note}")
        report, receipts = _convert(storage, source, options, prepared, watch, started)
        count = format_count(len(prepared.plan.files), prepared.target.noun)
        charts.write(storage, receipts, f"{prepared.subject.title}, {count}")
        return replace(report, requests=sum_requests(receipts, before))


def _ask(source: Source, options: Options, watch: Stopwatch, questions: Sequence[Unit]) -> Sequence[Receipt]:
    """Have questions answered by whoever is close to INPUT, before anything is known of OUTPUT."""
    job = Job(source.pinned, options.output, options.device, preconditions=Preconditions(source.sizes))
    return run_units(job, questions, choose_asking_cluster(options), watch, forget)


@dataclass(frozen=True, slots=True)
class _Moved:
    """What was done, and when, in seconds of one clock: tensors are moved, and then digests made of whole files."""

    receipts: tuple[Receipt, ...]
    begun: float
    first: float | None
    moved: float
    ended: float


def _convert(
    storage: Storage, source: Source, options: Options, prepared: Prepared, watch: Stopwatch, started: float
) -> tuple[ConversionReport, tuple[Receipt, ...]]:
    """Make what is planned, unless it is there already."""
    identity = make_identity(
        prepared.source, prepared.subject, prepared.plan, VERSION, prepared.target, prepared.shards
    )
    examined, damaged = None, frozenset[str]()
    if not options.overwrite and is_recorded(storage, options.output, identity):
        examined, damaged = examine(storage, options.output, prepared, watch, verify=options.verify)
    planned = time.monotonic()
    moved = _Moved((), planned, None, planned, planned)
    if examined is None:
        moved = _make(storage, source, options, prepared, identity, damaged, watch)
    seconds = _Seconds(
        planned - started, moved.begun - planned, None if moved.first is None else moved.first - started
    )
    return _make_report(options, prepared, moved, examined, seconds), moved.receipts


@dataclass(frozen=True, slots=True)
class _Seconds:
    """How long it took until bytes moved."""

    planning: float
    starting: float
    to_first_byte: float | None


def _make_report(
    options: Options, prepared: Prepared, moved: _Moved, examined: str | None, seconds: _Seconds
) -> ConversionReport:
    plan, receipts = prepared.plan, moved.receipts
    whole, parts = _count_kept(plan, receipts)
    return ConversionReport(
        output=options.output,
        family=prepared.subject.title,
        dtype=plan.dtype.name,
        noun=prepared.target.noun,
        chunks=len(plan.files),
        kept_chunks=len(plan.files) if examined is not None else whole,
        kept_parts=parts,
        bytes_read=sum(receipt.bytes_read for receipt in receipts),
        bytes_written=sum(receipt.bytes_written for receipt in receipts),
        became_infinite=sum(receipt.became_infinite for receipt in receipts),
        summary=summarise(receipts),
        seconds_planning=seconds.planning,
        seconds_starting=seconds.starting,
        seconds_to_first_byte=seconds.to_first_byte,
        seconds_moving=moved.moved - moved.begun,
        seconds_checksums=moved.ended - moved.moved,
        seconds_finishing=time.monotonic() - moved.ended,
        already_done=examined is not None,
        examined=examined,
        verified=options.verify,
        notes=prepared.notes,
    )


def _count_kept(plan: Plan, receipts: Sequence[Receipt]) -> tuple[int, int]:
    """Count what an earlier run had made: whole files, and parts of unfinished ones."""
    whole = {file.name for file in plan.files}.intersection(
        receipt.chunk for receipt in receipts if receipt.kept
    )
    return len(whole), sum(part.kept for receipt in receipts for part in receipt.parts)


def _make(
    storage: Storage,
    source: Source,
    options: Options,
    prepared: Prepared,
    identity: dict[str, object],
    damaged: frozenset[str],
    watch: Stopwatch,
) -> _Moved:
    """Take OUTPUT, move all that is not there yet, and make the folder whole."""
    plan, output = prepared.plan, options.output
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
        receipts = _move_all(storage, source, options, prepared, folder, watch)
        _check_chunks(storage, output, plan, folder.versions)
        begun = watch.begun or time.monotonic()
        moved = _Moved(receipts, begun, watch.first, watch.moved or begun, watch.ended or time.monotonic())
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
    storage: Storage, source: Source, options: Options, prepared: Prepared, folder: Folder, watch: Stopwatch
) -> tuple[Receipt, ...]:
    """Write all files; those that are too large for one worker, or that take turns in INPUT, in parts."""
    plan = prepared.plan
    # One worker looks at all of a file that is there.
    units = plan.list_units(
        folder.recorded,
        lambda file: storage.find_least_run(join(options.output, file.name), file.size_bytes),
        storage.find_most_written(options.output),
    )
    checksums = plan.list_checksums(units, folder.md5s, md5s=prepared.target.checklist is not None)
    digesting = {unit.name: unit for unit in checksums}
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

        return run_units(job, (*units, *checksums), choose_cluster(options), watch, hear)


def _check_chunks(storage: Storage, output: str, plan: Plan, versions: Mapping[str, str]) -> None:
    there = find_finished(storage, output, plan.files, versions)
    if wrong := [join(output, file.name) for file in plan.files if file.name not in there]:
        raise ConversionError(f"{', '.join(wrong)}: not of the planned header and size after moving")


def _check(options: Options, progress: Progress) -> None:
    from distconv.verbs.check import check_input

    progress.note("comparing INPUT's files with their checksums")
    report = check_input(replace(options, output=""), progress)
    for note in report.notes:
        progress.note(f"note: {note}")
    if report.findings:
        raise InputError.of(report.findings)
