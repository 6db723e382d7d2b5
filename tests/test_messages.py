"""What messages call an option: as Python does for those who call functions, as one types it on the command line."""

import ast
import errno
import inspect
import re
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import distconv
from distconv.cli import main
from distconv.cli.commands import cli
from distconv.cli.screen import name_options
from distconv.errors import describe_missing_package, describe_os_error
from tests.checkpoints import Spec

PACKAGE = Path(distconv.__file__).parent
SHELL = {"verbs/card.py", "verbs/verification_card.py"}
"""What these write are commands for a shell, whoever asked for it."""
NAMED = re.compile(r"`([a-z_]+)=")


def find_messages() -> Iterator[tuple[str, str]]:
    """Give every text of the package but those of the command line and docstrings, with its place."""
    for path in sorted(PACKAGE.rglob("*.py")):
        name = str(path.relative_to(PACKAGE))
        if name.startswith("cli/") or name in SHELL:
            continue
        tree = ast.parse(path.read_text(encoding="utf-8"))
        parts = {part for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in node.values}
        described = {node.value for node in ast.walk(tree) if isinstance(node, ast.Expr)}
        for node in ast.walk(tree):
            if node in parts or node in described:
                continue
            if isinstance(node, ast.JoinedStr):
                told = (str(part.value) if isinstance(part, ast.Constant) else "x" for part in node.values)
                yield f"{name}:{node.lineno}", "".join(told)
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield f"{name}:{node.lineno}", node.value


def test_no_message_names_an_option_in_the_words_of_the_command_line() -> None:
    """But in a whole command, in backquotes."""
    told = ((place, re.sub(r"`(distconv|pip) [^`]*`", "", text)) for place, text in find_messages())
    assert [place for place, text in told if re.search(r"(?<![\w-])--[a-z]", text)] == []


def test_every_option_that_a_message_names_is_one_of_both_and_is_told_as_one_types_it() -> None:
    functions = [getattr(distconv, name) for name in distconv.__all__]
    known = {
        parameter
        for function in functions
        if inspect.isfunction(function)
        for parameter in inspect.signature(function).parameters
    }
    typed = {option for command in cli.commands.values() for made in command.params for option in made.opts}
    found = [(place, text) for place, text in find_messages() if NAMED.search(text)]
    assert len(found) > 40
    for place, text in found:
        for name in NAMED.findall(text):
            assert name in known, place
            assert f"--{name.replace('_', '-')}" in typed, place
        assert not NAMED.search(name_options(text)), (
            f"{place}: the command line would say {name_options(text)}"
        )


@pytest.mark.parametrize(
    ("text", "typed"),
    [
        ("give `family='llama-3.2'` or `like=FOLDER`", "give --family llama-3.2 or --like FOLDER"),
        ("leave `family=` out", "leave --family out"),
        ("`fill_from_like=True`", "--fill-from-like"),
        ("/data/shards=4/x and `distconv verify`", "/data/shards=4/x and `distconv verify`"),
        ("`x=1; rm`", "`x=1; rm`"),
    ],
)
def test_options_are_named_as_one_types_them(text: str, typed: str) -> None:
    assert name_options(text) == typed


def test_the_same_error_and_note_are_told_to_each_in_their_own_words(
    checkpoint: Callable[[Spec], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = checkpoint(Spec())
    with pytest.raises(distconv.UsageError, match=r"^`shards=` is the number .* it needs `to='meta'`$"):
        distconv.convert(source, tmp_path / "out", shards=2)
    assert "add `instruct=True`" in str(distconv.inspect(source))
    with pytest.raises(SystemExit):
        main(["convert", str(source), str(tmp_path / "out"), "--shards", "2"])
    assert "error: --shards is the number of Meta's shards; it needs --to meta\n" in capsys.readouterr().err
    main(["inspect", str(source), "--json"])
    shown = capsys.readouterr()
    assert "add --instruct" in shown.err
    assert "add --instruct" in shown.out


def test_what_is_missing_is_had_from_a_clone_and_by_an_extra_that_there_is() -> None:
    """No package index has distconv."""
    texts = {path.name: path.read_text(encoding="utf-8") for path in PACKAGE.rglob("*.py")}
    assert [name for name, text in texts.items() if "distconv[" in text] == []
    extras = tomllib.loads((PACKAGE.parent / "pyproject.toml").read_text())["project"][
        "optional-dependencies"
    ]
    used = re.findall(
        r"(?:describe_missing_package\([^,]+, |\bneed\([^,]+, )\"(\w+)\"", "\n".join(texts.values())
    )
    assert len(used) >= 5
    assert set(used) <= set(extras)
    assert describe_missing_package("Pillow", "image").endswith(
        "`pip install --constraint constraints.txt '.[image]'`"
    )


def find_errors() -> Iterator[tuple[str, str]]:
    """Give what each error begins with that is raised in words of its own, with its place."""
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call) and node.exc.args:
                first = node.exc.args[0]
                if isinstance(first, ast.JoinedStr) and first.values:
                    first = first.values[0]
                if isinstance(first, ast.Constant) and isinstance(first.value, str):
                    yield f"{path.relative_to(PACKAGE)}:{node.lineno}", first.value


def test_who_may_not_read_a_file_is_sent_to_that_file_too(tmp_path: Path) -> None:
    error = PermissionError(errno.EACCES, "Permission denied", str(tmp_path / "file"))
    words = (
        f"{tmp_path / 'file'}: Permission denied; check its permissions, and those of the folders above it"
    )
    assert describe_os_error(error) == words


def test_a_file_system_without_large_files_leads_to_smaller_ones(
    checkpoint: Callable[[Spec], Path], tmp_path: Path
) -> None:
    # A limit of the shell's is told as that of a file system is.
    line = f"ulimit -f 100; trap '' XFSZ; exec {sys.executable} -m distconv convert {checkpoint(Spec())} {tmp_path / 'out'}"
    done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    (error,) = (line for line in done.stderr.splitlines() if line.startswith("error: "))
    words = "File too large; smaller ones are written by --max-shard-size 2GB, or give another folder"
    assert error.endswith(words)
    assert "starts again" not in done.stderr


def test_no_error_begins_with_a_capital_but_that_of_a_name() -> None:
    found = list(find_errors())
    assert len(found) > 100
    assert [
        place for place, text in found if re.match(r"[A-Z][a-z]", text) and not text.startswith("Ray ")
    ] == []
