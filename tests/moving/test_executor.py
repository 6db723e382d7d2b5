"""What the end of an attempt means, and which clusters there may be."""

import errno
import os
import pickle
import re
from dataclasses import replace

import pytest

from distconv.errors import ConversionError, DistconvError, InputError, Interrupted, OutputError, UsageError
from distconv.moving.executor import TICK_SECONDS, Cluster, classify, make_limits


def test_what_a_second_attempt_cannot_help_is_final() -> None:
    final = set()
    for code, name in errno.errorcode.items():
        failure = classify("unit", OSError(code, os.strerror(code), "/a/file"))
        assert isinstance(failure.error, ConversionError)
        assert str(failure.error).startswith("unit: ")
        assert os.strerror(code) in str(failure.error)
        final |= {name} if failure.final else set()
    assert final == {"ENOSPC", "EDQUOT", "EACCES", "EPERM", "EROFS", "EFBIG"}


def test_an_error_of_the_system_without_a_number_may_pass() -> None:
    assert not classify("unit", OSError("odd")).final


@pytest.mark.parametrize("error", [InputError("bad"), OutputError("taken"), Interrupted("stopped")])
def test_what_is_told_in_our_own_words_is_final_and_stays_as_it_is(error: DistconvError) -> None:
    failure = classify("unit", error)
    assert failure.final
    assert failure.error is error


@pytest.mark.parametrize("error", [KeyError("wq"), MemoryError(), KeyboardInterrupt(), SystemExit(1)])
def test_a_surprise_is_final_named_and_may_cross_to_another_process(error: BaseException) -> None:
    failure = classify("unit", error)
    assert failure.final
    assert failure.error.__cause__ is error
    assert str(failure.error) == f"unit: {type(error).__name__}: {error}"
    assert str(pickle.loads(pickle.dumps(failure.error))) == str(failure.error)


def test_a_cluster_may_be_as_small_as_it_can_be() -> None:
    assert Cluster().gpus == 1
    for workers in (None, 1, 2):
        assert Cluster(workers=workers).workers == workers
    for gpus in (1e-9, 0.5, 1.0):
        assert Cluster(gpus=gpus).gpus == gpus
    assert Cluster(resources={"disk": 1e-9, "cpu": 5.0}).resources == {"disk": 1e-9, "cpu": 5.0}


@pytest.mark.parametrize("workers", [0, -1, "2"])
def test_fewer_than_one_worker_are_none(workers: int) -> None:
    with pytest.raises(UsageError, match=f"workers {workers!r}: expected a number, at least 1"):
        Cluster(workers=workers)


@pytest.mark.parametrize("address", ["auto", "local", "head:6379", "10.0.0.1:1", "[::1]:65535"])
def test_an_address_is_a_word_or_a_host_with_a_port(address: str) -> None:
    assert Cluster(address).address == address


@pytest.mark.parametrize(
    "address", ["", " ", "head", "head:", ":6379", "head:port", "head:0", "head:65536", "a b:1", "head:1\n"]
)
def test_what_is_no_address_is_refused_before_ray_is_asked(address: str) -> None:
    words = f"address {address!r}: expected HOST:PORT of a cluster's head, auto or local"
    with pytest.raises(UsageError, match=re.escape(words)):
        Cluster(address)


@pytest.mark.parametrize("gpus", [0.0, -0.5, 1.0 + 1e-9, float("nan")])
def test_a_worker_takes_a_gpu_or_a_part_of_one(gpus: float) -> None:
    with pytest.raises(UsageError, match="GPUs a worker: expected more than 0 and at most 1"):
        Cluster(gpus=gpus)


@pytest.mark.parametrize(
    "resources",
    [{"CPU": 1.0}, {"GPU": 1.0}, {"memory": 1.0}, {"disk": 0.0}, {"disk": -1.0}, {"disk": 1.0, "CPU": 2.0}],
)
def test_what_ray_has_of_its_own_or_nothing_of_it_is_no_resource(resources: dict[str, float]) -> None:
    with pytest.raises(UsageError, match="expected a custom resource of the cluster"):
        Cluster(resources=resources)


def test_the_limits_of_a_cluster_bear_its_drivers_own_turns() -> None:
    limits = make_limits(3, stall_seconds=7)
    assert limits == replace(make_limits(3), stall_seconds=7)
    assert TICK_SECONDS < limits.turn_seconds < make_limits(3).stall_seconds <= limits.empty_seconds < 3600
