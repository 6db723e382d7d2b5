"""What messages call an option: as Python does for those who call functions, as one types it on the command line."""

import ast
import inspect
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import distconv
from distconv.cli import main
from distconv.cli.commands import cli
from distconv.cli.screen import name_options
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
    told = ((place, re.sub(r"`distconv [^`]*`", "", text)) for place, text in find_messages())
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
