"""What the documents tell people to type is understood, and the demonstration runs."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import click
import pytest

from distconv.cli.commands import cli
from tests.patience import HANG_SECONDS

ROOT = Path(__file__).parents[1]
DOCUMENTS = [
    ROOT / "README.md",
    *sorted((ROOT / "cluster").iterdir()),
    *sorted((ROOT / "examples").glob("*.py")),
]


def find_commands() -> list[str]:
    """Find every command of distconv in code blocks, in the help, and in inline code with options."""
    found = []
    for path in DOCUMENTS:
        text = path.read_text(encoding="utf-8").replace("\\\n", " ")
        found += re.findall(r"^(?:.*-- )?(?:\$ )?(distconv [a-z]+ .*)$", text, re.MULTILINE)
        found += re.findall(r"`(distconv [a-z]+ [^`]+)`", text)
    for command in cli.commands.values():
        found += re.findall(r"^ +(?:.*-- )?(distconv [a-z]+ .*)$", command.help or "", re.MULTILINE)
    found = [re.split(r"\s+#|\s+[<>|]\s|\)\"", command)[0] for command in found]
    return sorted({command for command in found if "..." not in command})


@pytest.mark.parametrize("command", find_commands())
def test_a_command_in_the_documents_is_understood(command: str) -> None:
    verb, *arguments = shlex.split(command)[1:]
    try:
        cli.commands[verb].make_context(verb, arguments)
    except click.MissingParameter:
        # "distconv convert --check" in a sentence leaves the folders to the reader.
        assert "`" not in command


def test_there_are_commands_in_the_documents() -> None:
    assert {command.split()[1] for command in find_commands()} == set(cli.commands)


@pytest.mark.slow
def test_the_demonstration_runs(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, ROOT / "examples" / "demo.py"],
        cwd=tmp_path, capture_output=True, text=True, check=False, timeout=HANG_SECONDS,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
