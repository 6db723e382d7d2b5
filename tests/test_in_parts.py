"""Chunks that are too large for one worker are written in parts, to the bytes that one worker writes."""

import json
import shutil
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from xxhash import xxh3_128_hexdigest

import distconv
from distconv.errors import DistconvError, Interrupted
from distconv.layout.stripes import Stripe
from distconv.layout.units import Checksum
from distconv.moving import shared, worker
from distconv.moving.job import Job, Receipt
from distconv.output.folder import Folder
from distconv.storage.local import LocalStorage
from tests.checkpoints import Spec, write_checkpoint
from tests.extent import share
from tests.faults import Journal, digest_folder, interrupted_at, read_journal
from tests.image_checkpoints import Llama4Spec, write_image_checkpoint
from tests.moving.fakes import RecordingProgress
from tests.small_parts import small_parts
from tests.torture import SPEC as TORTURE_SPEC
from tests.torture import torture_inline, torture_ray

LLAMA = Spec("llama-3.1", dim=64, heads=8, kv_heads=4, layers=2, shards=2)
EXPERTS = Llama4Spec(layers=2, shards=2)
WHOLE, PART = 1 << 14, 9_000


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory, tiktoken_file: Path) -> dict[str, Path]:
    """Give a checkpoint with rotary tensors, and one whose experts make matrices below each other."""
    place = tmp_path_factory.mktemp("sources")
    write_checkpoint(place / "llama", LLAMA, tiktoken_file)
    write_image_checkpoint(place / "experts", EXPERTS, tiktoken_file)
    return {name: place / name for name in ("llama", "experts")}


@pytest.fixture(scope="module")
def source(sources: dict[str, Path]) -> Path:
    """Give the one with experts."""
    return sources["experts"]


@pytest.fixture(scope="module")
def expected(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give what is made where each chunk is one unit."""
    output = tmp_path_factory.mktemp("expected") / "out"
    distconv.convert(source, output)
    return output


def convert(source: Path, output: Path, **options: object) -> distconv.ConversionReport:
    """Convert in small parts."""
    with small_parts(WHOLE, PART):
        return distconv.convert(source, output, **options)  # type: ignore[arg-type]


def interrupt(source: Path, output: Path, place: object, name: str) -> Journal:
    """Convert in small parts until a function is called, and give the journal that is left."""
    with interrupted_at(place, name):
        convert(source, output)
    return read_journal(output)


@pytest.mark.slow
@given(
    name=st.sampled_from(["llama", "experts"]),
    whole=st.integers(0, 1 << 17),
    part=st.integers(1 << 10, 1 << 17),
    chunk=st.none() | st.integers(1 << 12, 1 << 18),
    dtype=st.sampled_from(["auto", "float32", "float16"]),
)
@settings(max_examples=share(24))
def test_wherever_chunks_are_cut_all_files_are_those_that_whole_chunks_make(
    sources: dict[str, Path],
    tmp_path_factory: pytest.TempPathFactory,
    name: str,
    whole: int,
    part: int,
    chunk: int | None,
    dtype: str,
) -> None:
    place = tmp_path_factory.mktemp("cut")
    distconv.convert(sources[name], place / "whole", max_shard_size=chunk, dtype=dtype)
    progress = RecordingProgress()
    with small_parts(whole, part):
        distconv.convert(sources[name], place / "parts", max_shard_size=chunk, dtype=dtype, progress=progress)
    assert digest_folder(place / "parts") == digest_folder(place / "whole")
    assert progress.moved_bytes == progress.total_bytes
    shutil.rmtree(place)


def test_what_is_written_in_parts_is_read_by_safetensors_and_has_the_digests_that_xxhsum_prints(
    source: Path, expected: Path, tmp_path: Path
) -> None:
    progress = RecordingProgress()
    convert(source, tmp_path / "out", progress=progress)
    (unit,) = {name for name in progress.units if name.startswith("digests of ")}
    (row,) = json.loads((tmp_path / "out/distconv.json").read_text())["chunks"]
    path = tmp_path / "out" / row["name"]
    assert unit == f"digests of {path.name}"
    assert row["xxh3_128"] == xxh3_128_hexdigest(path.read_bytes())
    found, whole = load_file(path), load_file(expected / path.name)
    assert found.keys() == whole.keys() == row["tensors"].keys()
    for name, tensor in found.items():
        assert torch.equal(tensor, whole[name])
        content = tensor.reshape(-1).view(torch.uint8).numpy().tobytes()
        assert row["tensors"][name] == xxh3_128_hexdigest(content)
    assert distconv.verify(tmp_path / "out", against=source).ok


def test_two_lanes_write_one_chunk_at_once(
    source: Path, expected: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    both, write = threading.Barrier(2), worker._write_stripe
    seen: list[tuple[str, str]] = []

    def wait(job: Job, stripe: Stripe, *others: Callable[..., object]) -> Receipt:
        seen.append((threading.current_thread().name, stripe.parts[0].file))
        if len(seen) <= 2:
            both.wait(60)
        return write(job, stripe, *others)  # type: ignore[arg-type]

    monkeypatch.setattr(worker, "_write_stripe", wait)
    convert(source, tmp_path / "out")
    (first, file), (second, other) = seen[:2]
    assert (file, first != second) == (other, True)
    assert digest_folder(tmp_path / "out") == digest_folder(expected)


@pytest.mark.first(2)
@pytest.mark.parametrize(
    ("place", "name"),
    [
        (shared, "_seal"),
        (worker, "digest_file"),
        (Folder, "expect"),
        (shared, "publish"),
        (Folder, "keep"),
        (Folder, "finish"),
    ],
)
def test_what_was_made_before_an_interruption_is_kept_wherever_that_falls(
    source: Path, expected: Path, tmp_path: Path, place: object, name: str
) -> None:
    output = tmp_path / "out"
    left = interrupt(source, output, place, name)
    assert not (output / "config.json").exists()
    parts = sum(len(file["parts"]) for file in left.get("unfinished", {}).values())
    is_committed = (output / "model.safetensors").exists()
    assert is_committed == (place is Folder and name != "expect")
    report = convert(source, output)
    assert (report.kept_parts, report.kept_chunks) == ((0, 1) if is_committed else (parts, 0))
    assert is_committed or parts > 10
    assert report.bytes_written == 0
    assert digest_folder(output) == digest_folder(expected)


@given(stop=st.integers(0, 40))
@settings(max_examples=share(16))
def test_an_interruption_between_any_two_parts_costs_only_those_that_were_under_way(
    source: Path, expected: Path, tmp_path_factory: pytest.TempPathFactory, stop: int
) -> None:
    output = tmp_path_factory.mktemp("stopped") / "out"
    write, done = worker._write_stripe, []

    def stop_there(*arguments: object) -> Receipt:
        if len(done) >= stop:
            raise Interrupted("stopped")
        receipt = write(*arguments)  # type: ignore[arg-type]
        done.append(receipt)
        return receipt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(worker, "_write_stripe", stop_there)
        try:
            convert(source, output)
        except DistconvError:
            assert len(done) >= stop
    report = convert(source, output)
    assert report.already_done or report.kept_parts >= stop - 1
    assert digest_folder(output) == digest_folder(expected)


@pytest.mark.first(1)
@pytest.mark.parametrize("damage", ["data", "header", "gone"])
def test_a_part_that_is_not_what_was_recorded_is_written_again(
    source: Path, expected: Path, tmp_path: Path, damage: str
) -> None:
    output = tmp_path / "out"
    (file,) = interrupt(source, output, worker, "digest_file")["unfinished"].values()
    attempt = output / file["attempt"]
    if damage == "gone":
        attempt.unlink()
    else:
        with attempt.open("r+b") as content:
            content.seek(9 if damage == "header" else attempt.stat().st_size // 2)
            content.write(b"damaged")
    report = convert(source, output)
    assert (report.kept_parts == 0) == (damage == "gone")
    assert report.bytes_written > 0
    assert digest_folder(output) == digest_folder(expected)


def test_a_chunk_that_is_damaged_after_it_was_recorded_is_made_again(
    source: Path, expected: Path, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    convert(source, output)
    path = output / "model.safetensors"
    with path.open("r+b") as content:
        content.seek(path.stat().st_size // 2)
        content.write(b"damaged")
    assert not distconv.verify(output).ok
    convert(source, output, verify=True)
    assert digest_folder(output) == digest_folder(expected)


def test_digests_of_a_file_that_others_wrote_stop_between_blocks(tmp_path: Path) -> None:
    size = 3 * (4 << 20)
    (tmp_path / "attempt").write_bytes(bytes(size))
    unit = Checksum("file", size, (), md5=False, whole=True, tensors=((5, 5 << 20),))
    job, told = Job(LocalStorage(), str(tmp_path), "cpu", attempts={"file": str(tmp_path / "attempt")}), []
    receipt = worker.digest_file(job, unit, told.append, lambda: False)
    assert sum(told) == size
    assert receipt.digests.file == xxh3_128_hexdigest(bytes(size))
    assert receipt.digests.tensors == (xxh3_128_hexdigest(bytes((5 << 20) - 5)),)
    with pytest.raises(Interrupted):
        worker.digest_file(job, unit, told.append, lambda: len(told) > 5)


@pytest.mark.slow
def test_a_killed_conversion_in_parts_goes_on_to_the_same_bytes(
    tmp_path: Path, sentencepiece_file: Path
) -> None:
    source = write_checkpoint(tmp_path / "source", TORTURE_SPEC, sentencepiece_file)
    assert torture_inline(source, tmp_path, kills=share(6), seed=7, module="tests.small_parts") >= 1


@pytest.mark.slow
def test_killed_workers_of_chunks_in_parts_cost_nothing(tmp_path: Path, sentencepiece_file: Path) -> None:
    source = write_checkpoint(tmp_path / "source", TORTURE_SPEC, sentencepiece_file)
    assert sum(torture_ray(source, tmp_path, kills=3, seed=7, module="tests.small_parts").values()) == 3
