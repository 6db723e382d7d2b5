"""Convert a checkpoint: read headers, plan, move, check, and set the mark last."""

import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

from distconv.errors import ConversionError, InputError, OutputError, UsageError
from distconv.formats.meta.files import find_files
from distconv.humanize import format_count, format_size
from distconv.moving.compare import equal_targets, target_of_view
from distconv.moving.executor import Cluster, Keep
from distconv.moving.inline import run_inline
from distconv.moving.progress import Progress, SilentProgress, Stopwatch
from distconv.moving.trace import Pictures, summarise
from distconv.moving.worker import Job, Receipt, Sight, is_finished
from distconv.output.identity import Source, make_identity
from distconv.output.loading import digest_file, find_obstacles
from distconv.output.resuming import is_recorded, taken
from distconv.planning.plan import Plan, describe_large_tensors
from distconv.storage.base import PathLike, Storage, join
from distconv.storage.local import LocalStorage
from distconv.verbs.assembly import make_files
from distconv.verbs.checkpoint import Checkpoint, decide, plan_conversion, read_checkpoint
from distconv.verbs.finished import compare_all, examine
from distconv.version import VERSION

DEVICE_CHOICES = ("auto", "cpu", "cuda")
_INLINE_LANES = 4


@dataclass(frozen=True, slots=True)
class ConversionReport:
    """What a conversion did."""

    output: str
    family: str
    dtype: str
    chunks: int
    kept_chunks: int
    bytes_read: int
    bytes_written: int
    became_infinite: int
    summary: Mapping[str, object]
    """Seconds and GB/s a stage, what each worker did, retries."""
    seconds_planning: float
    seconds_starting: float
    seconds_to_first_byte: float | None
    """From the call to the first byte written, Ray's start included; None where nothing moved."""
    seconds_moving: float
    seconds_finishing: float
    already_done: bool
    examined: str | None
    """What was looked at of an OUTPUT that was there already, for people."""
    verified: bool
    notes: tuple[str, ...]

    def to_json(self) -> dict[str, object]:
        """Give the same as plain values."""
        return {
            "output": self.output,
            "family": self.family,
            "dtype": self.dtype,
            "chunks": self.chunks,
            "kept_chunks": self.kept_chunks,
            "bytes_read": self.bytes_read,
            "bytes_written": self.bytes_written,
            "became_infinite": self.became_infinite,
            "seconds": {
                "planning": round(self.seconds_planning, 3),
                "starting": round(self.seconds_starting, 3),
                "to_first_byte": None
                if self.seconds_to_first_byte is None
                else round(self.seconds_to_first_byte, 3),
                "moving": round(self.seconds_moving, 3),
                "finishing": round(self.seconds_finishing, 3),
            },
            **self.summary,
            "already_done": self.already_done,
            "examined": self.examined,
            "verified": self.verified,
            "notes": list(self.notes),
        }

    def lines(self) -> tuple[str, ...]:
        """Give the same for people."""
        if self.already_done:
            hint = "" if self.verified else ", --verify reads it"
            chunks = format_count(self.chunks, "chunk")
            return (f"{self.output}: already done, {chunks} as planned; looked at: {self.examined}{hint}",)
        rate = self.bytes_written / max(self.seconds_moving, 1e-9)
        found = [
            f"{self.output}: {self.family}, {self.dtype}, {format_count(self.chunks, 'chunk')}",
            (
                f"wrote {format_size(self.bytes_written)} in {self.seconds_moving:.1f} s ({format_size(rate)}/s)"
            ),
            (
                f"planning {self.seconds_planning:.1f} s, starting {self.seconds_starting:.1f} s, finishing {self.seconds_finishing:.1f} s"
            ),
        ]
        if self.kept_chunks:
            found.append(f"{format_count(self.kept_chunks, 'chunk')} of an earlier run kept")
        if self.became_infinite:
            found.append(f"{format_count(self.became_infinite, 'value')} became infinite in {self.dtype}")
        if self.verified:
            found.append("every tensor verified against the source")
        return tuple(found)


def convert(
    source: PathLike,
    output: PathLike,
    *,
    dtype: str = "auto",
    max_shard_size: int | None = None,
    device: str = "auto",
    workers: int | None = None,
    address: str | None = None,
    family: str | None = None,
    instruct: bool = False,
    tokenizer: PathLike | None = None,
    params: PathLike | None = None,
    check: bool = False,
    verify: bool = False,
    overwrite: bool = False,
    gpus_per_worker: float = 1.0,
    worker_resources: Mapping[str, float] | None = None,
    trace: PathLike | None = None,
    report: PathLike | None = None,
    progress: Progress | None = None,
) -> ConversionReport:
    """Convert Meta's checkpoint in ``source`` into a Transformers folder ``output``.

    ``tokenizer`` and ``params`` are files that lie elsewhere.
    ``max_shard_size`` is in bytes. Runs in this process unless ``workers``, ``address`` or
    several GPUs ask for Ray; there each worker takes ``gpus_per_worker`` of a GPU (or a CPU slot)
    and ``worker_resources``. ``trace`` is a file for a Chrome trace, ``report`` one for a PNG. Raises InputError, UsageError, OutputError (nothing that looks
    like a model is left), ConversionError (the same call again goes on where it stopped).
    """
    storage: Storage = LocalStorage()
    progress = Stopwatch(progress or SilentProgress())
    input_path, output_path = os.fspath(source), os.fspath(output)
    cluster = Cluster(address, workers, gpus_per_worker, worker_resources or {})
    if workers or address:
        # Workers on other nodes start in folders of their own.
        input_path, output_path = os.path.abspath(input_path), os.path.abspath(output_path)
    pictures = Pictures(output_path, trace, report)
    tokenizer_path, params_path = (None if path is None else os.fspath(path) for path in (tokenizer, params))
    with Source(storage, find_files(storage, input_path, tokenizer_path, params_path)) as input_files:
        storage = input_files.pinned
        if check:
            # What is compared is what is converted.
            _check(source, family, tokenizer, params, progress)
        started = time.monotonic()
        checkpoint = read_checkpoint(
            storage,
            input_path,
            family=family,
            instruct=instruct,
            tokenizer=tokenizer_path,
            params_path=params_path,
        )
        if checkpoint.vocabulary is None:
            raise InputError(
                f"{checkpoint.files.folder}: no tokenizer.model here or in the parent folder; give it by --tokenizer PATH"
            )
        _refuse_overlap(storage, checkpoint, output_path)
        device = _choose_device(device)
        decisions, decided = decide(
            checkpoint,
            lambda left, right: equal_targets(storage, left, right),
            lambda left, right: equal_targets(storage, target_of_view(left), target_of_view(right)),
        )
        plan = plan_conversion(checkpoint, decisions, dtype, max_shard_size)
        notes = (*checkpoint.notes, *decided, *describe_large_tensors(plan))
        for note in notes:
            progress.note(f"note: {note}")
        # All that can fail without a byte moved fails before one is.
        files = make_files(storage, checkpoint, plan)
        identity = make_identity(
            storage, checkpoint.files, checkpoint.catalog, checkpoint.choice, plan, VERSION
        )
        examined, damaged = None, frozenset[str]()
        if not overwrite and is_recorded(storage, output_path, identity):
            examined, damaged = examine(
                storage, output_path, checkpoint, plan, files, progress, verify=verify
            )
        planned = time.monotonic()
        begun = moved = planned
        first: float | None = None
        receipts: tuple[Receipt, ...] = ()
        if examined is None:
            inline = workers is None and address is None and not _has_several_gpus(device)
            obstacles = partial(
                find_obstacles, storage, output_path, [chunk.name for chunk in plan.chunks], files,
                _source_digests(storage, checkpoint),
            )  # fmt: skip
            look = partial(obstacles, overwrite=overwrite)
            with taken(
                storage, output_path, input_files, plan, identity, progress, look, overwrite=overwrite
            ) as folder:
                folder.remove(damaged)
                sight = Sight(_sizes(storage, checkpoint), folder.owner)
                job = Job(storage, output_path, device, None, folder.recorded, pictures.wanted, sight)
                receipts = _move(job, plan, None if inline else cluster, progress, folder.keep)
                _check_chunks(storage, output_path, plan)
                begun, moved = progress.begun or planned, progress.ended or time.monotonic()
                first = progress.first
                if verify:
                    compare_all(storage, output_path, checkpoint, plan, progress, folder.remove)
                if strangers := tuple(obstacles(overwrite=False)):
                    raise ConversionError("\n".join(strangers))
                folder.finish(files)
        pictures.write(
            storage, receipts, f"{checkpoint.choice.family.title}, {format_count(len(plan.chunks), 'chunk')}"
        )
        return ConversionReport(
            output=output_path,
            family=checkpoint.choice.family.title,
            dtype=plan.dtype.name,
            chunks=len(plan.chunks),
            kept_chunks=len(plan.chunks)
            if examined is not None
            else sum(receipt.kept for receipt in receipts),
            bytes_read=sum(receipt.bytes_read for receipt in receipts),
            bytes_written=sum(receipt.bytes_written for receipt in receipts),
            became_infinite=sum(receipt.became_infinite for receipt in receipts),
            summary=summarise(receipts),
            seconds_planning=planned - started,
            seconds_starting=begun - planned,
            seconds_to_first_byte=None if first is None else first - started,
            seconds_moving=moved - begun,
            seconds_finishing=time.monotonic() - moved,
            already_done=examined is not None,
            examined=examined,
            verified=verify,
            notes=notes,
        )


def _check(
    source: PathLike,
    family: str | None,
    tokenizer: PathLike | None,
    params: PathLike | None,
    progress: Progress,
) -> None:
    from distconv.verbs.check import check

    progress.note("comparing INPUT's files with their checksums")
    report = check(source, family=family, tokenizer=tokenizer, params=params, progress=progress)
    for note in report.notes:
        progress.note(f"note: {note}")
    if report.findings:
        raise InputError.of(report.findings)


def _choose_device(device: str) -> str:
    """Take the CPU for ``auto``: moving bytes needs no GPU until a measurement says otherwise."""
    if device not in DEVICE_CHOICES:
        raise UsageError(f"device {device}: expected one of {', '.join(DEVICE_CHOICES)}")
    return "cpu" if device == "auto" else device


def _refuse_overlap(storage: Storage, checkpoint: Checkpoint, output: str) -> None:
    """OUTPUT must not be, hold or lie in a folder of INPUT's shards, links resolved."""
    target = storage.real_path(output)
    files = checkpoint.files
    # A params.json from elsewhere may lie above both.
    paths = [os.path.dirname(storage.real_path(path)) for shard in files.shards for path in shard.paths]
    for folder in (storage.real_path(files.folder), *paths):
        if (
            target == folder
            or target.startswith(folder + os.sep)
            or folder.startswith(target.rstrip(os.sep) + os.sep)
        ):
            raise OutputError(
                f"{output}: equal to, inside or above INPUT's folder {folder}; give another folder"
            )
    for path in (*files.legal, *([files.tokenizer] if files.tokenizer else [])):
        if target == os.path.dirname(storage.real_path(path)):
            raise OutputError(f"{output}: holds {path}, which is INPUT's; give another folder")


def _move(
    job: Job, plan: Plan, cluster: Cluster | None, progress: Progress, keep: Keep
) -> tuple[Receipt, ...]:
    """Make all chunks, in this process where there is no cluster."""
    if cluster is None:
        return run_inline(job, plan.chunks, min(_INLINE_LANES, os.cpu_count() or 1), progress, keep=keep)
    from distconv.moving.ray.driver import run_on_ray

    return run_on_ray(job, plan.chunks, cluster, progress, keep=keep)


def _sizes(storage: Storage, checkpoint: Checkpoint) -> dict[str, int]:
    paths = [path for shard in checkpoint.files.shards for path in shard.paths]
    return {path: entry.size_bytes for path in paths if (entry := storage.find(path)) is not None}


def _has_several_gpus(device: str) -> bool:
    if device != "cuda":
        return False
    import torch

    if not torch.cuda.is_available():
        raise UsageError("device cuda: torch sees no GPU here; use --device cpu")
    return torch.cuda.device_count() > 1


def _check_chunks(storage: Storage, output: str, plan: Plan) -> None:
    for chunk in plan.chunks:
        if not is_finished(storage, join(output, chunk.name), chunk):
            raise ConversionError(
                f"{join(output, chunk.name)}: not of the planned header and size after moving"
            )


def _source_digests(storage: Storage, checkpoint: Checkpoint) -> frozenset[str]:
    """Give the SHA-256 of INPUT's small files, of which OUTPUT may hold copies."""
    files = checkpoint.files
    small = (files.params, *([files.tokenizer] if files.tokenizer else []))
    return frozenset(digest_file(storage, path) for path in small)
