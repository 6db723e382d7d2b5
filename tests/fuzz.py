"""Mutated headers and hostile pickles by the million: read or refused, and nothing else.

Files are held in memory, so that parsing is all that takes time. The address space is
limited to 64 MiB above what the process has: a header that makes a parser allocate more ends
in a MemoryError, which counts as a finding, as does any slow input.
"""

import contextlib
import json
import random
import resource
import time
import zipfile
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path

import click
import torch

from distconv.errors import InputError
from distconv.formats.meta.archive import locate_data, read_archive
from distconv.formats.meta.params import read_params
from distconv.storage.local import LocalStorage
from tests.programs import PLACES, VALUES, draw_file, make_good, make_zip

LIMIT_BYTES = 64 << 20
SLOW_SECONDS = 5.0
BATCH = 5000
PROGRAM_SHARE = 7
"""Every seventh input is a pickle that no pickler writes."""
PROGRAM_SIZE = 300_000
PROGRAM_LIMIT_BYTES = 256 << 20
PLACES_EACH = 3
_TOKENS = (0, 1, 0x7F, 0x80, 0xFF, *b".(cRbtqX}u]e{[")


class MemoryReader:
    """A file in memory."""

    def __init__(self, content: bytes) -> None:
        self.path = "fuzzed.pth"
        self.size_bytes = len(content)
        self._content = content

    def read_into(self, offset_bytes: int, buffer: memoryview) -> None:
        """Fill the buffer, or say that the file is too short."""
        found = self._content[offset_bytes : offset_bytes + len(buffer)]
        if len(found) < len(buffer):
            message = f"{self.path}: the file is truncated"
            raise InputError(message)
        buffer[:] = found

    def close(self) -> None:
        """Do nothing."""


@dataclass(frozen=True, slots=True)
class MemoryStorage(LocalStorage):
    """Storage that holds one file."""

    content: bytes = field(default=b"")

    def open(self, path: str) -> MemoryReader:  # type: ignore[override]
        """Open the one file."""
        return MemoryReader(self.content)


def samples() -> list[tuple[str, bytes]]:
    """Give small good files of each kind: zip, legacy pickle, params.json."""
    state = {"a": torch.arange(12.0).view(3, 4), "b": torch.ones(2, dtype=torch.bfloat16)}
    found = []
    for zipped in (True, False):
        buffer = BytesIO()
        torch.save(state, buffer, _use_new_zipfile_serialization=zipped)
        found.append(("archive", buffer.getvalue()))
    # Without padding the headers are most of the file, and most mutations meet them.
    dense = BytesIO()
    with zipfile.ZipFile(BytesIO(found[0][1])) as before, zipfile.ZipFile(dense, "w") as after:
        for name in before.namelist():
            after.writestr(name, before.read(name))
    found.append(("archive", dense.getvalue()))
    fields = {
        "dim": 4096,
        "n_layers": 32,
        "n_heads": 32,
        "n_kv_heads": 8,
        "norm_eps": 1e-5,
        "rope_theta": 5e5,
    }
    found.append(("params", json.dumps(fields | {"multiple_of": 256, "vocab_size": -1}).encode()))
    return found


def mutate(content: bytes, chance: random.Random) -> bytes:
    """Change a few bytes, sizes and places."""
    mutated = bytearray(content)
    for _ in range(chance.randint(1, 6)):
        at = chance.randrange(len(mutated)) if mutated else 0
        kind = chance.randrange(7)
        if not mutated or kind == 0:
            mutated[at:at] = chance.randbytes(chance.randint(1, 8))
        elif kind == 1:
            mutated[at] ^= 1 << chance.randrange(8)
        elif kind == 2:
            mutated[at] = chance.choice(_TOKENS)
        elif kind == 3:
            del mutated[at:]
        elif kind == 4:
            del mutated[at : at + chance.randint(1, 8)]
        elif kind == 5:
            mutated[at : at + 4] = chance.choice([b"\xff\xff\xff\xff", b"\xff\xff\xff\x7f", b"\0\0\0\x80"])
        else:
            other = chance.randrange(len(mutated))
            mutated[at : at + 16] = mutated[other : other + 16]
    return bytes(mutated)


def try_one(kind: str, content: bytes) -> bool:
    """Read one file; True where it was read, False where it was refused; all else is raised."""
    try:
        if kind == "params":
            read_params(MemoryStorage(content), "params.json")
        else:
            reader = MemoryReader(content)
            for _tensor, record in read_archive(reader).values():
                locate_data(reader, record)
    except InputError as error:
        if "MemoryError" in str(error):
            raise AssertionError(str(error)) from None
        return False
    return True


@contextlib.contextmanager
def limited(size_bytes: int) -> Iterator[None]:
    """Let the process take so much more memory than it has, and no more."""
    with Path("/proc/self/statm").open() as file:
        used_bytes = int(file.read().split()[0]) * resource.getpagesize()
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (used_bytes + size_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


def describe_archive(content: bytes) -> object:
    """Read a file; what is in it, or the message that refuses it."""
    try:
        return read_archive(MemoryReader(content))
    except InputError as error:
        return str(error)


def try_large_program(name: str) -> float:
    """Try a hostile value, as large as is still read, in some places; gives the longest time in seconds."""
    good = make_good()
    before, longest = describe_archive(good), 0.0
    value = VALUES[name](PROGRAM_SIZE)
    with limited(PROGRAM_LIMIT_BYTES):
        for place in random.Random(name).sample(list(PLACES), PLACES_EACH):
            started = time.process_time()
            found = describe_archive(make_zip(b"\x80\x02" + PLACES[place](value) + b".", good))
            longest = max(longest, time.process_time() - started)
            if "MemoryError" in str(found)[:1000] or describe_archive(good) != before:
                message = f"{name} as {place}"
                raise AssertionError(message)
    if longest > SLOW_SECONDS:
        message = f"{name} took {longest:.1f} s"
        raise AssertionError(message)
    return longest


def fuzz(seed: int, count: int) -> tuple[int, float]:
    """Try so many files; gives how many were read all the same, and the longest time in seconds."""
    chance, goods, read, longest = random.Random(seed), samples(), 0, 0.0
    before = [describe_archive(good) for kind, good in goods if kind == "archive"]
    with limited(LIMIT_BYTES):
        for number in range(count):
            if number % PROGRAM_SHARE:
                kind, good = goods[number % len(goods)]
                content = mutate(good, chance)
            else:
                kind, content = "archive", draw_file(chance)
            started = time.monotonic()
            try:
                read += try_one(kind, content)
            except Exception as error:
                message = f"seed {seed}, number {number}: {content!r}"
                raise AssertionError(message) from error
            longest = max(longest, time.monotonic() - started)
    if before != [describe_archive(good) for kind, good in goods if kind == "archive"]:
        message = f"seed {seed}: good files are read in another way than before"
        raise AssertionError(message)
    if longest > SLOW_SECONDS:
        message = f"seed {seed}: an input took {longest:.1f} s"
        raise AssertionError(message)
    return read, longest


@click.command()
@click.option("--inputs", default=1_000_000, show_default=True)
@click.option("--seed", default=0, show_default=True)
def main(inputs: int, seed: int) -> None:
    """Fuzz on all cores."""
    batches = -(-inputs // BATCH)
    with ProcessPoolExecutor() as pool:
        large = list(pool.map(try_large_program, VALUES))
        outcomes = list(pool.map(fuzz, range(seed, seed + batches), [BATCH] * batches))
    read, longest = sum(count for count, _ in outcomes), max(seconds for _, seconds in outcomes)
    click.echo(f"large pickles: the slowest took {max(large) * 1000:.0f} ms")
    click.echo(
        f"{batches * BATCH:,} inputs: {read:,} read, the others refused; the slowest took {longest * 1000:.0f} ms"
    )


if __name__ == "__main__":
    main()
