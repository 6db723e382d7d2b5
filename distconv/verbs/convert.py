"""Convert a checkpoint: read headers, plan, have made what is not there yet, and say what was done."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial

from distconv.errors import InputError
from distconv.humanize import format_count
from distconv.layout.units import Unit
from distconv.moving.executor import Cluster, forget
from distconv.moving.job import Job, Preconditions, Receipt
from distconv.moving.progress import Progress, Stopwatch
from distconv.moving.progress_default import take_progress
from distconv.moving.running import run_units
from distconv.moving.trace import RunCharts, sum_requests, summarise
from distconv.output.identity import Source, make_identity, refuse_overlap
from distconv.output.state import is_recorded
from distconv.planning.plan import Plan
from distconv.storage.base import PathLike
from distconv.storage.places import read_output, read_place
from distconv.storage.requests import count_requests
from distconv.verbs.checkable import has_checksums
from distconv.verbs.conversion_report import ConversionReport
from distconv.verbs.finished import examine
from distconv.verbs.making import Moved, make_output
from distconv.verbs.options import Options, open_storage, parse_size_or_none, read_place_or_none
from distconv.verbs.prepared import Prepared
from distconv.verbs.running import choose_asking_cluster, choose_device, name_for_workers
from distconv.verbs.sources import find_input, list_input, prepare
from distconv.version import VERSION


def convert(
    source: PathLike, output: PathLike, *, to: str = "transformers", shards: int | None = None,
    dtype: str = "auto", max_shard_size: int | str | None = None, device: str = "auto",
    workers: int | None = None, address: str | None = None, family: str | None = None,
    instruct: bool | None = None, tokenizer: PathLike | None = None, params: PathLike | None = None,
    like: PathLike | None = None, dialect: str | None = None, fill_from_like: bool = False,
    check: bool = False, verify: bool = False, overwrite: bool = False, ignore_free_space: bool = False,
    gpus_per_worker: float = 1.0, worker_resources: Mapping[str, float] | None = None,
    trace: PathLike | None = None, report: PathLike | None = None, endpoint_url: str | None = None,
    progress: Progress | None = None,
) -> ConversionReport:  # fmt: skip
    """Convert the checkpoint in ``source`` into a folder ``output``; the same call again goes on where it stopped.

    Here and in messages INPUT is ``source``, and OUTPUT is ``output``.

    ``to`` is "transformers", or "meta" with so many ``shards``. ``dtype`` is "auto" (as stored), "float16", "bfloat16"
    or "float32"; ``max_shard_size`` the most bytes of tensors in a file, as 5_000_000_000 or "5GB". What files cannot
    tell: ``family``, as "llama-3.2"; ``instruct``, a chat model or, if False, none; ``tokenizer`` and ``params``, files
    that lie elsewhere. For a trainer's checkpoint: ``like``, the Transformers folder of the model that was trained, ``dialect``, how tensors
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
    return run(options, take_progress(progress))


def run(options: Options, progress: Progress) -> ConversionReport:
    """Convert as ``convert`` does."""
    given = options.output
    options = name_for_workers(replace(options, device=choose_device(options)))
    watch, before = Stopwatch(progress), count_requests()
    charts = RunCharts(options.output, options.trace, options.report)
    storage = open_storage(options)
    found = find_input(storage, options)
    files = list_input(found)
    with Source(storage, files) as source:
        storage = source.pinned
        if options.check:
            # What is compared is what is converted.
            _check(options, watch)
        started = time.monotonic()
        refuse_overlap(storage, files, options.output)
        prepared = prepare(storage, found, options, source, partial(_ask, source, options, watch))
        for note in prepared.notes:
            watch.note(f"note: {note}")
        unchecked = not options.check and has_checksums(storage, found, prepared.plan.tensors)
        report, receipts = _convert(source, options, prepared, watch, started)
        count = format_count(len(prepared.plan.files), prepared.target.noun)
        charts.write(storage, receipts, f"{prepared.subject.title}, {count}")
        return replace(report, output=given, requests=sum_requests(receipts, before), unchecked=unchecked)


def _ask(source: Source, options: Options, watch: Stopwatch, questions: Sequence[Unit]) -> Sequence[Receipt]:
    """Have questions answered by whoever is close to INPUT, before anything is known of OUTPUT."""
    job = Job(source.pinned, options.output, options.device, preconditions=Preconditions(source.sizes))
    return run_units(job, questions, choose_asking_cluster(options), watch, forget)


def _convert(
    source: Source, options: Options, prepared: Prepared, watch: Stopwatch, started: float
) -> tuple[ConversionReport, tuple[Receipt, ...]]:
    """Make what is planned, unless it is there already."""
    identity = make_identity(
        prepared.source, prepared.subject, prepared.plan, VERSION, prepared.target, prepared.shards
    )
    examined, damaged = None, frozenset[str]()
    if not options.overwrite and is_recorded(source.pinned, options.output, identity):
        examined, damaged = examine(source.pinned, options.output, prepared, watch, verify=options.verify)
    planned = time.monotonic()
    moved = Moved((), planned, None, planned, planned)
    if examined is None:
        moved = make_output(source, options, prepared, identity, damaged, watch)
    return _make_report(options, prepared, moved, examined, started, planned), moved.receipts


def _make_report(
    options: Options, prepared: Prepared, moved: Moved, examined: str | None, started: float, planned: float
) -> ConversionReport:
    """Say what was done; ``started`` and ``planned`` are on the clock of ``moved``."""
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
        seconds_planning=planned - started,
        seconds_starting=moved.begun - planned,
        seconds_to_first_byte=None if moved.first is None else moved.first - started,
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


def _check(options: Options, progress: Progress) -> None:
    from distconv.verbs.check import check_input

    progress.note("comparing INPUT's files with their checksums")
    report = check_input(replace(options, output=""), progress)
    for note in report.notes:
        progress.note(f"note: {note}")
    if report.findings:
        raise InputError.of(report.findings)
    for line in report.lines():
        progress.note(line)
