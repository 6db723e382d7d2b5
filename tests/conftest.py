"""Fixtures that are made once a session: tokenizers, checkpoints, the pythons of peers."""

import fcntl
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import hypothesis
import pytest

from tests.extent import LONGEST, TOGETHER, one_of_each, share
from tests.last_words import LastWords
from tests.mounts import NoDiskError, disk_in_a_file

if TYPE_CHECKING:
    # These import torch and Transformers, which who hands out files to others does not need.
    from tests.checkpoints import Spec
    from tests.meta_model import MetaCode
    from tests.transformers_models import ModelSpec

ROOT = Path(__file__).parents[1]

# How long an example takes says something of the machine only, which may be busy.
hypothesis.settings.register_profile(
    "distconv",
    deadline=None,
    max_examples=share(100),
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
# The same few examples each time, and the first failure is enough, for what runs once a mutant (tests/mutants.py).
hypothesis.settings.register_profile(
    "mutants",
    hypothesis.settings.get_profile("distconv"),
    derandomize=True,
    database=None,
    max_examples=25,
    phases=(hypothesis.Phase.explicit, hypothesis.Phase.generate),
    report_multiple_bugs=False,
)
hypothesis.settings.load_profile("distconv")

# On a busy machine Ray would end the process that waits for it, or workers for the memory of others; and workers,
# which give way to everybody, would hardly move.
os.environ.update(
    RAY_worker_niceness="0",
    RAY_gcs_rpc_server_reconnect_timeout_s="600",
    RAY_worker_register_timeout_seconds="600",
    RAY_memory_monitor_refresh_ms="0",
)

# A shell starts what runs in its background with Ctrl-C ignored, and children inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_configure(config: pytest.Config) -> None:
    """Let a suite that is killed say where."""
    config.pluginmanager.register(LastWords())


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Make slow what the default suite leaves out of a test's cases.

    Of a product, of which each parametrization is a factor, it takes some with each value; of others the first ones.
    Files that take longest come first.
    """
    tests: dict[tuple[Path, str], list[pytest.Function]] = {}
    for item in items:
        marks = {mark.name for mark in item.iter_markers()}
        left_out = marks & {"slow", "peer", "gpu", "netns"}
        if isinstance(item, pytest.Function) and marks & {"product", "first"} and not left_out:
            tests.setdefault((item.path, item.originalname), []).append(item)
    for cases in tests.values():
        first = cases[0].get_closest_marker("first")
        chosen = range(*first.args) if first else one_of_each(case.callspec._idlist for case in cases)
        for place in set(range(len(cases))).difference(chosen):
            cases[place].add_marker(pytest.mark.slow)
    places = {ROOT / "tests" / name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.path, len(places)))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """Give one process more than there are processors, as tests wait as well."""
    return (os.cpu_count() or 1) + 1


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> object:
    """Give what hands out files, those that share what they make as if they were one."""
    from xdist.scheduler import LoadFileScheduling

    first = {f"tests/{name}": files[0] for files in TOGETHER for name in files}

    class Scheduling(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = super()._split_scope(nodeid)
            return first.get(file, file)

    return Scheduling(config, log) if config.getvalue("dist") == "loadfile" else None


@pytest.fixture(scope="session")
def sentencepiece_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give a small sentencepiece tokenizer."""
    from tests.checkpoints import write_sentencepiece

    return write_sentencepiece(tmp_path_factory.mktemp("sentencepiece") / "tokenizer.model")


@pytest.fixture(scope="session")
def tiktoken_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give a small tokenizer of the kind that Llama 3 has."""
    from tests.checkpoints import write_tiktoken

    return write_tiktoken(tmp_path_factory.mktemp("tiktoken") / "tokenizer.model")


@pytest.fixture(scope="session")
def checkpoint(
    tmp_path_factory: pytest.TempPathFactory, sentencepiece_file: Path, tiktoken_file: Path
) -> Callable[["Spec"], Path]:
    """Give a function that writes a spec's checkpoint once and gives its folder, to be read only."""
    from tests.checkpoints import write_checkpoint

    written: dict[Spec, Path] = {}

    def write(spec: "Spec") -> Path:
        if spec not in written:
            tokenizer = sentencepiece_file if spec.by_columns else tiktoken_file
            folder = tmp_path_factory.mktemp("checkpoint") / "model"
            written[spec] = write_checkpoint(folder, spec, tokenizer)
        return written[spec]

    return write


@pytest.fixture(scope="session")
def tokenizer_of(sentencepiece_file: Path, tiktoken_file: Path) -> Callable[["ModelSpec"], Path]:
    """Give a function from a model to the tokenizer that Meta's code has for it."""
    return lambda spec: sentencepiece_file if spec.by_columns else tiktoken_file


@pytest.fixture(scope="session")
def transformers_model(
    tmp_path_factory: pytest.TempPathFactory, tokenizer_of: Callable[["ModelSpec"], Path]
) -> Callable[["ModelSpec"], Path]:
    """Give a function that lets Transformers save a model once and gives its folder, to be read only."""
    from tests.transformers_models import write_model

    written: dict[ModelSpec, Path] = {}

    def write(spec: "ModelSpec") -> Path:
        if spec not in written:
            written[spec] = tmp_path_factory.mktemp("transformers") / "model"
            write_model(written[spec], spec, tokenizer_of(spec))
        return written[spec]

    return write


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give a folder with distributed checkpoints of small models, see ``tests.dcp_folders``, to be read only."""
    place = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        # Of those who run files beside each other the first one makes it, in the folder of them all.
        place = place.parent
    place = Path(os.environ.get("DISTCONV_TESTS_FOLDERS", place))
    out, made = place / "dcp", place / "dcp.made"
    with (place / "dcp.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not made.exists():
            shutil.rmtree(out, ignore_errors=True)
            # What it says when it fails is shown by pytest.
            subprocess.run([sys.executable, "-m", "tests.dcp_folders", out], check=True, cwd=ROOT)
            made.touch()
    return out


@pytest.fixture
def mount(tmp_path: Path) -> Iterator[Callable[..., Path]]:
    """Give a function from a kind of file system, and options of mount, to a new one's folder."""
    with ExitStack() as mounted:

        def make(kind: str, *options: str) -> Path:
            folder = tmp_path / kind
            folder.mkdir()
            if subprocess.run(
                ["mount", "-t", kind, *options, kind, str(folder)], capture_output=True, check=False
            ).returncode:
                pytest.skip("mounting a file system is not allowed here")
            mounted.callback(subprocess.run, ["umount", str(folder)], check=True)
            return folder

        yield make


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Callable[..., Path]]:
    """Give a function from a kind of file system, a size in bytes and options of mount to a new one's folder."""
    with ExitStack() as disks:

        def make(kind: str, size_bytes: int, *options: str) -> Path:
            try:
                return disks.enter_context(disk_in_a_file(tmp_path, kind, size_bytes, *options))
            except NoDiskError as reason:
                pytest.skip(f"a disk in a file cannot be made here: {reason}")

        yield make


@pytest.fixture(scope="session")
def meta_code() -> Iterator["MetaCode"]:
    """Give a process that has Meta's model code."""
    from tests.meta_model import start_meta_code

    with start_meta_code() as code:
        yield code


@pytest.fixture(scope="session")
def peer_python() -> Callable[[str], Path]:
    """Give a function from a peer's name, that of its file in tests/peers, to the python that has it."""

    def find(name: str) -> Path:
        python = ROOT / ".peers" / name / "bin" / "python"
        if not python.exists():
            pytest.fail(f"{python} is missing; `make peers` installs it")
        return python

    return find


@pytest.fixture(scope="session")
def run_peer(peer_python: Callable[[str], Path]) -> Callable[..., str]:
    """Give a function from a peer's name and its python's arguments, with lines to read, to what that prints."""

    def run(name: str, *arguments: str | Path, lines: str = "") -> str:
        command = [peer_python(name), *arguments]
        ended = subprocess.run(command, input=lines, capture_output=True, text=True, check=False)
        assert ended.returncode == 0, ended.stderr
        return ended.stdout

    return run
