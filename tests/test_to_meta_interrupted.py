"""Kills, full disks and changed inputs on the way to Meta's layout: the same bytes in the end, or nothing that loads."""

import contextlib
import dataclasses
import errno
import os
import random
import shutil
import signal
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

import distconv
from distconv.errors import ConversionError, InputError, OutputError
from distconv.storage import places
from distconv.storage.local import LocalStorage
from distconv.storage.local_files import LocalWriter
from tests.contests import end
from tests.faults import Calls, FaultyStorage, digest_folder, digest_shards, never
from tests.transformers_models import ModelSpec, write_model

Write = Callable[[ModelSpec], Path]
SPEC = ModelSpec("llama-3", files="index")
LARGE = ModelSpec("llama-3", head_dim=64, ffn_dim=2048, layers=4, dtype=torch.float32)
"""Of about 60 MB."""
PART_BYTES = 1_000_000
SHARDS = 4


def convert(source: Path, output: Path, **options: object) -> distconv.ConversionReport:
    """Convert to four shards of several parts."""
    return distconv.convert(
        source, output, to="meta", shards=SHARDS, max_shard_size=PART_BYTES // 100, **options
    )  # type: ignore[arg-type]


def start(source: Path, output: Path) -> int:
    """Convert in a process of its own; gives its id."""
    process = os.fork()
    if process:
        return process
    code = 70
    try:
        distconv.convert(source, output, to="meta", shards=SHARDS, max_shard_size=PART_BYTES)
        code = 0
    except BaseException:  # noqa: BLE001
        traceback.print_exc()
    finally:
        os._exit(code)


def kill_often(source: Path, place: Path, kills: int, seed: int) -> int:
    """Kill conversions at random instants, each going on where the last one stopped; gives how many ended whole."""
    chance = random.Random(seed)
    began = time.monotonic()
    assert end(start(source, place / "undisturbed")) == 0
    seconds = time.monotonic() - began
    expected, killed, ended = digest_folder(place / "undisturbed"), 0, 0
    while killed < kills:
        output = place / f"output-{ended}"
        process = start(source, output)
        time.sleep(chance.uniform(0, seconds))
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)
        code = end(process)
        assert code in {0, -signal.SIGKILL}
        killed += code != 0
        assert is_clean(output) or digest_shards(output) == digest_shards(place / "undisturbed")
        if code == 0:
            assert digest_folder(output) == expected
            ended += 1
    assert end(start(source, place / f"output-{ended}")) == 0
    assert digest_folder(place / f"output-{ended}") == expected
    return ended


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory, tokenizer_of: Callable[[ModelSpec], Path]) -> Path:
    """Give a model that takes some tenths of a second."""
    folder = tmp_path_factory.mktemp("large") / "model"
    write_model(folder, LARGE, tokenizer_of(LARGE))
    return folder


@pytest.mark.parametrize("kills", [2, pytest.param(100, marks=pytest.mark.slow)])
def test_a_killed_conversion_goes_on_to_the_same_shards(large: Path, tmp_path: Path, kills: int) -> None:
    kill_often(large, tmp_path, kills, seed=os.getpid())


def is_clean(output: Path) -> bool:
    """Whether Meta's code finds nothing to load."""
    return not (output / "params.json").exists()


# What fails may pass: reads are tried again after a while, so there are fewer of these.
@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "step"), [("writes", 7), ("reads", 200), pytest.param("reads", 9, marks=pytest.mark.slow)]
)
def test_a_disk_that_is_full_or_fails_at_any_call_is_no_false_success(
    transformers_model: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, step: int
) -> None:
    source = transformers_model(SPEC)
    convert(source, tmp_path / "undisturbed")
    expected, failures = digest_folder(tmp_path / "undisturbed"), 0
    code = errno.ENOSPC if kind == "writes" else errno.EIO
    for number in range(5, 10_000, step):
        calls = {"reads": never(), "writes": never(), kind: Calls(number, code, lasting=True)}
        output = tmp_path / f"output-{number}"
        with monkeypatch.context() as patch:
            patch.setattr(places, "LocalStorage", lambda calls=calls: FaultyStorage(**calls))
            failure = failure_of(lambda output=output: convert(source, output))
        if failure is not None:
            assert os.strerror(code) in failure
            failures += 1
            # The receipt, which comes last, may be what failed.
            assert is_clean(output) or digest_shards(output) == digest_shards(tmp_path / "undisturbed")
        if calls[kind].count < number:
            break
        convert(source, output)
        assert digest_folder(output) == expected
        shutil.rmtree(output)
    assert failures


def failure_of(act: Callable[[], object]) -> str | None:
    """Give the words with which a conversion fails, None where it does not."""
    try:
        act()
    except (OSError, ConversionError) as error:
        return str(error)
    return None


def test_a_disk_without_room_is_told_before_anything_is_written_and_one_that_fills_up_leaves_nothing_to_load(
    large: Path, mount: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = mount("tmpfs", "-o", "size=8m")
    options = {"to": "meta", "shards": SHARDS, "max_shard_size": PART_BYTES}
    with pytest.raises(OutputError, match=r"needed .*, .* free; free .* or give a folder elsewhere"):
        distconv.convert(large, disk / "out", **options)
    assert list(disk.iterdir()) == []
    monkeypatch.setattr(LocalStorage, "free_bytes", lambda _self, _folder: 1 << 40)
    with pytest.raises((OSError, ConversionError), match="No space left on device"):
        distconv.convert(large, disk / "out", **options)
    assert is_clean(disk / "out")


@dataclass(frozen=True, slots=True)
class ActingStorage(LocalStorage):
    """Where something is done once, before a file of OUTPUT is begun."""

    name: str
    left: list[Callable[[], None]]

    def begin(self, path: str, size_bytes: int) -> LocalWriter:
        """Act, and begin."""
        if self.left and os.path.basename(path) == self.name:
            self.left.pop()()
        return LocalStorage.begin(self, path, size_bytes)


def replace_weights(source: Path, other: Path) -> None:
    """Give other weights the name and the times of those that are read."""
    path = max(source.glob("model-*.safetensors"))
    status = path.stat()
    shutil.copy(other / path.name, source / "new")
    os.replace(source / "new", path)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def replace_config(source: Path, _other: Path) -> None:
    """Change a small file."""
    path = source / "config.json"
    path.write_text(path.read_text().replace("1e-05", "1e-06"))


def replace_tokenizer(source: Path, _other: Path) -> None:
    """Change another small file."""
    with (source / "tokenizer.json").open("a") as file:
        file.write("\n")


def exchange_folders(source: Path, other: Path) -> None:
    """Give another model the folder's name."""
    source.rename(source.with_name("old"))
    shutil.copytree(other, source)


@pytest.mark.first(1)
@pytest.mark.parametrize("name", ["tokenizer.model", "checklist.chk", "distconv.json"])
@pytest.mark.parametrize("change", [replace_weights, replace_config, replace_tokenizer, exchange_folders])
def test_an_input_that_changes_under_way_is_named_and_makes_nothing_that_loads(
    transformers_model: Write,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    change: Callable[[Path, Path], None],
    name: str,
) -> None:
    source = shutil.copytree(transformers_model(SPEC), tmp_path / "source")
    other = transformers_model(dataclasses.replace(SPEC, seed=5))
    acting = ActingStorage(name, [lambda: change(source, other)])
    with monkeypatch.context() as patch:
        patch.setattr(places, "LocalStorage", lambda: acting)
        with pytest.raises((InputError, ConversionError), match=str(source)):
            convert(source, tmp_path / "out")
    assert not acting.left
    assert is_clean(tmp_path / "out")
    convert(source, tmp_path / "out", overwrite=True)
    convert(source, tmp_path / "plain")
    assert digest_folder(tmp_path / "out") == digest_folder(tmp_path / "plain")
