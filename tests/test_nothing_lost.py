"""Crashes, faults and damage: a conversion goes on, and never looks whole when it is not."""

import contextlib
import errno
import itertools
import json
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

import distconv
from distconv.errors import ConversionError, InputError, Interrupted, OutputError
from distconv.moving import running, worker
from distconv.moving.inline import run_inline
from distconv.storage import places
from distconv.storage.local import LocalStorage
from distconv.verbs import making
from tests.checkpoints import Spec, write_checkpoint
from tests.contests import contest_input, contest_output
from tests.extent import THOROUGH, share
from tests.faults import Calls, FaultyStorage, digest_folder, looks_whole, never
from tests.fuzz import fuzz
from tests.torture import SPEC as TORTURE_SPEC
from tests.torture import torture_inline, torture_ray

Write = Callable[[Spec], Path]
SPEC = Spec("llama-2", heads=8, kv_heads=4, shards=2)
LIMIT = 100_000
SMALL_DISK_BYTES = 3 << 20


@pytest.fixture(scope="module")
def reference(checkpoint: Write, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give what an undisturbed conversion makes."""
    output = tmp_path_factory.mktemp("reference") / "out"
    distconv.convert(checkpoint(SPEC), output, max_shard_size=LIMIT)
    return output


def convert(source: Path, output: Path, **options: object) -> distconv.ConversionReport:
    """Convert with the small chunks of these tests."""
    return distconv.convert(source, output, max_shard_size=LIMIT, **options)  # type: ignore[arg-type]


def test_a_killed_conversion_goes_on_to_the_same_bytes(tmp_path: Path, sentencepiece_file: Path) -> None:
    source = write_checkpoint(tmp_path / "source", TORTURE_SPEC, sentencepiece_file)
    assert torture_inline(source, tmp_path, kills=share(10), seed=os.getpid()) >= 1


def test_stopped_owners_touch_nothing_of_their_successors(tmp_path: Path, sentencepiece_file: Path) -> None:
    source = write_checkpoint(tmp_path / "source", TORTURE_SPEC, sentencepiece_file)
    assert sum(contest_output(source, tmp_path, rounds=share(3), seed=os.getpid()).values()) >= share(3)


def test_an_input_that_changes_at_any_instant_makes_no_mixture(
    tmp_path: Path, sentencepiece_file: Path
) -> None:
    assert sum(
        contest_input(TORTURE_SPEC, sentencepiece_file, tmp_path, share(3), os.getpid()).values()
    ) == share(3)


@pytest.mark.parametrize("to", ["transformers", "meta"])
def test_what_a_killed_worker_leaves_is_gone_when_an_interruption_has_ended(
    checkpoint: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, to: str
) -> None:
    output = tmp_path / "out"
    convert(checkpoint(SPEC), tmp_path / "expected", to=to)
    name = min(
        path.name for path in (tmp_path / "expected").iterdir() if path.stat().st_size > 9 * LIMIT // 10
    )
    make, done = worker.make_unit, []

    def be_killed(*arguments: object) -> object:
        if len(done) < 2:
            done.append(1)
            return make(*arguments)  # type: ignore[arg-type]
        LocalStorage().begin(str(output / name), 5)
        raise Interrupted("interrupted")

    def run(*arguments: object) -> object:
        job, units, lanes, progress, _make, keep = arguments
        return run_inline(job, units, lanes, progress, be_killed, keep)  # type: ignore[arg-type]

    monkeypatch.setattr(running, "run_inline", run)
    with pytest.raises(Interrupted):
        convert(checkpoint(SPEC), output, to=to)
    monkeypatch.undo()
    journal = json.loads((output / ".distconv.journal").read_text())
    durable = {unfinished["attempt"] for unfinished in journal.get("unfinished", {}).values()}
    assert len(durable) == (to == "meta")
    assert {path.name for path in output.glob(".*.partial")} == durable
    report = convert(checkpoint(SPEC), output, to=to)
    assert report.kept_chunks + report.kept_parts > 0
    assert digest_folder(output) == digest_folder(tmp_path / "expected")


@pytest.mark.slow
def test_killed_workers_raylets_and_drivers_cost_nothing(tmp_path: Path, sentencepiece_file: Path) -> None:
    source = write_checkpoint(tmp_path / "source", TORTURE_SPEC, sentencepiece_file)
    assert torture_ray(source, tmp_path, kills=3, seed=os.getpid()) == {"worker": 1, "raylet": 1, "driver": 1}


def test_mutated_headers_are_read_or_refused() -> None:
    count = share(20_000)
    read, _seconds = fuzz(os.getpid(), count)
    assert 0 < read < count


@pytest.mark.parametrize(
    "code",
    [
        errno.EIO,
        pytest.param(errno.ENOSPC, marks=pytest.mark.slow),
        pytest.param(errno.EROFS, marks=pytest.mark.slow),
    ],
)
@pytest.mark.product
@pytest.mark.parametrize("lasting", [False, True])
@pytest.mark.parametrize("kind", ["reads", "writes"])
def test_a_fault_at_any_call_is_no_false_success(
    checkpoint: Write,
    reference: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    code: int,
    lasting: bool,
    kind: str,
) -> None:
    source, expected = checkpoint(SPEC), digest_folder(reference)
    # What may pass is tried again after a while, so fewer of these.
    for number in itertools.count(1, 1 if code != errno.EIO else 9 if THOROUGH else 27):
        calls = {"reads": never(), "writes": never(), kind: Calls(number, code, lasting=lasting)}
        monkeypatch.setattr(places, "LocalStorage", lambda calls=calls: FaultyStorage(**calls))
        output = tmp_path / f"{number}"
        message = ""
        try:
            convert(source, output)
        except (OSError, ConversionError) as error:
            message = str(error)
        failed = bool(message)
        assert not failed or os.strerror(code) in message
        if looks_whole(output) or not failed:
            assert expected.items() <= digest_folder(output).items()
        if failed:
            assert not [path for path in output.glob("*.safetensors") if path.name not in expected]
            monkeypatch.setattr(places, "LocalStorage", LocalStorage)
            convert(source, output)
            assert digest_folder(output) == expected
        shutil.rmtree(output)
        if calls[kind].count < number:
            assert number > 20
            break


@pytest.fixture
def small_disk(mount: Callable[..., Path]) -> Path:
    """Give a real file system of 3 MB."""
    return mount("tmpfs", "-o", "size=3m")


def test_a_disk_that_is_too_small_is_told_before_anything_is_written(
    checkpoint: Write, small_disk: Path
) -> None:
    with pytest.raises(OutputError, match=r"needed .*, .* free; free .* or give a folder elsewhere"):
        convert(checkpoint(SPEC), small_disk / "out")
    assert list(small_disk.iterdir()) == []


def test_a_disk_that_fills_up_under_way_is_no_false_success(
    checkpoint: Write, reference: Path, small_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(LocalStorage, "free_bytes", lambda _self, _folder: 1 << 40)
    filler, output = small_disk / "filler", small_disk / "out"
    total = sum(path.stat().st_size for path in reference.iterdir())
    for part in (0.0, 0.01, 0.2, 0.5, 0.9):
        filler.write_bytes(bytes(SMALL_DISK_BYTES - int(part * total) - 8192))
        with pytest.raises((OSError, ConversionError), match="No space left on device"):
            convert(checkpoint(SPEC), output)
        assert not looks_whole(output)
        assert not list(output.glob(".*.partial"))
        filler.unlink()
    convert(checkpoint(SPEC), output)
    assert digest_folder(output) == digest_folder(reference)


def test_a_changed_source_or_option_is_told_and_not_mixed_in(
    checkpoint: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = shutil.copytree(checkpoint(SPEC), tmp_path / "source")
    calls = Calls(20, errno.ENOSPC, lasting=True)
    monkeypatch.setattr(places, "LocalStorage", lambda: FaultyStorage(reads=never(), writes=calls))
    with pytest.raises(ConversionError):
        convert(source, tmp_path / "out")
    monkeypatch.setattr(places, "LocalStorage", LocalStorage)
    before = digest_folder(tmp_path / "out")
    with pytest.raises(OutputError, match="`dtype='bfloat16'` before, `dtype='float32'` now"):
        convert(source, tmp_path / "out", dtype="float32")
    os.utime(source / "consolidated.01.pth")
    with pytest.raises(OutputError, match=r"changed since: consolidated\.01\.pth"):
        convert(source, tmp_path / "out")
    assert digest_folder(tmp_path / "out") == before
    convert(source, tmp_path / "out", overwrite=True)
    assert distconv.verify(tmp_path / "out", against=source).ok


def test_a_damaged_chunk_of_an_unfinished_run_is_made_again(
    checkpoint: Write, reference: Path, tmp_path: Path
) -> None:
    source = checkpoint(SPEC)
    output = shutil.copytree(reference, tmp_path / "out")
    receipt = json.loads((output / "distconv.json").read_text())
    del receipt["files"], receipt["sha256"]
    (output / ".distconv.journal").write_text(json.dumps(receipt))
    (output / "distconv.json").unlink()
    (output / "model.safetensors.index.json").unlink()
    flip(sorted(output.glob("*.safetensors"))[1], -100, 1)
    report = convert(source, output)
    assert report.kept_chunks == report.chunks - 1
    assert digest_folder(output) == digest_folder(reference)


def test_a_chunk_that_was_removed_is_made_again(checkpoint: Write, reference: Path, tmp_path: Path) -> None:
    output = shutil.copytree(reference, tmp_path / "out")
    sorted(output.glob("*.safetensors"))[2].unlink()
    report = convert(checkpoint(SPEC), output)
    assert report.kept_chunks == report.chunks - 1
    assert digest_folder(output) == digest_folder(reference)


def test_two_conversions_into_one_folder_are_not_run_at_once(
    checkpoint: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, output = checkpoint(SPEC), tmp_path / "out"
    refused: list[str] = []
    check = making._check_chunks

    def convert_again(*arguments: object) -> None:
        before = sorted(path.name for path in output.iterdir())
        with pytest.raises(OutputError) as error:
            convert(source, output)
        refused.append(str(error.value))
        assert sorted(path.name for path in output.iterdir()) == before
        check(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(making, "_check_chunks", convert_again)
    convert(source, output)
    assert "distconv already writes into it" in refused[0]


def flip(path: Path, place: int, bit: int) -> None:
    """Flip one bit of a file."""
    content = bytearray(path.read_bytes())
    content[place] ^= bit
    path.write_bytes(content)


def test_a_flipped_bit_anywhere_is_found(checkpoint: Write, reference: Path, tmp_path: Path) -> None:
    assert distconv.verify(reference).ok
    chance = random.Random(7)
    for path in sorted(reference.iterdir()):
        size = path.stat().st_size
        places = {0, size - 1, *(chance.randrange(size) for _ in range(6))}
        for place in places:
            output = shutil.copytree(reference, tmp_path / "out")
            flip(output / path.name, place, 1 << chance.randrange(8))
            try:
                found = not distconv.verify(output).ok
            except OutputError:
                found = True
            assert found, (path.name, place)
            shutil.rmtree(output)


def test_without_a_receipt_a_flipped_bit_in_the_data_is_found_against_the_source(
    checkpoint: Write, reference: Path, tmp_path: Path
) -> None:
    chance = random.Random(8)
    for path in sorted(reference.glob("*.safetensors")):
        first = 8 + int.from_bytes(path.read_bytes()[:8], "little")
        for place in (first, path.stat().st_size - 1, chance.randrange(first, path.stat().st_size)):
            output = shutil.copytree(reference, tmp_path / "out")
            (output / "distconv.json").unlink()
            alone = distconv.verify(output)
            assert alone.ok
            assert "no distconv.json" in alone.notes[0]
            flip(output / path.name, place, 1 << chance.randrange(8))
            assert not distconv.verify(output, against=checkpoint(SPEC)).ok
            shutil.rmtree(output)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("config.json", "config.json: missing"),
        ("tokenizer.json", "tokenizer.json: missing"),
        ("model-00002-of-", "missing, though the index names it"),
    ],
)
def test_a_missing_file_is_named(reference: Path, tmp_path: Path, name: str, words: str) -> None:
    output = shutil.copytree(reference, tmp_path / "out")
    next(path for path in output.iterdir() if path.name.startswith(name)).unlink()
    assert any(words in finding for finding in distconv.verify(output).differences)


def test_a_config_of_another_shape_is_found(reference: Path, tmp_path: Path) -> None:
    output = shutil.copytree(reference, tmp_path / "out")
    (output / "distconv.json").unlink()
    config = json.loads((output / "config.json").read_text())
    (output / "config.json").write_text(json.dumps(config | {"num_key_value_heads": 2}))
    found = distconv.verify(output).differences
    assert any("k_proj.weight: shape (" in finding for finding in found)


def test_an_index_that_leads_out_of_the_folder_is_not_followed(reference: Path, tmp_path: Path) -> None:
    output = shutil.copytree(reference, tmp_path / "out")
    index = json.loads((output / "model.safetensors.index.json").read_text())
    first = next(iter(index["weight_map"]))
    index["weight_map"][first] = "../secret"
    (output / "model.safetensors.index.json").write_text(json.dumps(index))
    assert any(
        "'../secret', expected a file in this folder" in found
        for found in distconv.verify(output).differences
    )


@pytest.mark.parametrize("name", [".distconv.journal", "distconv.json", "config.json"])
def test_a_pipe_in_place_of_a_file_is_not_waited_for(
    checkpoint: Write, reference: Path, tmp_path: Path, name: str
) -> None:
    output = shutil.copytree(reference, tmp_path / "out")
    (output / name).unlink(missing_ok=True)
    os.mkfifo(output / name)
    with contextlib.suppress(InputError):
        assert not distconv.verify(output).ok
    convert(checkpoint(SPEC), output, overwrite=True)
    assert digest_folder(output) == digest_folder(reference)


def test_an_output_that_is_a_link_to_nowhere_is_refused(checkpoint: Write, tmp_path: Path) -> None:
    (tmp_path / "out").symlink_to("nowhere")
    with pytest.raises(OutputError, match=r"a file or a link to nowhere is in the way"):
        convert(checkpoint(SPEC), tmp_path / "out")
    assert not (tmp_path / "nowhere").exists()


@pytest.mark.parametrize("key", ["num_hidden_layers", "hidden_size", "head_dim", "vocab_size"])
def test_a_config_of_a_model_without_end_is_not_built(reference: Path, tmp_path: Path, key: str) -> None:
    output = shutil.copytree(reference, tmp_path / "out")
    config = json.loads((output / "config.json").read_text())
    (output / "config.json").write_text(json.dumps(config | {key: 10**12}))
    findings = "\n".join(distconv.verify(output).lines())
    assert f"{key} 1,000,000,000,000, the 21 tensors that there are allow at most " in findings
