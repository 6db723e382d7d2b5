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


def run_units(
    job: Job, units: Sequence[Unit], cluster: Cluster | None, progress: Progress, keep: Keep
) -> tuple[Receipt, ...]:
    """Do all units, in this process where there is no cluster; ``keep`` is told of each."""
    if cluster is None:
        return run_here(job, units, progress, keep=keep)
    from distconv.moving.ray.driver import run_on_ray

    return run_on_ray(job, units, cluster, progress, keep=keep)


def run_here(
    job: Job, units: Sequence[Unit], progress: Progress, *, convert: Convert = make_unit, keep: Keep = forget
) -> tuple[Receipt, ...]:
    """Do all units in this process, by as many lanes as it has processors for, up to a few."""
    lanes = min(_INLINE_LANES, len(os.sched_getaffinity(0)))
    return run_inline(job, units, lanes, progress, convert, keep)
