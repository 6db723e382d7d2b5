"""Which Ray, and how many workers fit on it."""

import contextlib
import logging
import os
import socket
from collections.abc import Iterator
from dataclasses import dataclass

import ray

from distconv.errors import ConversionError, UsageError
from distconv.moving.ray.signals import redelivered

LOCAL = "local"
OBJECT_STORE_BYTES = 78_643_200
"""The least that Ray takes: only plans and receipts go through it."""
REACH_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class Cluster:
    """Where to run: ``local`` or nothing for a Ray of our own, ``auto`` or an address to join one.

    Without a number of workers every GPU or CPU slot is used.
    """

    address: str | None = None
    workers: int | None = None


@contextlib.contextmanager
def connected(cluster: Cluster, device: str) -> Iterator[None]:
    """Have Ray for the block; afterwards shut down only what was started here.

    A Ray that this process has initialised already is used as it is. Signal handlers stay
    those of the caller, although Ray installs its own.
    """
    if ray.is_initialized():
        yield
        return
    address = cluster.address or LOCAL
    if address.startswith("ray://"):
        raise UsageError(
            f"{address}: Ray Client is not supported; run on a node of the cluster, with the address auto, "
            f"or submit a job with `ray job submit`"
        )
    try:
        with redelivered():
            _connect(address, cluster.workers if device != "cuda" else None)
        yield
    finally:
        ray.shutdown()


def count_workers(cluster: Cluster, device: str, units: int) -> int:
    """Tell how many workers to start; what the cluster could never give is refused.

    Ray itself waits for resources that do not exist, without end and without a word.
    """
    resource, words = ("GPU", "GPUs") if device == "cuda" else ("CPU", "CPU slots")
    found = int(ray.cluster_resources().get(resource, 0))  # type: ignore[no-untyped-call]
    if found == 0:
        raise ConversionError(f"the Ray cluster has no {words}; workers of device {device} need one each")
    wanted = found if cluster.workers is None else cluster.workers
    if wanted > found:
        raise UsageError(f"{wanted} workers, but the Ray cluster has {found} {words}")
    # More workers than units would only hold what others could use.
    return min(wanted, units)


def _connect(address: str, slots: int | None) -> None:
    """Join a cluster, or start Ray on this host with so many CPU slots (without a number, one per core)."""
    if address != LOCAL:
        _refuse_unreachable(address)
    try:
        if address != LOCAL:
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
            return
        # Telemetry is off unless somebody asked for it.
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        # The address is said outright, or RAY_ADDRESS or what another Ray left behind would choose.
        ray.init(
            address=LOCAL,
            num_cpus=slots,
            include_dashboard=False,
            object_store_memory=OBJECT_STORE_BYTES,
            log_to_driver=False,
            logging_level=logging.ERROR,
        )
    except (OSError, RuntimeError, ValueError) as error:
        raise ConversionError(f"Ray at {address} cannot be used: {error}") from error


def _refuse_unreachable(address: str) -> None:
    """Knock before Ray does, which goes on knocking for many minutes and then ends the process."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal():
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), REACH_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise ConversionError(
            f"Ray at {address} cannot be reached ({error}); is the cluster up, and is this its head's address?"
        ) from error
