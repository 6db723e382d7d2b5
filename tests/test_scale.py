"""The picture of scale: the real scheduler against modelled storage."""

import math
from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from examples.scale import CLUSTERS, MODELS, Cluster, Simulation, tabulate
from tests.checkpoints import LLAMA_2_70B, LLAMA_31_405B_MP16, Spec, shapes


@pytest.mark.parametrize("model", MODELS)
def test_with_8_chunks_a_worker_a_doubling_series_comes_within_5_percent_of_the_bound(model: str) -> None:
    for name in ("even", "storage of 1 TB/s"):
        for power in range(11):
            done = Simulation(MODELS[model], 2**power, CLUSTERS[name]).run()
            if len(MODELS[model]) >= 8 * 2**power:
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


def test_the_table_has_every_model_cluster_and_number_of_workers() -> None:
    assert len(list(tabulate())) == len(MODELS) * len(CLUSTERS) * 11
