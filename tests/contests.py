"""Conversions that contend for one OUTPUT or for one INPUT, as processes; part of ``make torture``.

Each process counts as one of another host for all others, so that its beats alone tell of it.
"""

import contextlib
import os
import random
import shutil
import signal
import sys
import time
import traceback
import uuid
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import distconv
from distconv.errors import DistconvError
from distconv.output import acquisition, holders, ownership
from tests.checkpoints import Spec, write_checkpoint
from tests.faults import digest_folder, looks_whole
from tests.stored import AnyPath, remove_folder

CHUNK_BYTES = 1_000_000
BEAT_SECONDS = 0.05
OWNING_SHARE = 0.8
LOST = 3
"""The exit code of who owned OUTPUT and was robbed of it."""


def start(source: AnyPath, output: AnyPath, *, patience: float, **options: object) -> int:
    """Convert in a process of its own; gives its id. Its exit code is the command line's, or LOST."""
    process = os.fork()
    if process:
        return process
    code = 70
    try:
        machine = uuid.uuid4().hex
        holders._machine = lambda: machine
        acquisition.BEAT_SECONDS, acquisition.PATIENCE_SECONDS = BEAT_SECONDS, patience
        acquisition._WATCH_SECONDS = BEAT_SECONDS / 2
        distconv.convert(source, output, **{"max_shard_size": CHUNK_BYTES, **options})  # type: ignore[arg-type]
        code = 0
    except DistconvError as error:
        print(error, file=sys.stderr)
        code = LOST if "took it over" in str(error) else error.exit_code
    except OSError:
        traceback.print_exc()
        code = 1
    except BaseException:  # noqa: BLE001
        traceback.print_exc()
    finally:
        os._exit(code)


def end(process: int) -> int:
    """Wait for a process's end; gives its exit code."""
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def wait_for_owner(process: int, output: AnyPath) -> None:
    """Wait until a process owns a folder, or has ended."""
    ours = f'"pid": {process},'
    while os.waitid(os.P_PID, process, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
        for path in output.glob(f"{ownership.OWNER_PREFIX}*"):
            with contextlib.suppress(FileNotFoundError):
                if ours in path.read_text():
                    return
        time.sleep(0.002)


def undisturbed(source: AnyPath, place: AnyPath, **options: object) -> tuple[dict[str, str], float]:
    """Give what a conversion makes, and the seconds that it takes."""
    began = time.monotonic()
    assert end(start(source, place, patience=1.0, **options)) == 0
    seconds = time.monotonic() - began
    found = digest_folder(place)
    remove_folder(place)
    return found, seconds


def compare(output: AnyPath, expected: dict[str, str], words: str) -> None:
    """AssertionError with the files that are missing, foreign or others, if there are any."""
    found = digest_folder(output)
    odd = sorted(name for name in found.keys() | expected.keys() if found.get(name) != expected.get(name))
    assert not odd, f"{words}: {', '.join(f'{name} is {describe(name, found, expected)}' for name in odd)}"


def describe(name: str, found: dict[str, str], expected: dict[str, str]) -> str:
    """Say what is wrong with a file."""
    return "missing" if name not in found else "another" if name in expected else "foreign"


def contest_output(
    source: AnyPath,
    place: AnyPath,
    rounds: int,
    seed: int,
    seen: tuple[Path, Path] | None = None,
    **options: object,
) -> Counter[str]:
    """Stop a conversion, or two in turn, let a successor finish, and let them go on; gives their ends.

    ``seen`` are two paths of one folder for OUTPUT, which conversions take in turn.
    """
    chance = random.Random(seed)
    expected, seconds = undisturbed(source, place / "expected", **options)
    first, second = seen or (place, place)
    ends: Counter[str] = Counter()
    for number in range(rounds):
        name = f"output-{number}"
        outputs = [first / name, second / name, first / name]
        victims = outputs[: chance.choice([1, 1, 2])]
        processes = []
        for output in victims:
            overwrite = chance.random() < 0.3
            processes.append(start(source, output, patience=0.5, overwrite=overwrite, **options))
            # Most stops fall while it owns OUTPUT, some before or after.
            if chance.random() < OWNING_SHARE:
                wait_for_owner(processes[-1], output)
            time.sleep(chance.uniform(0, 0.3) * seconds)
            os.kill(processes[-1], signal.SIGSTOP)
        try:
            code = end(start(source, outputs[len(victims)], patience=0.5, **options))
            assert code == 0, f"{name}: the successor ended with {code}"
            compare(outputs[0], expected, f"{name}: of the successor")
        finally:
            for process in processes:
                os.kill(process, signal.SIGCONT)
            codes = [end(process) for process in processes]
        assert set(codes) <= {0, 2, LOST}, f"{name}: ended with {codes}"
        compare(outputs[0], expected, f"{name}: after those that had been stopped, {codes}")
        ends.update({0: "finished", 2: "refused", LOST: "lost"}[code] for code in codes)
        remove_folder(outputs[0])
    return ends


def contest_living(
    source: Path, place: Path, rounds: int, seed: int, seen: tuple[Path, Path]
) -> Counter[str]:
    """Let a second conversion try while the first lives: neither is ever robbed; gives how they ended."""
    chance = random.Random(seed)
    expected, seconds = undisturbed(source, place / "expected")
    ends: Counter[str] = Counter()
    for number in range(rounds):
        outputs = [path / f"living-{number}" for path in seen]
        first = start(source, outputs[0], patience=30.0)
        time.sleep(chance.uniform(0, 1.0) * seconds)
        second = start(source, outputs[1], patience=30.0)
        codes = [end(first), end(second)]
        assert sorted(codes) in ([0, 0], [0, 2]), f"ended with {codes}"
        assert digest_folder(outputs[0]) == expected
        ends["one was refused" if 2 in codes else "one came after"] += 1
        shutil.rmtree(outputs[0])
    return ends


def contest_input(spec: Spec, tokenizer: Path, place: Path, rounds: int, seed: int) -> Counter[str]:
    """Change INPUT at a random instant of a conversion; gives how these ended.

    What is done is of one INPUT, and what is not goes on to that.
    """
    chance = random.Random(seed)
    pair = [
        write_checkpoint(place / f"input-{number}", replace(spec, seed=number), tokenizer)
        for number in range(2)
    ]
    seconds = undisturbed(pair[0], place / "expected")[1]
    ends: Counter[str] = Counter()
    for number in range(rounds):
        source, output = place / "source", place / f"swapped-{number}"
        shutil.copytree(pair[0], source)
        before = chunks_of(source, place / "before")
        change, spare = chance.choice(CHANGES), shutil.copytree(pair[1], place / "spare")
        process = start(source, output, patience=1.0)
        if chance.random() < OWNING_SHARE:
            wait_for_owner(process, output)
        time.sleep(chance.uniform(0, 0.3) * seconds)
        change(source, spare)
        code = end(process)
        assert code in {0, 1, 2}
        after = chunks_of(source, place / "after")
        if code == 0:
            assert chunks(output) in (before, after), f"{change.__name__}: a mixture was called done"
        else:
            assert not looks_whole(output), change.__name__
        code_again = end(start(source, output, patience=1.0))
        if code_again == 2:
            code_again = end(start(source, output, patience=1.0, overwrite=True))
        assert code_again == 0
        assert chunks(output) == after, f"{change.__name__}: a mixture was kept"
        ends[f"{change.__name__}: {'done' if code == 0 else 'refused'}"] += 1
        for folder in (source, spare, output):
            shutil.rmtree(folder)
    return ends


def chunks_of(source: Path, output: Path) -> dict[str, str]:
    """Give the chunks that an undisturbed conversion makes."""
    assert end(start(source, output, patience=1.0)) == 0
    found = chunks(output)
    shutil.rmtree(output)
    return found


def chunks(output: Path) -> dict[str, str]:
    """Give the digests of a folder's chunks."""
    return {name: found for name, found in digest_folder(output).items() if name.endswith(".safetensors")}


def replace_shard(source: Path, spare: Path) -> None:
    """Give another file a shard's name and times."""
    shard = source / "consolidated.01.pth"
    shutil.copystat(shard, spare / shard.name)
    (spare / shard.name).replace(shard)


def write_shard(source: Path, spare: Path) -> None:
    """Write into a shard in place, and put its times back."""
    shard = source / "consolidated.01.pth"
    status = shard.stat()
    with shard.open("r+b") as file:
        file.write((spare / shard.name).read_bytes())
    os.utime(shard, ns=(status.st_atime_ns, status.st_mtime_ns))


def exchange_folders(source: Path, spare: Path) -> None:
    """Give the other folder the name."""
    source.rename(source.with_name("exchanged"))
    spare.rename(source)
    source.with_name("exchanged").rename(spare)


def exchange_and_put_back(source: Path, spare: Path) -> None:
    """Give another file a shard's name for a moment."""
    shard = source / "consolidated.01.pth"
    shard.rename(spare / "kept")
    (spare / shard.name).rename(shard)
    time.sleep(0.05)
    shard.rename(spare / shard.name)
    (spare / "kept").rename(shard)


CHANGES: tuple[Callable[[Path, Path], None], ...] = (
    replace_shard,
    write_shard,
    exchange_folders,
    exchange_and_put_back,
)
