"""All steps of a run by one command: what is new is done, what is broken or not yet saved is named and keeps no other from it."""

import json
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

import distconv
from distconv.errors import InputError, UsageError
from distconv.moving.progress import SilentProgress
from distconv.verbs.convert_each import EachReport, convert_each
from tests.called import call
from tests.faults import digest_folder, looks_whole

LIMIT = 20_000
Run = Callable[..., Path]


@pytest.fixture
def run(folders: Path, tmp_path: Path) -> Run:
    """Give a function that makes a run of steps of some folders' checkpoints."""

    def make(**steps: str) -> Path:
        for step, name in steps.items():
            shutil.copytree(folders / name, tmp_path / "run" / step.replace("_", "-"))
        return tmp_path / "run"

    return make


def convert_all(source: Path, folders: Path, progress: SilentProgress | None = None) -> EachReport:
    """Convert all steps of a run into a folder beside it."""

    def convert(step: str, out: str) -> distconv.ConversionReport:
        return distconv.convert(
            step, out, like=folders / "llama-hf", max_shard_size=LIMIT, progress=progress or SilentProgress()
        )

    return convert_each(source, source.with_name("out"), convert)


def names(report: EachReport) -> list[str]:
    """Give the folders that were made."""
    return [Path(one.output).name for one in report.reports]


def test_all_steps_of_a_run_are_converted_and_only_what_is_new_is_done_again(
    run: Run, folders: Path, tmp_path: Path
) -> None:
    source = run(step_900="rows", step_1000="grid")
    convert_all(source, folders)
    before = digest_folder(tmp_path / "out/step-900")
    shutil.copytree(folders / "hybrid", source / "step-1100")
    report = convert_all(source, folders)
    assert names(report) == ["step-900", "step-1000", "step-1100"]
    assert [one.already_done for one in report.reports] == [True, True, False]
    assert digest_folder(tmp_path / "out/step-900") == before


def test_a_link_to_a_step_and_what_is_hidden_are_no_steps(run: Run, folders: Path, tmp_path: Path) -> None:
    source = run(step_900="rows", step_1000="grid")
    (source / "latest").symlink_to("step-1000")
    shutil.copytree(folders / "hybrid", source / ".step-1100.saving")
    shutil.copytree(folders / "hybrid", tmp_path / "other")
    (source / "step-800").symlink_to(tmp_path / "other")
    ended = call(["convert", source, tmp_path / "out", "--each", "--like", folders / "llama-hf"])
    assert ended.returncode == 0
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"step-800", "step-900", "step-1000"}
    assert f"note: {source}: latest: another name of step-1000, left out" in ended.stderr


def test_a_broken_step_is_named_and_keeps_no_other_from_it(run: Run, folders: Path, tmp_path: Path) -> None:
    source = run(step_1="rows", step_2="grid", step_3="hybrid")
    lost = source / "step-2/__0_0.distcp"
    lost.rename(tmp_path / "aside")
    command = ("convert", source, tmp_path / "out", "--each", "--like", folders / "llama-hf", "--quiet")
    ended = call(command)
    assert ended.returncode == 2
    assert f"error: {lost}: missing" in ended.stderr
    assert f"{source}: 1 of 3 checkpoints were not converted; done are step-1, step-3" in ended.stderr
    assert not looks_whole(tmp_path / "out/step-2")
    for step in ("step-1", "step-3"):
        assert distconv.verify(tmp_path / "out" / step, against=source / step, like=folders / "llama-hf").ok
    (tmp_path / "aside").rename(lost)
    assert call(command).returncode == 0
    assert distconv.verify(tmp_path / "out/step-2", against=source / "step-2", like=folders / "llama-hf").ok


def test_a_step_that_is_still_being_saved_is_left_out_and_said(
    run: Run, folders: Path, tmp_path: Path
) -> None:
    source = run(step_9="rows", step_10="grid")
    metadata = (source / "step-10/.metadata").rename(tmp_path / "aside")
    command = ("convert", source, tmp_path / "out", "--each", "--like", folders / "llama-hf", "--quiet")
    ended = call(command)
    assert ended.returncode == 0
    assert f"note: {source}: step-10: no .metadata, which is written last" in ended.stderr
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"step-9"}
    metadata.rename(source / "step-10/.metadata")
    assert call(command).returncode == 0
    assert looks_whole(tmp_path / "out/step-10")


def test_where_no_step_is_saved_to_its_end_that_alone_is_said(run: Run, folders: Path) -> None:
    source = run(step_9="rows")
    (source / "step-9/.metadata").unlink()
    with pytest.raises(InputError) as raised:
        convert_all(source, folders)
    assert str(raised.value) == (
        f"{source}: step-9: no .metadata, which is written last: not saved to its end yet, and there is no other "
        "checkpoint; run the same command again when it is"
    )


def test_of_what_is_no_run_the_same_is_said_as_of_what_is_no_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "other/notes").mkdir(parents=True)
    (tmp_path / "file").write_text("words")
    ends = {
        "missing": "no such file or folder",
        "empty": "no trainer's checkpoint directly below it; the folder is empty",
        "other": "no trainer's checkpoint directly below it; it holds notes",
        "file": "a file, expected the folder in which the checkpoints of the steps lie",
    }
    for name, end in ends.items():
        with pytest.raises(InputError) as raised:
            convert_each(tmp_path / name, tmp_path / "out", lambda *_: pytest.fail("nothing is there"))
        assert str(raised.value) == f"{tmp_path / name}: {end}"
    with pytest.raises(InputError, match=f"^{tmp_path / 'missing'}: {ends['missing']}$"):
        distconv.convert(tmp_path / "missing", tmp_path / "out")


def test_json_has_what_was_done_and_what_was_not(run: Run, folders: Path, tmp_path: Path) -> None:
    source = run(step_1="rows", step_2="grid")
    for name, code, done in (("step-1", 2, ["step-2"]), ("step-2", 2, [])):
        (source / name / "__0_0.distcp").unlink()
        shutil.rmtree(tmp_path / "out", ignore_errors=True)
        ended = call(
            (
                "convert",
                source,
                tmp_path / "out",
                "--each",
                "--like",
                folders / "llama-hf",
                "--quiet",
                "--json",
            )
        )
        assert ended.returncode == code
        found = json.loads(ended.stdout)
        assert [Path(one["output"]).name for one in found["steps"]] == done
        failed = found["failed"]
        assert [Path(one["output"]).name for one in failed] == ["step-1", "step-2"][: 2 - len(done)]
        for one in failed:
            assert one["source"] == str(source / Path(one["output"]).name)
            lost = f"{one['source']}/__0_0.distcp: missing"
            assert any(words.startswith(lost) for words in one["findings"])
            assert f"error: {lost}" in ended.stderr


def test_people_are_told_of_the_steps_that_were_done_beside_one_that_was_not(
    run: Run, folders: Path, tmp_path: Path
) -> None:
    source = run(step_1="rows", step_2="grid")
    (source / "step-2/__0_0.distcp").unlink()
    ended = call(("convert", source, tmp_path / "out", "--each", "--like", folders / "llama-hf", "--quiet"))
    assert ended.returncode == 2
    assert f"{tmp_path / 'out/step-1'}: " in ended.stdout
    assert "step-2" not in ended.stdout


def test_what_is_wrong_with_the_command_is_said_once(run: Run, tmp_path: Path) -> None:
    source = run(step_1="rows", step_2="rows")
    with pytest.raises(UsageError, match="step-1") as raised:
        convert_each(source, tmp_path / "out", distconv.convert)
    assert "step-2" not in str(raised.value)


def test_a_checkpoint_itself_is_no_run(folders: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no trainer's checkpoint directly below it"):
        convert_each(folders / "rows", tmp_path / "out", lambda *_: pytest.fail("nothing is there"))


class _Killed(SilentProgress):
    """Ends this process, as a machine that goes down does, when so many chunks are written."""

    def __init__(self, chunks: int) -> None:
        """Count down from ``chunks``."""
        self._left = chunks

    def unit_done(self, name: str) -> None:
        """Count one."""
        self._left -= 1
        if not self._left:
            os.kill(os.getpid(), signal.SIGKILL)


def test_a_run_that_was_killed_goes_on_in_the_step_in_which_it_was(
    run: Run, folders: Path, tmp_path: Path
) -> None:
    source = run(step_1="rows", step_2="grid", step_3="hybrid")
    whole = convert_all(source, folders)
    expected = {name: digest_folder(tmp_path / "out" / name) for name in names(whole)}
    shutil.rmtree(tmp_path / "out")
    chunks = whole.reports[0].chunks
    process = os.fork()
    if not process:
        convert_all(source, folders, _Killed(chunks + 2))
        os._exit(0)
    assert os.WTERMSIG(os.waitpid(process, 0)[1]) == signal.SIGKILL
    assert looks_whole(tmp_path / "out/step-1")
    assert list((tmp_path / "out/step-2").iterdir())
    assert not looks_whole(tmp_path / "out/step-2")
    assert not (tmp_path / "out/step-3").exists()
    report = convert_all(source, folders)
    assert [one.already_done for one in report.reports] == [True, False, False]
    assert {name: digest_folder(tmp_path / "out" / name) for name in names(report)} == expected
