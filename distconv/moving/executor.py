"""What all that run units share: where they run, how much trouble is borne, what the end of an attempt means."""

import errno
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from distconv.errors import ConversionError, DeviceError, DistconvError, UsageError, describe_os_error
from distconv.humanize import is_whole
from distconv.layout.units import Unit
from distconv.moving.job import Job, Receipt
from distconv.moving.scheduler import Failure, Limits

Convert = Callable[[Job, Unit, Callable[[int], None], Callable[[], bool]], Receipt]
"""Does one unit: convert(job, chunk, advance, stopped), see ``worker.make_unit``."""


@dataclass(frozen=True, slots=True)
class Cluster:
    """Where to run: ``local`` or nothing for a Ray of our own, ``auto`` or an address to join one.

    Without a number of workers every GPU or CPU slot is used. ``gpus`` is what a worker of
    the device ``cuda`` takes, and may be a fraction; ``resources`` are the cluster's own, by name.
    """

    address: str | None = None
    workers: int | None = None
    gpus: float = 1.0
    resources: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuse what no Ray could give, with UsageError."""
        if self.workers is not None and not (is_whole(self.workers) and self.workers >= 1):
            raise UsageError(f"workers {self.workers!r}: expected a number, at least 1")
        if self.address is not None:
            _check_address(self.address)
        if not 0 < self.gpus <= 1:
            raise UsageError(f"{self.gpus:g} GPUs a worker: expected more than 0 and at most 1")
        for name, amount in self.resources.items():
            if name in {"CPU", "GPU", "memory"} or not amount > 0:
                raise UsageError(
                    f"worker resource {name}={amount:g}: expected a custom resource of the cluster, "
                    "and more than 0 of it"
                )


_ADDRESS = re.compile(r"auto|local|\S+:([0-9]{1,5})")
_LARGEST_PORT = 65_535


def _check_address(address: str) -> None:
    """Raise UsageError for what is no address that can be joined: Ray says of some nothing that a person can use."""
    if "://" in address:
        kind = "Ray Client" if address.startswith("ray://") else "the address of a job server"
        raise UsageError(
            f"{address}: {kind} is not supported; run on a node of the cluster, with the address auto, "
            f"or submit a job with `ray job submit`"
        )
    found = _ADDRESS.fullmatch(address)
    if found is None or not 0 < int(found[1] or 1) <= _LARGEST_PORT:
        raise UsageError(f"address {address!r}: expected HOST:PORT of a cluster's head, auto or local")


TICK_SECONDS = 0.5
"""How long a driver waits for something to be said before it ticks."""
STALL_SECONDS = 600.0
"""Longer than storage takes, even where hundreds share it, for what is written between two words of a worker."""
_TURN_SECONDS = 2 * TICK_SECONDS
"""Of a driver's loop; it takes longer where the process was stopped, or keeps a unit on slow storage."""
_EMPTY_SECONDS = 600.0
"""Longer than a cluster takes to bring up a node."""
_SPARE_DEATHS = 4


def make_limits(workers: int, stall_seconds: float = STALL_SECONDS) -> Limits:
    """Say how much trouble is borne with so many workers of a cluster."""
    return Limits(
        deaths=_SPARE_DEATHS + 2 * workers,
        stall_seconds=stall_seconds,
        turn_seconds=_TURN_SECONDS,
        empty_seconds=_EMPTY_SECONDS,
    )


Keep = Callable[[Receipt], None]
"""Is told of each finished unit, in the thread that drives the run."""


def forget(_receipt: Receipt) -> None:
    """Keep nothing of a finished unit."""


FINAL_ERRNOS = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS, errno.EFBIG})
"""Trying again helps against none of these."""


def classify(unit: str, error: BaseException) -> Failure:
    """Tell whether an attempt that raised may be tried again.

    The error of the failure takes one argument, so it may cross process boundaries whatever
    the original was.
    """
    if isinstance(error, DistconvError):
        return Failure(error, final=not isinstance(error, DeviceError))
    # The class is named because many exceptions say too little by themselves: KeyError: 'wq'.
    reason = describe_os_error(error) if isinstance(error, OSError) else f"{type(error).__name__}: {error}"
    described = ConversionError(f"{unit}: {reason}")
    described.__cause__ = error
    may_pass = isinstance(error, OSError) and error.errno not in FINAL_ERRNOS
    return Failure(described, final=not may_pass)
