"""The package as others import it: its names, its types, its errors, its sizes, its silence."""

import ast
import importlib
import inspect
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import distconv
from distconv.version import VERSION
from tests.checkpoints import Spec
from tests.moving.fakes import RecordingProgress

PACKAGE = Path(distconv.__file__).parent


def read_declared() -> dict[str, str]:
    """Give the names that type checkers see, each with the module it is imported from."""
    tree = ast.parse((PACKAGE / "__init__.py").read_text(encoding="utf-8"))
    return {
        alias.asname or alias.name: node.module or ""
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
        if alias.name != "import_module"
    }


def test_names_for_people_type_checkers_and_the_interpreter_are_the_same() -> None:
    declared = read_declared()
    assert set(declared) == set(distconv.__all__)
    assert distconv.__all__ == sorted(distconv.__all__)
    assert set(distconv.__all__) <= set(dir(distconv))
    for name, home in declared.items():
        found = getattr(distconv, name)
        if name == "errors":
            assert found is importlib.import_module("distconv.errors")
        elif name == "__version__":
            assert found == VERSION
        else:
            assert found is getattr(importlib.import_module(home), name)
    assert set(distconv._HOMES) <= set(distconv.__all__)
    with pytest.raises(AttributeError, match="module 'distconv' has no attribute 'nothing'"):
        _ = distconv.nothing


@pytest.mark.parametrize(
    ("name", "error", "words"),
    [
        ("", distconv.UsageError, "no name is given; is a variable of the shell not set?"),
        ("a\0b", distconv.UsageError, "a zero byte, which no name can have"),
        (b"name", TypeError, r"b'name': expected str or os.PathLike\[str\]; os.fsdecode gives that"),
        (None, TypeError, "expected str, bytes or os.PathLike object, not NoneType"),
    ],
)
def test_what_nothing_can_be_called_is_refused_wherever_a_name_is_taken(
    checkpoint: Callable[[Spec], Path], tmp_path: Path, name: Any, error: type[Exception], words: str
) -> None:
    source, out = checkpoint(Spec()), tmp_path / "out"
    calls = [
        lambda: distconv.inspect(name),
        lambda: distconv.convert(source, name),
        lambda: distconv.verify(name),
        lambda: distconv.manifest(source, name),
        lambda: distconv.push(name, "me/x"),
    ]
    if name is not None:
        calls += [
            lambda: distconv.verify(source, against=name),
            lambda: distconv.convert(source, out, tokenizer=name),
            lambda: distconv.convert(source, out, trace=name),
        ]
    for call in calls:
        with pytest.raises(error, match=words):
            call()
    assert not out.exists()


def test_all_errors_are_exported_and_stand_in_the_tree_that_is_drawn() -> None:
    errors = {
        name
        for name, found in vars(distconv.errors).items()
        if inspect.isclass(found) and issubclass(found, distconv.DistconvError)
    }
    assert errors <= set(distconv.__all__)
    drawn = distconv.errors.__doc__ or ""
    assert all(f" {name} " in drawn or f" {name}\n" in drawn for name in errors)
    for name in errors:
        assert str(getattr(distconv, name)("words")) == "words"


def test_every_exported_function_says_what_it_takes_gives_and_raises() -> None:
    for name in distconv.__all__:
        found = getattr(distconv, name)
        if not inspect.isfunction(found):
            continue
        text = " ".join((inspect.getdoc(found) or "").split())
        assert "Raises" in text, name
        if "as ``convert`` does" in text:
            text += inspect.getdoc(distconv.convert) or ""
        for parameter in inspect.signature(found).parameters:
            assert f"``{parameter}``" in text, f"{name}: nothing is said of {parameter}"
        assert inspect.signature(found).return_annotation is not inspect.Signature.empty


def test_a_progress_of_ones_own_is_told_of_the_work_and_others_need_none(
    checkpoint: Callable[[Spec], Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    progress = RecordingProgress()
    source = checkpoint(Spec())
    report = distconv.convert(source, tmp_path / "told", progress=progress)
    assert progress.moved_bytes == report.bytes_written
    distconv.convert(source, tmp_path / "silent", progress=distconv.SilentProgress())
    distconv.convert(source, tmp_path / "default")
    assert capfd.readouterr() == ("", "")
    lines: list[str] = []
    distconv.verify(tmp_path / "told", progress=distconv.LineProgress(lines.append))
    assert lines
    distconv.verify(tmp_path / "told", progress=distconv.BarProgress(sys.stderr))
    assert "100%" in capfd.readouterr().err


def test_what_cannot_be_told_of_progress_is_refused_before_anything_is_read(tmp_path: Path) -> None:
    with pytest.raises(distconv.UsageError, match=rf"progress: {re.escape(repr(print))} has no .*advance"):
        distconv.convert(tmp_path / "in", tmp_path / "out", progress=print)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("size", "size_bytes"),
    [
        (50_000, 50_000),
        ("50kB", 50_000),
        ("0.05 MB", 50_000),
        ("48KiB", 49_152),
        (2**60, 2**60),
        ("9e3", None),
    ],
)
def test_sizes_are_bytes_or_what_people_write(
    checkpoint: Callable[[Spec], Path], size: int | str, size_bytes: int | None
) -> None:
    source = checkpoint(Spec())
    if size_bytes is None:
        with pytest.raises(distconv.UsageError, match=r"^'9e3' is not a size; write 5GB, 500MB or 2GiB; "):
            distconv.plan(source, max_shard_size=size)
    else:
        assert distconv.plan(source, max_shard_size=size).to_json()["max_shard_size"] == size_bytes


@pytest.mark.parametrize("size", [0, -1, "0", "-5GB", "", "five"])
def test_sizes_that_are_none_are_refused_before_anything_is_read(size: int | str, tmp_path: Path) -> None:
    with pytest.raises(distconv.UsageError, match="is not a size"):
        distconv.convert(tmp_path / "nowhere", tmp_path / "out", max_shard_size=size)


PROGRAM = """
import re
import sys
from pathlib import Path
from typing import assert_type

import distconv
from distconv.errors import MismatchError


class Percent:
    def begin(self, total_bytes: int, units: int, kind: str = "chunks") -> None: ...
    def take(self, worker: str, unit: str, size_bytes: int) -> None: ...
    def advance(self, size_bytes: int, worker: str = "") -> None: ...
    def unit_done(self, name: str) -> None: ...
    def note(self, message: str) -> None: ...
    def end(self) -> None: ...


def convert(source: Path, output: str) -> distconv.ConversionReport | None:
    progress: distconv.Progress = Percent()
    try:
        report = distconv.convert(source, output, max_shard_size="5GB", progress=progress)
    except distconv.MismatchError as error:
        assert_type(error, MismatchError)
        return None
    except (distconv.InputError, distconv.OutputError, distconv.UsageError) as error:
        sys.exit(error.exit_code)
    except distconv.DistconvError:
        return None
    return report


made = convert(Path("in"), "out")
assert_type(distconv.__version__, str)
if made is not None:
    assert_type(made.chunks, int)
    assert_type(made.notes, tuple[str, ...])
    assert_type(made.to_json(), dict[str, object])
assert_type(distconv.verify("out", against="in", progress=distconv.BarProgress(sys.stderr)).ok, bool)
assert_type(distconv.check("in", progress=distconv.LineProgress(print)).findings, tuple[str, ...])
assert_type(distconv.inspect("in"), distconv.Inspection)
assert_type(distconv.plan("in", max_shard_size=5_000_000_000), distconv.PlanReport)
assert_type(distconv.manifest("in", "m.json").manifest.elements, int)
assert_type(distconv.generate("out", "Once"), str)
assert_type(distconv.sign("out", "key.pem").signature, str)
assert_type(distconv.push("out", "me/x").url, str)
assert_type(distconv.download(["7B"], "to", "https://x").folders, tuple[str, ...])
assert_type(distconv.convert_tokenizer("in", "out").files, tuple[str, ...])
reports: list[distconv.Report] = [distconv.plan("in"), distconv.inspect("in")]
for report in reports:
    assert_type(report.notes, tuple[str, ...])
distconv.convert("in", "out", max_shard_size=5.0)  # wrong
distconv.convert("in", "out", progress=print)  # wrong
distconv.nothing  # wrong
"""


@pytest.mark.slow
def test_a_program_of_somebody_else_passes_strict_mypy(tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(PROGRAM)
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", "--cache-dir", tmp_path / "cache", "program.py"],
        # Found beside the program, as what is installed is.
        cwd=tmp_path, env=os.environ | {"MYPYPATH": str(PACKAGE.parent)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    wrong = [number for number, line in enumerate(PROGRAM.split("\n"), 1) if line.endswith("# wrong")]
    told = [line for line in done.stdout.splitlines() if ": error: " in line]
    assert [int(line.split(":")[1]) for line in told] == wrong, done.stdout + done.stderr
    assert all(line.startswith("program.py:") for line in told)


@pytest.mark.parametrize("has_widgets", [True, False])
def test_a_notebook_shows_a_bar_and_reports(
    checkpoint: Callable[[Spec], Path], tmp_path: Path, has_widgets: bool
) -> None:
    nbclient = pytest.importorskip("nbclient")
    nbformat = pytest.importorskip("nbformat")
    pytest.importorskip("ipykernel")
    pytest.importorskip("ipywidgets")
    blocked = "" if has_widgets else "import sys; sys.modules['ipywidgets'] = None\n"
    cells = [
        f"{blocked}import distconv\ndone = distconv.convert({str(checkpoint(Spec()))!r}, {str(tmp_path / 'out')!r})",
        "done",
        f"distconv.verify({str(tmp_path / 'out')!r}, progress=distconv.SilentProgress())",
    ]
    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    nbclient.NotebookClient(book, timeout=300, kernel_name="python3").execute()
    first, second, third = (cell.outputs for cell in book.cells)
    text = "".join(output.get("text", "") for output in first)
    assert "note: taken as a base model" in text
    assert ("100.0%, " in text) == (not has_widgets)
    assert any("widget-view" in kind for output in first for kind in output.get("data", {})) == has_widgets
    assert "<pre>" in second[0].data["text/html"]
    # Other libraries may warn that they lack the widgets.
    assert not any("widget-view" in kind for output in third for kind in output.get("data", {}))
    assert third[-1].data["text/plain"].startswith("<Verification: ")
