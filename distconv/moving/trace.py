"""What a run did when: its sums, a trace for Perfetto or Chrome, and a picture."""

import io
import json
import os
import socket
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate

from distconv.errors import ConversionError, UsageError, describe_missing_package
from distconv.humanize import GIGABYTE
from distconv.moving.job import Receipt
from distconv.moving.spans import STAGES
from distconv.storage.base import PathLike, Storage, write_small
from distconv.storage.given import refuse_other
from distconv.storage.local import LocalStorage
from distconv.storage.places import read_local, read_small_output
from distconv.storage.requests import count_requests

_COLOURS = ("#4477aa", "#ccbb44", "#aa3377", "#228833")
_SOFTWARE = "distconv"


def summarise(receipts: Sequence[Receipt]) -> dict[str, object]:
    """Sum up stages and workers as plain values; GB/s of a stage is that of one worker within it."""
    moved = [receipt for receipt in receipts if not receipt.kept]
    written_bytes = sum(receipt.bytes_written for receipt in moved)
    workers: dict[tuple[str, str], list[Receipt]] = {}
    for receipt in receipts:
        workers.setdefault((receipt.work.host, receipt.work.worker), []).append(receipt)
    stages = {}
    for number, stage in enumerate(STAGES):
        seconds = sum(receipt.work.stage_seconds[number] for receipt in moved)
        rate = written_bytes / GIGABYTE / seconds if seconds else None
        stages[stage] = {"seconds": round(seconds, 3), "gb_per_second": rate and round(rate, 3)}
    return {
        "stages": stages,
        "workers": [
            {
                "host": host,
                "worker": worker,
                "chunks": len(done),
                "bytes_written": sum(receipt.bytes_written for receipt in done),
                "seconds": round(sum(receipt.work.seconds for receipt in done), 3),
            }
            for (host, worker), done in sorted(workers.items())
        ],
        "retries": sum(receipt.attempts - 1 for receipt in receipts),
    }


def sum_requests(receipts: Sequence[Receipt], before: Mapping[str, int]) -> dict[str, int]:
    """Count a run's requests to other hosts, by operation: this process's since ``before``, and its workers'.

    Workers tell with each unit what they had sent by then; who was lost told nothing more.
    """
    here = socket.gethostname(), os.getpid()
    sent: dict[tuple[str, int], Counter[str]] = {}
    for receipt in receipts:
        who = receipt.work.host, receipt.work.process
        if who != here:
            sent[who] = sent.get(who, Counter()) | Counter(dict(receipt.work.requests))
    total = Counter(count_requests()) - Counter(before)
    for counts in sent.values():
        total += counts
    return dict(sorted(total.items()))


class RunCharts:
    """The files that a person asked for to see how a run went."""

    def __init__(self, output: str, trace: PathLike | None, report: PathLike | None) -> None:
        """Refuse, before hours of work, with UsageError, what could not be written after them."""
        self._output = output
        self._trace = None if trace is None else _read_path(trace, output, _is_trace, "trace")
        self._report = None if report is None else _read_path(report, output, _is_report, "report")
        if self._trace is not None and self._report is not None:
            _refuse_one_for_both(self._trace, self._report)
        if report is not None:
            try:
                import matplotlib as mpl
            except ImportError as error:
                missing = describe_missing_package("matplotlib", "report")
                raise UsageError(f"`report=`: {missing}") from error
            mpl.use("agg")

    @property
    def wanted(self) -> bool:
        """Whether there is any."""
        return self._trace is not None or self._report is not None

    def write(self, storage: Storage, receipts: Sequence[Receipt], title: str) -> None:
        """Write them; ConversionError where that fails, which is nothing against the model that is there by now."""
        if self._trace is not None:
            self._write(storage, self._trace, make_trace(receipts))
        if self._report is not None:
            self._write(storage, self._report, draw_report(receipts, title))

    def _write(self, storage: Storage, path: str, content: bytes) -> None:
        try:
            write_small(storage, path, content)
        except OSError as error:
            words = f"{path}: {error.strerror}; the model in {self._output} is whole"
            raise ConversionError(words) from error


def _read_path(path: PathLike, output: str, is_own: Callable[[bytes], bool], what: str) -> str:
    name = read_small_output(read_local(path))
    if os.path.realpath(os.path.dirname(name) or ".") == os.path.realpath(output):
        raise UsageError(f"{name}: in OUTPUT, which holds nothing but the model; give another folder")
    refuse_other(LocalStorage(), name, is_own, what)
    return name


def _refuse_one_for_both(trace: str, report: str) -> None:
    if os.path.realpath(trace) == os.path.realpath(report):
        raise UsageError(
            f"{report}: the same file for `trace=` and `report=`, expected two; give another name"
        )


def _is_trace(head: bytes) -> bool:
    return head.startswith(b'{"traceEvents": [')


def _is_report(head: bytes) -> bool:
    return head.startswith(b"\x89PNG") and _SOFTWARE.encode() in head


def make_trace(receipts: Sequence[Receipt]) -> bytes:
    """Make a trace in the JSON Array Format of Chrome's Trace Event Format: hosts as processes, workers as threads."""
    origin = min((receipt.work.began for receipt in receipts), default=0.0)
    lanes = _lanes(receipts)
    hosts = sorted({host for host, _worker in lanes})
    events = [_name("process_name", number, 0, host) for number, host in enumerate(hosts, 1)]
    events += [
        _name("thread_name", hosts.index(host) + 1, number, worker)
        for (host, worker), number in lanes.items()
    ]
    for receipt in receipts:
        work = receipt.work
        place = {"pid": hosts.index(work.host) + 1, "tid": lanes[work.host, work.worker]}
        began = work.began - origin
        details = {"kept": receipt.kept, "attempts": receipt.attempts, "bytes": receipt.bytes_written}
        events.append(_complete(receipt.chunk, "unit", began, work.seconds, details) | place)
        for span in work.spans:
            event = _complete(
                span.stage, "stage", began + span.began, span.seconds, {"bytes": span.size_bytes}
            )
            events.append(event | place)
    return json.dumps({"traceEvents": events, "displayTimeUnit": "ms"}).encode()


def _lanes(receipts: Sequence[Receipt]) -> dict[tuple[str, str], int]:
    workers = sorted({(receipt.work.host, receipt.work.worker) for receipt in receipts})
    return {worker: number for number, worker in enumerate(workers, 1)}


def _name(kind: str, process: int, thread: int, name: str) -> dict[str, object]:
    return {"ph": "M", "name": kind, "pid": process, "tid": thread, "args": {"name": name}}


def _complete(
    name: str, category: str, began: float, seconds: float, details: Mapping[str, object]
) -> dict[str, object]:
    """Make an event of phase X; its times are in microseconds."""
    return {
        "ph": "X", "name": name, "cat": category, "ts": round(began * 1e6, 1), "dur": round(seconds * 1e6, 1),
        "args": details,
    }  # fmt: skip


def draw_report(receipts: Sequence[Receipt], title: str) -> bytes:
    """Draw a timeline a worker and, below it, bytes written over time, as a PNG."""
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    lanes = _lanes(receipts)
    origin = min((receipt.work.began for receipt in receipts), default=0.0)
    figure = Figure(figsize=(10, 3.2 + 0.25 * len(lanes)), layout="constrained")
    timeline, throughput = figure.subplots(2, 1, sharex=True, height_ratios=(max(len(lanes), 2), 3))
    for receipt in receipts:
        lane = lanes[receipt.work.host, receipt.work.worker]
        began = receipt.work.began - origin
        timeline.broken_barh(
            [(began, receipt.work.seconds)], (lane - 0.4, 0.8), color="#dddddd", edgecolor="#888888"
        )
        for stage, colour in zip(STAGES, _COLOURS, strict=True):
            spans = [(began + span.began, span.seconds) for span in receipt.work.spans if span.stage == stage]
            timeline.broken_barh(spans, (lane - 0.3, 0.6), color=colour, linewidth=0)
    timeline.set_yticks(list(lanes.values()), [f"{host}, {worker}" for host, worker in lanes], fontsize=7)
    timeline.invert_yaxis()
    timeline.set_title(title)
    handles = [Patch(color=colour, label=stage) for stage, colour in zip(STAGES, _COLOURS, strict=True)]
    throughput.legend(handles=handles, fontsize=8, loc="upper left")
    written = sorted(
        (receipt.work.began - origin + span.began + span.seconds, span.size_bytes)
        for receipt in receipts
        for span in receipt.work.spans
        if span.stage == "write"
    )
    moments = [moment for moment, _size in written]
    totals = list(accumulate(size for _moment, size in written))
    throughput.plot([0.0, *moments], [0.0, *(total / GIGABYTE for total in totals)], color=_COLOURS[-1])
    throughput.set_xlabel("seconds since the first unit began")
    throughput.set_ylabel("GB written")
    throughput.grid(visible=True, alpha=0.3)
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=120, metadata={"Software": _SOFTWARE})
    return content.getvalue()
