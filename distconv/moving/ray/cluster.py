"""Which Ray, and how many workers fit on it."""

import contextlib
import gc
import logging
import os
import secrets
import socket
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import ray
from ray.exceptions import RayError

from distconv.errors import ClusterError, ConversionError, Stopped, UsageError
from distconv.moving.executor import Cluster
from distconv.moving.progress import Progress
from distconv.moving.ray.signals import redelivered

LOCAL = "local"
OBJECT_STORE_BYTES = 78_643_200
"""The least that Ray takes: only plans and receipts go through it."""
REACH_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class Needs:
    """What Ray must have free on a node for one worker."""

    cpus: float
    gpus: float
    others: Mapping[str, float]

    def fit(self, available: Mapping[str, float]) -> int:
        """Tell how many workers fit into a node's resources."""
        wanted = {"CPU": self.cpus, "GPU": self.gpus, **self.others}
        # Ray counts in ten thousandths; a float's 1 / 3 must fit three times into 1.
        fits = [
            round(available.get(name, 0) * 10_000) // round(amount * 10_000)
            for name, amount in wanted.items()
            if amount
        ]
        return min(fits)

    def words(self) -> str:
        """Say it for people."""
        parts = [f"{self.gpus:g} GPU" if self.gpus else f"{self.cpus:g} CPU"]
        return " and ".join([*parts, *(f"{amount:g} {name}" for name, amount in self.others.items())])


@contextlib.contextmanager
def connected(cluster: Cluster, device: str, units: int, progress: Progress) -> Iterator[Cluster]:
    """Have Ray for the block, and give what is wanted of it; afterwards shut down only what was started here.

    A Ray that this process has initialised already is used as it is, and one of our own, of whose start ``progress``
    is told, has no more workers than there are units. Signal handlers stay those of the caller, although Ray installs its own.
    """
    if ray.is_initialized():
        yield cluster
        return
    address = cluster.address or LOCAL
    if address == LOCAL and cluster.workers is not None and device != "cuda":
        # Ray starts a process for each slot, whether a worker comes or not.
        cluster = replace(cluster, workers=min(cluster.workers, max(units, 1)))
    with _token_of_ones_own() if address == LOCAL else contextlib.nullcontext():
        try:
            if address == LOCAL:
                progress.note("starting a local Ray")
            with redelivered():
                _connect(address, cluster.workers if device != "cuda" else None)
            yield cluster
        finally:
            # An error that Ray raised holds itself, and what it was raised for. Ray ends the process
            # without a word if another thread collects that while Ray shuts down, and also if anybody
            # takes his time after Ray has died.
            if not isinstance(sys.exception(), ClusterError):
                gc.collect()
            ray.shutdown()


def is_elsewhere(cluster: Cluster) -> bool:
    """Whether workers may come up on other hosts: not where a Ray of our own is started on this one."""
    return ray.is_initialized() or (cluster.address or LOCAL) != LOCAL


@contextlib.contextmanager
def _token_of_ones_own() -> Iterator[None]:
    """Have a token in the environment for the block, which a Ray that starts here and its workers take.

    Without one Ray writes a token to the home folder, and every cluster that somebody starts there later
    asks for it.
    """
    before = {name: os.environ.get(name) for name in _TOKEN_VARIABLES}
    os.environ |= dict(zip(_TOKEN_VARIABLES, ("token", secrets.token_hex(32)), strict=True))
    _read_environment_again()
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
        _read_environment_again()


_TOKEN_VARIABLES = ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN")


def _read_environment_again() -> None:
    """Let Ray forget what it read when it was imported; one that is too old for tokens has read nothing."""
    with contextlib.suppress(ImportError):
        from ray._raylet import AuthenticationTokenLoader, Config  # type: ignore[attr-defined]

        Config.initialize("")
        AuthenticationTokenLoader.instance().reset_cache()


def find_needs(cluster: Cluster, device: str) -> Needs:
    """Tell what one worker takes: a GPU, or its share of one, or else a CPU slot."""
    if device == "cuda":
        # Nodes differ in CPUs per GPU, and it is the GPU that does the work.
        return Needs(0, cluster.gpus, cluster.resources)
    return Needs(1, 0, cluster.resources)


def find_nodes(needs: Needs) -> dict[str, str]:
    """Give the living nodes that could ever take a worker: their addresses by id."""
    return {
        node["NodeID"]: node["NodeManagerAddress"]
        for node in ray.nodes()  # type: ignore[no-untyped-call]
        if node["Alive"] and needs.fit(node["Resources"])
    }


def refuse_dead(needs: Needs) -> None:
    """Raise ClusterError where no living node is left on which a worker could ever come up."""
    try:
        nodes = find_nodes(needs)
    except RayError:
        # Who does not answer on a busy host may do so the next time.
        return
    if not nodes:
        raise ClusterError(
            "the Ray that was started on this host has died, as where the kernel kills its raylet for want of memory; "
            "free some or ask for fewer workers, and run the same command again"
        )


def count_workers(cluster: Cluster, device: str, units: int) -> int:
    """Tell how many workers to start; what the cluster could never give is refused.

    Ray itself waits for resources that do not exist, without end and without a word.
    """
    needs = find_needs(cluster, device)
    nodes = ray.nodes()  # type: ignore[no-untyped-call]
    found = sum([needs.fit(node["Resources"]) for node in nodes if node["Alive"]])
    if found == 0:
        raise ConversionError(
            f"no node of the Ray cluster has {needs.words()}, which a worker of device {device} needs"
        )
    wanted = found if cluster.workers is None else cluster.workers
    if wanted > found:
        raise UsageError(
            f"{wanted} workers, but the Ray cluster has room for {found} of {needs.words()} each"
        )
    # More workers than units would only hold what others could use.
    return min(wanted, units)


def _connect(address: str, slots: int | None) -> None:
    """Join a cluster, or start Ray on this host with so many CPU slots (without a number, one per core)."""
    if address == LOCAL:
        start_local(slots)
        return
    _refuse_unreachable(address)
    with _explained(address):
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)


_STARTS = 3
"""The raylet of Ray 2.60 ends where its agent takes more than 15 s to begin, as one on a busy machine may."""


def start_local(slots: int | None) -> None:
    """Start Ray on this host with so many CPU slots (without a number, one per core).

    ClusterError where it does not come up, however often.
    """
    # Telemetry is off unless somebody asked for it.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    for left in reversed(range(_STARTS)):
        try:
            # The address is said outright, or RAY_ADDRESS or what another Ray left behind would choose.
            with _explained(LOCAL):
                ray.init(
                    address=LOCAL,
                    num_cpus=slots,
                    include_dashboard=False,
                    object_store_memory=OBJECT_STORE_BYTES,
                    log_to_driver=False,
                    logging_level=logging.ERROR,
                )
        except ClusterError:
            if not left:
                raise
        else:
            return


@contextlib.contextmanager
def _explained(address: str) -> Iterator[None]:
    """Let what fails say which Ray it was."""
    try:
        yield
    except Stopped:
        raise
    # Ray raises a plain Exception where its processes do not come up in time.
    except Exception as error:
        raise ClusterError(f"Ray at {address} cannot be used: {error}") from error


def _refuse_unreachable(address: str) -> None:
    """Knock before Ray does, which goes on knocking for many minutes and then ends the process."""
    host, has_port, port = address.rpartition(":")
    if not has_port:
        # Where it is, Ray finds.
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), REACH_SECONDS).close()
    except OSError as error:
        raise ClusterError(
            f"Ray at {address} cannot be reached ({error}); is the cluster up, and is this its head's address?"
        ) from error
