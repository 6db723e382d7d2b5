"""Prove that OUTPUT is whole, and that it holds INPUT's tensors, on another path than the worker's.

The worker copies by strides that the plan computed. Here rows are read whole, concatenated
shard by shard and permuted by an index of rows, and compared with what OUTPUT's own headers
say is where. Memory is bounded: a band of rows at a time.
"""

import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from distconv.errors import OutputError
from distconv.families.cuts import Cut
from distconv.families.llama import EMBEDDING, FAMILIES, OUTPUT
from distconv.families.operations import ROTARY
from distconv.families.rules import Match
from distconv.formats.views import TensorView
from distconv.formats.written import Headers, Written
from distconv.layout.dtypes import DType, extent_elements
from distconv.moving.pieces import Piece
from distconv.moving.progress import Progress, SilentProgress
from distconv.moving.worker import Sources
from distconv.output.findings import Depth, Finding
from distconv.output.proof import prove
from distconv.output.receipt import read_receipt
from distconv.output.targets import RECEIPT_NAME
from distconv.storage.base import PathLike, Storage, join, opened, read_range
from distconv.storage.local import LocalStorage
from distconv.verbs.checkpoint import Checkpoint, read_checkpoint

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Rows = npt.NDArray[np.unsignedinteger]

BAND_BYTES = 16 << 20


@dataclass(frozen=True, slots=True)
class Verification:
    """What was found; ``source`` is None where OUTPUT was looked at alone."""

    output: str
    source: str | None
    tensors: int
    data_proved: bool
    """Whether all data was compared, with the receipt's digests or with the source."""
    examined: str
    """What was looked at, for people."""
    differences: tuple[str, ...]
    notes: tuple[str, ...]

    @property
    def ok(self) -> bool:
        """Whether nothing differs."""
        return not self.differences

    def to_json(self) -> dict[str, object]:
        """Give the same as plain values."""
        return {
            "output": self.output,
            "source": self.source,
            "ok": self.ok,
            "tensors": self.tensors,
            "data_proved": self.data_proved,
            "examined": self.examined,
            "differences": list(self.differences),
            "notes": list(self.notes),
        }

    def lines(self) -> tuple[str, ...]:
        """Give the same for people."""
        if self.ok and not self.data_proved:
            proved = f"the data was not proved, there is no good {RECEIPT_NAME}; --against INPUT compares it"
            return (f"{self.output}: all {self.tensors} tensors are whole in structure; {proved}",)
        if self.ok:
            equal = "whole" if self.source is None else f"whole and equal to {self.source}"
            return (f"{self.output}: all {self.tensors} tensors are {equal} ({self.examined})",)
        count = len(self.differences)
        return (f"{self.output}: {count} finding{'s' if count > 1 else ''}", *self.differences)


def verify(
    output: PathLike,
    *,
    against: PathLike | None = None,
    family: str | None = None,
    instruct: bool = False,
    tokenizer: PathLike | None = None,
    params: PathLike | None = None,
    progress: Progress | None = None,
) -> Verification:
    """Check OUTPUT's structure and digests; with ``against``, compare every tensor with INPUT's too.

    Raises OutputError where OUTPUT is no model folder, InputError where INPUT cannot be read.
    """
    storage, progress = LocalStorage(), progress or SilentProgress()
    output_path = os.fspath(output)
    checkpoint = None
    if against is not None and storage.find(output_path) is not None:
        checkpoint = read_checkpoint(
            storage,
            os.fspath(against),
            family=family or _recorded_family(storage, output_path),
            instruct=instruct,
            tokenizer=None if tokenizer is None else os.fspath(tokenizer),
            params_path=None if params is None else os.fspath(params),
        )
    proof = prove(storage, output_path, Depth.MODEL, progress)
    findings = list(proof.findings)
    if checkpoint is not None:
        findings += compare_tensors(storage, checkpoint, proof.headers, progress)
    return Verification(
        output=output_path,
        source=None if against is None else os.fspath(against),
        tensors=sum(len(written) for written in proof.headers.values()),
        data_proved=proof.data_proved or checkpoint is not None,
        examined=proof.examined if checkpoint is None else f"{proof.examined}, and every tensor compared",
        differences=tuple(finding.words for finding in findings),
        notes=proof.notes,
    )


def _recorded_family(storage: Storage, output: str) -> str | None:
    if storage.find(join(output, RECEIPT_NAME)) is None:
        return None
    try:
        family = read_receipt(storage, join(output, RECEIPT_NAME)).conversion.family
    except OutputError:  # a damaged receipt is a finding, and no reason not to look further
        return None
    return family if family in FAMILIES else None


def compare_tensors(
    storage: Storage, checkpoint: Checkpoint, headers: Headers, progress: Progress
) -> list[Finding]:
    """List every tensor of these chunks that is missing, foreign, or differs from the source."""
    missing = {match.target: match for match in checkpoint.matches}
    findings: list[Finding] = []
    sizes = [entry.size_bytes for path in _paths(headers) if (entry := storage.find(path)) is not None]
    progress.begin(sum(sizes), len(headers))
    try:
        with Sources(storage) as sources:
            for name, written in headers.items():
                progress.advance(min((target.offset_bytes for target in written.values()), default=0))
                for tensor, target in written.items():
                    match = missing.pop(tensor, None)
                    words: str | None = (
                        f"{tensor} in {target.path}: not a tensor of the source, or there twice"
                    )
                    if match is not None:
                        words = _compare_tensor(storage, match, target, checkpoint, sources, progress)
                    if words is not None:
                        findings.append(Finding(words, name))
                progress.unit_done(name)
            words_of_missing = [_explain_missing(match, checkpoint, sources) for match in missing.values()]
    finally:
        progress.end()
    return findings + [Finding(words) for words in words_of_missing if words is not None]


def _paths(headers: Headers) -> set[str]:
    return {target.path for written in headers.values() for target in written.values()}


def _explain_missing(match: Match, checkpoint: Checkpoint, sources: Sources) -> str | None:
    """A missing output layer is right where the source's equals the embedding."""
    embedding = checkpoint.match(EMBEDDING)
    if match.source == OUTPUT and checkpoint.choice.may_tie and embedding is not None:
        pairs = zip(
            _bands(match, 1, checkpoint, sources), _bands(embedding, 1, checkpoint, sources), strict=True
        )
        if all((left == right).all() for (_, left), (_, right) in pairs):
            return None
        return f"{match.target}: missing, though {OUTPUT} differs from the embedding"
    return f"{match.target}: missing"


def _compare_tensor(
    storage: Storage,
    match: Match,
    target: Written,
    checkpoint: Checkpoint,
    sources: Sources,
    progress: Progress,
) -> str | None:
    stored = match.views[0].dtype
    shape, replication = _whole_shape(match, target)
    if target.shape != shape:
        return f"{match.target}: shape {target.shape}, expected {shape}"
    row_bytes = target.dtype.size_bytes * (shape[1] if len(shape) > 1 else 1)
    with opened(storage, target.path) as reader:
        for first, expected in _bands(match, replication, checkpoint, sources):
            size = len(expected) * row_bytes
            found = read_range(reader, target.offset_bytes + first * row_bytes, size)
            progress.advance(size)
            wanted = cast_rows(expected, stored, target.dtype)
            if wanted != found:
                at = next(i for i, (one, other) in enumerate(zip(wanted, found, strict=True)) if one != other)
                row, column = divmod(at, row_bytes)
                return (
                    f"{match.target} in {target.path}: row {first + row}, column {column // target.dtype.size_bytes} "
                    f"differs from {match.source}"
                )
    return None


def _whole_shape(match: Match, target: Written) -> tuple[tuple[int, ...], int]:
    """The shape that the shards give together; doubled key heads may be written once."""
    shape = join_shapes(match.views, match.cut.axis)
    if match.cut.heads == "key" and target.shape and target.shape[0] and len(match.views) > 1:
        times, rest = divmod(shape[0], target.shape[0])
        if (
            times > 1
            and not rest
            and len(match.views) % times == 0
            and len({v.shape for v in match.views}) == 1
        ):
            return (shape[0] // times, *shape[1:]), times
    return shape, 1


def join_shapes(views: Sequence[TensorView], axis: int | None) -> tuple[int, ...]:
    """Give the shape that parts have together."""
    shape = views[0].shape
    if axis is None:
        return shape
    return (*shape[:axis], sum(view.shape[axis] for view in views), *shape[axis + 1 :])


def _bands(
    match: Match, replication: int, checkpoint: Checkpoint, sources: Sources
) -> Iterator[tuple[int, "Rows"]]:
    """Give the whole tensor as (first row, rows), permuted as Transformers wants it."""
    parts = distinct_parts(match, replication)
    rows, *others = join_shapes([part for part, *_twins in parts], match.cut.axis)
    columns = math.prod(others)
    head = checkpoint.dimensions.head_dim if match.operation is ROTARY else 1
    band = max(1, BAND_BYTES // max(1, columns * match.views[0].dtype.size_bytes * head)) * head
    for first in range(0, rows, band):
        found = read_whole_rows(match.cut, parts, first, min(band, rows - first), sources)
        yield first, found[_rotary_rows(len(found), head)] if match.operation is ROTARY else found


def distinct_parts(match: Match, replication: int) -> list[tuple[TensorView, ...]]:
    """The parts that differ, in order, each with the others that should hold the same."""
    if match.cut.axis is None:
        return [match.views[:1]]
    return [match.views[n : n + replication] for n in range(0, len(match.views), replication)]


def read_whole_rows(
    cut: Cut, parts: Sequence[tuple[TensorView, ...]], first: int, count: int, sources: Sources
) -> "Rows":
    """Read rows of the whole tensor, wherever in the shards they lie."""
    import numpy as np

    if cut.axis == 1:
        return np.concatenate(
            [read_rows(view, first, count, sources) for (view,) in parts if view.shape[1]], axis=1
        )
    found = []
    begin = 0
    for views in parts:
        rows = views[0].shape[0]
        low, high = max(first - begin, 0), min(first + count - begin, rows)
        begin += rows
        if low >= high:
            continue
        part, *twins = (read_rows(view, low, high - low, sources) for view in views)
        # Written once though the copies differ: no row of it can be right.
        found.append(part if all((part == twin).all() for twin in twins) else ~part)
    return found[0] if len(found) == 1 else np.concatenate(found)


def _rotary_rows(rows: int, head: int) -> list[int]:
    """Meta's row for each of Transformers': row h, p, i is Meta's row h, 2 i + p."""
    half = head // 2
    return [
        start + 2 * (place % half) + place // half for start in range(0, rows, head) for place in range(head)
    ]


def read_rows(view: TensorView, first: int, count: int, sources: Sources) -> "Rows":
    """Read some rows of a part, whatever its strides, and hardly more than them.

    Where rows lie apart, or columns do, each is read by itself.
    """
    import numpy as np
    from numpy.lib.stride_tricks import as_strided

    unit = view.dtype.size_bytes
    extents = (count, *view.shape[1:])
    start = view.offset + first * view.strides[0]
    apart = max(range(len(extents)), key=lambda axis: view.strides[axis])
    if extent_elements(extents, view.strides) <= 2 * math.prod(extents):
        ranges, along = 1, extents
    else:
        ranges, along = extents[apart], (*extents[:apart], 1, *extents[apart + 1 :])
    found = []
    for number in range(ranges):
        piece = Piece(
            view.region,
            start + number * view.strides[apart],
            extent_elements(along, view.strides),
            along,
            view.strides,
            0,
            along,
        )
        content = np.frombuffer(sources.read(piece, unit), dtype=f"u{unit}")
        found.append(as_strided(content, along, [unit * stride for stride in view.strides]))
    return np.ascontiguousarray(found[0] if len(found) == 1 else np.concatenate(found, axis=apart))


def cast_rows(rows: "Rows", stored: DType, dtype: DType) -> bytes:
    """Give the bytes of rows in another type; any NaN becomes the quiet one with no payload."""
    if stored == dtype:
        return rows.tobytes()
    import torch

    block = torch.from_numpy(rows.view(f"i{stored.size_bytes}").reshape(-1)).view(getattr(torch, stored.name))
    cast = block.to(getattr(torch, dtype.name))
    # Zero over zero would carry a sign; torch's own constant is the quiet NaN of every type.
    cast = torch.where(block.isnan(), torch.tensor(float("nan"), dtype=cast.dtype), cast)
    return cast.contiguous().view(torch.uint8).numpy().tobytes()
