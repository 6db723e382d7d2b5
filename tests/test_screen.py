"""What reaches the screen: foreign text in any place is shown, and never obeyed."""

import json
import logging
import os
import re
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from io import StringIO
from pathlib import Path

import click
import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from distconv.cli.screen import choose_progress, defused, name_options, show, show_error, show_usage_error
from distconv.verbs.tables import Table
from tests.checkpoints import Spec, write_checkpoint
from tests.extent import share

NASTY = "a\x1b[2J\x1b]0;x\x07\rb\x08\x7f\x9b1m\u202ec\u2066\u200b\ufeffd\udcff\ud800\u2028e[red][/red]\\é模"
FOREIGN = st.one_of(
    st.just(NASTY), st.just("a\nerror: all is well"), st.text(st.characters(exclude_categories=())), st.text()
)
OURS = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|\r")
"""What rich and click write of their own on a terminal: colours, and moves of the cursor."""


@dataclass(frozen=True)
class AnyReport:
    """A report that holds one text wherever a report can hold one."""

    text: str

    @property
    def notes(self) -> tuple[str, ...]:
        return (self.text,)

    def to_json(self) -> dict[str, object]:
        return {"text": self.text, "inside": [{self.text: [self.text]}], "notes": list(self.notes)}

    def lines(self) -> Sequence[str | Table]:
        return (self.text, Table(("a", "b"), [(self.text, "1"), ("x", self.text)], (False, True)))


class Terminal(StringIO):
    """A stream that says that it is a terminal."""

    def isatty(self) -> bool:
        return True


def is_harmless(shown: str) -> bool:
    """Whether all of it is printable but for line ends."""
    return all(line.isprintable() for line in shown.split("\n"))


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=FOREIGN)
def test_reports_show_any_text_and_let_it_do_nothing(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    show(AnyReport(text), as_json=False)
    shown = capsys.readouterr()
    assert is_harmless(shown.out)
    assert is_harmless(shown.err)
    # One line of text and three of the table; what text has of lines of its own is set in.
    assert sum(not line.startswith("  ") for line in shown.out.rstrip("\n").split("\n")) <= 4
    assert all(line.startswith(("note: ", "  ")) for line in shown.err.rstrip("\n").split("\n"))


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=FOREIGN)
@example(text="/data/`shards=4`/`to='meta'`")
def test_json_holds_any_text_in_ascii(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    show(AnyReport(text), as_json=True)
    shown = capsys.readouterr().out
    assert is_harmless(shown)
    assert shown.isascii()
    found = json.loads(shown)
    assert found["text"] == text
    assert found["inside"] == [{text: [text]}]
    # Only what messages call an option by is said as one types it.
    assert found["notes"] == [name_options(text)]


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=FOREIGN)
def test_errors_warnings_and_logs_show_any_text_and_let_it_do_nothing(
    text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    show_error(ValueError(text), text, debug=False)
    lines = capsys.readouterr().err.rstrip("\n").split("\n")
    assert is_harmless("\n".join(lines))
    assert all(line.startswith("error: ") for line in lines)
    show_error(ValueError(text), text, debug=True)
    for error in (click.ClickException(text), click.UsageError(text), click.BadParameter(text)):
        show_usage_error(error)
    with defused(), warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.warn(text, stacklevel=1)
        handler = logging.StreamHandler(sys.stderr)
        logger = logging.getLogger("a library")
        logger.addHandler(handler)
        logger.warning("%s and %r", text, text)
        logger.removeHandler(handler)
    # Tracebacks of people who debug keep the tabs that they may have.
    assert is_harmless(capsys.readouterr().err.replace("\t", ""))


@settings(deadline=None, max_examples=share(30), suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=FOREIGN)
@pytest.mark.parametrize("terminal", [False, True])
def test_progress_shows_any_text_and_lets_it_do_nothing(
    text: str, terminal: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = Terminal() if terminal else StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    progress = choose_progress(quiet=False)
    progress.note(text)
    progress.begin(10, 1)
    progress.take(text, text, 10)
    progress.advance(5, text)
    progress.note(text)
    progress.unit_done(text)
    progress.end()
    assert is_harmless(OURS.sub("", stream.getvalue()))


def on_terminal_text(text: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """Show a report on a terminal, and give what it shows less what is ours."""
    stream = Terminal()
    monkeypatch.setattr(sys, "stdout", stream)
    show(AnyReport(text), as_json=False)
    return OURS.sub("", stream.getvalue())


@settings(deadline=None, max_examples=share(50), suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=FOREIGN)
def test_drawn_tables_show_any_text_and_let_it_do_nothing(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert is_harmless(on_terminal_text(text, monkeypatch))


def test_markup_is_shown_as_it_stands(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "[red]x[/red]" in on_terminal_text("[red]x[/red]", monkeypatch)


def rename_tensor(folder: Path, name: str) -> None:
    path = folder / "consolidated.00.pth"
    torch.save(torch.load(path, weights_only=True) | {name: torch.ones(2)}, path)


def write_text(name: str, content: str) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_bytes(content.encode("utf-8", "surrogateescape"))


NASTY_NAME = NASTY.replace("\ud800", "").replace("/", "")
PLACES: dict[str, tuple[Callable[[Path], object], list[str]]] = {
    "a tensor's name": (lambda folder: rename_tensor(folder, "x\x1b[2J\n\u202e"), ["inspect", "{in}"]),
    "a checklist's name": (write_text("checklist.chk", f"{'0' * 32}  {NASTY_NAME}\n"), ["check", "{in}"]),
    "a parameter": (write_text("params.json", json.dumps({"dim": NASTY})), ["inspect", "{in}"]),
    "a parameter's name": (write_text("params.json", json.dumps({NASTY: 1})), ["inspect", "{in}"]),
    "a file's name": (
        lambda folder: (folder / "consolidated.00.pth").rename(folder / f"{NASTY_NAME}.pth"), ["inspect", "{in}"],
    ),
    "an argument": (lambda _folder: None, ["inspect", NASTY_NAME]),
    "an option": (lambda _folder: None, ["inspect", "{in}", f"--{NASTY_NAME}"]),
    "a family": (lambda _folder: None, ["inspect", "{in}", "--family", NASTY_NAME]),
    "a model's name": (lambda _folder: None, ["download", "--models", NASTY_NAME, "--to", "{in}"]),
    "a chunk's name": (
        write_text("model.safetensors.index.json", json.dumps({"weight_map": {"a": NASTY}})), ["verify", "{in}"],
    ),
    "a header's name": (
        lambda folder: (folder / "model.safetensors").write_bytes(
            len(header := json.dumps({NASTY: {"dtype": NASTY, "shape": [], "data_offsets": [0, 0]}}).encode()).to_bytes(8, "little") + header
        ),
        ["verify", "{in}"],
    ),
}  # fmt: skip


@pytest.mark.first(3)
@pytest.mark.parametrize(("spoil", "arguments"), PLACES.values(), ids=PLACES)
def test_files_cannot_write_on_the_screen_whatever_its_encoding(
    checkpoint: Callable[[Spec], Path], tmp_path: Path, spoil: Callable[[Path], object], arguments: list[str]
) -> None:
    source = shutil.copytree(checkpoint(Spec()), tmp_path / "in")
    spoil(source)
    command = [sys.executable, "-m", "distconv", *(word.replace("{in}", str(source)) for word in arguments)]
    ended = subprocess.run(
        [os.fsencode(word) for word in command], capture_output=True, check=False,
        env=os.environ | {"PYTHONIOENCODING": "iso8859-1", "PYTHONUTF8": "0"}, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    assert ended.returncode in {0, 1, 2}
    for shown in (ended.stdout, ended.stderr):
        assert is_harmless(shown.decode("iso8859-1"))
        assert b"Traceback" not in shown


def test_a_folder_whose_name_is_no_text_is_converted_and_named(
    tmp_path: Path, sentencepiece_file: Path
) -> None:
    source = write_checkpoint(tmp_path / os.fsdecode(b"in\xff\x1b[2J"), Spec(), sentencepiece_file)
    for arguments in (["inspect", source], ["convert", source, tmp_path / os.fsdecode(b"out\xfe")]):
        command = [sys.executable, "-m", "distconv", *arguments]
        ended = subprocess.run(command, capture_output=True, check=True)
        assert is_harmless(ended.stdout.decode() + ended.stderr.decode())
    assert rb"out\xfe: Llama" in ended.stdout
