"""Where units are done: by lanes of this process, or by the workers of a Ray cluster."""

import os
from collections.abc import Sequence

from distconv.layout.units import Unit
from distconv.moving.executor import Cluster, Keep
from distconv.moving.inline import run_inline
from distconv.moving.job import Job, Receipt
from distconv.moving.progress import Progress

_INLINE_LANES = 4


def run_units(
    job: Job, units: Sequence[Unit], cluster: Cluster | None, progress: Progress, keep: Keep
) -> tuple[Receipt, ...]:
    """Do all units, in this process where there is no cluster; ``keep`` is told of each."""
    if cluster is None:
        return run_inline(job, units, min(_INLINE_LANES, os.cpu_count() or 1), progress, keep=keep)
    from distconv.moving.ray.driver import run_on_ray

    return run_on_ray(job, units, cluster, progress, keep=keep)
