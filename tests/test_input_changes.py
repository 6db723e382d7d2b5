"""INPUT at the end is INPUT at the beginning, or nothing is made whole; and which INPUT an OUTPUT was made of."""

import itertools
import json
import os
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path

import pytest

import distconv
from distconv.errors import ConversionError, InputError, OutputError
from distconv.output import folder
from distconv.storage import places
from distconv.storage.local import LocalStorage
from distconv.storage.local_files import LocalWriter
from distconv.storage.pinning import Pins
from distconv.verbs import check as checking
from distconv.verbs import making, sources
from tests.checkpoints import Spec, write_checkpoint
from tests.faults import digest_folder, looks_whole, read_recorded

Write = Callable[[Spec], Path]
Change = Callable[[Path, Path], None]
SPEC = Spec("llama-2", heads=8, kv_heads=4, shards=2)
LIMIT = 40_000
SHARD = "consolidated.01.pth"


@pytest.fixture
def source(checkpoint: Write, tmp_path: Path) -> Path:
    """Give a checkpoint that may be changed."""
    return shutil.copytree(checkpoint(SPEC), tmp_path / "source")


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory, sentencepiece_file: Path) -> Path:
    """Give a checkpoint of the same sizes with other data."""
    return write_checkpoint(
        tmp_path_factory.mktemp("other") / "model", replace(SPEC, seed=7), sentencepiece_file
    )


def replace_file(source: Path, other: Path) -> None:
    """Give another file the name."""
    shutil.copy(other / SHARD, source / "new")
    os.replace(source / "new", source / SHARD)


def replace_with_its_times(source: Path, other: Path) -> None:
    """Give another file the name, with the times of the one before."""
    status = (source / SHARD).stat()
    replace_file(source, other)
    os.utime(source / SHARD, ns=(status.st_atime_ns, status.st_mtime_ns))


def write_in_place(source: Path, other: Path) -> None:
    """Write other data into the file, and put its times back."""
    status = (source / SHARD).stat()
    with (source / SHARD).open("r+b") as file:
        file.write((other / SHARD).read_bytes())
    os.utime(source / SHARD, ns=(status.st_atime_ns, status.st_mtime_ns))


def exchange_folders(source: Path, other: Path) -> None:
    """Give another folder the name."""
    shutil.copytree(other, source.with_name("new"))
    source.rename(source.with_name("old"))
    source.with_name("new").rename(source)


def change_params(source: Path, _other: Path) -> None:
    """Change a small file."""
    params = json.loads((source / "params.json").read_text())
    (source / "params.json").write_text(json.dumps(params | {"norm_eps": 1e-3}))


CHANGES = [replace_file, replace_with_its_times, write_in_place, exchange_folders, change_params]


A_CHUNK = "the third chunk"


@dataclass(frozen=True, slots=True)
class ActingStorage(LocalStorage):
    """Where something is told the name of each file before it is begun."""

    tell: Callable[[str], None]

    def begin(self, path: str, size_bytes: int) -> LocalWriter:
        """Tell, and begin."""
        self.tell(os.path.basename(path))
        return LocalStorage.begin(self, path, size_bytes)


def act_before(monkeypatch: pytest.MonkeyPatch, name: str, act: Callable[[], None]) -> None:
    """Let something happen once, before a file of OUTPUT is begun."""
    left, chunks = [act], itertools.count(1)

    def tell(begun: str) -> None:
        is_third = begun.endswith(".safetensors") and next(chunks) == 3
        if left and (is_third if name == A_CHUNK else begun == name):
            left.pop()()

    monkeypatch.setattr(places, "LocalStorage", lambda: ActingStorage(tell))


def convert(source: Path, output: Path, **options: bool) -> distconv.ConversionReport:
    """Convert into small chunks."""
    return distconv.convert(source, output, max_shard_size=LIMIT, **options)  # type: ignore[arg-type]


@pytest.mark.product
@pytest.mark.parametrize("name", [A_CHUNK, "tokenizer.json", "distconv.json"])
@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("verify", [False, True])
def test_an_input_that_changes_while_it_is_converted_is_named_and_makes_nothing_whole(
    source: Path,
    other: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    change: Change,
    name: str,
    verify: bool,
) -> None:
    output = tmp_path / "out"
    act_before(monkeypatch, name, lambda: change(source, other))
    # Where its contents show it, the worker or the comparison may be the first to tell.
    with pytest.raises((InputError, ConversionError)) as raised:
        convert(source, output, verify=verify)
    monkeypatch.setattr(places, "LocalStorage", LocalStorage)
    if isinstance(raised.value, InputError):
        # Of a folder the file that is read first is named.
        named = {change_params: "params.json", exchange_folders: "consolidated."}.get(change, SHARD)
        assert named in str(raised.value)
    assert not looks_whole(output)
    assert read_recorded(output) == set()
    assert not output.exists() or not list(output.iterdir())
    convert(source, output)
    assert distconv.verify(output, against=source).ok


def test_an_input_that_changes_once_it_was_checked_makes_nothing_whole(
    source: Path, other: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    check = checking.check_input

    def check_and_change(*arguments: object, **options: object) -> checking.CheckReport:
        report = check(*arguments, **options)
        replace_with_its_times(source, other)
        return report

    monkeypatch.setattr(checking, "check_input", check_and_change)
    with pytest.raises(InputError, match=re.escape(SHARD)):
        distconv.convert(source, tmp_path / "out", check=True)
    assert not looks_whole(tmp_path / "out")


def test_what_was_made_while_another_input_had_the_name_is_not_recorded(
    source: Path, other: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the first is back when anybody looks again: names and times are the same then."""
    output, kept = tmp_path / "out", tmp_path / "kept"
    # As on another host, where files have other numbers.
    monkeypatch.setattr(Pins, "tell_apart", lambda *_given: False)

    def swap() -> None:
        (source / SHARD).rename(kept)
        replace_file(source, other)

    def swap_back() -> None:
        kept.rename(source / SHARD)

    act_before(monkeypatch, A_CHUNK, swap)
    check = making._check_chunks

    def fail(*arguments: object) -> None:
        check(*arguments)  # type: ignore[arg-type]
        swap_back()
        raise ConversionError("as if the power had failed")

    monkeypatch.setattr(making, "_check_chunks", fail)
    with pytest.raises(ConversionError):
        convert(source, output)
    monkeypatch.undo()
    convert(source, output)
    assert distconv.verify(output, against=source).ok


def test_an_input_that_is_away_for_a_while_costs_nothing_that_was_made(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output, away = tmp_path / "out", tmp_path / "away"
    monkeypatch.setattr(folder, "JOURNAL_SECONDS", 0.01)
    act_before(monkeypatch, "tokenizer.json", lambda: source.rename(away) and None)
    with pytest.raises((InputError, OSError)):
        convert(source, output)
    monkeypatch.undo()
    assert not looks_whole(output)
    away.rename(source)
    made = read_recorded(output)
    report = convert(source, output)
    assert report.kept_chunks == len(made) == report.chunks


def test_the_journal_is_never_far_behind_what_is_finished(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where one large chunk follows another for hours, and nobody comes to tell of one."""
    output = tmp_path / "out"
    monkeypatch.setattr(folder, "JOURNAL_SECONDS", 0.01)
    seen: list[set[str]] = []

    def wait() -> None:
        done = {path.name for path in output.glob("*.safetensors")}
        while not done <= read_recorded(output):
            pass
        seen.append(done)

    act_before(monkeypatch, A_CHUNK, wait)
    convert(source, output)
    assert seen
    assert seen[0]


def test_a_finished_chunk_that_is_not_recorded_is_made_again(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A flipped bit in it would be nobody's to find."""
    output = tmp_path / "out"
    convert(source, tmp_path / "expected")
    expected = digest_folder(tmp_path / "expected")
    convert(source, output)
    receipt = json.loads((output / "distconv.json").read_text())
    for name in ("distconv.json", "model.safetensors.index.json"):
        (output / name).unlink()
    damaged, *recorded = receipt["chunks"]
    journal = {"conversion": receipt["conversion"], "chunks": recorded}
    (output / ".distconv.journal").write_text(json.dumps(journal))
    path = output / damaged["name"]
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    report = convert(source, output)
    assert report.kept_chunks == len(recorded)
    assert digest_folder(output) == expected


@pytest.fixture
def ranks(tmp_path: Path, sentencepiece_file: Path) -> Path:
    """Give a checkpoint with a folder a rank, whose files have the same names."""
    spec = replace(SPEC, naming="consolidated.{:02}/consolidated-1-of-1.pth")
    return write_checkpoint(tmp_path / "source", spec, sentencepiece_file)


@pytest.mark.parametrize("rank", [0, 1])
def test_each_part_of_each_rank_is_known_by_its_place(
    ranks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rank: int
) -> None:
    output, part = tmp_path / "out", f"consolidated.{rank:02}/consolidated-1-of-1.pth"
    assert not convert(ranks, output).already_done
    assert convert(ranks, output).already_done
    assert part in json.loads((output / "distconv.json").read_text())["conversion"]["source"]
    os.utime(ranks / part)
    with pytest.raises(OutputError, match=rf"changed since: {re.escape(part)}"):
        convert(ranks, output)


@pytest.mark.parametrize("inside", [False, True])
def test_a_copied_input_goes_on(checkpoint: Write, tmp_path: Path, inside: bool) -> None:
    """Other folder, other numbers of files, given by another path: the same INPUT."""
    spec = replace(SPEC, tokenizer="inside" if inside else "parent")
    first = shutil.copytree(checkpoint(spec).parent, tmp_path / "first") / "model"
    output = tmp_path / "out"
    convert(first, output)
    second = shutil.copytree(first.parent, tmp_path / "second") / "model"
    assert convert(second, output).already_done


def test_a_library_that_writes_otherwise_makes_the_files_beside_the_chunks_anew(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "out"
    convert(source, output)
    expected = digest_folder(output)
    recorded = json.loads((output / "distconv.json").read_text())["libraries"]
    assert recorded == {"tokenizers": metadata.version("tokenizers")}
    make_files = sources.make_files
    monkeypatch.setattr(
        sources, "make_files", lambda *given: {**make_files(*given), "tokenizer.json": b"other"}
    )
    monkeypatch.setattr(folder, "find_libraries", lambda: {"tokenizers": "99"})
    report = convert(source, output)
    assert (report.already_done, report.kept_chunks) == (False, report.chunks)
    assert json.loads((output / "distconv.json").read_text())["libraries"] == {"tokenizers": "99"}
    assert (output / "tokenizer.json").read_bytes() == b"other"
    monkeypatch.undo()
    convert(source, output)
    assert digest_folder(output) == expected
