"""Where units are done: by lanes of this process, or by the workers of a Ray cluster."""

import os
from collections.abc import Sequence

from distconv.layout.units import Unit
from distconv.moving.executor import Cluster, Convert, Keep, forget
from distconv.moving.inline import run_inline
from distconv.moving.job import Job, Receipt
from distconv.moving.progress import Progress
from distconv.moving.worker import make_unit

_INLINE_LANES = 8
"""With more of them waiting for the interpreter's lock takes what they gain (tests/benchmarks/README.md)."""


def run_units(
    job: Job, units: Sequence[Unit], cluster: Cluster | None, progress: Progress, keep: Keep
) -> tuple[Receipt, ...]:
    """Do all units, in this process where there is no cluster; ``keep`` is told of each."""
    if cluster is None or not units:
        return run_here(job, units, progress, keep=keep)
    from distconv.moving.ray.driver import run_on_ray

    return run_on_ray(job, units, cluster, progress, keep=keep)


def run_here(
    job: Job, units: Sequence[Unit], progress: Progress, *, convert: Convert = make_unit, keep: Keep = forget
) -> tuple[Receipt, ...]:
    """Do all units in this process, by a lane for each processor that it may use, up to a few.

    Where there is none, nothing is told of how far along it is.
    """
    if not units:
        return ()
    return run_inline(job, units, min(_INLINE_LANES, _count_processors()), progress, convert, keep)


def _count_processors() -> int:
    # Of a machine that is shared a job may have a part only; not every system tells.
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
