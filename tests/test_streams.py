"""Standard streams that are closed, broken or full: the work is done, and the exit code is true."""

import os
import pty
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import distconv
from tests.checkpoints import Spec
from tests.faults import digest_folder
from tests.patience import HANG_SECONDS

Write = Callable[[Spec], Path]
SPEC = Spec("llama-2", heads=8, kv_heads=4, shards=2)
MODULE = f"{sys.executable} -m distconv"
STATES = {
    "no standard input": "0<&-",
    "no standard output": "1>&-",
    "no standard error": "2>&-",
    "none of them": "0<&- 1>&- 2>&-",
    "full standard error": "2>/dev/full",
}
COMMANDS = {
    "convert": ("convert {in} {out}", 0),
    "wrong usage": ("plan {in} --nonsense", 2),
    "no input": ("inspect {in}/none", 2),
    "differences": ("verify {bad}", 1),
    "inspect": ("inspect {in}", 0),
    "plan": ("plan {in} --json --max-shard-size 1kB", 0),
    "check": ("check {in}", 0),
    "verify": ("verify {good} --against {in}", 0),
    "tokenizer": ("tokenizer {in} {out}", 0),
    "no url": ("download --models 7B --to {out}", 2),
    "completion": ("completion bash", 0),
    "help": ("convert --help", 0),
}
QUICK = {"convert", "no input", "plan"}


@pytest.fixture(scope="module")
def folders(checkpoint: Write, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Give a checkpoint, a whole conversion of it, and one whose index is damaged."""
    place, source = tmp_path_factory.mktemp("streams"), checkpoint(SPEC)
    for name in ("good", "bad"):
        distconv.convert(source, place / name)
    chunk = place / "bad" / "model.safetensors"
    chunk.write_bytes(chunk.read_bytes()[:-1])
    return {"in": source, "good": place / "good", "bad": place / "bad"}


def needs(command: str) -> object:
    return pytest.param(*COMMANDS[command], id=command, marks=() if command in QUICK else pytest.mark.slow)


@pytest.mark.product
@pytest.mark.parametrize("redirection", STATES.values(), ids=STATES.keys())
@pytest.mark.parametrize(("command", "code"), [needs(command) for command in COMMANDS])
def test_closed_and_full_streams_change_no_exit_code(
    folders: dict[str, Path], tmp_path: Path, redirection: str, command: str, code: int
) -> None:
    paths = {name: str(path) for name, path in folders.items()} | {"out": str(tmp_path / "out")}
    line = f"{MODULE} {command.format_map(paths)} {redirection}"
    done = subprocess.run(
        ["bash", "-c", line], capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL
    )
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    assert "Exception ignored" not in done.stderr
    if command.startswith("convert {"):
        assert digest_folder(tmp_path / "out") == digest_folder(folders["good"])


@pytest.mark.product
@pytest.mark.parametrize("broken", ["stdout", "stderr"])
@pytest.mark.parametrize(("command", "code"), [needs(command) for command in COMMANDS])
def test_a_reader_that_has_gone_changes_no_exit_code(
    folders: dict[str, Path], tmp_path: Path, broken: str, command: str, code: int
) -> None:
    paths = {name: str(path) for name, path in folders.items()} | {"out": str(tmp_path / "out")}
    reader, writer = os.pipe()
    os.close(reader)
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | {broken: writer}
    try:
        done = subprocess.run(
            [sys.executable, "-m", "distconv", *command.format_map(paths).split()],
            stdin=subprocess.DEVNULL, text=True, check=False, **streams,
        )  # fmt: skip
    finally:
        os.close(writer)
    shown = (done.stdout or "") + (done.stderr or "")
    assert done.returncode == code, shown
    assert "Traceback" not in shown
    assert "Exception ignored" not in shown


def test_a_terminal_that_goes_away_ends_nothing(folders: dict[str, Path], tmp_path: Path) -> None:
    """As over a connection that breaks, where the hang-up itself is ignored (nohup, tmux)."""
    terminal, side = pty.openpty()
    output = tmp_path / "out"
    # Who starts a process hands on which signals are ignored.
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        process = subprocess.Popen(
            [sys.executable, "-m", "distconv", "convert", str(folders["in"]), str(output)],
            stdin=side, stdout=side, stderr=side,
        )  # fmt: skip
    finally:
        signal.signal(signal.SIGHUP, before)
    os.close(side)
    os.close(terminal)
    assert process.wait(timeout=HANG_SECONDS) == 0
    assert digest_folder(output) == digest_folder(folders["good"])


def test_a_full_disk_behind_standard_output_is_said_once(folders: dict[str, Path]) -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "distconv", "inspect", str(folders["in"]), "--json"],
            stdout=full, stderr=subprocess.PIPE, text=True, check=False,
        )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("error: standard output: No space left on device; ")


def test_a_name_without_a_sign_for_it_is_shown_somehow(tmp_path: Path) -> None:
    """Bytes that are no UTF-8, in a locale that knows ASCII alone."""
    folder = os.fsencode(tmp_path) + b"/caf\xe9"
    done = subprocess.run(
        [sys.executable, "-m", "distconv", "inspect", folder],
        env=os.environ | {"PYTHONIOENCODING": "ascii"}, capture_output=True, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert b"no such file or folder" in done.stderr
    assert b"Traceback" not in done.stderr
