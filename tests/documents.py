"""Reads Markdown as a person does: sections, blocks of commands with what they print, anchors; and compares output."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
CUT = "…"

_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)
# Times and sizes, and what is one of a small model and many of a real one.
_FIGURE = re.compile(r"\d[\d,.]*(?: [kMGT]?i?B\b)?")
_PLURAL = re.compile(r"\b(chunk|shard|file|part|line)s\b")
_COLOUR = re.compile(r"\x1b\[[\d;]*m")


@dataclass(frozen=True, slots=True)
class Block:
    """One fenced block; ``before`` is the paragraph that stands before it."""

    language: str
    text: str
    before: str

    @property
    def is_run(self) -> bool:
        """Whether the tests run it: what is needed is not to be had everywhere, and said before the block."""
        return "**Needs" not in self.before

    @property
    def commands(self) -> list[str]:
        """The commands of a block for a shell, each in one line and without comments."""
        lines = self.text.replace("\\\n", " ").splitlines()
        stripped = (re.sub(r"(^|\s)#.*", "", line).strip() for line in lines)
        return [" ".join(line.split()) for line in stripped if line]


def read_sections(path: Path) -> dict[str, list[Block]]:
    """Give the blocks below each heading of the second rank."""
    parts = re.split(r"^## (.+)$", path.read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]
    return {title: list(_read_blocks(text)) for title, text in zip(parts[::2], parts[1::2], strict=True)}


def read_blocks(path: Path) -> list[Block]:
    """Give all blocks of a document."""
    return list(_read_blocks(path.read_text(encoding="utf-8")))


def _read_blocks(text: str) -> Iterator[Block]:
    end = 0
    for match in _FENCE.finditer(text):
        between = text[end : match.start()].strip()
        yield Block(match[1], match[2], between.split("\n\n")[-1])
        end = match.end()


def read_anchors(path: Path) -> set[str]:
    """Give the anchors that GitHub makes of a document's headings."""
    text = _FENCE.sub("", path.read_text(encoding="utf-8"))
    return {
        re.sub(r"[^\w\- ]", "", heading).strip().lower().replace(" ", "-")
        for heading in _HEADING.findall(text)
    }


def read_links(path: Path) -> list[str]:
    """Give where a document's links and pictures lead, code left out."""
    text = re.sub(r"`[^`]*`", "", _FENCE.sub("", path.read_text(encoding="utf-8")))
    return re.findall(r"\]\(([^)\s]+)\)", text)


def find_missing_line(shown: str, printed: str) -> str | None:
    """Give the first line of ``shown`` that ``printed`` lacks, figures aside; None where both agree.

    What stands before the first line shown and behind the last one is left out. A line that is nothing but ``…``
    stands for any lines between two, and one within a line for any text.
    """
    lines = [_level(line) for line in _COLOUR.sub("", printed).replace("\r", "\n").splitlines()]
    lines = [line for line in lines if line]
    at, may_skip = 0, True
    for wanted in shown.splitlines():
        if wanted.strip() == CUT:
            may_skip = True
            continue
        pattern = re.compile(".*".join(re.escape(part) for part in _level(wanted).split(CUT)))
        found = next((number for number in range(at, len(lines)) if pattern.fullmatch(lines[number])), None)
        if found is None or (found > at and not may_skip):
            return wanted
        at, may_skip = found + 1, False
    return None


def _level(line: str) -> str:
    without = _PLURAL.sub(r"\1", _FIGURE.sub("#", line))
    return " ".join(without.split())
