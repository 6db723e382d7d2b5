"""What the documents tell people to type is understood, and where they lead is there."""

import ast
import os
import re
import shlex
import subprocess
from pathlib import Path

import click
import pytest

import distconv
from distconv.cli.commands import cli
from tests.documents import ROOT, find_missing_line, read_anchors, read_blocks, read_links

DOCUMENTS = [
    *sorted(ROOT.glob("*.md")),
    *sorted((ROOT / "cluster").iterdir()),
    *sorted((ROOT / "examples").glob("*.py")),
    *sorted((ROOT / "examples").glob("*.md")),
]
MARKDOWN = [path for path in DOCUMENTS if path.suffix == ".md"]


def name_of(path: Path) -> str:
    """Name a case by its document."""
    return str(path.relative_to(ROOT))


def find_commands() -> list[str]:
    """Find every command of distconv in code blocks, in the help, and in inline code with options."""
    found = []
    for path in DOCUMENTS:
        text = path.read_text(encoding="utf-8")
        typed = "\n".join(block.text for block in read_blocks(path)) if path in MARKDOWN else text
        typed = typed.replace("\\\n", " ")
        found += re.findall(r"^(?:.*-- )?(?:\$ )?(distconv [a-z]+ .*)$", typed, re.MULTILINE)
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


@pytest.mark.parametrize("document", MARKDOWN, ids=name_of)
def test_links_lead_to_files_and_headings_that_are_there(document: Path) -> None:
    broken = []
    for link in read_links(document):
        place, _hash, anchor = link.partition("#")
        target = document.parent / place if place else document
        if ":" not in place and (not target.exists() or (anchor and anchor not in read_anchors(target))):
            broken.append(link)
    assert not broken


@pytest.mark.parametrize("document", MARKDOWN, ids=name_of)
def test_python_in_the_documents_is_python_and_names_what_distconv_has(document: Path) -> None:
    for block in read_blocks(document):
        if block.language == "python":
            for node in ast.walk(ast.parse(block.text)):
                if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "distconv":
                    assert hasattr(distconv, node.attr), ast.unparse(node)


def test_what_the_documents_make_the_makefile_makes() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = {
        target
        for document in MARKDOWN
        for target in re.findall(r"(?:^|`)(?:[A-Z]+=\S+ )?make ([a-z-]+)", document.read_text(), re.MULTILINE)
    }
    assert "demo" in named
    assert named <= targets


def test_make_alone_tells_what_can_be_made_and_makes_nothing(tmp_path: Path) -> None:
    # As a person calls it, and not as a make that runs the tests does: that would name folders as it goes.
    alone = {
        name: value for name, value in os.environ.items() if name not in ("MAKELEVEL", "MAKEFLAGS", "MFLAGS")
    }
    done = subprocess.run(
        ["make", "-f", ROOT / "Makefile"], cwd=tmp_path, env=alone, capture_output=True, text=True, check=True
    )
    head = (ROOT / "Makefile").read_text().partition("\n\n")[0]
    assert done.stdout == re.sub(r"^# ", "", head, flags=re.MULTILINE) + "\n"
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("shown", "missing"),
    [
        ("wrote 16.06 GB in 12 s", None),
        ("81 chunks\nwrote …", None),
        ("81 chunks\n…\ndone", None),
        ("81 chunks\ndone", "done"),
        ("done\n…\n81 chunks", "81 chunks"),
        ("wrote 16.06 GB", "wrote 16.06 GB"),
        ("1 tensor", "1 tensor"),
    ],
)
def test_shown_output_is_compared_line_by_line_figures_aside(shown: str, missing: str | None) -> None:
    assert (
        find_missing_line(shown, "  1 chunk\n\nwrote 3.1 kB in 0.1 s\n2 tensors\n\x1b[1mdone\x1b[0m\n")
        == missing
    )


def test_anchors_are_those_of_github(tmp_path: Path) -> None:
    (tmp_path / "a.md").write_text("# It's `x_y`, now\n```sh\n# none\n```\n## What now?\n")
    assert read_anchors(tmp_path / "a.md") == {"its-x_y-now", "what-now"}
