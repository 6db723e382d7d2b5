"""Which device and which cluster options ask for, and how workers find what is to be read."""

from dataclasses import replace

from distconv.errors import UsageError
from distconv.moving.executor import Cluster
from distconv.moving.lane_devices import find_missing_device
from distconv.storage.places import make_absolute
from distconv.verbs.options import Options


def choose_device(options: Options) -> str:
    """Take the CPU for ``auto``: a GPU moves stored bytes no faster (tests/benchmarks/README.md).

    UsageError for a GPU that is not there, where this host is the one to have it.
    """
    if options.device == "auto":
        return "cpu"
    if not _asks_for_cluster(options) and (missing := find_missing_device(options.device)) is not None:
        raise UsageError(missing)
    return options.device


def choose_cluster(options: Options) -> Cluster | None:
    """Take a cluster where workers, an address or several GPUs ask for one."""
    return options.cluster if _asks_for_cluster(options) or _has_several_gpus(options.device) else None


def _asks_for_cluster(options: Options) -> bool:
    return bool(options.cluster.workers or options.cluster.address)


def name_for_workers(options: Options) -> Options:
    """Name places as workers on other nodes find them, which start in folders of their own."""
    if not _asks_for_cluster(options):
        return options
    source, output = (path and make_absolute(path) for path in (options.source, options.output))
    like = None if options.like is None else make_absolute(options.like)
    return replace(options, source=source, output=output, like=like)


def choose_asking_cluster(options: Options) -> Cluster | None:
    """Take a cluster for questions where it may have other hosts: one that starts here sees no more than lanes do."""
    cluster = choose_cluster(options)
    if cluster is None:
        return None
    from distconv.moving.ray.cluster import is_elsewhere

    return cluster if is_elsewhere(cluster) else None


def _has_several_gpus(device: str) -> bool:
    if device != "cuda":
        return False
    import torch

    return torch.cuda.device_count() > 1
