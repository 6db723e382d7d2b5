"""What workers take of a cluster: whole GPUs and shares, custom resources, nodes of several kinds."""

import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import ray

from distconv.errors import ConversionError, UsageError
from distconv.layout.files import File
from distconv.moving.executor import Cluster
from distconv.moving.job import Job, Receipt
from distconv.moving.ray.cluster import Needs
from distconv.moving.ray.driver import run_on_ray
from tests.moving.fakes import RecordingProgress, is_whole, make_chunks, make_job, write_together

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("needs", "node", "workers"),
    [
        (Needs(1, 0, {}), {"CPU": 8}, 8),
        (Needs(0, 1, {}), {"CPU": 8}, 0),
        (Needs(0, 1, {}), {"CPU": 8, "GPU": 4}, 4),
        (Needs(0, 0.5, {}), {"GPU": 4}, 8),
        (Needs(0, 1 / 3, {}), {"GPU": 1}, 3),
        (Needs(0, 0.1, {}), {"GPU": 1}, 10),
        (Needs(0, 0.4, {}), {"GPU": 1}, 2),
        (Needs(1, 0, {"disk": 0.5}), {"CPU": 8, "disk": 1}, 2),
        (Needs(1, 0, {"disk": 2}), {"CPU": 8, "disk": 1}, 0),
    ],
)
def test_so_many_workers_fit_on_a_node(needs: Needs, node: dict[str, float], workers: int) -> None:
    assert needs.fit(node) == workers


@pytest.mark.parametrize(
    "options",
    [{"workers": 0}, {"gpus": 0.0}, {"gpus": 1.5}, {"resources": {"CPU": 1.0}}, {"resources": {"disk": 0.0}},
     {"resources": {"disk": float("nan")}}],
)  # fmt: skip
def test_what_no_cluster_could_give_is_refused(options: dict[str, float]) -> None:
    with pytest.raises(UsageError):
        Cluster(**options)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def _two_gpus() -> Iterator[None]:
    """Have a Ray that believes in two GPUs, of the machine's those that its user chose, and a custom resource."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(ROOT), prepend=os.pathsep)
        patch.setenv("CUDA_VISIBLE_DEVICES", "5,7")
        ray.shutdown()
        ray.init(
            address="local", num_cpus=1, num_gpus=2, resources={"disk": 3}, include_dashboard=False,
            object_store_memory=78_643_200, log_to_driver=False,
        )  # fmt: skip
        yield
        ray.shutdown()


def write_and_tell_gpu(
    job: Job, chunk: File, advance: Callable[[int], None], stopped: Callable[[], bool]
) -> Receipt:
    """Write a chunk with two others, and leave word of the GPU that Ray gave."""
    Path(job.output, f"{chunk.name}.gpu").write_text(os.environ["CUDA_VISIBLE_DEVICES"])
    return write_together(replace(job, device="cpu"), chunk, advance, stopped)


@pytest.mark.slow
@pytest.mark.usefixtures("_two_gpus")
def test_two_workers_share_a_gpu_that_ray_has_chosen_for_them(tmp_path: Path) -> None:
    chunks = make_chunks(["a", "b", "c", "d"])
    job = replace(make_job(tmp_path), device="cuda")
    run_on_ray(job, chunks, Cluster(gpus=0.5), RecordingProgress(), write_and_tell_gpu)
    assert all(is_whole(tmp_path, chunk) for chunk in chunks)
    assert {path.read_text() for path in tmp_path.glob("*.gpu")} == {"5", "7"}


@pytest.mark.slow
@pytest.mark.usefixtures("_two_gpus")
def test_what_the_cluster_lacks_is_refused_at_once(tmp_path: Path) -> None:
    job, chunks = make_job(tmp_path), make_chunks(["a", "b", "c"])
    with pytest.raises(UsageError, match="3 workers, but the Ray cluster has room for 2 of 1 GPU each"):
        run_on_ray(replace(job, device="cuda"), chunks, Cluster(workers=3), RecordingProgress())
    with pytest.raises(ConversionError, match="no node of the Ray cluster has 1 CPU and 1 tape, which"):
        run_on_ray(job, chunks, Cluster(resources={"tape": 1}), RecordingProgress())
    (receipt, *_rest) = run_on_ray(job, chunks, Cluster(resources={"disk": 3}), RecordingProgress())
    assert receipt.chunk == "a"
