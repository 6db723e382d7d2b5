"""Measure conversions against copies of the same bytes: ``make bench``, or ``python -m tests.benchmarks``."""

import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from datetime import UTC, datetime
from importlib.util import find_spec
from pathlib import Path

import click

from tests.benchmarks.checkpoint import (
    EXPERTS,
    WIDE,
    llama_70b,
    write_noise,
    write_noisy_experts,
    write_noisy_ranks,
)
from tests.benchmarks.full import measure_full, open_room
from tests.benchmarks.measure import Run, back_memory, kept_memory, run
from tests.benchmarks.report import print_tables, write_picture
from tests.checkpoints import Spec, write_sparse
from tests.mounts import NoDiskError

ROOT = Path(__file__).parents[2]
PEER = ROOT / ".peers/transformers-4.47.1/bin/python"
PARTS = ("ram", "disk", "growth", "pace", "ways", "experts", "verify")

Contestant = Callable[[Path, Path], list[str | Path]]


def copy(source: Path, target: Path) -> list[str | Path]:
    """Copy the folder as anybody would."""
    return ["cp", "-r", source, target]


def two_copies(source: Path, target: Path) -> list[str | Path]:
    """Copy half of the shards in each of two processes."""
    shards = sorted(source.glob("*.pth"))
    halves = [" ".join(map(str, half)) for half in (shards[::2], shards[1::2])]
    return ["/bin/sh", "-c", f"mkdir {target} && (cp {halves[0]} {target} & cp {halves[1]} {target} & wait)"]


def inline(source: Path, target: Path) -> list[str | Path]:
    """Convert in one process."""
    return [sys.executable, "-m", "distconv", "convert", source, target, "--json", "--quiet"]


def on_ray(source: Path, target: Path) -> list[str | Path]:
    """Convert with two workers of a local Ray."""
    return [*inline(source, target), "--workers", "2"]


def known_script(source: Path, target: Path) -> list[str | Path]:
    """Convert with the script of transformers 4.47.1."""
    script = "transformers.models.llama.convert_llama_weights_to_hf"
    options = ["--num_shards", "8", "--llama_version", "2"]
    return [PEER, "-m", script, "--input_dir", source, "--output_dir", target, *options]


def measure_place(
    place: Path, source: Path, rounds: int, *, durable: bool, peer: bool
) -> list[dict[str, object]]:
    """Run all contestants in turn, round by round; the first round is thrown away."""
    contestants: dict[str, Contestant] = {
        "cp -r": copy, "two cp": two_copies, "distconv": inline, "distconv, Ray, 2 workers": on_ray,
    }  # fmt: skip
    if peer:
        contestants["script of transformers 4.47.1"] = known_script
    found = []
    for number in range(rounds + 1):
        for name, command in contestants.items():
            target = place / "target"
            warm(source)
            # Our own commits are durable; everybody else's bytes are so after a sync.
            after = "sync" if durable and not name.startswith("distconv") else None
            if durable:
                back_memory()
            measured = run(command(source, target), shell_after=after)
            shutil.rmtree(target)
            if durable:
                subprocess.run(["sync"], check=True)
            if number:
                found.append(make_row(name, number, measured))
            click.echo(f"{place}: round {number}: {name}: {measured.seconds:.2f} s", err=True)
    return found


def warm(source: Path) -> None:
    """Read the source, so that every contestant finds it in the page cache."""
    for path in source.iterdir():
        with path.open("rb") as file:
            while file.read(1 << 24):
                pass


def make_row(name: str, number: int, measured: Run) -> dict[str, object]:
    """Note one run."""
    row: dict[str, object] = {
        "contestant": name,
        "round": number,
        "seconds": measured.seconds,
        "peak_anonymous_bytes": measured.peak_anonymous_bytes,
        "core_seconds": measured.core_seconds,
    }
    if name.startswith("distconv"):
        row |= {f"seconds_{phase}": value for phase, value in json.loads(measured.output)["seconds"].items()}
    return row


def probe(source: Path, target: Path, *options: str) -> dict[str, object]:
    """Convert under the probe and remove what was written."""
    measured = run([sys.executable, "-m", "tests.benchmarks.probe", source, target, *options])
    shutil.rmtree(target)
    found: dict[str, object] = json.loads(measured.output)
    return found


def measure_growth(place: Path, tokenizer: Path, rounds: int) -> list[dict[str, object]]:
    """Convert models of 1, 2 and 4 layers, and one with the widest embedding: time and memory.

    Each is copied by two ``cp`` in turn with it: what grows for those too is the machine's.
    """
    found = []
    for layers in (1, 2, 4):
        source = write_noise(place / "layers", llama_70b(layers), tokenizer)
        for number in range(rounds + 1):
            copied = run(two_copies(source, place / "target"))
            shutil.rmtree(place / "target")
            row = probe(source, place / "target")
            if number:
                sizes = {"layers": layers, "input_bytes": size_of(source)}
                found.append({"model": f"{layers} layers", **sizes, "seconds_two_cp": copied.seconds, **row})
        shutil.rmtree(source)
    wide = write_sparse(place / "wide", WIDE)
    ranks = Path(find_spec("llama_models").origin).parent / "llama3/tokenizer.model"
    row = probe(wide, place / "target", str(ranks))
    found.append({"model": "embedding of 128,256 x 16,384", "input_bytes": size_of(wide), **row})
    shutil.rmtree(wide)
    return found


def measure_pace(place: Path, source: Path, rounds: int) -> list[dict[str, object]]:
    """Measure inline and Ray in turn while they run at full speed; the first round is thrown away."""
    found = []
    for number in range(rounds + 1):
        for workers in (0, 2):
            pace = [sys.executable, "-m", "tests.benchmarks.pace", source, place / "target", str(workers)]
            measured = subprocess.run(pace, stdout=subprocess.PIPE, text=True, check=True)
            shutil.rmtree(place / "target")
            if number:
                found.append({"workers": workers, "round": number, **json.loads(measured.stdout)})
    return found


def measure_ways(place: Path, spec: Spec, tokenizer: Path, rounds: int) -> list[dict[str, object]]:
    """Move the same model every way in turn, on the RAM disk; the first round is thrown away."""
    source = write_noise(place / "source", spec, tokenizer)
    back = place / "transformers"
    subprocess.run([*inline(source, back)], check=True, stdout=subprocess.DEVNULL)
    trained = write_noisy_ranks(place / "trained", spec, 8)
    ways: dict[str, tuple[Path, list[str]]] = {
        "Meta, 8 shards, to Transformers": (source, []),
        "Transformers to Meta, 8 shards": (back, ["--to", "meta", "--shards", "8"]),
        "Transformers to Meta, 1 shard": (back, ["--to", "meta", "--shards", "1"]),
        "Meta, 8 shards to 4": (source, ["--to", "meta", "--shards", "4"]),
        "trained by 8 ranks, to Transformers": (trained, ["--like", str(back)]),
    }
    found = []
    for number in range(rounds + 1):
        for name, (origin, options) in ways.items():
            target = place / "target"
            measured = run([*inline(origin, target), *options])
            shutil.rmtree(target)
            if number:
                found.append(make_row(f"distconv, {name}", number, measured))
    return found


def measure_experts(place: Path, text: Path, experts: Path, rounds: int) -> list[dict[str, object]]:
    """Move 70B's layers, and in turn with them experts that are larger than a unit; the first round is thrown away."""
    found = []
    for number in range(rounds + 1):
        for name, source in (("text", text), ("experts", experts)):
            warm(source)
            measured = run(inline(source, place / "target"))
            shutil.rmtree(place / "target")
            subprocess.run(["sync"], check=True)
            if number:
                written = json.loads(measured.output)["bytes_written"]
                found.append(make_row(f"distconv, {name}", number, measured) | {"bytes_written": written})
            click.echo(f"{place}: round {number}: {name}: {measured.seconds:.2f} s", err=True)
    return found


def measure_verify(place: Path, source: Path, rounds: int) -> list[dict[str, object]]:
    """Read a model from the disk, and verify it without its receipt, in turn; the first round is thrown away."""
    model = place / "model"
    subprocess.run([*inline(source, model)], check=True, stdout=subprocess.DEVNULL)
    (model / "distconv.json").unlink()
    files = sorted(model.glob("*.safetensors"))
    contestants: dict[str, list[str | Path]] = {
        "cat": ["/bin/sh", "-c", f"cat {' '.join(map(str, files))} > /dev/null"],
        "distconv verify": [sys.executable, "-m", "distconv", "verify", model, "--quiet"],
    }
    found = []
    for number in range(rounds + 1):
        for name, command in contestants.items():
            for path in files:
                forget(path)
            measured = run(command)
            if number:
                sizes = {
                    "bytes": sum(path.stat().st_size for path in files),
                    "core_seconds": measured.core_seconds,
                }
                memory = {"peak_anonymous_bytes": measured.peak_anonymous_bytes}
                found.append(
                    {"contestant": name, "round": number, "seconds": measured.seconds, **sizes, **memory}
                )
    return found


def forget(path: Path) -> None:
    """Let a file's data be on the disk alone."""
    with path.open("rb+") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


@contextmanager
def place_in(parent: Path, *, kept: bool) -> Iterator[Path]:
    """Have a folder for measuring; ``kept`` is for a RAM disk, whose files lie in memory that is kept."""
    with (
        kept_memory() if kept else nullcontext(),
        tempfile.TemporaryDirectory(prefix="distconv-bench-", dir=parent) as place,
    ):
        yield Path(place)


def size_of(folder: Path) -> int:
    """Add up the sizes of the shards."""
    return sum(path.stat().st_size for path in folder.glob("*.pth"))


def describe_machine() -> dict[str, object]:
    """Say what was measured on."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "cores": os.cpu_count(),
        "memory_gib": round(memory / 2**30, 1),
        "kernel": platform.release(),
        "python": platform.python_version(),
    }


@click.command()
@click.option("--layers", type=int, envvar="LAYERS", help="[default: 3, of full 80]")
@click.option(
    "--rounds", type=int, default=5, show_default=True, help="Counted rounds, after one that is not."
)
@click.option("--ram", type=click.Path(path_type=Path), default="/dev/shm", show_default=True)
@click.option("--disk", type=click.Path(path_type=Path), default=tempfile.gettempdir(), show_default=True)
@click.option(
    "--only",
    type=click.Choice([*PARTS, "full"]),
    multiple=True,
    help="Measure only this; full, a whole 70B, is measured only where it is asked for.",
)
@click.option(
    "--folder",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    help="For full: a folder with room. [default: a btrfs that compresses, in a file in --disk]",
)
@click.option("--peer", is_flag=True, help="Also the known script (make peers first).")
@click.option(
    "--into",
    type=click.Path(path_type=Path),
    default="bench",
    show_default=True,
    help="Folder for the results.",
)
def main(
    *, layers: int | None, rounds: int, ram: Path, disk: Path, only: tuple[str, ...], folder: Path | None,
    peer: bool, into: Path,
) -> None:  # fmt: skip
    """Measure distconv against copies of the same bytes, and print and draw what came out."""
    tokenizer = Path(find_spec("mistral_common").origin).parent / "data/tokenizer.model.v1"
    wanted = only or PARTS
    full_layers, layers = layers or 80, layers or 3
    found: dict[str, object] = {"machine": describe_machine(), "layers": layers, "rounds": rounds}
    into.mkdir(exist_ok=True)
    for name, parent in (("ram", ram), ("disk", disk)):
        if name in wanted:
            with place_in(parent, kept=name == "ram") as place:
                source = write_noise(place / "source", llama_70b(layers), tokenizer)
                found["input_bytes"] = size_of(source)
                found[name] = measure_place(place, source, rounds, durable=name == "disk", peer=peer)
    if "pace" in wanted:
        with place_in(ram, kept=True) as place:
            source = write_noise(place / "source", llama_70b(layers), tokenizer)
            found["pace"] = measure_pace(place, source, rounds)
    if "ways" in wanted:
        with place_in(ram, kept=True) as place:
            # INPUT three times and OUTPUT must fit.
            found["ways"] = measure_ways(place, llama_70b(min(layers, 2)), tokenizer, rounds)
    if "experts" in wanted:
        with place_in(disk, kept=False) as place:
            text = write_noise(place / "text", llama_70b(layers), tokenizer)
            experts = write_noisy_experts(place / "experts", EXPERTS)
            found["experts"] = measure_experts(place, text, experts, rounds)
    if "verify" in wanted:
        with place_in(disk, kept=False) as place:
            source = write_noise(place / "source", llama_70b(layers), tokenizer)
            found["verify"] = measure_verify(place, source, rounds)
    if "growth" in wanted:
        with place_in(ram, kept=True) as place:
            found["growth"] = measure_growth(place, tokenizer, rounds)
    if "full" in wanted:
        try:
            with open_room(folder, disk) as place:
                found["full"] = measure_full(place, llama_70b(full_layers), tokenizer, inline)
        except NoDiskError as reason:
            click.echo(f"full is left out: {reason}; give --folder, with room for a whole 70B", err=True)
    (into / "bench.json").write_text(json.dumps(found, indent=2) + "\n")
    print_tables(found)
    if {"ram", "disk", "growth"} & set(wanted):
        write_picture(found, into / "bench.png")


if __name__ == "__main__":
    main()
