"""A pickle's machine: its stack, its marks, its memo, and the bytes that it reads."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType

from distconv.errors import InputError
from distconv.formats.marks import Class

_LIMIT_TEXT_BYTES = 1 << 20
_LIMIT_LINE_BYTES = 256
_STOP = ord(".")
_MEMOIZE, _BINGET, _LONG_BINGET, _BININT1, _BININT2 = 0x94, ord("h"), ord("j"), ord("K"), ord("M")
_FIRST_NUMBERS = 1 << 12
NOTHING = object()
"""Stands in a memo where nothing was kept."""

Phrase = tuple[object, tuple[object, ...]]
"""What some opcodes push, and what they keep."""


@dataclass(frozen=True, slots=True)
class Language:
    """What pickles of one kind say: all that they may name, and in how many steps."""

    names: Mapping[tuple[str, str], object]
    """What stands for a name, by module and name; all other names are refused."""
    most_steps: int
    refusal: str
    """The end of the sentence that refuses a name."""
    again: str = "download it again"
    """What to do where the pickle is damaged."""
    rows: Mapping[Class, tuple[Class, ...]] = field(default_factory=lambda: MappingProxyType({}))
    """Behind an object of a class: those of which there are often others, one row after the other."""


class Machine:
    """A pickle's stack, marks and memo; ``position`` is that of the next byte to read.

    ``patterns`` and ``phrases`` are what ``take_rows`` knows of opcodes that come again, as long as the memo stays as it is;
    ``learned`` counts the patterns that there ever were, and ``saved_steps`` opcodes that were carried out at once.
    """

    __slots__ = (
        "content", "language", "learned", "marks", "memo", "patterns", "phrases", "position", "saved_steps", "stack",
    )  # fmt: skip

    def __init__(self, content: bytes, start: int, language: Language) -> None:
        self.content = content
        self.language = language
        self.position = start
        self.stack: list[object] = []
        self.marks: list[int] = []
        self.memo: list[object] = []
        self.patterns: dict[tuple[Class, ...], re.Pattern[bytes]] = {}
        self.phrases: dict[bytes, Phrase] = {}
        self.learned = self.saved_steps = 0

    def run(self, handlers: Sequence[Callable[["Machine"], None]]) -> object:
        """Carry out opcodes, each by its handler, until STOP."""
        content, stack, memo, position = self.content, self.stack, self.memo, self.position
        try:
            for _ in range(self.language.most_steps):
                code = content[position]
                position += 1
                # Most steps are one of these five; here they take half as long. What is missing at the end is
                # missed behind it.
                if code == _MEMOIZE:
                    memo.append(stack[-1])
                elif code == _BININT1:
                    position += 1
                    stack.append(content[position - 1])
                elif code == _BINGET:
                    position += 1
                    stack.append(self.recall(content[position - 1]))
                elif code == _BININT2:
                    position += 2
                    stack.append(content[position - 2] | content[position - 1] << 8)
                elif code == _LONG_BINGET:
                    position += 4
                    stack.append(self.recall(int.from_bytes(content[position - 4 : position], "little")))
                elif code == _STOP:
                    return stack.pop()
                else:
                    self.position = position
                    handlers[code](self)
                    position = self.position
        finally:
            self.position = max(self.position, position)
        raise self.too_long()

    def save_steps(self, count: int) -> None:
        """Count opcodes that were carried out at once; InputError where these alone are too many."""
        self.saved_steps += count
        if self.saved_steps > self.language.most_steps:
            raise self.too_long()

    def too_long(self) -> InputError:
        """Give the error of a pickle with too many opcodes."""
        return InputError(
            f"its description has more than {self.language.most_steps:,} steps; refused as unsafe"
        )

    def keep(self, number: int, value: object) -> None:
        """Put a value into the memo, whose numbers are in a row but for the first ones."""
        if number > max(len(self.memo), _FIRST_NUMBERS):
            raise InputError(f"its description keeps something as {number:,}; refused as unsafe")
        self.memo += [NOTHING] * (number - len(self.memo))
        self.memo[number : number + 1] = [value]
        self.patterns.clear()
        self.phrases.clear()

    def recall(self, number: int) -> object:
        """Give what was kept."""
        if number >= len(self.memo) or self.memo[number] is NOTHING:
            raise IndexError(f"nothing was kept as {number}")
        return self.memo[number]

    def take_number(self, size_bytes: int) -> int:
        """Read a number that says how many or which, little-endian."""
        start = self.position
        self.position = end = start + size_bytes
        # What is missing of a number at the end is missed when the next opcode is read.
        return int.from_bytes(self.content[start:end], "little")

    def take_bytes(self, size_bytes: int) -> bytes:
        """Read text or bytes of a length that the pickle claims."""
        if size_bytes > _LIMIT_TEXT_BYTES:
            raise InputError(f"its description holds {size_bytes:,} bytes in one piece; refused as unsafe")
        start = self.position
        self.position = end = start + size_bytes
        return self.content[start:end]

    def take_line(self) -> str:
        """Read up to the end of a line."""
        start = self.position
        end = self.content.find(b"\n", start, start + _LIMIT_LINE_BYTES)
        if end < 0:
            self.position = start + _LIMIT_LINE_BYTES
            raise ValueError("a line without an end")
        self.position = end + 1
        return self.content[start:end].decode()

    def take_marked(self) -> list[object]:
        """Take from the stack what lies above the last mark."""
        first = self.marks.pop()
        marked = self.stack[first:]
        del self.stack[first:]
        return marked
