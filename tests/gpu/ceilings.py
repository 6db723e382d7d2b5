"""What the machine can do at all, a line of JSON for each: ``python -m tests.gpu.ceilings FOLDER cuda|cpu BYTES``."""

import json
import os
import sys
import time
from collections.abc import Callable
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch
from xxhash import xxh3_128

from distconv.storage.memory import make_buffer
from tests.gpu.running import Results

THREADS = (1, 2, 4, 8, 16)
BLOCK_BYTES = 4 << 20
ROUNDS = 5


def measure(results: Results, device: str, *, small: bool) -> None:
    """Add the ceilings to the results."""
    size = 8 << 20 if small else 512 << 20
    results.need_room(THREADS[-1] * size)
    ran = results.run_any([sys.executable, "-m", "tests.gpu.ceilings", results.place, device, str(size)])
    for line in ran.output.splitlines():
        if line.startswith("{"):
            results.add(**json.loads(line))
    ran.check()


def tell(what: str, size_bytes: int, seconds: float, note: str = "") -> None:
    """Print one ceiling."""
    found = {"what": what, "gb": size_bytes / 1e9, "seconds": seconds, "note": note}
    print(json.dumps(found | {"gb_per_second": size_bytes / 1e9 / seconds}), flush=True)


def median_seconds(once: Callable[[], object]) -> float:
    """Give the median of a few runs, after one that is not counted."""
    taken = []
    for _ in range(ROUNDS + 1):
        began = time.monotonic()
        once()
        taken.append(time.monotonic() - began)
    return sorted(taken[1:])[ROUNDS // 2]


def copy_memory(size: int, threads: int) -> None:
    """Copy from memory to memory, each thread its own."""
    pairs = [(np.ones(size, np.uint8), np.empty(size, np.uint8)) for _ in range(threads)]
    with ThreadPoolExecutor(threads) as pool:
        seconds = median_seconds(lambda: list(pool.map(lambda pair: np.copyto(pair[1], pair[0]), pairs)))
    tell(f"memcpy, {threads} threads", threads * size, seconds)


def write_and_read(folder: Path, size: int, threads: int) -> None:
    """Write files of fresh pages and read them back, each thread its own."""
    blocks = [make_buffer(BLOCK_BYTES) for _ in range(threads)]
    for block in blocks:
        block[:] = os.urandom(BLOCK_BYTES)
    files = [os.open(folder / f"ceiling-{number}", os.O_RDWR | os.O_CREAT) for number in range(threads)]

    def go_through(step: Callable[[int, memoryview, int], object]) -> float:
        def go(number: int) -> None:
            for offset in range(0, size, BLOCK_BYTES):
                step(files[number], blocks[number], offset)

        began = time.monotonic()
        list(pool.map(go, range(threads)))
        return time.monotonic() - began

    with ThreadPoolExecutor(threads) as pool:
        tell(f"RAM disk, write, {threads} threads", threads * size, go_through(os.pwrite))
        tell(
            f"RAM disk, read, {threads} threads",
            threads * size,
            go_through(lambda file, block, offset: os.preadv(file, [block], offset)),
        )
    for number, file in enumerate(files):
        os.close(file)
        (folder / f"ceiling-{number}").unlink()


def read_digest_write(folder: Path, size: int, count: int) -> None:
    """Copy files block by block with a digest on the way, all that moving cannot do without, by threads and processes."""
    (folder / "loop").write_bytes(os.urandom(BLOCK_BYTES) * (size // BLOCK_BYTES))
    kinds: dict[str, Callable[[], Executor]] = {
        "threads": lambda: ThreadPoolExecutor(count),
        "processes": lambda: ProcessPoolExecutor(count, get_context("fork")),
    }
    for kind, make in kinds.items():
        with make() as pool:
            list(pool.map(time.sleep, [0.05] * count))
            began = time.monotonic()
            list(pool.map(copy_by_blocks, [folder] * count, range(count)))
            seconds = time.monotonic() - began
        tell(f"read, digest, write, {count} {kind}", count * size, seconds)
        for number in range(count):
            (folder / f"loop-{number}").unlink()
    (folder / "loop").unlink()


def copy_by_blocks(folder: Path, number: int) -> None:
    """Copy one file."""
    block, digest, offset = make_buffer(BLOCK_BYTES), xxh3_128(), 0
    with (folder / "loop").open("rb") as source, (folder / f"loop-{number}").open("wb") as target:
        while size := os.preadv(source.fileno(), [block], offset):
            digest.update(block[:size])
            os.pwrite(target.fileno(), block[:size], offset)
            offset += size


def cross_the_link(size: int) -> None:
    """Copy between host and GPU."""
    size = min(size, 256 << 20)
    there, other = (torch.zeros(size, dtype=torch.uint8, device="cuda") for _ in range(2))
    tell("D2D, bytes read", size, median_seconds(lambda: (other.copy_(there), torch.cuda.synchronize())))
    for kind in ("pinned", "pageable"):
        # Not zeros: pages that nobody wrote are one page.
        host = torch.ones(size, dtype=torch.uint8, pin_memory=kind == "pinned")

        def send(host: torch.Tensor = host) -> None:
            there.copy_(host, non_blocking=True)
            torch.cuda.synchronize()

        def fetch(host: torch.Tensor = host) -> None:
            host.copy_(there, non_blocking=True)
            torch.cuda.synchronize()

        tell(f"H2D, {kind}", size, median_seconds(send))
        tell(f"D2H, {kind}", size, median_seconds(fetch))
    streams = [torch.cuda.Stream() for _ in range(2)]
    first, second = (torch.ones(size, dtype=torch.uint8, pin_memory=True) for _ in range(2))

    def both() -> None:
        with torch.cuda.stream(streams[0]):
            there.copy_(first, non_blocking=True)
        with torch.cuda.stream(streams[1]):
            second.copy_(other, non_blocking=True)
        torch.cuda.synchronize()

    tell("H2D and D2H at once, pinned, both counted", 2 * size, median_seconds(both))


def there_and_back() -> None:
    """Time blocks through the device, one at a time: what a small one costs, and from where on it is worth it."""
    from distconv.layout.dtypes import BFLOAT16, FLOAT32
    from distconv.layout.regions import Region
    from distconv.moving.devices import Device, HostDevice
    from distconv.moving.pieces import Piece
    from tests.moving.stand_ins import StandIn

    devices: dict[str, Device] = {"host": HostDevice(), "GPU": StandIn("cuda")}
    for size in (4 << 10, 64 << 10, 256 << 10, 1 << 20, 4 << 20):
        rows = size // 4 // 64
        piece = Piece(Region("", 0, 0, 0, zipped=False), 0, rows * 64, (rows, 64), (1, rows), 0, (64, 1))
        for name, device in devices.items():

            def once(device: Device = device, piece: Piece = piece, size: int = size) -> None:
                memory = device.begin(size, 0)
                device.submit(memory, [piece], size // 4, FLOAT32, BFLOAT16)()

            seconds = median_seconds(once)
            tell(
                f"a block of {size >> 10} KiB, turned and cast, {name}",
                size,
                seconds,
                f"{seconds * 1e6:.0f} us",
            )


def main(folder: str, device: str, size: str) -> None:
    """Print them all."""
    for threads in THREADS:
        copy_memory(int(size) // 4, threads)
        write_and_read(Path(folder), int(size), threads)
        read_digest_write(Path(folder), int(size), threads)
    if device == "cuda":
        cross_the_link(int(size))
        there_and_back()


if __name__ == "__main__":
    main(*sys.argv[1:])
