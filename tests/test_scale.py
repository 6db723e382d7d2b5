"""The picture of scale: the real scheduler against modelled storage."""

import math
from itertools import product
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distconv.moving.executor import STALL_SECONDS
from examples import scale
from examples.scale import (
    CLUSTERS,
    MODELS,
    TROUBLES,
    Cluster,
    Pause,
    Simulation,
    print_troubles,
    tabulate,
)
from tests.checkpoints import LLAMA_2_70B, LLAMA_31_405B_MP16, Spec, shapes


@pytest.mark.parametrize("model", MODELS)
def test_with_8_chunks_a_worker_a_doubling_series_comes_within_5_percent_of_the_bound(model: str) -> None:
    for name in ("even", "storage of 1 TB/s"):
        for power in range(11):
            if len(MODELS[model]) >= 8 * 2**power:
                done = Simulation(MODELS[model], 2**power, CLUSTERS[name]).run()
                assert done.seconds <= 1.05 * done.bound()


@pytest.mark.parametrize("model", MODELS)
def test_a_slow_node_keeps_nobody_waiting_where_there_are_8_chunks_a_worker(model: str) -> None:
    for power in range(11):
        if len(MODELS[model]) >= 8 * 2**power:
            done = Simulation(MODELS[model], 2**power, CLUSTERS["one node in 8 slow"]).run()
            assert done.seconds <= 1.05 * done.whole_chunks_bound()


@given(
    sizes=st.lists(st.integers(1, 9), min_size=1, max_size=6),
    workers=st.integers(1, 3),
    slow_share=st.sampled_from([0.0, 0.34, 0.67]),
)
def test_no_way_to_place_whole_chunks_is_below_the_bounds(
    sizes: list[int], workers: int, slow_share: float
) -> None:
    """All ways are tried, and the scheduler's is among them."""
    cluster = Cluster(shared=math.inf, slow_share=slow_share)
    units = {f"unit{number}": size * 10**9 for number, size in enumerate(sizes)}
    done = Simulation(units, workers, cluster).run()
    rates = cluster.rates(workers)
    best = math.inf
    for places in product(range(workers), repeat=len(sizes)):
        busy = [0.0] * workers
        for place, size in zip(places, sizes, strict=True):
            busy[place] += 2 * size / rates[place]
        best = min(best, max(busy))
    assert done.bound() <= done.whole_chunks_bound() <= best * (1 + 1e-9)
    assert best <= done.seconds * (1 + 1e-9)


@pytest.mark.product
@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("workers", [3, 7, 19, 21, 23, 100, 1000])
def test_no_number_of_workers_waits_longer_than_for_one_more_chunk(model: str, workers: int) -> None:
    sizes = MODELS[model]
    cluster = Cluster(shared=math.inf)
    done = Simulation(sizes, workers, cluster).run()
    assert done.seconds <= done.bound() + 2 * max(sizes.values()) / 1e9 / cluster.node


@pytest.mark.parametrize("name", CLUSTERS)
def test_every_byte_moves_and_the_run_can_be_repeated(name: str) -> None:
    sizes = MODELS["70B"]
    runs = [Simulation(sizes, 64, CLUSTERS[name]).run() for _ in range(2)]
    assert runs[0].seconds == runs[1].seconds
    least = 2 * sum(sizes.values())
    assert runs[0].moved_bytes >= least * 0.999
    if name != "one node in 32 lost":
        assert runs[0].moved_bytes <= least * 1.001


@pytest.mark.parametrize(("model", "spec"), [("70B", LLAMA_2_70B), ("405B", LLAMA_31_405B_MP16)])
def test_the_models_are_the_published_ones(model: str, spec: Spec) -> None:
    elements = sum(math.prod(shape) for _name, shape, _axis in shapes(spec))
    if spec.kv_heads == 16:  # doubled; half of them is written
        elements -= spec.layers * 16 * 128 * spec.dim
    assert sum(MODELS[model].values()) == 2 * elements


@pytest.mark.parametrize(
    ("model", "name", "workers", "cluster"),
    # Those of many workers take seconds.
    [pytest.param(*row, marks=[pytest.mark.slow] if row[2] > 100 else []) for row in TROUBLES],
)
def test_only_workers_that_hang_are_taken_for_dead_as_the_table_in_the_folder_says(
    model: str, name: str, workers: int, cluster: Cluster, capsys: pytest.CaptureFixture[str]
) -> None:
    done = Simulation(MODELS[model], workers, cluster).run()
    hung = round(done.workers * cluster.hung_share)
    assert done.lost == hung
    standing = cluster.storage_stands.length + cluster.driver_stands.length
    bound = done.bound() + standing + (STALL_SECONDS + cluster.boot_seconds if hung else 0)
    assert done.seconds <= 1.05 * bound
    assert standing or done.longest_silence < STALL_SECONDS
    print_troubles([(model, name, done)])
    table = Path(scale.__file__).with_name("scale.txt").read_text().splitlines()
    assert set(capsys.readouterr().out.splitlines()) <= set(table)


@pytest.mark.parametrize(("model", "workers", "shared"), [("405B", 191, 1.0), ("70B", 81, 0.2)])
def test_workers_that_make_whole_chunks_durable_at_once_are_borne_too(
    model: str, workers: int, shared: float
) -> None:
    """As where the storage itself gathers what it is given, and the flush of the last piece takes all."""
    cluster = Cluster(shared=shared, flush_bytes=math.inf)
    done = Simulation(MODELS[model], workers, cluster).run()
    assert done.longest_silence > 2 * STALL_SECONDS
    assert done.lost == 0


@given(
    workers=st.integers(2, 24),
    rounds=st.integers(1, 3),
    shared=st.floats(0.1, 4),
    storage=st.tuples(st.floats(0, 3000), st.floats(0, 1800)),
    driver=st.tuples(st.floats(0, 3000), st.floats(0, 7200)),
)
@settings(max_examples=15)
def test_no_pause_of_storage_or_driver_costs_a_worker_while_all_are_busy(
    workers: int, rounds: int, shared: float, storage: tuple[float, float], driver: tuple[float, float]
) -> None:
    cluster = Cluster(shared=shared, storage_stands=Pause(*storage), driver_stands=Pause(*driver))
    units = {f"unit{number}": 4_000_000_000 for number in range(rounds * workers)}
    assert Simulation(units, workers, cluster).run().lost == 0


@pytest.mark.slow
def test_the_table_has_every_model_cluster_and_number_of_workers() -> None:
    assert len(list(tabulate())) == len(MODELS) * len(CLUSTERS) * 11


@pytest.mark.slow
def test_chunks_in_parts_take_no_longer_than_whole_ones_and_less_where_workers_are_many() -> None:
    for name, whole, parts in scale.run_maverick((8, 32, 128)):
        if parts.workers < 128:
            assert parts.seconds <= 1.03 * whole.seconds
            assert parts.moved_bytes <= 1.05 * whole.moved_bytes
        elif name == "storage of 1 TB/s":
            assert parts.seconds < 0.8 * whole.seconds
