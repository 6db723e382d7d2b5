"""Kill and stop conversions at random instants and go on: ``make torture``, or a small share of it in the suite.

After every run to the end, each file must have the SHA-256 of the undisturbed run's, and no
chunk that was recorded may have been written again.
"""

import contextlib
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import click

import distconv
from tests.benchmarks.measure import tree
from tests.checkpoints import Spec, write_checkpoint, write_sentencepiece
from tests.contests import contest_input, contest_living, contest_output
from tests.faults import digest_folder, looks_whole, read_recorded
from tests.mounts import bound_twice, why_no_bindfs
from tests.object_store import ObjectStore
from tests.store_faults import convert_among_faults, hurry
from tests.stored import AnyPath, StoredPath, remove_folder, run_store, stamp_files

SPEC = Spec("llama-2", dim=512, heads=8, kv_heads=4, layers=6, multiple_of=256, shards=2)
"""Of about 50 MB: some tens of chunks, each some milliseconds."""
CHUNKS = "1MB"
MOVING_SHARE = 0.8
TO_META = ("--to", "meta", "--shards", "2")
"""Shards are written in parts, of which those that are recorded are gone on with."""


def command(source: AnyPath, output: AnyPath, *options: str, module: str = "distconv") -> list[str]:
    """Give the command line of a conversion; ``tests.small_parts`` is a module that writes chunks in parts."""
    return [
        sys.executable, "-m", module, "convert", str(source), str(output), "--quiet",
        "--max-shard-size", CHUNKS, *options,
    ]  # fmt: skip


def stamps(output: AnyPath) -> dict[str, object]:
    """Tell chunks apart from ones that were written again."""
    found = stamp_files(output)
    return {name: stamp for name, stamp in found.items() if re.fullmatch(r"[^.].*\.(safetensors|pth)", name)}


def recorded_stamps(output: AnyPath) -> dict[str, object]:
    """Tell the chunks that must be kept apart from ones that were written again."""
    found = stamps(output)
    return {name: found[name] for name in read_recorded(output)}


def torture_inline(
    source: AnyPath, place: AnyPath, kills: int, seed: int, *options: str, module: str = "distconv"
) -> int:
    """Kill a conversion ``kills`` times, beginning anew when it ends; gives how often it ended."""
    chance = random.Random(seed)
    reference = place / f"reference{len(options)}"
    started = time.monotonic()
    subprocess.run(command(source, reference, *options), check=True, capture_output=True)
    whole_seconds = time.monotonic() - started
    expected = digest_folder(reference)
    done, ended, output = 0, 0, place / f"output{len(options)}-0"
    while done < kills:
        before = recorded_stamps(output)
        forget_writes(output)
        process = subprocess.Popen(
            command(source, output, *options, module=module),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        # Most kills fall while bytes move, some before anything of this run is in the folder.
        if chance.random() < MOVING_SHARE:
            wait_until_moving(process, output)
        try:
            code = process.wait(chance.uniform(0, 0.6) * whole_seconds)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            code = process.wait()
        if code == -signal.SIGKILL:
            done += 1
            whole_seconds *= 1.1
        if code not in {0, -signal.SIGKILL}:
            message = f"ended with {code}"
            raise AssertionError(message)
        check_kept(before, output)
        if code == 0:
            check_equal(expected, output)
            ended += 1
            output = place / f"output{len(options)}-{ended}"
            whole_seconds *= 0.8  # the machine may have become faster: kills are wanted
        elif looks_whole(output):
            check_tensors(expected, output)
    before = recorded_stamps(output)
    subprocess.run(command(source, output, *options, module=module), check=True, capture_output=True)
    check_kept(before, output)
    check_equal(expected, output)
    return ended + 1


def wait_until_moving(process: "subprocess.Popen[bytes]", output: AnyPath) -> None:
    """Wait until the process writes a chunk, or has ended."""
    while process.poll() is None and not (
        stores_parts(output) or list(output.glob(f".*.[sp]*.*-{process.pid}-*.partial"))
    ):
        time.sleep(0.002)


def forget_writes(output: AnyPath) -> None:
    """Let only what is written from now on count for ``stores_parts``."""
    if isinstance(output, StoredPath) and isinstance(output.store, ObjectStore):
        output.store.clear_requests()


def stores_parts(output: AnyPath) -> bool:
    """Whether something of a chunk has come to a store."""
    if not isinstance(output, StoredPath) or not isinstance(output.store, ObjectStore):
        return False
    return any(part.key.endswith((".safetensors", ".pth")) for part in output.store.requests("UploadPart"))


def check_kept(before: dict[str, object], output: AnyPath) -> None:
    """Every chunk that was recorded is still the same file."""
    after = stamps(output)
    changed = [name for name, stamp in before.items() if after.get(name) != stamp]
    if changed:
        message = f"{output}: written again: {changed}"
        raise AssertionError(message)


def check_equal(expected: dict[str, str], output: AnyPath) -> None:
    """Every file has the bytes of the undisturbed run."""
    found = digest_folder(output)
    if found != expected:
        different = sorted(name for name in found | expected if found.get(name) != expected.get(name))
        message = f"{output}: differs in {different}"
        raise AssertionError(message)


def check_tensors(expected: dict[str, str], output: AnyPath) -> None:
    """What looks whole has all its files; only the journal and the owner's file may still be there."""
    found = digest_folder(output)
    if not expected.items() <= found.items():
        message = f"{output}: looks whole and is not"
        raise AssertionError(message)


def torture_ray(
    source: AnyPath, place: AnyPath, kills: int, seed: int, *options: str, module: str = "distconv"
) -> dict[str, int]:
    """Kill workers, raylets and drivers of conversions on Ray in turn; gives how many of each."""
    chance = random.Random(seed)
    reference = place / f"ray-reference{len(options)}"
    subprocess.run(command(source, reference, *options), check=True, capture_output=True)
    expected = digest_folder(reference)
    done = dict.fromkeys(VICTIMS, 0)
    number, output = 0, place / f"ray-output{len(options)}-0"
    while sum(done.values()) < kills:
        victim = min(done, key=lambda name: done[name])
        seen, before = stamps(output), recorded_stamps(output)
        forget_writes(output)
        with subprocess.Popen(
            command(source, output, "--workers", "2", *options, module=module),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        ) as process:
            try:
                done[victim] += kill_one(process, output, victim, set(seen), chance)
                code = process.wait(RAY_SECONDS)
            except BaseException:
                process.kill()
                raise
        check_kept(before, output)
        if code == 0:
            check_equal(expected, output)
            remove_folder(output)
            number += 1
            output = place / f"ray-output{len(options)}-{number}"
        elif looks_whole(output):
            check_tensors(expected, output)
    before = recorded_stamps(output)
    subprocess.run(
        command(source, output, "--workers", "2", *options, module=module), check=True, capture_output=True
    )
    check_kept(before, output)
    check_equal(expected, output)
    return done


def kill_one(
    process: "subprocess.Popen[bytes]",
    output: AnyPath,
    victim: str,
    before: set[str],
    chance: random.Random,
) -> bool:
    """Wait until bytes move, then a moment, and kill; True where somebody was killed."""
    deadline = time.monotonic() + RAY_SECONDS
    while process.poll() is None and time.monotonic() < deadline:
        workers = find_processes(process.pid, VICTIMS["worker"])
        if set(stamps(output)) - before or stores_parts(output) or any(map(writes, workers)):
            break
        time.sleep(0.005)
    time.sleep(chance.uniform(0, 0.3))
    if process.poll() is not None:
        return False
    pids = [process.pid] if victim == "driver" else find_processes(process.pid, VICTIMS[victim])
    if not pids:
        return False
    with contextlib.suppress(ProcessLookupError):
        os.kill(chance.choice(pids), signal.SIGKILL)
        return True
    return False


def writes(pid: int) -> bool:
    """Whether a process has a file open that is not committed yet."""
    with contextlib.suppress(OSError):
        return any(".partial" in os.readlink(link) for link in Path(f"/proc/{pid}/fd").iterdir())
    return False


def find_processes(pid: int, words: str) -> list[int]:
    """Find descendants by their command line."""
    found = []
    for child in tree(pid):
        with contextlib.suppress(OSError):
            if words in Path(f"/proc/{child}/cmdline").read_text(errors="replace").split("\0")[0]:
                found.append(child)
    return found


VICTIMS = {"worker": "ray::Worker", "raylet": "raylet/raylet", "driver": ""}
RAY_SECONDS = 180


@click.command()
@click.option("--kills", default=200, show_default=True, help="Of inline conversions.")
@click.option("--ray-kills", default=51, show_default=True, help="Of workers, raylets and drivers in turn.")
@click.option("--stops", default=120, show_default=True, help="Of owners of OUTPUT, with successors.")
@click.option("--swaps", default=60, show_default=True, help="Of INPUT, while it is converted.")
@click.option("--mounts", default=20, show_default=True, help="Rounds of each kind on caching mounts.")
@click.option(
    "--faults", default=200, show_default=True, help="Conversions in a store that fails now and then."
)
@click.option("--store", is_flag=True, help="With both ends in an object store rather than in local folders.")
@click.option("--seed", default=0, show_default=True)
def main(
    kills: int, ray_kills: int, stops: int, swaps: int, mounts: int, faults: int, seed: int, *, store: bool
) -> None:
    """Kill, stop, swap, go on, compare."""
    with tempfile.TemporaryDirectory(prefix="distconv-torture-") as folder:
        place = Path(folder)
        tokenizer = write_sentencepiece(place / "tokenizer.model")
        source = write_checkpoint(place / "source-0", SPEC, tokenizer)
        if store:
            torture_store(source, place, (kills, ray_kills, stops, faults), seed)
            return
        ends = contest_input(SPEC, tokenizer, place, swaps, seed)
        click.echo(f"INPUT: {swaps} changes, {dict(ends)}; no mixture")
        click.echo(torture_mounts(source, place, mounts, seed))
        torture_place(source, place, (kills, ray_kills, stops), seed)


def torture_place(source: AnyPath, place: AnyPath, counts: tuple[int, int, int], seed: int) -> None:
    """Stop and kill conversions; ``counts`` are kills, kills on Ray, and stops."""
    kills, ray_kills, stops = counts
    for words, shares, options in (("", (1, 1, 1), ()), ("to Meta, ", (2, 3, 3), TO_META)):
        chosen: dict[str, object] = {"to": "meta", "shards": 2} if options else {}
        rounds = stops // shares[2]
        ends = contest_output(source, place, rounds, seed, **chosen)
        click.echo(f"{words}OUTPUT: {rounds} rounds, stopped {dict(ends)}; all of the successor's bytes")
        rounds = kills // shares[0]
        ended = torture_inline(source, place, rounds, seed, *options)
        click.echo(
            f"{words}inline: {rounds} kills over {ended} conversions, each equal to the undisturbed run"
        )
        killed = torture_ray(source, place, ray_kills // shares[1], seed, *options)
        click.echo(f"{words}Ray: killed {killed}, each conversion went on to the same bytes")


def torture_store(source: Path, place: Path, counts: tuple[int, int, int, int], seed: int) -> None:
    """Do all that in a store; the last of ``counts`` are conversions among faults of the store's."""
    small = write_checkpoint(
        place / "small", replace(SPEC, dim=64, layers=2, multiple_of=16), place / "tokenizer.model"
    )
    with run_store(place) as store:
        stored = [StoredPath(store, "models", name) for name in ("in", "small", "out")]
        for folder, target in zip((source, small), stored, strict=False):
            store.share(folder, target.bucket, f"{target.key}/")
        torture_place(stored[0], stored[2], counts[:3], seed)
        hurry()
        for to in ("transformers", "meta"):
            options: dict[str, object] = {"max_shard_size": 200_000, "to": to}
            distconv.convert(stored[1], place / to, **options)  # type: ignore[arg-type]
            expected = digest_folder(place / to)
            ends = convert_among_faults(
                stored[1], stored[2] / to, store, expected, counts[3] // 2, seed, **options
            )
            click.echo(
                f"to {to}, faults: {counts[3] // 2} rounds {dict(ends)}; whole and right, or told as failed"
            )


def torture_mounts(source: Path, place: Path, rounds: int, seed: int) -> str:
    """Contend for OUTPUT by two mounts that remember what files looked like; gives how it went."""
    if rounds and (reason := why_no_bindfs()) is not None:
        return f"caching mounts: left out, {reason}"
    with bound_twice(place) as seen:
        living = contest_living(source, place, rounds, seed, seen)
        ends = contest_output(source, place, rounds, seed, seen)
    return f"caching mounts: {rounds} rounds beside the living {dict(living)}, {rounds} stopped {dict(ends)}"


if __name__ == "__main__":
    main()
