"""What a run tells of itself: its summary, its trace and its picture."""

import io
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from matplotlib.figure import Figure

import distconv
from distconv.cli import main
from distconv.errors import UsageError
from tests.checkpoints import Spec

Write = Callable[[Spec], Path]
SPEC = Spec("llama-2", heads=8, kv_heads=4, shards=2)


def test_a_trace_has_every_byte_that_was_read_and_written(checkpoint: Write, tmp_path: Path) -> None:
    trace = tmp_path / "trace.json"
    report = distconv.convert(checkpoint(SPEC), tmp_path / "out", max_shard_size=50_000, trace=trace)
    events = json.loads(trace.read_text())["traceEvents"]
    moved = {
        stage: sum(event["args"]["bytes"] for event in events if event["name"] == stage)
        for stage in ("read", "write")
    }
    headers = sum(
        8 + int.from_bytes(path.read_bytes()[:8], "little")
        for path in (tmp_path / "out").glob("*.safetensors")
    )
    assert moved == {"read": report.bytes_read, "write": report.bytes_written - headers}
    units = [event for event in events if event.get("cat") == "unit"]
    assert len({unit["name"] for unit in units}) == len(units) == report.chunks
    for event in events:
        if event.get("cat") == "stage":
            # Each stage lies within a unit of its own worker.
            assert any(
                unit["tid"] == event["tid"]
                and unit["ts"] - 1 <= event["ts"]
                and event["ts"] + event["dur"] <= unit["ts"] + unit["dur"] + 1
                for unit in units
            )


def test_the_summary_counts_each_workers_share(checkpoint: Write, tmp_path: Path) -> None:
    report = distconv.convert(checkpoint(SPEC), tmp_path / "out", max_shard_size=50_000)
    summary = json.loads(json.dumps(report.to_json()))
    assert sum(worker["chunks"] for worker in summary["workers"]) == report.chunks
    assert sum(worker["bytes_written"] for worker in summary["workers"]) == report.bytes_written
    assert set(summary["stages"]) == {"read", "gather", "digest", "write"}
    assert sum(stage["seconds"] for stage in summary["stages"].values()) > 0
    assert summary["retries"] == 0


def test_a_report_is_a_picture(checkpoint: Write, tmp_path: Path) -> None:
    from PIL import Image

    distconv.convert(checkpoint(SPEC), tmp_path / "out", report=tmp_path / "report.png")
    with Image.open(tmp_path / "report.png") as picture:
        assert picture.format == "PNG"
        assert picture.width > picture.height > 100


@pytest.mark.parametrize("option", ["trace", "report"])
def test_what_is_no_regular_file_is_not_written_over(
    checkpoint: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str], option: str
) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    for place in (pipe, Path("/dev/full")):
        with pytest.raises(SystemExit) as ended:
            main(["convert", str(checkpoint(SPEC)), str(tmp_path / "out"), f"--{option}", str(place)])
        assert ended.value.code == 2
        told = f"error: {place}: a pipe or device, expected a regular file; give another name\n"
        assert capsys.readouterr().err == told
    assert pipe.is_fifo()
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("option", ["trace", "report"])
def test_a_disk_that_is_full_for_the_picture_is_one_message_and_the_model_is_whole(
    checkpoint: Write,
    tmp_path: Path,
    mount: Callable[..., Path],
    capsys: pytest.CaptureFixture[str],
    option: str,
) -> None:
    place = mount("tmpfs", "-o", "size=4k") / "run"
    place.with_name("filler").write_bytes(bytes(4096))
    arguments = ["convert", str(checkpoint(SPEC)), str(tmp_path / "out"), "--quiet"]
    with pytest.raises(SystemExit) as ended:
        main([*arguments, f"--{option}", str(place)])
    assert ended.value.code == 1
    *notes, told = capsys.readouterr().err.splitlines()
    assert told == f"error: {place}: No space left on device; the model in {tmp_path / 'out'} is whole"
    assert all(line.startswith("note: ") for line in notes)
    assert distconv.verify(tmp_path / "out").ok
    assert [path.name for path in place.parent.iterdir()] == ["filler"]


@pytest.mark.parametrize("name", ["out/trace.json", "missing/trace.json", "folder"])
def test_a_trace_that_could_not_be_written_is_refused_before_anything_is_done(
    checkpoint: Write, tmp_path: Path, name: str
) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "out").mkdir()
    with pytest.raises(UsageError, match=r"cannot be written|in OUTPUT"):
        distconv.convert(checkpoint(SPEC), tmp_path / "out", trace=tmp_path / name)
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize("other", ["run", "./run", "away/../run", "folder/run", "link"])
def test_a_trace_and_a_report_of_one_name_are_refused_before_anything_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], other: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "away").mkdir()
    (tmp_path / "folder").symlink_to(tmp_path)
    (tmp_path / "link").symlink_to("run")
    with pytest.raises(SystemExit) as ended:
        main(["convert", "no-such-input", "out", "--trace", "run", "--report", other])
    assert ended.value.code == 2
    assert capsys.readouterr().err == (
        f"error: {other}: the same file for --trace and --report, expected two; give another name\n"
    )
    assert not (tmp_path / "run").exists()


def test_a_file_that_stands_there_already_is_no_trace_and_no_report_and_stays(
    checkpoint: Callable[[Spec], Path], tmp_path: Path
) -> None:
    source, out = checkpoint(SPEC), tmp_path / "out"
    mine = {"trace": b'{"schemaVersion": 1, "traceEvents": []}', "report": draw_with_matplotlib()}
    for option, content in mine.items():
        path = tmp_path / option
        path.write_bytes(content)
        with pytest.raises(UsageError, match=f"{option}: there already, and no {option}"):
            distconv.convert(source, out, **{option: path})
        assert path.read_bytes() == content
        assert not out.exists()
        path.unlink()
    for _again in range(2):
        distconv.convert(source, out, overwrite=True, trace=tmp_path / "trace", report=tmp_path / "report")
    assert json.loads((tmp_path / "trace").read_bytes())["traceEvents"]


def draw_with_matplotlib() -> bytes:
    """Draw what is nobody's report: a training curve, for one."""
    content = io.BytesIO()
    Figure().savefig(content, format="png")
    return content.getvalue()
