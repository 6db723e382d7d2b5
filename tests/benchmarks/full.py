"""A whole Llama 2 70B, 137.9 GB, on a small machine: ``make bench BENCH="--only full"``.

INPUT's data is a hole but for three tensors of noise, and takes next to no room. OUTPUT is as large as a real one,
wherever it is written: by itself the benchmark makes a file system that compresses it.
"""

import json
import mmap
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from safetensors import safe_open

from tests.benchmarks.checkpoint import ONE
from tests.benchmarks.measure import run
from tests.checkpoints import Spec, Tensors, shapes, write_sparse
from tests.mounts import disk_in_a_file
from tests.reference import permute, rename

DISK_BYTES = 200 << 30
"""What the file system says it has; its file takes what is written to it, compressed."""


def find_noisy(spec: Spec) -> tuple[str, ...]:
    """Name a tensor that is cut by columns, one whose rows are permuted, and one at the end."""
    return (
        "tok_embeddings.weight",
        f"layers.{spec.layers // 2}.attention.wq.weight",
        f"layers.{spec.layers - 1}.feed_forward.w2.weight",
    )


def write_model(folder: Path, spec: Spec, tokenizer: Path) -> Path:
    """Write a checkpoint whose data is a hole but for those tensors."""
    write_sparse(folder, spec)
    (folder / "tokenizer.model").write_bytes(tokenizer.read_bytes())
    for number, state in enumerate(map_shards(folder, spec)):
        generator = torch.Generator().manual_seed(number)
        for name in find_noisy(spec):
            state[name].view(torch.int16).random_(0, ONE, generator=generator)
    return folder


def map_shards(folder: Path, spec: Spec) -> Iterator[Tensors]:
    """Map each shard by torch's own loader; what is written to its tensors lands in its file."""
    for number in range(spec.shards):
        with torch.serialization.set_default_mmap_options(mmap.MAP_SHARED):
            yield torch.load(folder / spec.naming.format(number), mmap=True, weights_only=True)


def find_differences(source: Path, output: Path, spec: Spec) -> list[str]:
    """Read the three tensors of OUTPUT by safetensors, and name those that are not INPUT's."""
    files = json.loads((output / "model.safetensors.index.json").read_text())["weight_map"]
    axes = {name: axis for name, _shape, axis in shapes(spec)}
    shards = tuple(map_shards(source, spec))
    different = []
    for name in find_noisy(spec):
        expected = torch.cat([shard[name] for shard in shards], dim=axes[name])
        if name.endswith("wq.weight"):
            expected = permute(expected, spec.heads)
        with safe_open(output / files[rename(name)], framework="pt") as file:
            if not torch.equal(file.get_tensor(rename(name)), expected):
                different.append(name)
    return different


@contextmanager
def open_room(folder: Path | None, disk: Path) -> Iterator[Path]:
    """Have a folder with room: below a given one, or on a file system that compresses, in a file on the disk.

    NoDiskError where none can be made.
    """
    if folder is not None:
        with TemporaryDirectory(prefix="distconv-bench-", dir=folder) as place:
            yield Path(place)
        return
    with (
        TemporaryDirectory(prefix="distconv-bench-", dir=disk) as place,
        disk_in_a_file(Path(place), "btrfs", DISK_BYTES, "compress=zstd") as room,
    ):
        yield room


def measure_full(
    place: Path, spec: Spec, tokenizer: Path, command: Callable[[Path, Path], list[str | Path]]
) -> dict[str, object]:
    """Convert once, and compare."""
    source, output = write_model(place / "source", spec, tokenizer), place / "target"
    before = os.statvfs(place)
    measured = run(command(source, output))
    after = os.statvfs(place)
    return {
        "layers": spec.layers,
        "output_bytes": sum(path.stat().st_size for path in output.glob("*.safetensors")),
        "disk_bytes": (before.f_bfree - after.f_bfree) * after.f_frsize,
        "seconds": measured.seconds,
        "core_seconds": measured.core_seconds,
        "peak_anonymous_bytes": measured.peak_anonymous_bytes,
        "compared": find_noisy(spec),
        "different": find_differences(source, output, spec),
        **{f"seconds_{phase}": value for phase, value in json.loads(measured.output)["seconds"].items()},
    }
