"""Plan a conversion from headers alone."""

import os
from dataclasses import dataclass

from distconv.humanize import format_count, format_size
from distconv.planning.plan import (
    Plan,
    describe_large_tensors,
)
from distconv.storage.base import PathLike
from distconv.verbs.checkpoint import Checkpoint, decide, open_checkpoint, plan_conversion
from distconv.verbs.options import Options
from distconv.verbs.tables import Table


@dataclass(frozen=True, slots=True)
class PlanReport:
    """What a conversion would do."""

    plan: Plan
    checkpoint: Checkpoint
    notes: tuple[str, ...]

    def to_json(self) -> dict[str, object]:
        """Give the same as plain values; copies are counted, not listed."""
        plan = self.plan
        return {
            "family": self.checkpoint.choice.family.name,
            "dtype": plan.dtype.name,
            "tied": plan.decisions.tied,
            "kv_replication": plan.decisions.kv_replication,
            "max_shard_size": plan.chunk_limit_bytes,
            "read_bytes": read_bytes(plan),
            "write_bytes": plan.size_bytes,
            "largest_chunk_bytes": max(chunk.size_bytes for chunk in plan.files),
            "useful_workers": len(plan.files),
            "memory_bytes_per_worker": _WORKER_MEMORY_BYTES,
            "chunks": [
                {
                    "name": chunk.name,
                    "layers": chunk.layers,
                    "tensors": len(chunk.tensors),
                    "copies": sum(len(tensor.copies) for tensor in chunk.tensors),
                    "size_bytes": chunk.size_bytes,
                }
                for chunk in plan.files
            ],
        }

    def lines(self) -> tuple[str | Table, ...]:
        """Give the same for people."""
        plan = self.plan
        table = Table(
            ("chunk", "layers", "tensors", "MB"),
            [
                (chunk.name, chunk.layers, str(len(chunk.tensors)), f"{chunk.size_bytes / 1e6:,.1f}")
                for chunk in plan.files
            ],
            (False, True, True, True),
        )
        larger = len(plan.large_tensors)
        but = f", but for {larger}" if larger else ""
        return (
            table,
            "",
            f"family   {self.checkpoint.choice.family.title}, {plan.dtype}{', tied' if plan.decisions.tied else ''}",
            (
                f"reads    {format_size(read_bytes(plan))} from "
                f"{format_count(len(self.checkpoint.files.shards), 'shard')}"
            ),
            (
                f"writes   {format_size(plan.size_bytes)} in {format_count(len(plan.files), 'chunk')} of at most "
                f"{format_size(plan.chunk_limit_bytes)} of tensors{but}"
            ),
            (
                f"workers  up to {len(plan.files)}, each with at most "
                f"{_WORKER_MEMORY_BYTES / (1 << 20):,.0f} MiB of buffers"
            ),
        )


_WORKER_MEMORY_BYTES = 64 << 20


def read_bytes(plan: Plan) -> int:
    """Count the bytes of INPUT's data that the copies take."""
    return sum(copy.elements * tensor.stored.size_bytes for tensor in plan.tensors for copy in tensor.copies)


def plan(
    source: PathLike,
    *,
    dtype: str = "auto",
    max_shard_size: int | None = None,
    family: str | None = None,
    instruct: bool = False,
    tokenizer: PathLike | None = None,
    params: PathLike | None = None,
) -> PlanReport:
    """Plan a conversion from headers alone; what only data can tell is assumed as published."""
    Options(source=os.fspath(source), output="", dtype=dtype, max_shard_size=max_shard_size)
    checkpoint = open_checkpoint(source, family, instruct=instruct, tokenizer=tokenizer, params=params)
    decisions, notes = decide(checkpoint)
    made = plan_conversion(checkpoint, decisions, dtype, max_shard_size)
    return PlanReport(made, checkpoint, (*checkpoint.notes, *notes, *describe_large_tensors(made)))
