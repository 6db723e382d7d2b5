"""What an interrupted conversion to Meta's layout left is gone on with, and nothing in it is taken on trust."""

import errno
import json
import os
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import distconv
from distconv.errors import ConversionError, OutputError
from distconv.moving import shared
from distconv.output.folder import Folder
from distconv.storage.local import LocalStorage
from distconv.verbs import making
from tests.checkpoints import Spec
from tests.extent import share
from tests.faults import Journal, digest_folder, interrupted_at, read_journal

SOURCE = Spec("llama-3.1", dim=64, heads=8, kv_heads=4, layers=2)
PART_BYTES = 20_000
LOCAL_HEADER_BYTES = 30

Write = Callable[[Spec], Path]


def convert(source: Path, output: Path) -> distconv.ConversionReport:
    """Bring the model into two shards, each written in parts."""
    return distconv.convert(source, output, to="meta", shards=2, max_shard_size=PART_BYTES)


@pytest.fixture(scope="module")
def source(checkpoint: Write) -> Path:
    """Give the model in one shard."""
    return checkpoint(SOURCE)


@pytest.fixture(scope="module")
def expected(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give what an undisturbed conversion makes."""
    output = tmp_path_factory.mktemp("expected") / "out"
    convert(source, output)
    return output


def interrupt(source: Path, output: Path, place: object, name: str) -> Journal:
    """Convert until a function is called, and give the journal that is left."""
    with interrupted_at(place, name):
        convert(source, output)
    return read_journal(output)


@pytest.fixture(scope="module")
def moved(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give an OUTPUT whose shards are committed and recorded, and that is not whole."""
    output = tmp_path_factory.mktemp("moved") / "out"
    assert len(interrupt(source, output, making, "make_output_checklist")["chunks"]) == 2
    return output


def find_frame(shard: Path) -> list[int]:
    """Give the offsets of bytes of a shard that are no tensor's: headers of records, and what follows the last."""
    with zipfile.ZipFile(shard) as archive:
        headers = [found.header_offset for found in archive.infolist()]
        behind = range(archive.start_dir, shard.stat().st_size)
    return [start + place for start in headers for place in range(LOCAL_HEADER_BYTES)] + [*behind]


@given(share=st.floats(0, 1, exclude_max=True))
@settings(max_examples=share(40), suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_finished_shard_is_kept_only_if_all_around_its_tensors_is_as_planned(
    source: Path, expected: Path, moved: Path, tmp_path: Path, share: float
) -> None:
    output = shutil.copytree(moved, tmp_path / "out", dirs_exist_ok=True)
    shard = output / "consolidated.01.pth"
    frame = find_frame(shard)
    place = frame[int(share * len(frame))]
    with shard.open("r+b") as file:
        file.seek(place)
        (byte,) = file.read(1)
        file.seek(place)
        file.write(bytes([byte ^ 0x55]))
    convert(source, output)
    assert digest_folder(output) == digest_folder(expected)
    shutil.rmtree(output)


def test_a_shards_checksums_are_those_of_its_data_whatever_the_journal_says(
    source: Path, expected: Path, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    content = interrupt(source, output, shared, "_seal")
    for unfinished in content["unfinished"].values():
        for part in unfinished["parts"].values():
            part["crc32"] = [1] * len(part["tensors"])
    (output / ".distconv.journal").write_text(json.dumps(content))
    convert(source, output)
    assert digest_folder(output) == digest_folder(expected)


def test_of_parts_that_are_written_together_only_those_that_are_not_durable_are_written_again(
    source: Path, expected: Path, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    content = interrupt(source, output, shared, "_seal")
    first, second = content["unfinished"].values()
    count = len(first["parts"])
    assert len(second["parts"]) == count > 2
    del first["parts"]["1"], second["parts"]["2"]
    second["parts"]["3"]["tensors"][0] = "0" * 32
    (output / ".distconv.journal").write_text(json.dumps(content))
    report = convert(source, output)
    assert report.kept_parts == 2 * count - 3
    shards = [path.stat().st_size for path in output.glob("*.pth")]
    assert 0 < report.bytes_written < sum(shards) / 2
    assert digest_folder(output) == digest_folder(expected)


@pytest.mark.parametrize("killed", [False, True])
def test_parts_stay_when_a_conversion_ends_as_it_takes_them_over(
    source: Path, expected: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, killed: bool
) -> None:
    output = tmp_path / "out"
    before = interrupt(source, output, shared, "_seal")["unfinished"]
    if killed:  # nobody clears up then
        monkeypatch.setattr(shared, "_leave", lambda _begun: None)
    for _time in range(2):
        interrupt(source, output, Folder, "go_on")
    monkeypatch.undo()
    report = convert(source, output)
    assert report.kept_parts == sum(len(found["parts"]) for found in before.values())
    assert digest_folder(output) == digest_folder(expected)


def test_parts_stay_when_another_shard_finds_no_room(source: Path, expected: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    before = interrupt(source, output, shared, "_seal")["unfinished"]
    kept, lost = sorted(before.values(), key=lambda found: len(found["parts"]), reverse=True)
    (output / lost["attempt"]).unlink()

    def refuse(_self: object, path: str, size_bytes: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)

    begin = LocalStorage.begin

    def begin_small(self: LocalStorage, path: str, size_bytes: int) -> object:
        return (refuse if path.endswith(".pth") else begin)(self, path, size_bytes)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LocalStorage, "begin", begin_small)
        with pytest.raises((OSError, ConversionError), match="No space"):
            convert(source, output)
    assert convert(source, output).kept_parts == len(kept["parts"])
    assert digest_folder(output) == digest_folder(expected)


def test_what_a_link_leads_to_is_not_gone_on_with(source: Path, expected: Path, tmp_path: Path) -> None:
    output, elsewhere = tmp_path / "out", tmp_path / "elsewhere"
    for found in interrupt(source, output, shared, "_seal")["unfinished"].values():
        attempt = output / found["attempt"]
        elsewhere.write_bytes(bytes(attempt.stat().st_size))
        attempt.unlink()
        attempt.symlink_to(elsewhere)
    convert(source, output)
    assert not any(elsewhere.read_bytes())
    assert digest_folder(output) == digest_folder(expected)


def test_what_is_told_of_kept_work_counts_shards_and_parts_each_by_itself(
    source: Path, moved: Path, tmp_path: Path
) -> None:
    first, second = tmp_path / "first", shutil.copytree(moved, tmp_path / "second")
    parts = sum(
        len(found["parts"]) for found in interrupt(source, first, shared, "_seal")["unfinished"].values()
    )
    assert f"{parts} parts of an earlier run kept" in convert(source, first).lines()
    assert "2 shards of an earlier run kept" in convert(source, second).lines()


@pytest.mark.parametrize("back", [False, True])
def test_another_format_in_output_is_named_as_it_is_asked_for(
    source: Path, tmp_path: Path, *, back: bool
) -> None:
    targets = ("meta", "transformers") if back else ("transformers", "meta")
    distconv.convert(source, tmp_path / "out", to=targets[0])
    with pytest.raises(OutputError, match=f"`to='{targets[0]}'` before, `to='{targets[1]}'` now"):
        distconv.convert(source, tmp_path / "out", to=targets[1])
