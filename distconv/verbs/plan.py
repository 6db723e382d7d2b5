"""Plan a conversion from headers and small files alone."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from distconv.humanize import format_count, format_size
from distconv.layout.files import File, Section, describe_layers
from distconv.layout.stripes import Stripe, list_sections, list_steps
from distconv.layout.units import file_of
from distconv.moving.contents import expect_requests, find_stored
from distconv.moving.devices import GPU_BLOCK_BYTES, GPU_BLOCKS, GPU_MEMORY_BYTES
from distconv.output.identity import Subject
from distconv.output.targets import META, Target
from distconv.planning.plan import Plan
from distconv.storage.base import LOCAL_ACCESS, Access, PathLike, Storage, opened
from distconv.storage.places import read_place
from distconv.verbs.options import Options, open_storage, parse_size_or_none, read_place_or_none
from distconv.verbs.reports import Report
from distconv.verbs.sources import find_input, prepare
from distconv.verbs.tables import Table


@dataclass(frozen=True, slots=True, repr=False)
class PlanReport(Report):
    """What a conversion would do."""

    plan: Plan
    target: Target
    subject: Subject
    sources: str
    """What is read, counted, for people."""
    access: Access
    """How INPUT is read."""
    notes: tuple[str, ...]
    lacks_tokenizer: bool
    """Whether convert would refuse it as it was asked for."""

    def to_json(self) -> dict[str, object]:
        """Give the same as plain values; copies are counted, not listed."""
        plan, units = self.plan, self.plan.list_units()
        sections: dict[str, list[Section]] = {file.name: [] for file in plan.files}
        for unit in units:
            for section in list_sections(unit):
                sections[file_of(section)].append(section)
        return {
            "to": self.target.name,
            "shards": len(plan.files) if self.target is META else None,
            "family": self.subject.family,
            "dtype": plan.dtype.name,
            "tied": plan.decisions.tied,
            "kv_replication": plan.decisions.kv_replication,
            "max_shard_size": plan.chunk_limit_bytes,
            "read_bytes": read_bytes(plan),
            "write_bytes": plan.size_bytes,
            "digest_bytes": self._digest_bytes(units),
            "largest_unit_bytes": max(unit.size_bytes for unit in units),
            "useful_workers": len(units),
            "memory_bytes_per_worker": _WORKER_MEMORY_BYTES + self.access.ahead_bytes,
            "ahead_bytes_per_worker": self.access.ahead_bytes,
            "requests": self._expect_requests(units),
            "pinned_bytes_per_gpu_worker": GPU_BLOCKS * GPU_BLOCK_BYTES,
            "gpu_memory_bytes_per_gpu_worker": GPU_MEMORY_BYTES,
            "files": [
                {
                    "name": file.name,
                    "size_bytes": file.size_bytes,
                    "tensors": len(file.tensors),
                    "parts": [_describe(section) for section in sections[file.name]],
                }
                for file in plan.files
            ],
            "notes": list(self.notes),
        }

    def lines(self) -> tuple[str | Table, ...]:
        """Give the same for people."""
        plan, units = self.plan, self.plan.list_units()
        return (
            self._table(units),
            "",
            f"family   {self.subject.title}, {plan.dtype}{', tied' if plan.decisions.tied else ''}",
            f"reads    {format_size(read_bytes(plan))} from {self.sources}",
            f"writes   {format_size(plan.size_bytes)} in {self._files(units)}",
            *self._tell_digests(units),
            (
                f"workers  up to {len(units):,}, each with at most "
                f"{(_WORKER_MEMORY_BYTES + self.access.ahead_bytes) / _MIB:,.0f} MiB of buffers"
            ),
            (
                f"         with `device='cuda'` also {GPU_BLOCKS * GPU_BLOCK_BYTES >> 20} MiB that are pinned, and "
                f"{GPU_MEMORY_BYTES >> 20} MiB of the GPU's"
            ),
            *self._tell_ahead(units),
        )

    def _digest_bytes(self, units: Sequence[File | Stripe]) -> int:
        """Count what of OUTPUT is read again at most for digests that take a file's bytes in their order."""
        md5s = self.target.checklist is not None
        return sum(unit.size_bytes for unit in self.plan.list_checksums(units, md5s=md5s))

    def _tell_digests(self, units: Sequence[File | Stripe]) -> tuple[str, ...]:
        size_bytes = self._digest_bytes(units)
        return (f"digests  read up to {format_size(size_bytes)} of that once more",) if size_bytes else ()

    def _expect_requests(self, units: Sequence[File | Stripe]) -> int | None:
        """Count the requests for data; None where reads need none."""
        if not self.access.ahead_bytes:
            return None
        return sum(
            expect_requests([step.tensor for step in list_steps(list_sections(unit))], self.access)
            for unit in units
        )

    def _tell_ahead(self, units: Sequence[File | Stripe]) -> tuple[str, ...]:
        requests = self._expect_requests(units)
        if requests is None:
            return ()
        mean = format_size(read_bytes(self.plan) // max(1, requests))
        ahead = f"{self.access.ahead_bytes / _MIB:,.0f} MiB"
        return (
            f"requests about {requests:,} for data, of {mean} in the mean; each worker reads {ahead} ahead",
        )

    def _table(self, units: Sequence[File | Stripe]) -> Table:
        in_parts = any(isinstance(unit, Stripe) for unit in units)
        counts = Counter(file_of(section) for unit in units for section in list_sections(unit))
        rows = [_make_row(file, counts[file.name] if in_parts else 0) for file in self.plan.files]
        headers = (self.target.noun, *(["parts"] if in_parts else []), "layers", "tensors", "MB")
        return Table(headers, rows, (False, *([True] if in_parts else []), True, True, True))

    def _files(self, units: Sequence[File | Stripe]) -> str:
        plan = self.plan
        files = format_count(len(plan.files), self.target.noun)
        together = "together " if any(len(list_sections(unit)) > 1 for unit in units) else ""
        limit = f"of at most {format_size(plan.chunk_limit_bytes)} of tensors"
        if self.target is META:
            return f"{files}, written {together}in {format_count(len(units), 'part')} {limit}"
        larger = len(plan.large_tensors)
        but = f", but for {larger}" if larger else ""
        count = sum(isinstance(unit, Stripe) for unit in units)
        parts = (
            f"; {format_count(count, 'part')} of at most {format_size(plan.part_limit_bytes)}"
            if count
            else ""
        )
        return f"{files} {limit}{but}{parts}"


def _make_row(file: File, parts: int) -> tuple[str, ...]:
    return (
        file.name,
        *([str(parts)] if parts else []),
        file.layers,
        str(len(file.tensors)),
        f"{file.size_bytes / 1e6:,.1f}",
    )


def _describe(unit: Section) -> dict[str, object]:
    return {
        "layers": describe_layers(tensor.name for tensor in unit.tensors),
        "tensors": len(unit.tensors),
        "copies": sum(len(tensor.copies) for tensor in unit.tensors),
        "size_bytes": unit.size_bytes,
    }


_MIB = 1 << 20
_WORKER_MEMORY_BYTES = 64 * _MIB


def read_bytes(plan: Plan) -> int:
    """Count the bytes of INPUT's data that the copies take."""
    # No plan has copies that do not fill their tensor, each element once.
    return sum(tensor.elements * tensor.stored.size_bytes for tensor in plan.tensors)


def plan(
    source: PathLike,
    *,
    to: str = "transformers",
    shards: int | None = None,
    dtype: str = "auto",
    max_shard_size: int | str | None = None,
    family: str | None = None,
    instruct: bool | None = None,
    tokenizer: PathLike | None = None,
    params: PathLike | None = None,
    like: PathLike | None = None,
    dialect: str | None = None,
    fill_from_like: bool = False,
    endpoint_url: str | None = None,
) -> PlanReport:
    """Plan a conversion of ``source`` from headers and small files; what only data can tell is assumed as published.

    Takes ``to``, ``shards``, ``dtype``, ``max_shard_size`` (bytes, or as "5GB"), and what is said of ``source``, as
    ``convert`` does. Raises the same UsageError and InputError.
    """
    options = Options(
        source=read_place(source), output="", to=to, shards=shards, dtype=dtype, max_shard_size=parse_size_or_none(max_shard_size),
        family=family, instruct=instruct, tokenizer=read_place_or_none(tokenizer),
        params=read_place_or_none(params), like=read_place_or_none(like), dialect=dialect,
        fill_from_like=fill_from_like, endpoint_url=endpoint_url,
    )  # fmt: skip
    storage = open_storage(options)
    # The way that a conversion goes as far as it moves nothing, so that both refuse the same.
    made = prepare(storage, find_input(storage, options), options)
    access = _find_access(storage, made.plan)
    return PlanReport(
        made.plan, made.target, made.subject, made.sources, access, made.notes, made.lacks_tokenizer
    )


def _find_access(storage: Storage, made: Plan) -> Access:
    region = find_stored(made.tensors)
    if region is None:
        return LOCAL_ACCESS
    with opened(storage, region.path) as reader:
        return reader.access
